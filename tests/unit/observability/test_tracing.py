from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

from dst_grpc.domain.callers import Caller
from dst_grpc.domain.timeline import Stage
from dst_grpc.observability import tracing
from dst_grpc.observability.calls import CallInfo, CallOutcome, ItemInfo
from dst_grpc.observability.sampling import Sampling
from dst_grpc.observability.trace_context import trace_parent
from dst_grpc.observability.tracing import TraceCalls

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
METHOD = "/a.B/C"


class Traced:
    """An observer, and the spans that it has ended."""

    def __init__(self, sampling: Sampling = Sampling()) -> None:  # noqa: B008  frozen
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.observer = TraceCalls(provider, sampling)

    def begun(self, method: str = METHOD, flags: str = "", **facts: Any) -> CallInfo:
        """A call that has begun, below a span of its caller with these *flags*, if any."""
        parent = (("traceparent", f"00-{TRACE}-{SPAN}-{flags}"),) if flags else ()
        call = CallInfo(method=method, metadata=parent, trace_parent=trace_parent(parent), request_id="r1", **facts)
        self.observer.on_start(call)
        return call

    def end(self, call: CallInfo, code: str = "OK", **outcome: Any) -> None:
        self.observer.on_end(None, call, CallOutcome(code=code, seconds=0.5, **outcome))

    @property
    def spans(self) -> Mapping[str, ReadableSpan]:
        """By name."""
        return {span.name: span for span in self._exporter.get_finished_spans()}

    @property
    def names(self) -> list[str]:
        return [span.name for span in self._exporter.get_finished_spans()]


@pytest.fixture
def traced() -> Traced:
    return Traced()


def facts_of(span: ReadableSpan) -> Mapping[str, object]:
    return span.attributes or {}


def test_a_call_is_a_span_of_its_method_below_that_of_its_caller(traced: Traced) -> None:
    call = traced.begun(flags="01", caller=Caller(name="alice"), received_bytes=3)
    call.timeline.model, call.timeline.contexts = "tiny", ["tiny/mlp"]
    traced.end(call)
    span = traced.spans["a.B/C"]
    assert span.kind.name == "SERVER"
    assert span.parent is not None
    assert (format_trace_id(span.parent.trace_id), format_span_id(span.parent.span_id)) == (TRACE, SPAN)
    assert call.timeline.trace_id == TRACE == format_trace_id(span.context.trace_id)
    told: dict[str, object] = {"rpc.system.name": "grpc", "rpc.method": "a.B/C", "rpc.response.status_code": "OK"}
    told |= {"dst.request_id": "r1", "dst.caller": "alice", "dst.model": "tiny", "dst.received_bytes": 3}
    assert facts_of(span).items() >= told.items()
    assert facts_of(span)["dst.contexts"] == ("tiny/mlp",)


def test_a_call_without_a_parent_begins_a_trace(traced: Traced) -> None:
    calls = [traced.begun(), traced.begun()]
    assert len({call.timeline.trace_id for call in calls} | {""}) == 3
    traced.end(calls[0])
    assert traced.spans["a.B/C"].parent is None


