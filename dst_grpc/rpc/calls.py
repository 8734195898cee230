"""The layer around every call: parsing, observers, error mapping, writing. Shared by all four call shapes and services.

A service registers here by its descriptor, so that a method without implementation is found at start. Its methods take
(request or iterator of requests, context): coroutines for a single response; asynchronous generators, or coroutines
that put into `context.outbox`, for a stream. A response that is `bytes` already is sent as it is. Methods that are
marked by `of_bytes` are given the bytes of their request instead of the message in them, and return what answers it.

gRPC handles only bytes: parsing in this layer makes a corrupt message INVALID_ARGUMENT, where gRPC would answer UNKNOWN
with the exception's text, and allows counting the bytes of calls.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from dst_grpc.domain.callers import Caller
from dst_grpc.domain.timeline import Stage, Timeline
from dst_grpc.errors import DstError, Unimplemented, require
from dst_grpc.failures import failure_of, without_frames
from dst_grpc.observability.calls import CallInfo, CallObserver, CallOutcome, enter
from dst_grpc.observability.trace_context import trace_parent
from dst_grpc.rpc.draining import draining_error
from dst_grpc.rpc.errors import abort, as_dst_error, outcome_of
from dst_grpc.rpc.identity import WrongToken
from dst_grpc.rpc.incoming import Incoming, Intake
from dst_grpc.rpc.outbox import Outbox, Unread
from dst_grpc.rpc.reading import Reading, RequestStream
from dst_grpc.rpc.request_id import REQUEST_ID_KEY, request_id_of

Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its stubs only
_Behaviour = Callable[[Any, Any], Any]


class ObservedContext:
    """The context that methods are given: gRPC's, with messages counted, parsed and serialised here."""

    def __init__(
        self, context: Context, info: CallInfo, request_type: type[Message], reading: Reading, unread: Unread
    ) -> None:
        """Wrap *context* for one call: *reading* parses its requests, its answer waits in an outbox of *unread*."""
        self.inner: Final = context
        self._request_type, self._reading, self._unread = request_type, reading, unread
        self.info: Final = info
        self.trailing_metadata: list[tuple[str, str | bytes]] = [(REQUEST_ID_KEY, info.request_id)]
        """What is sent with the status of the call, whatever that is."""
        self._outbox: Outbox | None = None

    @property
    def caller(self) -> Caller:
        """Who calls."""
        return self.info.caller

    def __getattr__(self, name: str) -> Any:
        """Anything else is that of gRPC's context."""
        return getattr(self.inner, name)

    @property
    def outbox(self) -> Outbox:
        """The messages of a streamed answer."""
        if self._outbox is None:
            # What writes them does not refer to this context: it is gone with the call, and not left to be collected.
            self._outbox = self._unread.outbox(self.caller.name, partial(_write, self.inner, self.info))
        return self._outbox

    def note_writing(self) -> None:
        """Note on the timeline of the call how long its client took to take the answer, if it is a stream."""
        outbox = self._outbox
        if outbox is not None and outbox.begun_at is not None:
            self.info.first_sent_at = outbox.first_taken_at
            self.info.timeline.note(Stage.WRITE, outbox.begun_at, outbox.taken_at or outbox.begun_at)

    def counted(self, data: bytes) -> bytes:
        """*data*, the bytes of a response, counted."""
        return _counted(self.info, data)

    def received(self, data: bytes) -> bytes:
        """*data*, the bytes of a request, counted."""
        self.info.received_messages += 1
        self.info.received_bytes += len(data)
        return data

    async def parse(self, data: bytes) -> Message:
        """The request in *data*, counted.

        Raises:
            InvalidRequest: It cannot be parsed, or is too large.
            DstError: The caller may no longer send any, or too many wait to be parsed.
        """
        self.info.still_allowed()
        return await self._reading.parsed(self._request_type, self.received(data), self.caller)


def _write(context: Context, info: CallInfo, data: bytes) -> Awaitable[None]:
    """Send *data*, a message of a streamed answer."""
    return context.write(_counted(info, data))


def _counted(info: CallInfo, data: bytes) -> bytes:
    """*data*, the bytes of a response, counted."""
    info.sent_messages += 1
    info.sent_bytes += len(data)
    return data


_Work = Callable[[Incoming, ObservedContext], Awaitable[bytes | None]]
_Method = TypeVar("_Method", bound=Callable[..., Any])


def of_bytes(method: _Method) -> _Method:
    """Give *method* of a service the bytes of its request. It returns the answer, messages that are made already or as
    they are made, which are sent once the request is let go: their reader may be slow."""
    method.__dict__["is_of_bytes"] = True
    return method


