"""Urgency: how soon a request is wanted."""

from __future__ import annotations

from dataclasses import dataclass

from dst_grpc.domain.callers import Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Urgency:
    """How soon a request is wanted."""

    priority: Priority = Priority.INTERACTIVE
    """Its class: that somebody waits for it, or that a program works through many."""
    deadline: float | None = None
    """Reading of `time.monotonic` at which its caller gives up; None = never."""


WHENEVER = Urgency()
"""Of a request that somebody waits for, however long."""