@pytest.mark.parametrize(
    ("code", "is_error"),
    [(code, True) for code in sorted(tracing._ERRORS)]
    + [(code, False) for code in ("OK", "CANCELLED", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED")],
)
def test_only_faults_of_the_server_are_errors(traced: Traced, code: str, is_error: bool) -> None:
    traced.end(traced.begun(), code, reason="WHY", error_id="e1")
    span = traced.spans["a.B/C"]
    assert (span.status.status_code is StatusCode.ERROR) is is_error
    assert facts_of(span).get("error.type") == (code if is_error else None)
    assert facts_of(span)["dst.reason"] == "WHY"
    assert span.status.description is None


def test_unknown_methods_share_a_name_and_probes_have_no_span(traced: Traced) -> None:
    traced.end(traced.begun("/made.up/Method", is_known=False), "UNIMPLEMENTED")
    traced.end(traced.begun("/grpc.health.v1.Health/Check"))
    assert traced.names == ["_OTHER"]


def test_stages_are_spans_below_their_call_at_their_own_times(traced: Traced) -> None:
    call = traced.begun()
    call.timeline.note(Stage.QUEUE, 10.0, 10.25)
    call.timeline.note(Stage.DERIVE, 10.25, 11.0)
    call.timeline.note(Stage.DERIVE, 11.0, 11.5)
    traced.end(call)
    assert traced.names == ["queue", "derive", "derive", "a.B/C"]
    assert call.timeline.seconds == {Stage.QUEUE: 0.25, Stage.DERIVE: 1.25}
    queue, whole = traced.spans["queue"], traced.spans["a.B/C"]
    assert queue.parent is not None
    assert queue.parent.span_id == whole.context.span_id
    assert queue.start_time is not None
    assert queue.end_time is not None
    # Both ends are rounded to nanoseconds.
    assert abs(queue.end_time - queue.start_time - 250_000_000) <= 1


def test_a_batch_has_links_to_its_requests_and_they_to_it(traced: Traced) -> None:
    calls = [traced.begun(), traced.begun()]
    timelines = [call.timeline for call in calls]
    batch = timelines[0].batch(timelines, 1.0, 2.0, prompts=2)
    for timeline in timelines:
        timeline.note(Stage.PASS, 1.0, 2.0, batch=batch)
    whole = traced.spans["batch"]
    assert facts_of(whole) == {"dst.prompts": 2}
    linked = [format_trace_id(link.context.trace_id) for link in whole.links]
    assert linked == [timeline.trace_id for timeline in timelines]
    assert [link.context.span_id for link in traced.spans["pass"].links] == [whole.context.span_id]


def test_what_is_not_sampled_has_no_spans() -> None:
    traced = Traced(Sampling(share=0.0))
    for flags in ("", "00"):
        call = traced.begun(flags=flags)
        assert call.timeline.exemplar is None
        assert call.timeline.batch([call.timeline], 0.0, 1.0) is None
        call.timeline.note(Stage.PASS, 0.0, 1.0)
        item = ItemInfo(index=0, request_id="", timeline=call.timeline.item())
        traced.observer.on_item(call, item, CallOutcome(code="OK", seconds=0.1))
        traced.end(call)
        assert call.timeline.seconds == {Stage.PASS: 1.0}
    assert traced.names == []
    sampled = traced.begun(flags="01")
    assert sampled.timeline.exemplar == {"trace_id": TRACE}


def test_an_item_is_a_span_below_its_call_with_stages_of_its_own(traced: Traced) -> None:
    call = traced.begun()
    item = ItemInfo(index=7, request_id="x", timeline=call.timeline.item(), sent_bytes=5)
    item.timeline.note(Stage.PASS, 0.0, 1.0)
    traced.observer.on_item(call, item, CallOutcome(code="NOT_FOUND", seconds=0.1))
    traced.end(call)
    assert traced.names == ["pass", "item", "a.B/C"]
    spans = traced.spans
    parents = {name: span.parent.span_id for name, span in spans.items() if span.parent is not None}
    assert parents == {"pass": spans["item"].context.span_id, "item": spans["a.B/C"].context.span_id}
    told = {"dst.item": 7, "dst.sent_bytes": 5, "rpc.response.status_code": "NOT_FOUND"}
    assert facts_of(spans["item"]).items() >= told.items()
    assert call.timeline.seconds == {}


def test_long_answers_and_streams_have_a_bounded_number_of_spans(traced: Traced) -> None:
    call = traced.begun()
    for number in range(tracing._MOST_SPANS + 5):
        call.timeline.note(Stage.DERIVE, number, number + 1)
    for index in range(tracing._MOST_ITEMS + 3):
        item = ItemInfo(index=index, request_id="", timeline=call.timeline.item())
        traced.observer.on_item(call, item, CallOutcome(code="OK", seconds=0.1))
    traced.end(call)
    assert (traced.names.count("derive"), traced.names.count("item")) == (tracing._MOST_SPANS, tracing._MOST_ITEMS)
    assert call.timeline.seconds == {Stage.DERIVE: tracing._MOST_SPANS + 5}
    left_out = {"dst.left_out_spans": 5, "dst.left_out_items": 3}
    assert facts_of(traced.spans["a.B/C"]).items() >= left_out.items()
