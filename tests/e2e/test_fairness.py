"""Many callers of one device, over real sockets; the device waits at a gate until all have asked."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from dst_grpc._gen.dst.v1 import catalog_service_pb2, inference_pb2
from dst_grpc._gen.dst.v1.catalog_service_pb2_grpc import CatalogServiceStub
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from dst_grpc.errors import Reason
from dst_grpc.rpc.parts import build_parts
from dst_grpc.rpc.server import Server, running_server
from dst_grpc.rpc.settings import Settings
from tests.e2e.conftest import CALL_SECONDS, error_of
from tests.e2e.gate import Gate

GREEDY, POLITE = "greedy", "polite"
N_TOKENS = 100
PER_CALLER = 30
"""Requests of a caller that may wait: more than the 20 prompts of a batch of 2,048 tokens."""


class Client:
    """One caller, known by a token."""

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        self._scalars: Any = DerivedScalarServiceStub(channel)
        self._catalog: Any = CatalogServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {name}"),)

    def ask(self, first_token: int) -> Any:
        """Send a request whose prompt begins with a token."""
        token_ids = inference_pb2.TokenIds(token_ids=[first_token, *range(1, N_TOKENS)])
        request = inference_pb2.DeriveRequest(prompt=inference_pb2.Prompt(token_ids=token_ids))
        return self._scalars.Derive(request, timeout=CALL_SECONDS, metadata=self._metadata)

    async def until_waiting(self, count: int) -> None:
        """Return once so many passes wait for the device."""
        async with asyncio.timeout(CALL_SECONDS):
            while True:
                info = await self._catalog.GetServerInfo(
                    catalog_service_pb2.GetServerInfoRequest(), metadata=self._metadata
                )
                if [load.waiting_requests for load in info.loads] == [count]:
                    return


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
async def server(gate: Gate, tmp_path: Path) -> AsyncIterator[Server]:
    lines = [f"{name} sha256:{hashlib.sha256(name.encode()).hexdigest()} ask never" for name in (GREEDY, POLITE)]
    (tmp_path / "tokens").write_text("\n".join(lines), encoding="utf-8")
    settings = Settings(
        port=0, auth_token_file=tmp_path / "tokens", max_queued_requests_per_caller=PER_CALLER, preload=("embedded",)
    )
    async with running_server(settings, build_parts(settings)) as server:
        yield server
        gate.is_open.set()


@pytest.fixture
async def clients(server: Server) -> AsyncIterator[tuple[Client, Client]]:
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(server.address)) for _ in range(2)]
        yield Client(channels[0], GREEDY), Client(channels[1], POLITE)


async def status_of(call: Any) -> grpc.StatusCode:
    """Read the whole answer."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_who_asks_once_is_served_beside_one_who_asks_for_more_than_a_batch(
    gate: Gate, clients: tuple[Client, Client]
) -> None:
    greedy, polite = clients
    calls = [greedy.ask(10)]
    await gate.reached()
    calls += [greedy.ask(11 + i) for i in range(PER_CALLER)]
    await greedy.until_waiting(PER_CALLER)
    calls.append(polite.ask(5))
    await polite.until_waiting(PER_CALLER + 1)
    gate.is_open.set()
    assert {await status_of(call) for call in calls} == {grpc.StatusCode.OK}
    assert gate.batches[0] == [10]
    assert 5 in gate.batches[1], "30 others of as many tokens came first"
    assert sorted(token for batch in gate.batches for token in batch) == sorted([5, 10, *range(11, 11 + PER_CALLER)])


async def test_beyond_its_bound_a_caller_is_refused_at_once_and_others_are_not(
    gate: Gate, clients: tuple[Client, Client]
) -> None:
    greedy, polite = clients
    calls = [greedy.ask(10)]
    await gate.reached()
    calls += [greedy.ask(11 + i) for i in range(PER_CALLER)]
    await greedy.until_waiting(PER_CALLER)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(greedy.ask(9)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = error_of(caught.value)
    assert error.reason is Reason.QUEUE_FULL
    assert error.metadata == {"max_queued_requests_per_caller": str(PER_CALLER)}
    assert dict(caught.value.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "1000"
    calls.append(polite.ask(5))
    await polite.until_waiting(PER_CALLER + 1)
    gate.is_open.set()
    assert {await status_of(call) for call in calls} == {grpc.StatusCode.OK}


async def test_who_goes_away_while_waiting_leaves_a_place_and_never_runs(
    gate: Gate, clients: tuple[Client, Client]
) -> None:
    greedy, polite = clients
    first = polite.ask(10)
    await gate.reached()
    waiting = [greedy.ask(11 + i) for i in range(PER_CALLER)]
    await greedy.until_waiting(PER_CALLER)
    for call in waiting:
        call.cancel()
    await greedy.until_waiting(0)
    last = greedy.ask(5)
    await greedy.until_waiting(1)
    gate.is_open.set()
    assert [await status_of(first), await status_of(last)] == [grpc.StatusCode.OK] * 2
    assert gate.batches == [[10], [5]]
