"""Pages of sorted lists, and the opaque tokens that lead from one to the next."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from dst_grpc.errors import InvalidRequest

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

T = TypeVar("T")


def page_of(
    items: Sequence[T], *, key: Callable[[T], str], page_size: int, page_token: str, scope: str
) -> tuple[list[T], str]:
    """A page of *items*, which ascend in *key*, and the token of the next one, empty after the last.

    Tokens name the last key sent rather than a position, so that items which come and go meanwhile shift nothing.
    *scope* names the list and its filters; a token of another one is refused.

    Raises:
        InvalidRequest: *page_token* is none that this list gave out.
    """
    size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    last = _key_in(page_token, scope) if page_token else None
    rest = [item for item in items if last is None or key(item) > last]
    page = rest[:size]
    return page, _token(key(page[-1]), scope) if len(rest) > size else ""


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
