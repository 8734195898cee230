"""Checksums of tensors are those of zlib, whichever library computes them."""

from __future__ import annotations

import sys
import zlib
from importlib import reload

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc.wire import checksums


@given(parts=st.lists(st.binary(max_size=100), max_size=5))
def test_parts_go_on_from_one_another(parts: list[bytes]) -> None:
    value = 0
    for part in parts:
        value = checksums.crc32(memoryview(part), value)
    assert value == zlib.crc32(b"".join(parts))


def test_a_client_alone_has_zlib(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "isal", None)
        patch.setitem(sys.modules, "isal.isal_zlib", None)
        assert reload(checksums).crc32 is zlib.crc32
    assert reload(checksums).crc32 is not zlib.crc32
