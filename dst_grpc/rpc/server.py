"""The composition root: builds a server from settings, starts it, drains it and stops it.

The only module that depends on all others. Everything else gets what it needs through its constructor.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor

from dst_grpc._gen.dst.v1 import (
    catalog_service_pb2,
    causal_service_pb2,
    context_service_pb2,
    derived_scalar_service_pb2,
    graph_service_pb2,
    tensor_service_pb2,
)
from dst_grpc.domain.resolution import ContextState, RegistryChange
from dst_grpc.errors import DataLoss, DstError, Internal
from dst_grpc.observability.calls import CallObserver
from dst_grpc.observability.later import Later
from dst_grpc.observability.logs import LogCalls
from dst_grpc.pipeline.door import SHARE_OF_BYTES
from dst_grpc.rpc import health, reflection
from dst_grpc.rpc.access import at_start, files_of, identity_of, warn_if_open
from dst_grpc.rpc.admission import CallAdmission
from dst_grpc.rpc.calls import MethodTable
from dst_grpc.rpc.catalog_service import CatalogService
from dst_grpc.rpc.causal_service import CausalService
from dst_grpc.rpc.certificates import Certificates
from dst_grpc.rpc.context_service import ContextService
from dst_grpc.rpc.derived_scalar_service import DerivedScalarService
from dst_grpc.rpc.draining import DrainSignal
from dst_grpc.rpc.graph_service import GraphService
from dst_grpc.rpc.incoming import UNREAD_BYTES, Intake, IntakeLimits
from dst_grpc.rpc.listening import listen, listen_on_port, locked
from dst_grpc.rpc.load_report import LoadReport
from dst_grpc.rpc.measuring import Measuring, Sources
from dst_grpc.rpc.multiplex import StreamLimits
from dst_grpc.rpc.outbox import Unread, UnreadLimits
from dst_grpc.rpc.parts import Parts, StartupError, build_parts
from dst_grpc.rpc.reading import Reading
from dst_grpc.rpc.reloading import Reloader
from dst_grpc.rpc.server_info import server_info
from dst_grpc.rpc.settings import Settings
from dst_grpc.rpc.tensor_service import TensorService
from dst_grpc.rpc.tensor_store import TensorLimits, TensorStore
from dst_grpc.rpc.watching import Watch

_PING_INTERVAL_MILLIS = 10_000
_PENDING_CALLS = 100_000
_ONE_PER_PORT = ("grpc.so_reuseport", 0)
"""A second server on the port must fail, not silently take half of the connections."""
_WINDOWS = (
    # Else gRPC lets the client of each call send megabytes ahead, once the line is known to be fast.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", UNREAD_BYTES),
)
_HEALTH_CHECK_BYTES = 4096
_LEAST_AT_ONCE = 4
"""Messages that are read at once however large they may be, so that a small one does not wait for a large one."""
_TELL_SECONDS = 5.0
"""How long a call that the server ends has for its status, which comes after what its client has not read yet."""

_log = logging.getLogger(__name__)


class Server:
    """Serves *parts* with *settings*. Runs on the event loop it is started on.

    `start`, then `drain` or `stop`; the parts are closed with it.
    """

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        tracing: CallObserver | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Build the server; it does not listen yet.

        Args:
            settings: how to serve.
            parts: what to serve.
            tracing: traces calls; None = nothing does.
            watch: of the files that are reloaded when they change, begun before the parts were made; None = from now.
        """
        self._settings = settings
        self._watch = watch or Watch(settings.reloaded_files)
        self.certificates = Certificates()
        """Those that clients see."""
        self._parts = parts
        self._tracing = tracing
        self._drain = DrainSignal()
        self._is_draining = False
        self._identity = identity_of(settings)
        self._admission = CallAdmission(self._drain, settings.max_concurrent_calls)
        self._tensors = TensorStore(
            TensorLimits(
                max_caller_bytes=settings.max_put_tensor_bytes,
                max_total_bytes=settings.max_put_tensor_total_bytes,
                max_ttl_seconds=settings.put_tensor_ttl_seconds,
            )
        )
        self._unread = Unread(
            UnreadLimits(
                max_caller_bytes=settings.max_unread_bytes,
                max_total_bytes=settings.max_unread_total_bytes,
                slow_reader_seconds=settings.slow_reader_seconds,
            )
        )
        self._measuring = self._measured() if settings.metrics_port is not None else None
        self._closing = AsyncExitStack()
        self._address = ""
        self._metrics_port: int | None = None
        self._health_address: str | None = None

    def __repr__(self) -> str:
        """Where it listens, and whether it is stopping."""
        return f"Server({self._address or 'not started'}{', draining' if self._is_draining else ''})"

    @property
    def address(self) -> str:
        """Where it listens, as HOST:PORT, or unix:PATH."""
        return self._address

    @property
    def metrics_port(self) -> int | None:
        """Port of its metrics; None without metrics."""
        return self._metrics_port

    @property
    def health_address(self) -> str | None:
        """Where health checks, and nothing else, are answered in plain text, as HOST:PORT; None = nowhere."""
        return self._health_address

    @property
    def put_tensor_bytes(self) -> int:
        """Bytes of the tensors that callers have stored."""
        return self._tensors.byte_count

    @property
    def unread_bytes(self) -> int:
        """Bytes of answers that wait for their readers."""
        return self._unread.byte_count

    async def start(self) -> None:
        """Listen, preload contexts, and report to be serving.

        Raises:
            StartupError: It cannot; nothing is left running.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._parts.cache.close)
            stack.push_async_callback(self._parts.pipeline.close)
            stack.callback(self._tensors.close)
            observers = self._observers(stack)
            services = self._services()
            registry = self._parts.cache.registry
            models = await asyncio.to_thread(registry.models)
            self._health = health.Health(
                (service.full_name for service, _ in services), (model.name for model in models), self._drain
            )
            await self._serve_health(stack)
            grant = self._parts.pipeline.use_grants
            files = [*files_of(self._settings, self._identity, grant, self.certificates)]
            files += () if self._measuring is None else self._measuring.files
            for read in files:
                at_start(read).put_in_use()
            if self._measuring is not None:
                self._metrics_port = self._measuring.serve(stack)
                stack.push_async_callback(cancel, asyncio.create_task(self._measuring.measure_lag()))
            self._reloader = Reloader(self._parts.build_registry, self._parts.cache, self._health, files, self._watch)
            stack.push_async_callback(self._reloader.close)
            self._table = self._methods(observers, services)
            self._grpc = self._grpc_server(self._table)
            stack.enter_context(locked(self._settings.unix_socket))
            self._address = listen(self._grpc, self._settings, self.certificates)
            warn_if_open(self._settings)
            await self._grpc.start()
            stack.push_async_callback(self._stop_calls, 0.0)
            following = asyncio.create_task(self._health.follow(self._parts.cache))
            stack.push_async_callback(cancel, following)
            await self._preload_all((*self._settings.pin, *self._settings.preload, *registry.preload))
            self._health.set_serving(self._parts.cache)
            if self._settings.watch_seconds:
                reloading = asyncio.create_task(self._reloader.follow(self._settings.watch_seconds))
                stack.push_async_callback(cancel, reloading)
            self._closing = stack.pop_all()

    async def _serve_health(self, stack: AsyncExitStack) -> None:
        """Serve health checks alone, where the settings say, until *stack* ends: longer than anything else."""
        if self._settings.health_address is None:
            return
        methods = MethodTable([])
        methods.add(health.SERVICE, self._health)
        options = (("grpc.max_receive_message_length", _HEALTH_CHECK_BYTES), *_WINDOWS, _ONE_PER_PORT)
        server = grpc.aio.server(handlers=(methods,), options=options)
        self._health_address = listen_on_port(server, *self._settings.health_address)
        await server.start()
        stack.push_async_callback(server.stop, None)
        _log.info("health checks are answered at %s", self._health_address)

    async def reload(self) -> RegistryChange:
        """Read the registry, the tokens, the callers and the certificates again, and put all in use or none; see
        `Reloader.reload`."""
        return await self._reloader.reload()

    async def reload_if_sound(self) -> None:
        """As `reload`, but an error is only logged."""
        await self._reloader.reload_if_sound()

    async def drain(self) -> None:
        """Stop: first tell, then refuse new work and finish what is in flight, within the grace period.

        For the time of notice in the settings, health checks report NOT_SERVING and all calls are served, so that load
        balancers send requests elsewhere before any is refused. Then streams end once their items in flight are
        answered, watches at once.
        """
        if self._is_draining:
            return
        self._is_draining = True
        notice, grace = self._settings.drain_notice_seconds, self._settings.grace_seconds
        _log.info("draining", extra={"notice_seconds": notice, "grace_seconds": grace})
        self._health.set_draining()
        await asyncio.sleep(notice)
        self._drain.give()
        await self._stop_calls(grace)
        await self.stop()

    async def _stop_calls(self, grace_seconds: float) -> None:
        """Wait for calls to end, within the grace period; end the others, and wait until their callers know."""
        stopping = asyncio.create_task(self._grpc.stop(grace_seconds + _TELL_SECONDS))
        await asyncio.wait([stopping], timeout=grace_seconds)
        self._table.end_all()
        await stopping

    async def stop(self) -> None:
        """End every call at once and close everything."""
        self._drain.give()
        await self._closing.aclose()
        _log.info("stopped")

    def _measured(self) -> Measuring:
        sources = Sources(
            parts=self._parts,
            identity=self._identity,
            memory=(self._unread.memory, self._tensors.memory, self._parts.pipeline.memory),
            certificates=self.certificates,
        )
        return Measuring(self._settings, sources)

    def _observers(self, stack: AsyncExitStack) -> list[CallObserver]:
        """Observers of calls, then those that may refuse them; the former observe refusals too."""
        watching: list[CallObserver] = [LogCalls()]
        later = Later(watching)
        stack.callback(later.flush)
        if self._measuring is not None:
            watching += self._measuring.observers(later)
        return [*filter(None, [self._tracing]), later, self._identity, self._admission]

    def _services(self) -> list[tuple[ServiceDescriptor, object]]:
        """Our services, with their implementations."""
        limits = StreamLimits(
            max_items_in_flight=self._settings.max_items_in_flight_per_stream,
            max_items=self._settings.max_items_per_stream,
        )
        parts = self._parts
        derived_scalars = DerivedScalarService(parts.pipeline, self._tensors, limits, self._drain)
        catalog = CatalogService(parts.cache, server_info(self._settings), parts.pipeline)
        return [
            (_only_service(derived_scalar_service_pb2), derived_scalars),
            (_only_service(causal_service_pb2), CausalService(parts.pipeline, self._tensors)),
            (_only_service(graph_service_pb2), GraphService(parts.pipeline, self._tensors)),
            (_only_service(catalog_service_pb2), catalog),
            (_only_service(context_service_pb2), ContextService(parts.cache, self._drain, self.reload)),
            (_only_service(tensor_service_pb2), TensorService(self._tensors)),
        ]

    def _methods(
        self, observers: Sequence[CallObserver], services: Sequence[tuple[ServiceDescriptor, object]]
    ) -> MethodTable:
        """All methods: ours, health, reflection."""
        pipeline = self._parts.pipeline
        load = LoadReport(pipeline.loads).of_ended_call
        intake = Intake(_intake_limits(self._settings))
        methods = MethodTable(observers, self._unread, load, Reading(pipeline.waiting), intake)
        for descriptor, implementation in services:
            methods.add(descriptor, implementation)
        methods.add(health.SERVICE, self._health)
        if self._settings.reflection:
            names = [*(descriptor.full_name for descriptor, _ in services), health.SERVICE.full_name]
            servicer = reflection.Reflection(names, self._drain)
            methods.add(reflection.SERVICE_V1ALPHA, servicer)
            # Its requests are parsed as those of v1alpha, which have the same encoding.
            methods.add(reflection.SERVICE_V1ALPHA, servicer, name=reflection.service_v1().full_name)
        return methods

    def _grpc_server(self, methods: MethodTable) -> grpc.aio.Server:
        ages = {
            "max_connection_age_ms": self._settings.max_connection_age_seconds,
            "max_connection_age_grace_ms": self._settings.max_connection_age_grace_seconds,
        }
        return grpc.aio.server(
            handlers=(methods,),
            options=(
                ("grpc.max_receive_message_length", self._settings.max_message_bytes),
                # Long runs send nothing for a while; clients may send keepalive pings meanwhile.
                ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_MILLIS),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", _PING_INTERVAL_MILLIS),
                ("grpc.keepalive_permit_without_calls", 1),
                *_WINDOWS,
                # Of calls that wait to be accepted, gRPC drops some from 1,000 on, as CANCELLED, and no handler, log or
                # metric sees them. Accepting one takes little, and our own door decides whether it is served.
                ("grpc.server.max_pending_requests", _PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_CALLS),
                *(("grpc." + name, round(1000 * seconds)) for name, seconds in ages.items() if seconds is not None),
                _ONE_PER_PORT,
            ),
        )

    async def _preload_all(self, references: Sequence[str]) -> None:
        """Preload in order; raise StartupError if they do not all fit at once.

        What cannot be loaded because of its files is only logged, unless the settings are strict.
        """
        wanted = list(dict.fromkeys(references))
        loaded = []
        for number, reference in enumerate(wanted, start=1):
            try:
                await self._preload(reference, f"{number} of {len(wanted)}")
            except DstError as error:
                if self._settings.strict or not isinstance(error, DataLoss | Internal):
                    raise StartupError(f"preload of {reference!r} failed: {error.message}") from error
                _log.error("preload failed: %s", error.message, extra={"context": reference})
            else:
                loaded.append(reference)
        status = self._parts.cache.status
        gone = [repr(reference) for reference in loaded if status(reference).state is not ContextState.AVAILABLE]
        if gone:
            names = ", ".join(gone)
            raise StartupError(f"budget_bytes is too small for all that is preloaded: {names} had to go again")

    async def _preload(self, reference: str, number: str) -> None:
        """Load a context, logging every tenth of its progress."""
        told = 0
        async with aclosing(self._parts.cache.load(reference, pin=reference in self._settings.pin)) as statuses:
            async for status in statuses:
                tenths = 10 * status.bytes_loaded // (status.bytes_total or 1)
                if tenths > told:
                    told = tenths
                    fields = {"context": status.handle, "percent": 10 * tenths, "bytes": status.bytes_total}
                    _log.info("preloading %s", number, extra=fields)
        _log.info("preloaded %s", number, extra={"context": reference})


def _intake_limits(settings: Settings) -> IntakeLimits:
    """No more messages are read at once than fit, at their largest, what may wait of all callers and of one."""
    usual, size = IntakeLimits(), settings.max_message_bytes

    def fitting(n_bytes: float, most: int) -> int:
        return max(_LEAST_AT_ONCE, min(most, int(n_bytes / size)))

    return IntakeLimits(
        max_messages=fitting(settings.max_queued_bytes, usual.max_messages),
        max_messages_per_caller=fitting(settings.max_queued_bytes * SHARE_OF_BYTES, usual.max_messages_per_caller),
        max_streams_per_caller=settings.max_streams_per_caller,
        slow_sender_seconds=settings.slow_sender_seconds,
    )


def _only_service(module: Any) -> ServiceDescriptor:
    """The service that a generated module describes."""
    (service,) = module.DESCRIPTOR.services_by_name.values()
    return cast("ServiceDescriptor", service)


async def cancel(task: asyncio.Task[object] | asyncio.Task[None]) -> None:
    """Cancel *task* and wait until it is over; an earlier error of it is logged."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a background task failed", exc_info=error)


@asynccontextmanager
async def running_server(
    settings: Settings, parts: Parts | None = None, tracing: CallObserver | None = None
) -> AsyncGenerator[Server, None]:
    """A server that serves within the block, with the real parts unless others are given, and is then stopped at
    once."""
    server = Server(settings, parts or build_parts(settings), tracing)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
