from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator

import pytest

from dst_grpc.errors import Exhausted, Reason
from dst_grpc.rpc import outbox
from dst_grpc.rpc.outbox import Outbox, Unread, UnreadLimits

SECONDS = 10.0


class Reader:
    """A client: it takes messages while `reads` is set."""

    def __init__(self, *, reads: bool = False) -> None:
        self.got: list[bytes] = []
        self.reads = asyncio.Event()
        if reads:
            self.reads.set()

    async def write(self, message: bytes) -> None:
        await self.reads.wait()
        self.got.append(message)


class Work:
    """What makes messages of a given size, one after another."""

    def __init__(self, count: int, size: int = 1) -> None:
        self.count, self.size = count, size
        self.made = 0
        self.is_over = False

    async def messages(self) -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(self.count):
                self.made += 1
                yield b"." * self.size
        finally:
            self.is_over = True


def carried(outbox: Outbox, work: Work) -> asyncio.Task[None]:
    return asyncio.create_task(outbox.send(work.messages()))


def stalled(outbox: Outbox) -> bool:
    return outbox.has_stalled


async def until_still(*works: Work) -> None:
    """Wait until nobody makes anything any more, and all that is ready has run."""
    before = -1
    while (made := sum(work.made for work in works)) > before:
        before = made
        for _ in range(100):
            await asyncio.sleep(0)


async def ended(*tasks: asyncio.Task[None]) -> None:
    await asyncio.wait_for(asyncio.gather(*tasks), SECONDS)


async def test_an_answer_within_the_budget_is_made_whole_before_it_is_read() -> None:
    unread, reader, work = Unread(UnreadLimits(max_caller_bytes=100)), Reader(), Work(10, 10)
    sending = carried(unread.outbox("a", reader.write), work)
    await until_still(work)
    assert work.is_over
    assert unread.byte_count == 100
    reader.reads.set()
    await ended(sending)
    assert reader.got == [b"." * 10] * 10
    assert unread.byte_count == 0


async def test_work_pauses_beyond_the_budget_and_goes_on_as_it_is_read() -> None:
    unread, reader, work = Unread(UnreadLimits(max_caller_bytes=100)), Reader(), Work(1000, 30)
    sending = carried(unread.outbox("a", reader.write), work)
    await until_still(work)
    assert unread.byte_count == 90
    assert not work.is_over
    reader.reads.set()
    await ended(sending)
    assert len(reader.got) == 1000


@pytest.mark.parametrize(("patience", "ahead"), [(SECONDS, 3), (0.0, 10)])
async def test_work_stays_near_a_client_that_reads_promptly_and_runs_ahead_of_others(
    monkeypatch: pytest.MonkeyPatch, patience: float, ahead: int
) -> None:
    monkeypatch.setattr(outbox, "_NEAR_BYTES", 20)
    monkeypatch.setattr(outbox, "_PROMPT_SECONDS", patience)
    unread, reader, work = Unread(UnreadLimits(max_caller_bytes=100)), Reader(), Work(1000, 10)
    sending = carried(unread.outbox("a", reader.write), work)
    await until_still(work)
    assert unread.byte_count == 10 * ahead
    reader.reads.set()
    await ended(sending)
    assert len(reader.got) == 1000


async def test_calls_of_a_caller_share_its_budget_and_leave_that_of_others_alone() -> None:
    unread = Unread(UnreadLimits(max_caller_bytes=100))
    readers, works = [Reader(), Reader(), Reader()], [Work(1000, 10) for _ in range(3)]
    tasks = [
        carried(unread.outbox(caller, reader.write), work)
        for caller, reader, work in zip("aab", readers, works, strict=True)
    ]
    await until_still(*works)
    assert unread.byte_count <= 100 + 100
    assert works[2].made == 10 + 1  # the last has no room
    for reader in readers:
        reader.reads.set()
    await ended(*tasks)


async def test_all_callers_together_have_a_budget_too() -> None:
    unread = Unread(UnreadLimits(max_caller_bytes=100, max_total_bytes=150))
    readers, works = [Reader() for _ in range(5)], [Work(100, 10) for _ in range(5)]
    tasks = [
        carried(unread.outbox(str(i), reader.write), work)
        for i, (reader, work) in enumerate(zip(readers, works, strict=True))
    ]
    await until_still(*works)
    assert 140 < unread.byte_count <= 150
    for reader in reversed(readers):  # the room that one leaves is everybody's
        reader.reads.set()
        await until_still(*works)
    await ended(*tasks)
    assert [len(reader.got) for reader in readers] == [100] * 5


