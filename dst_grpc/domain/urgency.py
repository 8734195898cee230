"""Urgency: how soon a request is wanted, and whether its answer is taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from dst_grpc.domain.callers import Priority


class Reader(Protocol):
    """Who takes an answer."""

    @property
    def has_stalled(self) -> bool:
        """Whether it has taken nothing for so long that others need not wait for it."""

    def give_up(self) -> None:
        """End its call, because others wait for what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Urgency:
    """How soon a request is wanted, and by whom."""

    priority: Priority = Priority.INTERACTIVE
    """Its class: that somebody waits for it, or that a program works through many."""
    deadline: float | None = None
    """Reading of `time.monotonic` at which its caller gives up; None = never."""
    reader: Reader | None = field(default=None, compare=False)
    """Who takes the answer; None for one who takes it at once."""


WHENEVER = Urgency()
"""Of a request that somebody waits for, however long."""
