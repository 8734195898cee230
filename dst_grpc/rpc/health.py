"""grpc.health.v1: whether the server serves, per service ("dst.v1.CatalogService") and per model ("model/NAME").

A model is SERVING whenever a request for it can be: also one that is not loaded yet, which the first request loads. It
is NOT_SERVING once its load failed, until another one succeeds. Before the server is ready and while it drains, nothing
is SERVING.

Messages are those of grpcio-health-checking. Its asyncio servicer has no List, and its watches would hold up a drain
for the whole grace period, so the three methods are here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from dst_grpc.domain.handles import ContextRef
from dst_grpc.domain.resolution import ContextKind, ContextState
from dst_grpc.errors import NotFound, Reason
from dst_grpc.rpc.draining import DrainSignal, draining_error
from dst_grpc.rpc.ports import CachePort

SERVICE: Final[Any] = health_pb2.DESCRIPTOR.services_by_name["Health"]
Response = health_pb2.HealthCheckResponse
_MODEL = "model/"


class Health:
    """Knows the status of every name, and tells those who watch."""

    def __init__(self, services: Iterable[str], models: Iterable[str], drain: DrainSignal) -> None:
        """Know *services* and *models*; nothing serves until `set_serving`."""
        self._services = ("", *services)
        names = (*self._services, *map(model_service, models))
        self._statuses: dict[str, int] = dict.fromkeys(names, Response.NOT_SERVING)
        self._is_ready = False
        self._drain = drain
        self._changed = asyncio.Event()

    def set(self, service: str, status: int) -> None:
        """Set the status of one name. Once the server drains, nothing changes any more."""
        if not self._drain.given:
            self._statuses[service] = status
            self._tell()

    def set_serving(self, cache: CachePort) -> None:
        """The server as a whole and its services serve, and each model as *cache* says."""
        self._is_ready = True
        for name in self._services:
            self.set(name, Response.SERVING)
        for name in self._statuses.keys() - {*self._services}:
            self._look_at(name.removeprefix(_MODEL), cache)

    def set_draining(self) -> None:
        """Nothing serves any more, for good; call it once the drain signal is given."""
        self._statuses.update(dict.fromkeys(self._statuses, Response.NOT_SERVING))
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, _context: object) -> Response:
        """The status of one name."""
        if request.service not in self._statuses:
            raise NotFound.unknown("service", request.service, self._statuses, reason=Reason.CONTEXT_NOT_FOUND)
        return Response(status=self._statuses[request.service])

    async def List(self, _request: object, _context: object) -> Message:
        """The status of every name."""
        # By its descriptor, because the package's types do not know this message.
        response_type = GetMessageClass(SERVICE.methods_by_name["List"].output_type)
        return response_type(statuses={name: Response(status=status) for name, status in self._statuses.items()})

    async def Watch(self, request: health_pb2.HealthCheckRequest, _context: object) -> AsyncGenerator[Response, None]:
        """The status of one name now and after each change; ends with UNAVAILABLE when the server drains."""
        told: int | None = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, Response.SERVICE_UNKNOWN)
            if status != told:
                yield Response(status=status)
                told = status
            elif self._drain.given:
                raise draining_error()
            else:
                await changed.wait()

    def set_models(self, models: Iterable[str], cache: CachePort) -> None:
        """Know *models*, and no others any more, each with the status that *cache* says."""
        known = {model_service(model): model for model in models}
        gone = self._statuses.keys() - known.keys() - {*self._services}
        for name in gone:
            del self._statuses[name]
        for name, model in known.items():
            self._statuses.setdefault(name, Response.NOT_SERVING)
            self._look_at(model, cache)
        self._tell()

    async def follow(self, cache: CachePort) -> None:
        """Keep the status of models at what *cache* holds, until cancelled."""
        async with aclosing(cache.watch()) as statuses:
            async for status in statuses:
                model = ContextRef.parse(status.handle).name
                if status.kind is ContextKind.MODEL and model_service(model) in self._statuses:
                    self._look_at(model, cache)

    def _look_at(self, model: str, cache: CachePort) -> None:
        # Not what a watch told: after a reload, that may be of another model that had the name before.
        is_serving = self._is_ready and cache.status(model).state is not ContextState.FAILED
        self.set(model_service(model), Response.SERVING if is_serving else Response.NOT_SERVING)


def model_service(model: str) -> str:
    """The name under which a model's health is asked for."""
    return f"{_MODEL}{model}"
