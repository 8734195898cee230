"""Timelines: what becomes of a request, stage by stage. Logs tell how long each took, and traces when."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Fact = str | int | float | bool
"""What else is known of a stage: a number or a name, never a text of the request."""


class Stage(StrEnum):
    """A part of the time that a request takes."""

    QUEUE = "queue"
    """It waits for its turn at the device."""
    LOAD = "load"
    """It waits until its contexts are loaded."""
    PASS = "pass"
    """Its prompt runs, forward and backward."""
    DERIVE = "derive"
    """A step of its answer is computed from what was recorded."""
    WRITE = "write"
    """From the first message of its answer until the client has taken the last."""


class Timeline:
    """What becomes of one request. Used on the event loop only.

    Subclasses tell it to somebody.
    """

    __slots__ = ("contexts", "device", "model", "now", "seconds", "trace_id")

    def __init__(self, trace_id: str = "") -> None:
        """Start with nothing."""
        self.trace_id = trace_id
        """Id of its trace, 32 hexadecimal digits; empty if it has none."""
        self.model = ""
        """Name of its model, once that is known."""
        self.device = ""
        """The device of its model, once that is known."""
        self.now: Stage | None = None
        """Where it is: in `QUEUE` from when it is let in, in `PASS` from its first pass until its answer is made, then
        in `WRITE`. None if it was not let in, or needs no device."""
        self.contexts: Sequence[str] = ()
        """Names of the other contexts that it is about: its autoencoder sets, or what it loads or unloads."""
        self.seconds: dict[Stage, float] = {}
        """How long it has been in each stage so far."""

    @property
    def exemplar(self) -> Mapping[str, str] | None:
        """The labels by which a metric points to its trace; None unless that is recorded."""
        return None

    def note(
        self,
        stage: Stage,
        started: float,
        ended: float,
        *,
        seconds: float | None = None,
        batch: object = None,
        **facts: Fact,
    ) -> None:
        """Note that it was in *stage* between two readings of `time.monotonic`.

        Args:
            stage: the stage.
            started: when it began.
            ended: when it ended.
            seconds: for how long, if others were served in its midst; None = all the time.
            batch: what `batch` returned, if it was in this stage together with others.
            facts: what else is known of it.
        """
        del batch, facts
        self.seconds[stage] = self.seconds.get(stage, 0.0) + (ended - started if seconds is None else seconds)

    def batch(self, others: Sequence[Timeline], started: float, ended: float, **facts: Fact) -> object:
        """Tell that it ran together with *others*; the result is for `note`."""
        del others, started, ended, facts
        return None

    def item(self) -> Timeline:
        """That of one request of the stream whose timeline this is."""
        return Timeline(self.trace_id)
