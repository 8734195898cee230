"""Traces, by the interface of OpenTelemetry: a span for each call, with spans below it for the stages of its timeline.

Spans are made when a stage is over, of its start and end, by the one who knows whose it was: so nothing of a trace is
carried from the event loop to the threads that work, but the timeline of each request. What runs together, as a batch,
has a span of its own with links to the spans of its requests.

Imported only if traces are wanted: the package is an extra.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    TracerProvider,
    TraceState,
    format_trace_id,
    set_span_in_context,
)

from dst_grpc import __version__
from dst_grpc.domain.timeline import Fact, Stage, Timeline
from dst_grpc.observability.calls import HEALTH_PREFIX, CallInfo, CallOutcome, ItemInfo
from dst_grpc.observability.sampling import Sampling
from dst_grpc.observability.trace_context import STATE_KEY, TraceParent

_MOST_SPANS = 128
"""Of stages of one request: a long answer has thousands of steps."""
_MOST_ITEMS = 1000
"""Items of a stream that have spans."""
_OTHER = "_OTHER"
_PREFIX = "dst."
_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The codes that are the server's errors, by the semantic conventions; others are its callers'."""
_ROOT = Context()


class TraceCalls:
    """A span for each call that *sampling* wants, but health checks, and for each item of a stream."""

    def __init__(self, provider: TracerProvider, sampling: Sampling) -> None:
        """Make spans of *provider*, which records all that it makes."""
        self._tracer = provider.get_tracer("dst_grpc", __version__)
        self._sampling = sampling

    def on_start(self, call: CallInfo) -> None:
        """Begin the span of *call*, below that of its caller if there is one."""
        if not self._sampling.wants(call.trace_parent) or call.method.startswith(HEALTH_PREFIX):
            return
        method = call.method.removeprefix("/") if call.is_known else _OTHER
        span = self._tracer.start_span(
            method,
            context=_ROOT if call.trace_parent is None else _context_of(call.trace_parent, call.values(STATE_KEY)),
            kind=SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": method},
        )
        call.timeline = _TracedTimeline(self._tracer, span)

    def on_end(self, token: object, call: CallInfo, outcome: CallOutcome) -> None:
        """End it."""
        del token
        if isinstance(call.timeline, _TracedTimeline):
            facts: dict[str, Fact] = {
                "received_bytes": call.received_bytes,
                "sent_bytes": call.sent_bytes,
                "peer": call.peer,
            }
            call.timeline.end(outcome, call, facts)

    def on_item(self, call: CallInfo, item: ItemInfo, outcome: CallOutcome) -> None:
        """End the span of *item*."""
        if isinstance(item.timeline, _TracedTimeline):
            facts: dict[str, Fact] = {
                "item": item.index,
                "received_bytes": item.received_bytes,
                "sent_bytes": item.sent_bytes,
            }
            item.timeline.end(outcome, call, facts)


def _context_of(parent: TraceParent, states: Sequence[str]) -> Context:
    state = TraceState.from_header(list(states)) if states else None
    trace_id, span_id, flags = (int(text, 16) for text in parent)
    remote = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags), trace_state=state)
    return set_span_in_context(NonRecordingSpan(remote), _ROOT)


class _TracedTimeline(Timeline):
    """That of a request with a span."""

    __slots__ = ("_context", "_n_items", "_n_spans", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        super().__init__(format_trace_id(span.get_span_context().trace_id))
        self._tracer, self._span = tracer, span
        self._context = set_span_in_context(span, _ROOT)
        """What its further spans are made in."""
        self._n_spans = self._n_items = 0

    @property
    def exemplar(self) -> Mapping[str, str]:
        return {"trace_id": self.trace_id}

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
        super().note(stage, started, ended, seconds=seconds)
        self._n_spans += 1
        if self._n_spans <= _MOST_SPANS:
            links = [Link(batch)] if isinstance(batch, SpanContext) else []
            self._stage(stage, started, ended, links, facts)

    def batch(self, others: Sequence[Timeline], started: float, ended: float, **facts: Fact) -> object:
        traced = (other for other in others if isinstance(other, _TracedTimeline))
        links = [Link(other._span.get_span_context()) for other in traced]  # noqa: SLF001  of this class
        return self._stage("batch", started, ended, links, facts).get_span_context()

    def item(self) -> Timeline:
        self._n_items += 1
        if self._n_items > _MOST_ITEMS:
            return super().item()
        return _TracedTimeline(self._tracer, self._tracer.start_span("item", context=self._context))

    def end(self, outcome: CallOutcome, call: CallInfo, facts: Mapping[str, Fact]) -> None:
        """End the span with what is known of a call, or of an item of it."""
        span = self._span
        known: dict[str, Fact] = {
            "request_id": call.request_id,
            "caller": call.caller.name,
            "model": self.model,
            "reason": outcome.reason,
            "error_id": outcome.error_id,
            "left_out_spans": max(self._n_spans - _MOST_SPANS, 0),
            "left_out_items": max(self._n_items - _MOST_ITEMS, 0),
        }
        span.set_attribute("rpc.response.status_code", outcome.code)
        span.set_attributes({_PREFIX + name: value for name, value in facts.items()})
        span.set_attributes({_PREFIX + name: value for name, value in known.items() if value})
        if self.contexts:
            span.set_attribute(_PREFIX + "contexts", list(self.contexts))
        if outcome.code in _ERRORS:
            span.set_attribute("error.type", outcome.code)
            span.set_status(StatusCode.ERROR)
        span.end()

    def _stage(self, name: str, started: float, ended: float, links: Sequence[Link], facts: Mapping[str, Fact]) -> Span:
        """A span between two readings of `time.monotonic`."""
        now, clock = time.time_ns(), time.monotonic()
        attributes = {_PREFIX + key: value for key, value in facts.items()}
        span = self._tracer.start_span(
            name,
            context=self._context,
            links=links,
            attributes=attributes,
            start_time=now - round((clock - started) * 1e9),
        )
        span.end(now - round((clock - ended) * 1e9))
        return span
