from __future__ import annotations

import pytest

from dst_grpc.rpc.request_id import request_id_of


@pytest.mark.parametrize("usable", ["a", "0192-af/b:c", "~" * 128])
def test_the_id_that_a_call_brings_is_kept(usable: str) -> None:
    assert request_id_of([("other", "x"), ("x-request-id", usable)]) == usable


@pytest.mark.parametrize("unusable", ["", "a b", "a\nb", "é", "~" * 129])
def test_what_would_spoil_the_log_is_replaced(unusable: str) -> None:
    made = request_id_of([("x-request-id", unusable)])
    assert len(made) == 16
    assert set(made) <= set("0123456789abcdef")


def test_calls_without_an_id_have_different_ones() -> None:
    assert len({request_id_of([]) for _ in range(100)}) == 100
