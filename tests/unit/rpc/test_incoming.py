"""Messages are read a few of each caller at a time, and none of who may not call."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest

from dst_grpc.domain.callers import ASKING, Caller
from dst_grpc.errors import DeadlineExceeded, Exhausted, InvalidRequest, Reason
from dst_grpc.observability.calls import CallInfo
from dst_grpc.rpc import incoming as module
from dst_grpc.rpc.incoming import Incoming, Intake, IntakeLimits
from tests.e2e.conftest import CALL_SECONDS


class Wire:
    """As gRPC's contexts: gives each reader the next message once it was sent."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.n_reading = 0

    async def read(self) -> Any:
        self.n_reading += 1
        try:
            return await self.sent.get()
        finally:
            self.n_reading -= 1


def of(wire: Wire, intake: Intake, name: str = "a", *, port: int = 5, is_stream: bool = False) -> Incoming:
    """The messages of a call from *port*, of the caller *name*, or of a stranger if that is empty."""
    caller = Caller(name=name, roles=ASKING)
    context: Any = wire
    info = CallInfo(method="/a/B", peer=f"ipv4:1.2.3.4:{port}", caller=caller)
    return Incoming(context, info, intake, is_stream=is_stream)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_so_many_messages_of_a_caller_are_read_at_once() -> None:
    wire, other, intake = Wire(), Wire(), Intake(IntakeLimits(max_messages_per_caller=2))
    reading = [asyncio.create_task(of(wire, intake).only()) for _ in range(5)]
    await settled()
    assert wire.n_reading == 2
    other.sent.put_nowait(b"of another")
    assert await of(other, intake, "b").only() == b"of another"
    for i in range(5):
        wire.sent.put_nowait(b"%d" % i)
    assert sorted(await asyncio.gather(*reading)) == [b"0", b"1", b"2", b"3", b"4"]


async def test_who_waits_to_be_read_is_refused_beyond_a_limit() -> None:
    wire, intake = Wire(), Intake(IntakeLimits(max_messages_per_caller=1, max_waiting_per_caller=2))
    reading = [asyncio.create_task(of(wire, intake).only()) for _ in range(3)]
    await settled()
    with pytest.raises(Exhausted) as caught:
        await of(wire, intake).only()
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.metadata == {"max_incoming_calls_per_caller": "2"}
    for task in reading:
        task.cancel()


async def test_a_message_that_does_not_come_gives_its_turn_back() -> None:
    limits = IntakeLimits(max_messages_per_caller=1, slow_sender_seconds=0.01)
    wire, other, intake = Wire(), Wire(), Intake(limits)
    slow, next_one = (asyncio.create_task(of(each, intake).only()) for each in (wire, other))
    other.sent.put_nowait(b"comes")
    with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
        await slow
    assert await next_one == b"comes"


async def test_a_call_without_a_message_is_the_callers_fault() -> None:
    wire = Wire()
    wire.sent.put_nowait(grpc.aio.EOF)
    with pytest.raises(InvalidRequest) as caught:
        await of(wire, Intake()).only()
    assert caught.value.reason is Reason.MALFORMED_MESSAGE


async def test_a_caller_may_have_so_many_streams_open() -> None:
    intake = Intake(IntakeLimits(max_streams_per_caller=2))
    streams = [of(Wire(), intake, is_stream=True) for _ in range(3)]
    streams[0].open()
    streams[1].open()
    of(Wire(), intake, "b", is_stream=True).open()
    with pytest.raises(Exhausted) as caught:
        streams[2].open()
    assert caught.value.metadata == {"max_streams_per_caller": "2"}
    streams[2].close()  # which was not counted
    streams[0].close()
    streams[0].close()
    streams[2].open()
    with pytest.raises(Exhausted):
        of(Wire(), intake, is_stream=True).open()


# Strangers: health checks, and those who are refused


async def test_strangers_who_send_nothing_hold_up_nobody_but_their_connection() -> None:
    """Else whoever reaches the server through a proxy could keep the proxy's own health checks from it."""
    silent, other = Wire(), Wire()
    intake = Intake(IntakeLimits(max_messages=2, max_messages_per_caller=1, max_waiting_per_caller=1))
    first, second = (asyncio.create_task(of(silent, intake, "").only()) for _ in range(2))
    await settled()
    with pytest.raises(Exhausted):
        await of(silent, intake, "").only()
    other.sent.put_nowait(b"a check")
    assert await of(other, intake, "", port=6).only() == b"a check"
    first.cancel()
    second.cancel()


async def test_strangers_take_no_turn_of_callers() -> None:
    silent, other, intake = Wire(), Wire(), Intake(IntakeLimits(max_messages=2))
    strangers = [asyncio.create_task(of(silent, intake, "", port=port).only()) for port in range(3)]
    await settled()
    assert silent.n_reading == 2  # not one of each
    callers = [asyncio.create_task(of(other, intake, name).only()) for name in "aab"]
    await settled()
    assert other.n_reading == 3
    for task in (*strangers, *callers):
        task.cancel()


async def test_a_stranger_s_message_has_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STRANGERS_SECONDS", 0.01)
    with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
        await asyncio.wait_for(of(Wire(), Intake(), "").only(), CALL_SECONDS)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_who_is_refused_is_heard_out_in_turn(is_stream: bool) -> None:
    wire, intake = Wire(), Intake(IntakeLimits(max_messages_per_caller=1))
    refused = [asyncio.create_task(of(wire, intake, "", is_stream=is_stream).hear_out()) for _ in range(2)]
    await settled()
    assert wire.n_reading == 1
    for _ in refused:
        wire.sent.put_nowait(b"dropped")
        wire.sent.put_nowait(grpc.aio.EOF)
    await asyncio.wait_for(asyncio.gather(*refused), CALL_SECONDS)


async def test_who_sends_nothing_is_not_heard_out_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HEAR_OUT_SECONDS", 0.01)
    intake = Intake(IntakeLimits(max_messages_per_caller=1))
    await asyncio.wait_for(asyncio.gather(*(of(Wire(), intake).hear_out() for _ in range(3))), CALL_SECONDS)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_message_that_comes_too_late_is_received_all_the_same(
    is_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one whose reader was cancelled, gRPC never frees the memory."""
    monkeypatch.setattr(module, "_HEAR_OUT_SECONDS", 0.01)
    wire, intake = Wire(), Intake(IntakeLimits(slow_sender_seconds=0.01))
    call = of(wire, intake, is_stream=is_stream)
    if is_stream:
        waiting = asyncio.create_task(anext(call))
        await settled()
        waiting.cancel()
        await call.hear_out()
    else:
        with pytest.raises(DeadlineExceeded):
            await call.only()
    call.close()
    await settled()
    assert wire.n_reading == 1
    wire.sent.put_nowait(b"too late")
    await settled()
    assert (wire.n_reading, wire.sent.qsize()) == (0, 0)


async def test_a_message_that_was_read_is_all_that_there_is_to_hear() -> None:
    wire = Wire()
    wire.sent.put_nowait(b"all")
    call = of(wire, Intake())
    await call.only()
    await asyncio.wait_for(call.hear_out(), CALL_SECONDS)
