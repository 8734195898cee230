from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc.errors import InvalidRequest
from dst_grpc.rpc.pagination import MAX_PAGE_SIZE, page_of


def pages(names: list[str], size: int) -> list[list[str]]:
    found, token = [], ""
    while True:
        page, token = page_of(names, key=str, page_size=size, page_token=token, scope="names")
        found.append(page)
        if not token:
            return found


@given(st.sets(st.text()), st.integers(1, 7))
def test_pages_together_are_the_list(names: set[str], size: int) -> None:
    ordered = sorted(names)
    found = pages(ordered, size)
    assert [name for page in found for name in page] == ordered
    assert all(len(page) == size for page in found[:-1])


def test_sizes_have_a_default_and_a_maximum() -> None:
    names = [f"{i:04d}" for i in range(1500)]
    assert len(pages(names, 0)[0]) == 100
    assert len(pages(names, 10**6)[0]) == MAX_PAGE_SIZE


def test_what_comes_and_goes_meanwhile_shifts_nothing() -> None:
    page, token = page_of(["a", "b", "d"], key=str, page_size=2, page_token="", scope="names")
    assert page == ["a", "b"]
    page, _ = page_of(["0", "c", "d"], key=str, page_size=2, page_token=token, scope="names")
    assert page == ["c", "d"]


NO_PAIR, NO_JSON = (base64.urlsafe_b64encode(data).decode() for data in (b"[1, 2]", b"{"))
FOREIGN = page_of(["a", "b"], key=str, page_size=1, page_token="", scope="others")[1]


@pytest.mark.parametrize("token", ["x", "!", "ä", FOREIGN, NO_PAIR, NO_JSON])
def test_a_token_of_something_else_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        page_of(["a"], key=str, page_size=1, page_token=token, scope="names")
    assert [violation.field for violation in caught.value.violations] == ["page_token"]
