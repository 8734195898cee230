"""Pages of sorted lists, and the opaque tokens that lead from one to the next."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from dst_grpc.errors import InvalidRequest
from dst_grpc.wire.envelope import MESSAGE_BYTES

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_ROOM_BYTES = 4096
"""Bytes of a page besides its rows: the token, and a tag and a length for each."""
_ROW_BYTES = 6

T = TypeVar("T")
M = TypeVar("M", bound=Message)


class PageRequest(Protocol):
    """A request for a page."""

    page_size: int
    """Most rows in the answer; 0 means `DEFAULT_PAGE_SIZE`."""
    page_token: str
    """The next page's token of the previous answer; empty = the first page."""


def page_of(
    items: Sequence[T],
    request: PageRequest,
    *,
    key: Callable[[T], str],
    to_wire: Callable[[T], M],
    scope: str,
    max_bytes: int = MESSAGE_BYTES,
) -> tuple[list[M], str]:
    """A page of *items*, which ascend in *key*, as messages, and the token of the next one, empty after the last.

    A page ends where it would take more than *max_bytes*, but has one row at least. Tokens name the last key sent
    rather than a position, so that added and removed items do not shift pages. *scope* names the list and its filters;
    a token of another scope is refused.

    Raises:
        InvalidRequest: The page token is not one of this list.
    """
    size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    last = _key_in(request.page_token, scope) if request.page_token else None
    rest = [item for item in items if last is None or key(item) > last]
    page: list[M] = []
    room = max_bytes - _ROOM_BYTES
    for item in rest[:size]:
        row = to_wire(item)
        room -= row.ByteSize() + _ROW_BYTES
        if page and room < 0:
            break
        page.append(row)
    return page, _token(key(rest[len(page) - 1]), scope) if len(page) < len(rest) else ""


def _token(last: str, scope: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([scope, last]).encode()).decode()


def _key_in(token: str, scope: str) -> str:
    """The key that *token* was made of."""
    try:
        content = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        content = None
    match content:
        case [str(of), str(last)] if of == scope:
            return last
    raise InvalidRequest.of(
        "page_token", "is not a next_page_token of this list; the other fields must be those of the first request"
    )
