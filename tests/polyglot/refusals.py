"""A server that refuses twice before it answers, as a busy one does, and remembers when it was asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import grpc
from grpc_status import rpc_status

from dst_grpc._gen.dst.v1 import catalog_service_pb2
from dst_grpc.errors import DstError, Exhausted, Reason, Unavailable
from dst_grpc.rpc.errors import PUSHBACK_KEY, pushback
from dst_grpc.wire.errors import error_to_status

ANSWER = "answered at last"
REFUSALS = (
    Unavailable("the server is stopping", reason=Reason.DRAINING, retry_after_seconds=0.3),
    Exhausted("the queue is full", reason=Reason.QUEUE_FULL, retry_after_seconds=0.2),
)
"""What it answers first: gRPC's own retries may see to the one, the client must see to the other."""


@dataclass
class RefusingCatalog:
    """Detokenizes at the third attempt."""

    address: str = ""
    attempts: list[float] = field(default_factory=list)
    """When it was asked, in seconds."""
    routes: list[str] = field(default_factory=list)
    """What the calls' metadata `dst-model` was."""

    def detokenize(
        self, request: catalog_service_pb2.DetokenizeRequest, context: grpc.ServicerContext
    ) -> Iterator[catalog_service_pb2.DetokenizeResponse]:
        self.attempts.append(time.monotonic())
        self.routes.append(str(dict(context.invocation_metadata()).get("dst-model")))
        if len(self.attempts) <= len(REFUSALS):
            _abort(context, REFUSALS[len(self.attempts) - 1])
        yield catalog_service_pb2.DetokenizeResponse(text=ANSWER)

    def pauses(self) -> list[float]:
        """Seconds between attempts."""
        return [after - before for before, after in zip(self.attempts, self.attempts[1:], strict=False)]


@contextmanager
def refusing_server() -> Iterator[RefusingCatalog]:
    """The server, on a free port."""
    catalog = RefusingCatalog()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    method = grpc.unary_stream_rpc_method_handler(
        catalog.detokenize,
        request_deserializer=catalog_service_pb2.DetokenizeRequest.FromString,
        response_serializer=catalog_service_pb2.DetokenizeResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler("dst.v1.CatalogService", {"Detokenize": method})
    server.add_generic_rpc_handlers((handler,))
    catalog.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield catalog
    finally:
        server.stop(None).wait()


def _abort(context: grpc.ServicerContext, error: DstError) -> NoReturn:
    """As our servers do: details, and a pushback for gRPC's own retries."""
    status = rpc_status.to_status(error_to_status(error))
    context.set_trailing_metadata((*(status.trailing_metadata or ()), (PUSHBACK_KEY, pushback(error) or "")))
    context.abort(status.code, status.details)
    raise AssertionError("abort returned")
