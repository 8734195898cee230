"""Forks: gRPC's threads are not in the child, and locks that they held stay taken there.

A call in the child would wait forever or crash, on a client that it inherited and, if one was open at the fork, on one
of its own. Both are refused at once; and what was open is left as it is, since to close it would be gRPC's work too.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc.aio

_open: weakref.WeakSet[grpc.aio.Channel] = weakref.WeakSet()
_inherited: list[grpc.aio.Channel] = []
"""Channels that were open when this process was forked, kept so that they are never closed in it."""


def note_open(channel: grpc.aio.Channel) -> None:
    """Note a new channel; it counts as open until `note_closed`, or until nobody refers to it."""
    _open.add(channel)


def note_closed(channel: grpc.aio.Channel) -> None:
    """Note that a channel was closed."""
    _open.discard(channel)


def check_may_open() -> None:
    """Raise RuntimeError if this process was forked while a channel was open."""
    if _inherited:
        raise RuntimeError(
            "this process was forked while a client was open, and gRPC works no more in it: close every client "
            "before the fork, or start processes with multiprocessing's 'spawn' or 'forkserver'"
        )


def check_same_process(pid: int) -> None:
    """Raise RuntimeError in another process than *pid*, that of whoever asks."""
    if os.getpid() != pid:
        raise RuntimeError(
            "this client was made before the process was forked, and does not work in the child: make another after "
            "the fork, and close this one before it"
        )


def _keep_open() -> None:
    _inherited.extend(_open)


if hasattr(os, "register_at_fork"):  # Windows forks nothing
    os.register_at_fork(after_in_child=_keep_open)
