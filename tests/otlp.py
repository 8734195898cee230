"""A receiver of traces, as collectors are: OTLP over gRPC."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_SECONDS = 60.0


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.address = ""
        self.resource: dict[str, Any] = {}
        self._spans: list[Span] = []
        self._changed = threading.Condition()

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, _context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._changed:
            for of_resource in request.resource_spans:
                self.resource = values(of_resource.resource.attributes)
                self._spans += [span for of_scope in of_resource.scope_spans for span in of_scope.spans]
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, enough: Callable[[list[Span]], object] = bool) -> list[Span]:
        """The spans so far, once they are *enough*."""
        with self._changed:
            assert self._changed.wait_for(lambda: enough(self._spans), WAIT_SECONDS)
            return list(self._spans)


def values(attributes: Any) -> dict[str, Any]:
    """The attributes of a span or a resource."""
    return {each.key: _value(each) for each in attributes}


def _value(attribute: KeyValue) -> Any:
    kind = attribute.value.WhichOneof("value")
    found = getattr(attribute.value, str(kind))
    return [each.string_value for each in found.values] if kind == "array_value" else found


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver that listens on a port."""
    receiver, server = Receiver(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    receiver.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(None).wait()