async def test_one_message_of_each_call_may_wait_however_full_the_budget_is() -> None:
    unread = Unread(UnreadLimits(max_caller_bytes=100))
    greedy, work = Reader(), Work(1000, 10)
    stuck = carried(unread.outbox("a", greedy.write), work)
    await until_still(work)
    honest = Reader(reads=True)
    await ended(carried(unread.outbox("a", honest.write), Work(50, 1000)))
    assert len(honest.got) == 50
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    assert work.is_over
    assert unread.byte_count == 0


async def test_those_who_wait_for_room_get_it_in_order_of_arrival() -> None:
    unread, reader = Unread(UnreadLimits(max_caller_bytes=10)), Reader()
    outbox = unread.outbox("a", reader.write)
    puts = 5

    async def put(i: int) -> None:
        await outbox.put(b"%d" % i * 10)

    async def all_of_them() -> None:
        await asyncio.gather(*map(put, range(puts)))

    sending = asyncio.create_task(outbox.carry(all_of_them()))
    await asyncio.sleep(0)
    reader.reads.set()
    await ended(sending)
    assert reader.got == [b"%d" % i * 10 for i in range(puts)]


async def test_one_who_gives_up_waiting_lets_those_behind_it_move_up() -> None:
    unread = Unread(UnreadLimits(max_caller_bytes=10))
    full, other = unread.outbox("a", Reader().write), unread.outbox("a", Reader().write)
    await full.put(b"." * 8)
    await other.put(b"." * 2)
    first = asyncio.create_task(full.put(b"." * 9))
    await asyncio.sleep(0)
    second = asyncio.create_task(other.put(b""))
    await asyncio.sleep(0)
    assert not second.done()
    first.cancel()
    await asyncio.wait_for(second, SECONDS)
    assert unread.byte_count == 10


async def test_a_client_that_takes_nothing_is_given_up_and_everything_of_it_with_it() -> None:
    unread = Unread(UnreadLimits(max_caller_bytes=100, slow_reader_seconds=0.01))
    work = Work(1000, 30)
    with pytest.raises(Exhausted, match=r"nothing for 0\.0 s; 90 bytes") as caught:
        await asyncio.wait_for(unread.outbox("a", Reader().write).send(work.messages()), SECONDS)
    assert caught.value.reason is Reason.SLOW_READER
    assert caught.value.retry_after_seconds is None
    assert work.is_over
    assert unread.byte_count == 0


