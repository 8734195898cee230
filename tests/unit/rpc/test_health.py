"""What lasts as long as a watch."""

from __future__ import annotations

import weakref
from typing import Any

from dst_grpc.rpc.draining import DrainSignal
from dst_grpc.rpc.health import LIVE, Health, Response


class Request:
    """A request, of which those of protobuf have no weak references to tell whether it is still there."""

    service = LIVE


async def test_a_watch_keeps_nothing_of_its_request() -> None:
    """Anybody may open as many as they like, and a request may be large."""
    request: Any = Request()
    kept = weakref.ref(request)
    watch = Health([], [], DrainSignal()).Watch(request, None)
    del request
    assert (await anext(watch)).status == Response.SERVING
    assert kept() is None
