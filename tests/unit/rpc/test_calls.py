from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from dst_grpc.errors import Exhausted, InvalidRequest, Reason, Unavailable
from dst_grpc.failures import failure_of
from dst_grpc.observability.calls import CallInfo, CallObserver, CallOutcome, ItemInfo
from dst_grpc.rpc.admission import CallAdmission
from dst_grpc.rpc.calls import MethodTable, ObservedContext, of_bytes
from dst_grpc.rpc.draining import DrainSignal
from dst_grpc.rpc.errors import as_dst_error, pushback
from dst_grpc.rpc.health import SERVICE
from dst_grpc.rpc.outbox import Unread
from dst_grpc.rpc.reading import Reading

OUTCOME = CallOutcome(code="OK", seconds=0.0)


def call(method: str = "/dst.v1.CatalogService/ListModels", **metadata: str) -> CallInfo:
    return CallInfo(method=method, metadata=tuple(metadata.items()))


def test_a_service_without_one_of_its_methods_is_found_at_start() -> None:
    class Lacking:
        async def Check(self, _request: object, _context: object) -> object: ...

    with pytest.raises(AttributeError, match="List"):
        MethodTable([]).add(SERVICE, Lacking())


class Peer:
    """What a call needs of gRPC's context."""

    def __init__(self) -> None:
        self.aborted: list[grpc.StatusCode] = []
        self.trailers: dict[str, str | bytes] = {}
        self.n_read = 0

    async def read(self) -> bytes:
        self.n_read += 1
        return b""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> None: ...

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self.trailers = dict(metadata)

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    async def abort(self, code: grpc.StatusCode, _details: str, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self.aborted.append(code)
        self.trailers = dict(metadata)


class Refusing:
    """Refuses every call."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def on_start(self, _info: CallInfo) -> None:
        assert not self._peer.n_read
        raise Exhausted("full", reason=Reason.QUEUE_FULL)

    def on_end(self, _token: object, _info: CallInfo, _outcome: CallOutcome) -> None: ...

    def on_item(self, _info: CallInfo, _item: ItemInfo, _outcome: CallOutcome) -> None: ...


class Ends:
    """Notes how calls end."""

    def __init__(self) -> None:
        self.seen: list[CallOutcome] = []

    def on_start(self, _info: CallInfo) -> None: ...

    def on_end(self, _token: object, _info: CallInfo, outcome: CallOutcome) -> None:
        self.seen.append(outcome)

    def on_item(self, _info: CallInfo, _item: ItemInfo, _outcome: CallOutcome) -> None: ...


class Panic(BaseException):
    """As libraries in other languages raise it."""


async def called(error: BaseException | None, ends: CallObserver, peer: Peer) -> None:
    """Call a method that raises *error*, or answers."""

    class Raising:
        async def Check(self, _request: object, _context: object) -> object:
            if error is not None:
                raise error
            return health_pb2.HealthCheckResponse()

        List = Watch = Check

    table = MethodTable([ends], load=lambda: ("load-bin", b"much"))
    table.add(SERVICE, Raising())
    details: Any = SimpleNamespace(method="/grpc.health.v1.Health/Check")
    handler: Any = table.service(details)
    await handler.stream_unary(None, peer)


async def test_a_connection_that_breaks_beneath_a_call_ends_it_as_a_cancel_does() -> None:
    ends = Ends()
    with pytest.raises(asyncio.CancelledError):
        await called(grpc.aio.InternalError(), ends, Peer())
    assert [outcome.code for outcome in ends.seen] == ["CANCELLED"]


async def test_a_call_is_refused_before_its_message_is_read() -> None:
    """It is dropped afterwards, since a client that is sending while its call ends may not be told why."""
    peer = Peer()
    await called(None, Refusing(peer), peer)
    assert peer.aborted == [grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert peer.n_read == 1


class Noted:
    """The bytes of a request, of which there are no weak references to tell whether they are still there."""

    def __len__(self) -> int:
        return 5


class SlowPeer(Peer):
    """Sends one message, and takes none."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[weakref.ref[Noted]] = []
        self.is_given = asyncio.Event()

    async def read(self) -> Any:
        message = Noted()
        self.sent.append(weakref.ref(message))
        return message

    async def write(self, _data: bytes) -> None:
        self.is_given.set()
        await asyncio.Event().wait()

    def time_remaining(self) -> None: ...


@pytest.mark.parametrize("is_made", [True, False])
async def test_a_request_is_let_go_while_its_answer_is_sent(is_made: bool) -> None:
    """A client that takes no answer may have many calls, each with as large a request as may be."""

    async def made_later() -> AsyncIterator[bytes]:
        yield b"answer"

    class Answering:
        @of_bytes
        async def Watch(self, _data: bytes, _context: object) -> object:
            return (b"answer",) if is_made else made_later()

        List = Check = Watch

    table, peer = MethodTable([]), SlowPeer()
    table.add(SERVICE, Answering())
    details: Any = SimpleNamespace(method="/grpc.health.v1.Health/Watch")
    handler: Any = table.service(details)
    calling = asyncio.ensure_future(handler.stream_stream(None, peer))
    await asyncio.wait_for(peer.is_given.wait(), 10)
    assert [reference() for reference in peer.sent] == [None]
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling


async def test_a_panic_of_a_library_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    """It is no Exception, and yet no wish to stop."""
    ends, peer = Ends(), Peer()
    await called(Panic("in another language"), ends, peer)
    assert peer.aborted == [grpc.StatusCode.INTERNAL]
    (outcome,) = ends.seen
    assert (outcome.code, outcome.reason) == ("INTERNAL", Reason.INTERNAL)
    assert "in another language" in caplog.text
    assert outcome.error_id == caplog.records[0].__dict__["error_id"]


@pytest.mark.parametrize("error", [None, Exhausted("full", reason=Reason.QUEUE_FULL)])
async def test_the_load_is_told_with_every_status(error: Exhausted | None) -> None:
    """Here, since gRPC's own clients take it out, as proxies do."""
    peer = Peer()
    await called(error, Ends(), peer)
    assert peer.trailers["load-bin"] == b"much"
    assert len(peer.aborted) == (error is not None)


@pytest.mark.parametrize("wish", [KeyboardInterrupt, SystemExit])
def test_a_wish_to_stop_is_no_failure(wish: type[BaseException]) -> None:
    with pytest.raises(wish):
        failure_of(wish())


def context_of(info: CallInfo) -> ObservedContext:
    inner: Any = None  # nothing is sent
    return ObservedContext(inner, info, health_pb2.HealthCheckRequest, Reading(), Unread())


async def test_a_context_counts_what_passes() -> None:
    info = call()
    context = context_of(info)
    data = health_pb2.HealthCheckRequest(service="abc").SerializeToString()
    assert await context.parse(data) == health_pb2.HealthCheckRequest(service="abc")
    assert context.counted(b"\x08\x01") == b"\x08\x01"
    assert context.counted(b"as it is") == b"as it is"
    assert (info.received_bytes, info.received_messages, info.sent_bytes, info.sent_messages) == (len(data), 1, 10, 2)


async def test_bytes_that_are_no_message_are_the_callers_fault() -> None:
    context = context_of(call())
    with pytest.raises(InvalidRequest, match=r"grpc\.health\.v1\.HealthCheckRequest") as caught:
        await context.parse(b"\xff")
    assert caught.value.reason is Reason.MALFORMED_MESSAGE


def test_admission_bounds_the_calls_in_flight() -> None:
    admission = CallAdmission(DrainSignal(), 1)
    token = admission.on_start(call())
    with pytest.raises(Exhausted) as caught:
        admission.on_start(call())
    assert caught.value.metadata == {"max_concurrent_calls": "1"}
    health = call("/grpc.health.v1.Health/Check")
    admission.on_end(admission.on_start(health), health, OUTCOME)
    admission.on_end(token, call(), OUTCOME)
    admission.on_start(call())


def test_admission_refuses_new_work_while_draining() -> None:
    drain = DrainSignal()
    drain.give()
    admission = CallAdmission(drain, None)
    with pytest.raises(Unavailable):
        admission.on_start(call())
    admission.on_start(call("/grpc.health.v1.Health/Watch"))


def test_foreign_errors_become_internal_and_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    error = as_dst_error(ValueError("secret"), method="/a/B", request_id="r")
    assert error.reason is Reason.INTERNAL
    assert "secret" not in str(error)
    (record,) = caplog.records
    assert vars(record)["error_id"] == error.metadata["error_id"]
    assert "secret" in caplog.text
    assert as_dst_error(error, method="/a/B") is error


def test_pushback_is_in_whole_milliseconds() -> None:
    assert pushback(Unavailable("", retry_after_seconds=0.0001)) == "1"
    assert pushback(Exhausted("")) == "-1"
    assert pushback(InvalidRequest.of("", "")) is None


def test_the_drain_signal_is_given_once_to_whoever_listens() -> None:
    drain = DrainSignal()
    heard: list[str] = []
    with drain.calling(lambda: heard.append("first")):
        with drain.calling(lambda: heard.append("gone")):
            pass
        drain.give()
        drain.give()
        assert heard == ["first"]
        with drain.calling(lambda: heard.append("late")):
            assert heard == ["first", "late"]