class MethodTable(grpc.GenericRpcHandler):
    """Every method of the server, by full name."""

    def __init__(
        self,
        observers: Sequence[CallObserver],
        unread: Unread | None = None,
        load: Callable[[], tuple[str, bytes]] | None = None,
        reading: Reading | None = None,
        intake: Intake | None = None,
    ) -> None:
        """Start empty.

        Args:
            observers: observe every call, in order at its start and in reverse at its end.
            unread: where streamed answers wait for their readers; None for one of its own.
            load: further metadata to send with the status of each call.
            reading: parses requests; None for one of its own.
            intake: bounds what is read of each caller; None for one of its own.
        """
        self._observers, self._unread, self._load = tuple(observers), unread or Unread(), load
        self._reading, self._intake = reading or Reading(), intake or Intake()
        self._running: set[asyncio.Task[Any]] = set()
        """Tasks of the calls in progress."""
        self._ended: set[asyncio.Task[Any]] = set()
        """Those of them whose callers are to be told that the server is stopping."""
        self._handlers: dict[str, _Handler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler:
        """Called by gRPC at each call."""
        return self._handlers.get(handler_call_details.method) or self._unknown(handler_call_details.method)

    def add(self, service: ServiceDescriptor, implementation: object, *, name: str | None = None) -> None:
        """Register every method of *service*, under another *name* if given; AttributeError for a missing one."""
        for method in service.methods:
            full_name = f"/{name or service.full_name}/{method.name}"
            self._handlers[full_name] = self._handler(full_name, method, getattr(implementation, method.name))

    @property
    def methods(self) -> list[str]:
        """Full names of all methods, sorted."""
        return sorted(self._handlers)

    def end_all(self) -> None:
        """End every call in progress, as the server is stopping; callers are told so."""
        self._ended |= self._running
        for task in self._running:
            task.cancel()

    def _handler(self, full_name: str, method: MethodDescriptor, behaviour: _Behaviour) -> _Handler:
        """Adapt one method to gRPC."""
        request_type = GetMessageClass(method.input_type)
        work = _work_of(behaviour, method)

        async def observed(_messages: object, context: Context) -> bytes | None:
            info = self._info(full_name, context)
            wrapped = ObservedContext(context, info, request_type, self._reading, self._unread)
            incoming = Incoming(context, info, self._intake, is_stream=method.client_streaming)
            return await self._observe(work, incoming, wrapped)

        # A single request too is read here: gRPC would take it in before it is known who calls, and never end a call
        # that has none.
        if method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(observed)
        return grpc.stream_unary_rpc_method_handler(observed)

    def _unknown(self, full_name: str) -> _Handler:
        """The handler of an unknown method: it takes any call shape, and observers see the call."""

        async def refuse(_incoming: object, _context: ObservedContext) -> None:
            raise Unimplemented(f"the server has no method {full_name!r}", metadata={"method": full_name})

        async def observed(_messages: object, context: Context) -> None:
            info = self._info(full_name, context, is_known=False)
            wrapped = ObservedContext(context, info, Empty, self._reading, self._unread)
            await self._observe(refuse, Incoming(context, info, self._intake, is_stream=True), wrapped)

        return grpc.stream_stream_rpc_method_handler(observed)

    def _info(self, method: str, context: Context, *, is_known: bool = True) -> CallInfo:
        """What observers are told of a call at its start."""
        metadata = _metadata(context)
        parent = trace_parent(metadata)
        return CallInfo(
            method=method,
            is_known=is_known,
            peer=context.peer(),
            metadata=metadata,
            certificate=context.auth_context,
            request_id=request_id_of(metadata),
            trace_parent=parent,
            timeline=Timeline("" if parent is None else parent.trace_id),
            observers=self._observers,
        )

    def _why_cancelled(self, stop: asyncio.CancelledError, task: asyncio.Task[Any], info: CallInfo) -> DstError | None:
        """What a call ends with that was cancelled; None if its client did that, or its deadline."""
        is_ended = task in self._ended
        if task.cancelling() > is_ended:
            return None
        if is_ended:
            task.uncancel()
            return draining_error()
        # A task inside the call was cancelled. If that were raised, the client would wait forever.
        return as_dst_error(RuntimeError(f"cancelled from within: {stop!r}"), method=info.method)

    async def _observe(self, work: _Work, incoming: Incoming, context: ObservedContext) -> bytes | None:
        """Run a call between its observers. Error mapping is innermost: observers see the code that was sent."""
        started: list[tuple[CallObserver, object]] = []
        code = "OK"
        error: DstError | None = None

        def end() -> None:
            if started:
                _tell_end(started, context, outcome_of(error, _seconds_of(context.info), code=code))

        enter(context.info)
        task = require(asyncio.current_task())
        self._running.add(task)
        try:
            try:
                for observer in self._observers:
                    started.append((observer, observer.on_start(context.info)))  # noqa: PERF401  a refusal keeps those before
                answer = await work(incoming, context)
                self._add_load(context)
                context.inner.set_trailing_metadata(tuple(context.trailing_metadata))
                return answer  # noqa: TRY300  what is raised above ends the call too
            except grpc.aio.AbortError as aborted:
                code = context.code().name
                without_frames(aborted)  # as where this layer ends a call with an error
                return None
            except grpc.aio.BaseError:
                # The connection was lost during a read or a write; nobody is left to be told. If it were raised, gRPC
                # would log it as an error of the server.
                code = "CANCELLED"
                raise asyncio.CancelledError from None
            except asyncio.CancelledError as stop:
                error = self._why_cancelled(stop, task, context.info)
                if error is None:
                    code = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
                    raise
            except BaseException as failure:  # noqa: BLE001  the last stop: gRPC would send its text to the caller
                error = as_dst_error(failure_of(failure), method=context.info.method)
            self._running.discard(task)
            end()  # before the status is sent, which waits until the client has read all that was sent before
            self._add_load(context)
            await _refuse(context, error, incoming)
            return None
        finally:
            self._running.discard(task)
            self._ended.discard(task)
            end()
            incoming.close()

    def _add_load(self, context: ObservedContext) -> None:
        if self._load is not None:
            context.trailing_metadata.append(self._load())


def _seconds_of(info: CallInfo) -> float:
    return time.monotonic() - info.started_at


def _tell_end(started: list[tuple[CallObserver, object]], context: ObservedContext, outcome: CallOutcome) -> None:
    """Tell the observers of a call, with what each returned at its start, that it is over; the last is told first."""
    context.note_writing()
    context.info.is_over = True
    while started:
        observer, token = started.pop()
        observer.on_end(token, context.info, outcome)


async def _refuse(context: ObservedContext, error: DstError, incoming: Incoming) -> None:
    """End a call with *error*, once its client can take note of it; raises as `abort`."""
    if isinstance(error, WrongToken):
        await asyncio.sleep(error.wait_seconds)
    await incoming.hear_out()
    await abort(context.inner, error, context.trailing_metadata)


def _metadata(context: Context) -> Sequence[tuple[str, str | bytes]]:
    """The caller's metadata; its type in the stubs differs from what the server's context returns."""
    return cast("Sequence[tuple[str, str | bytes]]", context.invocation_metadata() or ())


def _work_of(behaviour: _Behaviour, method: MethodDescriptor) -> _Work:
    """*behaviour* as one coroutine over bytes, whatever its shape."""
    if getattr(behaviour, "is_of_bytes", False):

        async def of_bytes(incoming: Incoming, context: ObservedContext) -> None:
            answer = await behaviour(context.received(await incoming.only()), context)
            outbox = context.outbox
            await (outbox.send_made(answer) if isinstance(answer, Sequence) else outbox.send(answer))

        return of_bytes

    if not method.server_streaming:

        async def single(incoming: Incoming, context: ObservedContext) -> bytes:
            return context.counted(_bytes_of(await behaviour(await _request(incoming, context), context)))

        return single

    if inspect.iscoroutinefunction(behaviour):

        async def written(incoming: Incoming, context: ObservedContext) -> None:
            await behaviour(await _request(incoming, context), context)

        return written

    async def streamed(incoming: Incoming, context: ObservedContext) -> None:
        await context.outbox.send(_serialised(behaviour(await _request(incoming, context), context)))

    return streamed


async def _serialised(messages: AsyncGenerator[Message | bytes, None]) -> AsyncGenerator[bytes, None]:
    """The bytes of *messages*, which is closed at the end."""
    async with aclosing(messages):
        async for message in messages:
            yield _bytes_of(message)


def _bytes_of(message: Message | bytes) -> bytes:
    """The bytes of a response."""
    return message if isinstance(message, bytes) else message.SerializeToString()


async def _request(incoming: Incoming, context: ObservedContext) -> Message | RequestStream[Message]:
    """The request, or the stream of requests."""
    if incoming.is_stream:
        incoming.open()
        return RequestStream(incoming, context.parse)
    return await context.parse(await incoming.only())
