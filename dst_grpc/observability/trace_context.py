"""The trace that a call is part of, as its caller says by W3C Trace Context in the metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

PARENT_KEY: Final = "traceparent"
STATE_KEY: Final = "tracestate"
_PARENT = re.compile("([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_VERSION, _FIRST_VERSION = "ff", "00"
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


class TraceParent(NamedTuple):
    """The span of the caller that a call belongs to; ids are lower-case hexadecimal digits."""

    trace_id: str
    """32 digits."""
    span_id: str
    """16 digits."""
    flags: str
    """2 digits; the lowest bit says whether the trace is recorded."""


def trace_parent(metadata: Iterable[tuple[str, str | bytes]]) -> TraceParent | None:
    """What the *metadata* of a call says; None if that is nothing, or not in order: then the call begins a trace."""
    given = None
    for key, value in metadata:
        if key == PARENT_KEY:
            if given is not None:  # which of them is right?
                return None
            given = value
    found = _PARENT.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    is_version = version != _NO_VERSION and not (rest and version == _FIRST_VERSION)
    return TraceParent(trace_id, span_id, flags) if is_version and trace_id != _NO_TRACE != span_id * 2 else None
