"""Traces of a server of its own, as a collector receives them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from dst_grpc._gen.dst.v1 import derived_scalar_type_pb2, inference_pb2
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from tests.e2e.conftest import CALL_SECONDS, environment_with, ready_address, stopped
from tests.otlp import Receiver, receiving, values

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = ("traceparent", f"00-{TRACE}-{SPAN}-01")
DERIVE = "dst.v1.DerivedScalarService/Derive"


class Observed(NamedTuple):
    """A server, and who receives its traces."""

    stub: Any
    receiver: Receiver


@contextmanager
def server(endpoint: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that exports traces to *endpoint*, and its address; it is told to stop at the end."""
    code = "from dst_grpc.rpc import process, settings; process.serve(settings.Settings(port=0))"
    environment = environment_with(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{endpoint}", OTEL_BSP_SCHEDULE_DELAY="50", OTEL_SERVICE_NAME="mine"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process, ready_address(process)
        finally:
            process.terminate()
            process.wait(CALL_SECONDS)


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    with receiving() as receiver, server(receiver.address) as (_, address), grpc.insecure_channel(address) as channel:
        yield Observed(DerivedScalarServiceStub(channel), receiver)


def request(text: str, **more: Any) -> inference_pb2.DeriveRequest:
    spec = {"dst": derived_scalar_type_pb2.DERIVED_SCALAR_TYPE_MLP_POST_ACT}
    return inference_pb2.DeriveRequest(prompt={"text": text}, derived_scalars=[spec], **more)


def trace(receiver: Receiver, trace_id: str, *, method: str = DERIVE) -> list[Span]:
    """The spans of one trace, once that of its call has come, which is the last to end."""

    def of_trace(spans: Sequence[Span]) -> list[Span]:
        return [span for span in spans if span.trace_id.hex() == trace_id]

    return of_trace(receiver.spans(lambda spans: any(span.name == method for span in of_trace(spans))))


def test_a_call_is_told_stage_by_stage_below_the_span_of_its_caller(observed: Observed) -> None:
    call = observed.stub.Derive(request("one two"), timeout=CALL_SECONDS, metadata=(PARENT,))
    assert list(call)
    request_id = dict(call.trailing_metadata())["x-request-id"]
    spans = {span.name: span for span in trace(observed.receiver, TRACE)}
    assert spans.keys() == {"load", "queue", "batch", "pass", "derive", "write", DERIVE}
    whole = spans.pop(DERIVE)
    assert whole.parent_span_id.hex() == SPAN
    assert whole.kind == Span.SPAN_KIND_SERVER
    told = {"rpc.method": DERIVE, "rpc.response.status_code": "OK", "dst.model": "embedded"}
    assert values(whole.attributes).items() >= (told | {"dst.request_id": request_id}).items()
    assert {span.parent_span_id for span in spans.values()} == {whole.span_id}
    for before, after in (("load", "queue"), ("queue", "pass"), ("pass", "derive")):
        assert spans[before].start_time_unix_nano <= spans[before].end_time_unix_nano
        # Both are the same reading of a clock, told by two pairs of readings of two clocks.
        assert spans[before].end_time_unix_nano <= spans[after].start_time_unix_nano + 1_000_000
    assert [link.span_id for link in spans["pass"].links] == [spans["batch"].span_id]
    assert observed.receiver.resource.items() >= {"service.name": "mine"}.items()


def test_a_call_of_nobodys_trace_or_of_junk_begins_its_own(observed: Observed) -> None:
    request_ids = set()
    for metadata in ((), (("traceparent", "junk"),), (("traceparent-bin", b"\x00"),)):
        call = observed.stub.Derive(request("of junk"), timeout=CALL_SECONDS, metadata=metadata)
        assert list(call)
        request_ids.add(dict(call.trailing_metadata())["x-request-id"])

    def calls(spans: Sequence[Span]) -> list[Span]:
        return [span for span in spans if values(span.attributes).get("dst.request_id") in request_ids]

    found = calls(observed.receiver.spans(lambda spans: len(calls(spans)) == 3))
    assert len({span.trace_id for span in found}) == 3
    assert {span.parent_span_id for span in found} == {b""}


def test_items_that_ran_together_are_linked_to_one_batch(observed: Observed) -> None:
    trace_id = "5" * 32
    stream = (
        inference_pb2.DeriveStreamRequest(request=request(f"a word {word}", request_id=word)) for word in "abcdefgh"
    )
    parent = (("traceparent", f"00-{trace_id}-{SPAN}-01"),)
    assert list(observed.stub.DeriveStream(stream, timeout=CALL_SECONDS, metadata=parent))
    spans = trace(observed.receiver, trace_id, method=DERIVE + "Stream")
    items = {span.span_id: span for span in spans if span.name == "item"}
    assert sorted(values(span.attributes)["dst.item"] for span in items.values()) == list(range(8))
    batches = {span.span_id: span for span in spans if span.name == "batch"}
    passes = sorted((link.span_id, span.parent_span_id) for span in spans if span.name == "pass" for link in span.links)
    assert {parent for _, parent in passes} == items.keys()
    for batch, members in groupby(passes, key=lambda one: one[0]):
        assert {link.span_id for link in batches[batch].links} == {parent for _, parent in members}
        assert values(batches[batch].attributes)["dst.prompts"] == len(batches[batch].links)


def test_a_mistake_of_the_caller_is_no_error_of_the_server(observed: Observed) -> None:
    trace_id = "6" * 32
    with pytest.raises(grpc.RpcError):
        list(
            observed.stub.Derive(inference_pb2.DeriveRequest(), metadata=(("traceparent", f"00-{trace_id}-{SPAN}-01"),))
        )
    (span,) = trace(observed.receiver, trace_id)
    assert values(span.attributes)["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert span.status.code == Status.STATUS_CODE_UNSET


def test_what_the_caller_does_not_record_is_not_exported(observed: Observed) -> None:
    unrecorded, recorded = "7" * 32, "8" * 32
    for trace_id, flags in ((unrecorded, "00"), (recorded, "01")):
        parent = (("traceparent", f"00-{trace_id}-{SPAN}-{flags}"),)
        assert list(observed.stub.Derive(request("unseen"), timeout=CALL_SECONDS, metadata=parent))
    trace(observed.receiver, recorded)
    assert all(span.trace_id.hex() != unrecorded for span in observed.receiver.spans())


def test_a_server_ends_in_time_if_its_collector_is_dead() -> None:
    with server("127.0.0.1:1") as (process, address):
        with grpc.insecure_channel(address) as channel:
            assert list(DerivedScalarServiceStub(channel).Derive(request("lost"), timeout=CALL_SECONDS))
        log = stopped(process)
    assert "Traceback" not in log
    assert all(" dst_grpc." in line or " opentelemetry." in line for line in log.splitlines()), log
