from __future__ import annotations

from dst_grpc.rpc.seen_ids import SeenIds


def test_an_id_is_new_once() -> None:
    ids = SeenIds()
    assert all(ids.add(f"item-{i}") for i in range(5000))
    assert not any(ids.add(f"item-{i}") for i in range(5000))
    assert ids.add("")
    assert not ids.add("")
    assert ids.add("item-5000")
