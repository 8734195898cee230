"""Readings: what a server's gauges and counters show when somebody looks at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from dst_grpc.domain.callers import Priority


class MemoryKind(StrEnum):
    """What memory is used for."""

    WEIGHTS = "weights"
    """Contexts: models and autoencoder sets."""
    RUNS = "runs"
    """Requests that run, as estimated."""
    STORE = "store"
    """Recordings of recent runs, and small answers."""
    ALLOCATOR = "allocator"
    """All tensors on a GPU, as torch's allocator counts them."""
    UNREAD = "unread"
    """Answers that wait for their readers."""
    PUT_TENSORS = "put_tensors"
    """Tensors that callers put."""
    KEPT_GRAPHS = "kept_graphs"
    """Attribution graphs that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """How much memory is used for something."""

    kind: MemoryKind
    """For what."""
    device: str = "cpu"
    """Whose memory; "cpu" for main memory."""
    used_bytes: int
    """Bytes in use."""
    limit_bytes: int | None = None
    """Most bytes that may be; None = no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReading:
    """What a device does, and what waits for it."""

    device: str
    """Its name, e.g. "cpu" or "cuda:0"."""
    waiting: Mapping[Priority, int]
    """How many passes and steps of answers wait, by class."""
    oldest_seconds: float
    """How long the oldest of them has waited; 0 if none waits."""
    expected_wait: float
    """Seconds that a caller of whom nothing waits would wait now for its turn."""
    busy_seconds: float
    """Time that it has worked, up to now."""
    store_hits: int
    """How often a recording, or an answer, was found in the store."""
    store_misses: int
    """How often it was looked for in vain."""
    memory: tuple[MemoryReading, ...]
    """What its runs and recordings take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextsReading:
    """The contexts of a server."""

    by_state: Mapping[str, int]
    """How many there are in each state, by its name in lower case."""
    bytes_of: Mapping[str, int]
    """Bytes that each context of the registry takes that takes any, by name."""
    memory: tuple[MemoryReading, ...]
    """What they take on each device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInfo:
    """What a server was built from."""

    torch: str = ""
    """Version of torch; empty without it."""
    cuda: str = ""
    """Version of CUDA that torch was built with; empty without it."""
