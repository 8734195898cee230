"""Version, limits and features of a server."""

from __future__ import annotations

from dataclasses import dataclass

from dst_grpc.domain.callers import Caller

PROTOCOL_VERSION = 1
"""Which additions to dst.v1 this package has: 1 is dst.v1 as of version 0.1.0; each release that adds to it counts one
up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Limits of a server."""

    max_request_bytes: int
    """Largest message that it takes."""
    max_response_bytes: int
    """Largest message that it sends, unless a single element is larger."""
    max_queued_requests: int
    """Requests that may wait for a device."""
    max_items_in_flight_per_stream: int
    """Items of one stream that are worked on at once; reading pauses beyond."""
    max_items_per_stream: int
    """Items of one stream in all."""
    max_run_bytes: int
    """Estimated device memory, without weights, that all runs may take together."""
    max_put_tensor_bytes: int
    """Bytes of tensors that one caller may have stored."""
    max_put_tensor_ttl: float
    """Longest lifetime of a stored tensor, in seconds."""
    max_queued_requests_per_caller: int
    """Requests of one caller that may wait for a device."""
    patience: float
    """Seconds that a request without a deadline may be expected to take; beyond, it is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLoad:
    """What waits for a device."""

    device: str
    """Its name, e.g. "cpu" or "cuda:0"."""
    expected_wait: float
    """Seconds that a caller of whom nothing waits would wait now for its turn."""
    waiting_requests: int
    """How many passes and steps of answers wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """Version, limits and features of a server."""

    version: str
    """Its version, e.g. "0.1.0"."""
    protocol_version: int
    """Which additions to dst.v1 it has; see `PROTOCOL_VERSION`."""
    limits: ServerLimits
    """Its limits."""
    features: tuple[str, ...] = ()
    """What its operator has switched on, by name."""
    caller: Caller | None = None
    """Who asks, as the server knows it; None from servers that do not tell."""
    loads: tuple[DeviceLoad, ...] = ()
    """What waits for each device that has been used."""
