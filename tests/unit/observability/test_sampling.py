from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import sampling as theirs
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from dst_grpc.observability.sampling import NAMES, Sampling
from dst_grpc.observability.trace_context import TraceParent

LOW, HIGH = "f" * 16 + "0" * 15 + "1", "0" * 16 + "f" * 16
"""Trace ids that the smallest ratio samples, and that only the whole does."""


@pytest.mark.parametrize("flags", ["00", "01", "03"])
@pytest.mark.parametrize("trace_id", [LOW, HIGH])
@pytest.mark.parametrize("name", NAMES)
def test_callers_are_followed_as_the_sdk_does(name: str, trace_id: str, flags: str) -> None:
    parent = SpanContext(int(trace_id, 16), 1, is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    share = {"always_on": theirs.ALWAYS_ON, "always_off": theirs.ALWAYS_OFF}
    kind = name.removeprefix("parentbased_")
    root = share.get(kind) or theirs.TraceIdRatioBased(0.25)
    sampler = theirs.ParentBased(root) if kind != name else root
    context = set_span_in_context(NonRecordingSpan(parent))
    expected = sampler.should_sample(context, parent.trace_id, "name").decision.is_sampled()  # type: ignore[no-untyped-call]
    assert Sampling.named(name, "0.25").wants(TraceParent(trace_id, "1" * 16, flags)) is expected


@pytest.mark.parametrize("prefix", ["", "parentbased_"])
def test_without_a_caller_s_word_a_part_is_sampled(prefix: str) -> None:
    drawn = iter((0.0, 0.24, 0.25, 0.99) * 3)
    samplers = [Sampling.named(prefix + name, "0.25") for name in ("always_on", "always_off", "traceidratio")]
    wanted = [[Sampling(one.share, draw=lambda: next(drawn)).wants(None) for _ in range(4)] for one in samplers]
    assert wanted == [[True] * 4, [False] * 4, [True, True, False, False]]


def test_a_ratio_that_is_not_given_is_all() -> None:
    assert Sampling.named("traceidratio", "").share == 1.0


@pytest.mark.parametrize(("name", "argument"), [("jaeger_remote", ""), ("traceidratio", "2"), ("traceidratio", "x")])
def test_there_are_no_others(name: str, argument: str) -> None:
    with pytest.raises(ValueError, match=r"none of|from 0 to 1|could not convert"):
        Sampling.named(name, argument)
