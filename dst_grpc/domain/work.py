"""What devices have done, for whoever observes them. Times are readings of `time.monotonic`, in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from dst_grpc.domain.callers import Priority


class JobDone(NamedTuple):
    """A piece of a request's work, a pass or a step of its answer, that a device has done."""

    caller: str
    """Name of the request's caller."""
    priority: Priority
    """The request's class."""
    model: str
    """Name of its model."""
    is_step: bool
    """Whether it was a step of an answer that had begun."""
    queued_at: float
    """When it began to wait for the device."""
    device_seconds: float
    """Its part of the device's time."""
    n_tokens: int
    """Tokens of its prompt that ran; 0 for a step, and for what was found in the store."""
    exemplar: Mapping[str, str] | None = None
    """The labels by which a metric points to the request's trace; None unless that is recorded."""


class PassesDone(NamedTuple):
    """The passes of runs that ran together."""

    n_prompts: int
    """How many runs."""
    n_tokens: int
    """Tokens of their prompts."""
    n_padding: int
    """Pads beside them."""
    forward_seconds: float
    """Time of the forward pass, without what interrupted it."""
    backward_seconds: float | None
    """Likewise of the gradient passes; None if there were none."""


class WorkDone(NamedTuple):
    """What a device has done: jobs that ran together."""

    device: str
    """The device."""
    started_at: float
    """When it began."""
    jobs: tuple[JobDone, ...]
    """What was done, of one model."""
    passes: tuple[PassesDone, ...]
    """The passes that this took; none for a step, whose passes are part of it."""


class LoadDone(NamedTuple):
    """A context that was read from its files."""

    model: str
    """Name of the model, or of that of the autoencoder set."""
    device: str
    """Where it lies."""
    seconds: float
    """How long that took."""


OnWork = Callable[[WorkDone], None]
"""Told of what a device has done, on the event loop."""
OnLoad = Callable[[LoadDone], None]
"""Told of what was loaded, on the event loop."""
