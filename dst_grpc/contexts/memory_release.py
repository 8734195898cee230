"""Memory release: a context's memory is free once the storages of all its tensors are, not once the context is deleted.

A view, a graph or an array that shares memory with a weight keeps the weight's storage alive after the context is
deleted. So the storages themselves are watched, by weak references.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.contexts.lifecycle import Context

_OURS = __name__.partition(".")[0]


def when_released(context: Context) -> asyncio.Future[None]:
    """A future that is done once *context* and the memory of all its weights have been freed. Keeps no reference to
    them.

    The caller must drop its own references before it waits.
    """
    loop = asyncio.get_running_loop()
    released = loop.create_future()
    watched = [context, *context.parts, *storages_of(context)]
    left = len(watched)

    def one_less() -> None:
        nonlocal left
        left -= 1
        if not left and not released.done():
            released.set_result(None)

    def on_any_thread() -> None:
        # The loop may be closed before the objects are freed.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(one_less)

    for one in watched:
        weakref.finalize(one, on_any_thread).atexit = False
    return released


def storages_of(context: Context) -> Iterator[torch.UntypedStorage]:
    """The storages of every tensor in *context*, including cached tensors that were computed from its weights."""
    seen: set[int] = set()
    waiting: list[object] = list(context.parts)
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value.untyped_storage()
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            waiting.extend(value)
        elif type(value).__module__.partition(".")[0] == _OURS:
            waiting.extend(getattr(value, "__dict__", {}).values())
            for cls in type(value).__mro__:
                names = vars(cls).get("__slots__", ())
                waiting.extend(getattr(value, name, None) for name in names if not name.startswith("__"))
