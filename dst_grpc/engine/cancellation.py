"""Cancellation: how the event loop stops work that nobody waits for any more.

Work on a device's thread makes a check every now and then, which raises once it is cancelled: at every tap, once per
layer of a backward pass, before every block of the unembedding, before every layer that is derived. A check reads plain
flags, so that it costs next to nothing and may be made on threads of torch's.
"""

from __future__ import annotations

from collections.abc import Callable

from dst_grpc.errors import Cancelled

Check = Callable[[], None]
"""Raises Cancelled if the work is cancelled, else does nothing."""


def never_cancelled() -> None:
    """The check of work that nobody can cancel."""


class Cancellation:
    """Whether one piece of work is cancelled. Set on any thread, once and for all."""

    __slots__ = ("_is_cancelled",)

    def __init__(self) -> None:
        """Start with nothing cancelled."""
        self._is_cancelled = False

    def cancel(self) -> None:
        """Stop the work at its next check."""
        self._is_cancelled = True

    def check(self) -> None:
        """Raise Cancelled if it is."""
        if self._is_cancelled:
            raise cancelled()


def cancelled() -> Cancelled:
    """What a check raises."""
    return Cancelled("nobody waits for the answer any more")
