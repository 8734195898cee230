"""Durations are float seconds in the domain, google.protobuf.Duration in messages; times are a datetime in UTC."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_NANOS = 1_000_000_000
_MAX_SECONDS = 315_576_000_000
"""About 10,000 years, the longest Duration that is valid."""


def duration_to_wire(seconds: float) -> Duration:
    """*seconds* to the nearest nanosecond; infinities become the longest Duration, NaN 0."""
    if math.isnan(seconds):
        return Duration()
    nanos = round(max(-_MAX_SECONDS, min(_MAX_SECONDS, seconds)) * _NANOS)
    sign = -1 if nanos < 0 else 1
    whole, rest = divmod(abs(nanos), _NANOS)
    return Duration(seconds=sign * whole, nanos=sign * rest)


def is_valid_duration(duration: Duration) -> bool:
    """Whether *duration* is within the range of a Duration, and its seconds and nanoseconds have one sign."""
    seconds, nanos = duration.seconds, duration.nanos
    return abs(seconds) <= _MAX_SECONDS and abs(nanos) < _NANOS and seconds * nanos >= 0


def seconds_from_wire(duration: Duration) -> float:
    """The duration in seconds; exact for what `duration_to_wire` made of a number of whole nanoseconds."""
    return (duration.seconds * _NANOS + duration.nanos) / _NANOS


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


def time_to_wire(moment: datetime) -> Timestamp:
    """*moment* as a timestamp."""
    microseconds = (moment - _EPOCH) // timedelta(microseconds=1)
    seconds, rest = divmod(microseconds, 10**6)
    return Timestamp(seconds=seconds, nanos=1000 * rest)


def time_from_wire(timestamp: Timestamp) -> datetime:
    """The time, to the microsecond; one beyond the calendar is its last, or 1970."""
    try:
        return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)
    except OverflowError:
        return _LAST if timestamp.seconds > 0 else _EPOCH
