"""What callers say of their traces, as https://www.w3.org/TR/trace-context/ has it."""

from __future__ import annotations

import pytest

from dst_grpc.observability.trace_context import TraceParent, trace_parent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("text", "flags"),
    [(f"00-{TRACE}-{SPAN}-01", "01"), (f"00-{TRACE}-{SPAN}-00", "00"), (f"cc-{TRACE}-{SPAN}-03-x", "03")],
)
def test_the_parent_of_a_call_is_read(text: str, flags: str) -> None:
    assert trace_parent([("a", "b"), ("traceparent", text)]) == TraceParent(TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "junk",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-x",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        b"00-" + TRACE.encode() + b"-" + SPAN.encode() + b"-01",
    ],
)
def test_junk_is_no_parent(text: str | bytes) -> None:
    assert trace_parent([("traceparent", text)]) is None


def test_two_parents_are_none() -> None:
    given = ("traceparent", f"00-{TRACE}-{SPAN}-01")
    assert trace_parent([given, given]) is None
    assert trace_parent([]) is None