async def test_who_has_stalled_far_beyond_the_budget_begins_no_more_calls_until_grpc_keeps_less_of_them() -> None:
    """One message of each call may always wait, and stays with gRPC: many calls would take any memory."""
    size = 100_000
    unread = Unread(UnreadLimits(max_caller_bytes=3 * size // 2, slow_reader_seconds=0.01))
    readers = [Reader() for _ in range(4)]
    for reader in readers:
        with pytest.raises(Exhausted):
            await asyncio.wait_for(unread.outbox("a", reader.write).send(Work(1, size).messages()), SECONDS)
    assert unread.byte_count == 4 * size
    with pytest.raises(Exhausted) as caught:
        unread.outbox("a", Reader().write)
    assert caught.value.reason is Reason.SLOW_READER
    unread.outbox("b", Reader().write)
    readers[0].reads.set()
    await until_still()
    assert unread.byte_count == 3 * size
    unread.outbox("a", Reader().write)
    for reader in readers:
        reader.reads.set()
    await until_still()
    assert unread.byte_count == 0


async def test_nothing_of_a_call_that_is_cancelled_is_left() -> None:
    unread, work = Unread(), Work(1, 100_000)
    sending = carried(unread.outbox("a", Reader().write), work)
    await until_still(work)
    assert unread.byte_count == 100_000
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert unread.byte_count == 0


async def test_who_makes_nothing_for_long_is_no_slow_reader() -> None:
    unread, reader = Unread(UnreadLimits(slow_reader_seconds=0.01)), Reader(reads=True)

    async def slow() -> AsyncGenerator[bytes, None]:
        yield b"a"
        later = asyncio.Event()
        asyncio.get_running_loop().call_later(0.03, later.set)
        await later.wait()
        yield b"b"

    await ended(asyncio.create_task(unread.outbox("a", reader.write).send(slow())))
    assert reader.got == [b"a", b"b"]


async def test_what_was_made_is_delivered_before_the_error_that_ended_the_work() -> None:
    unread, reader = Unread(), Reader(reads=True)

    async def failing() -> AsyncGenerator[bytes, None]:
        yield b"a"
        yield b"b"
        raise Exhausted("no more")

    with pytest.raises(Exhausted, match="no more"):
        await unread.outbox("a", reader.write).send(failing())
    assert reader.got == [b"a", b"b"]
    assert unread.byte_count == 0


async def test_a_client_that_is_lost_ends_the_work() -> None:
    unread, work = Unread(UnreadLimits(max_caller_bytes=10)), Work(1000, 4)

    async def write(_: bytes) -> None:
        await asyncio.sleep(0)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await unread.outbox("a", write).send(work.messages())
    assert work.is_over
    assert unread.byte_count == 0


async def test_a_client_that_has_stalled_is_given_up_at_once_when_others_need_what_it_holds() -> None:
    unread, work = Unread(UnreadLimits(max_caller_bytes=100, slow_reader_seconds=0.5)), Work(1000, 30)
    outbox = unread.outbox("a", Reader().write)
    sending = carried(outbox, work)
    await until_still(work)
    assert not stalled(outbox)
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0.06, later.set)
    await later.wait()
    assert stalled(outbox)
    outbox.give_up()
    with pytest.raises(Exhausted) as caught:
        await asyncio.wait_for(sending, SECONDS)
    assert caught.value.reason is Reason.SLOW_READER
    assert work.is_over
    assert not stalled(outbox)
    outbox.give_up()  # too late to matter


async def test_a_call_whose_client_takes_everything_is_never_given_up() -> None:
    outbox = Unread().outbox("a", Reader(reads=True).write)
    outbox.give_up()
    await ended(carried(outbox, Work(10)))
    assert not outbox.has_stalled


async def test_nothing_of_work_that_failed_is_there_while_its_messages_wait() -> None:
    seen = list[weakref.ref[Work]]()

    async def failing() -> AsyncGenerator[bytes, None]:
        held = Work(1)
        seen.append(weakref.ref(held))
        yield b"."
        await asyncio.sleep(0)
        raise ValueError("of its own")

    unread, reader = Unread(), Reader()
    sending = asyncio.create_task(unread.outbox("a", reader.write).send(failing()))
    for _ in range(100):
        await asyncio.sleep(0)
    assert [ref() for ref in seen] == [None]
    assert not sending.done()
    reader.reads.set()
    with pytest.raises(ValueError, match="of its own"):
        await ended(sending)
    assert reader.got == [b"."]


async def test_of_a_client_that_is_given_up_only_what_grpc_has_is_counted_and_nothing_else_is_sent() -> None:
    unread = Unread(UnreadLimits(max_caller_bytes=300_000, slow_reader_seconds=0.01))
    reader, work = Reader(), Work(1000, 100_000)
    with pytest.raises(Exhausted, match="300000 bytes"):
        await asyncio.wait_for(unread.outbox("a", reader.write).send(work.messages()), SECONDS)
    assert work.is_over
    assert unread.byte_count == 100_000
    reader.reads.set()
    await until_still()
    assert unread.byte_count == 0
    assert len(reader.got) == 1


async def test_a_client_that_is_lost_after_it_was_given_up_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    unread, is_lost = Unread(UnreadLimits(slow_reader_seconds=0.01)), asyncio.Event()

    async def write(_: bytes) -> None:
        await is_lost.wait()
        raise ConnectionResetError

    with pytest.raises(Exhausted):
        await asyncio.wait_for(unread.outbox("a", write).send(Work(1, 100_000).messages()), SECONDS)
    assert unread.byte_count == 100_000
    is_lost.set()
    await until_still()
    gc.collect()
    assert unread.byte_count == 0
    assert not caplog.records


@pytest.mark.parametrize("size", [10, 100_000])
async def test_work_that_fails_while_it_is_stopped_changes_nothing_for_a_client_that_is_given_up(size: int) -> None:
    async def failing() -> AsyncGenerator[bytes, None]:
        yield b"." * size
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("of its own")

    unread = Unread(UnreadLimits(slow_reader_seconds=0.01))
    with pytest.raises(Exhausted) as caught:
        await asyncio.wait_for(unread.outbox("a", Reader().write).send(failing()), SECONDS)
    assert caught.value.reason is Reason.SLOW_READER
