from __future__ import annotations

import base64

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc._gen.dst.v1.catalog_service_pb2 import ListModelsRequest
from dst_grpc.errors import InvalidRequest
from dst_grpc.rpc.pagination import MAX_PAGE_SIZE, page_of
from dst_grpc.wire.envelope import MESSAGE_BYTES


def page(
    names: list[str], size: int, token: str = "", *, scope: str = "names", max_bytes: int = MESSAGE_BYTES
) -> tuple[list[str], str]:
    request = ListModelsRequest(page_size=size, page_token=token)
    found, following = page_of(
        names, request, key=str, to_wire=lambda name: StringValue(value=name), scope=scope, max_bytes=max_bytes
    )
    return [row.value for row in found], following


def pages(names: list[str], size: int, max_bytes: int = MESSAGE_BYTES) -> list[list[str]]:
    found, token = [], ""
    while True:
        one, token = page(names, size, token, max_bytes=max_bytes)
        found.append(one)
        if not token:
            return found


@given(st.sets(st.text()), st.integers(1, 7))
def test_pages_together_are_the_list(names: set[str], size: int) -> None:
    ordered = sorted(names)
    found = pages(ordered, size)
    assert [name for one in found for name in one] == ordered
    assert all(len(one) == size for one in found[:-1])


def test_sizes_have_a_default_and_a_maximum() -> None:
    names = [f"{i:04d}" for i in range(1500)]
    assert len(pages(names, 0)[0]) == 100
    assert len(pages(names, 10**6)[0]) == MAX_PAGE_SIZE


def test_what_comes_and_goes_meanwhile_shifts_nothing() -> None:
    first, token = page(["a", "b", "d"], 2)
    assert first == ["a", "b"]
    assert page(["0", "c", "d"], 2, token)[0] == ["c", "d"]


def test_a_page_ends_before_it_is_too_large_and_has_a_row_at_least() -> None:
    names = [letter * 1000 for letter in "abcdefgh"] + ["i" * 9000, "j"]
    found = pages(names, 100, max_bytes=4096 + 3100)
    assert found == [names[:3], names[3:6], names[6:8], names[8:9], names[9:]]


NO_PAIR, NO_JSON = (base64.urlsafe_b64encode(data).decode() for data in (b"[1, 2]", b"{"))
FOREIGN = page(["a", "b"], 1, scope="others")[1]


@pytest.mark.parametrize("token", ["x", "!", "ä", FOREIGN, NO_PAIR, NO_JSON])
def test_a_token_of_something_else_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        page(["a"], 1, token)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]
