"""Durations: seconds as a float in the domain, google.protobuf.Duration on the wire."""

from __future__ import annotations

import math

from google.protobuf.duration_pb2 import Duration

_NANOS = 1_000_000_000
_MAX_SECONDS = 315_576_000_000
"""About 10,000 years, the longest Duration that is valid."""


def duration_to_wire(seconds: float) -> Duration:
    """*seconds* to the nearest nanosecond; infinities become the longest Duration, NaN none at all."""
    if math.isnan(seconds):
        return Duration()
    nanos = round(max(-_MAX_SECONDS, min(_MAX_SECONDS, seconds)) * _NANOS)
    sign = -1 if nanos < 0 else 1
    whole, rest = divmod(abs(nanos), _NANOS)
    return Duration(seconds=sign * whole, nanos=sign * rest)


def seconds_from_wire(duration: Duration) -> float:
    """The duration in seconds; exact for what `duration_to_wire` made of a number of whole nanoseconds."""
    return (duration.seconds * _NANOS + duration.nanos) / _NANOS
