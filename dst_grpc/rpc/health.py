"""grpc.health.v1: whether the server serves, per service ("dst.v1.CatalogService") and per model ("model/NAME").

A model is SERVING whenever it can be used, even if it is not loaded yet: the first request loads it. It is NOT_SERVING
after its load failed, until another one succeeds. Before the server is ready and from the moment it is told to stop,
nothing is SERVING but "live", which says only that the event loop answers: whoever restarts a server for it restarts
one that hangs, and none that loads or drains.

Messages are those of grpcio-health-checking. Its asyncio servicer has no List, and its watches would delay a drain by
the whole grace period, so the three methods are implemented here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from collections.abc import Set as AbstractSet
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
LIVE: Final = "live"
_MODEL = "model/"
_MAX_NAME_CHARACTERS = 4096
"""No model has as long a name."""


class Health:
    """Holds the status of every name, and streams changes to watchers."""

    def __init__(self, services: Iterable[str], models: Iterable[str], drain: DrainSignal) -> None:
        """Start with *services* and *models*, all NOT_SERVING until `set_serving`."""
        self._services = ("", *services)
        names = (*self._services, *map(model_service, models))
        self._statuses: dict[str, int] = {LIVE: Response.SERVING, **dict.fromkeys(names, Response.NOT_SERVING)}
        self._is_ready = self._is_draining = False
        self._drain = drain
        self._changed = asyncio.Event()

    def set(self, service: str, status: int) -> None:
        """Set the status of one name. Once the server is to stop, nothing changes any more."""
        if not self._is_draining:
            self._statuses[service] = status
            self._tell()

    def set_serving(self, cache: CachePort) -> None:
        """Set the server as a whole and its services to SERVING, and each model by its state in *cache*."""
        self._is_ready = True
        for name in self._services:
            self.set(name, Response.SERVING)
        for name in self._models():
            self._look_at(name.removeprefix(_MODEL), cache)

    def set_draining(self) -> None:
        """Set everything to NOT_SERVING, for good, but that the server lives."""
        self._is_draining = True
        self._statuses.update(dict.fromkeys(self._statuses.keys() - {LIVE}, Response.NOT_SERVING))
        self._tell()

    def _models(self) -> AbstractSet[str]:
        """The names of models."""
        return self._statuses.keys() - {LIVE, *self._services}

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
        # By its descriptor, because the package's type stubs lack this message.
        response_type = GetMessageClass(SERVICE.methods_by_name["List"].output_type)
        return response_type(statuses={name: Response(status=status) for name, status in self._statuses.items()})

    async def Watch(self, request: health_pb2.HealthCheckRequest, _context: object) -> AsyncGenerator[Response, None]:
        """The status of one name now and after each change; ends with UNAVAILABLE when the server drains."""
        service = request.service[:_MAX_NAME_CHARACTERS]
        del request  # which may be large, whoever calls: it is not kept for as long as the watch lasts
        told: int | None = None
        while True:
            changed = self._changed
            status = self._statuses.get(service, Response.SERVICE_UNKNOWN)
            if status != told:
                yield Response(status=status)
                told = status
            elif self._drain.given:
                raise draining_error()
            else:
                with self._drain.calling(changed.set):
                    await changed.wait()

    def set_models(self, models: Iterable[str], cache: CachePort) -> None:
        """Replace the models by *models*, each with its status in *cache*."""
        known = {model_service(model): model for model in models}
        for name in self._models() - known.keys():
            del self._statuses[name]
        for name, model in known.items():
            self._statuses.setdefault(name, Response.NOT_SERVING)
            self._look_at(model, cache)
        self._tell()

    async def follow(self, cache: CachePort) -> None:
        """Keep the status of models up to date with *cache*, until cancelled."""
        async with aclosing(cache.watch()) as statuses:
            async for status in statuses:
                model = ContextRef.parse(status.handle).name
                if status.kind is ContextKind.MODEL and model_service(model) in self._statuses:
                    self._look_at(model, cache)

    def _look_at(self, model: str, cache: CachePort) -> None:
        # Not the status from the watch: after a reload, that may be of another model that had the name before.
        is_serving = self._is_ready and cache.status(model).state is not ContextState.FAILED
        self.set(model_service(model), Response.SERVING if is_serving else Response.NOT_SERVING)


def model_service(model: str) -> str:
    """The name of a model in health checks."""
    return f"{_MODEL}{model}"
