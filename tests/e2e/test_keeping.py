"""What operators say of memory, over a real socket: budgets, pins, preloading, time to live."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dst_grpc.client import AsyncClient, ContextState, ServingStatus
from dst_grpc.contexts import ContextCache, Registry
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.errors import Exhausted, PreconditionFailed, Reason
from dst_grpc.pipeline import Pipeline
from dst_grpc.rpc.parts import Parts, StartupError, build_parts
from dst_grpc.rpc.server import Server, running_server
from dst_grpc.rpc.settings import Settings
from tests import checkpoints


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        name: checkpoints.write_model(root / name, tensors=checkpoints.weights(seed=seed))
        for seed, name in enumerate("abc")
    }


@pytest.fixture(scope="module")
def model_bytes(models: dict[str, Path]) -> int:
    return Registry.build(models=models, device="cpu", include_embedded=False).model("a").parameter_bytes


@asynccontextmanager
async def served(models: dict[str, Path], **settings: Any) -> AsyncGenerator[AsyncClient, None]:
    """A server of *models* with *settings*, and a client of it."""
    given = Settings(port=0, models=models, default_model="a", device="cpu", **settings)
    async with running_server(given, build_parts(given)) as server, AsyncClient(server.address) as client:
        yield client


async def loaded(client: AsyncClient) -> set[str]:
    statuses = await client.contexts()
    return {status.handle.partition("@")[0] for status in statuses if status.state is ContextState.AVAILABLE}


async def test_pinned_contexts_stay_and_others_make_room(models: dict[str, Path], model_bytes: int) -> None:
    async with served(models, pin="a", preload="b", budget_bytes=2 * model_bytes) as client:
        assert {status.handle[0]: status.pinned for status in await client.contexts()} == {"a": True, "b": False}
        await client.load_context("c")
        assert await loaded(client) == {"a", "c"}
        with pytest.raises(PreconditionFailed) as refused:
            await client.unload_context("a")
        assert refused.value.reason is Reason.CONTEXT_PINNED
        assert (await client.load_context("c", pin=True)).pinned
        with pytest.raises(Exhausted) as full:
            await client.derive("Mary gave", ["mlp_post_act"], model="b")
        assert full.value.reason is Reason.MEMORY_BUDGET_EXCEEDED
        assert full.value.metadata == {
            "needed_bytes": str(model_bytes),
            "used_bytes": str(2 * model_bytes),
            "budget_bytes": str(2 * model_bytes),
        }
        assert not (await client.unpin_context("a")).pinned
        await client.derive("Mary gave", ["mlp_post_act"], model="b")
        assert await loaded(client) == {"b", "c"}


async def test_what_is_preloaded_must_fit_together(models: dict[str, Path], model_bytes: int) -> None:
    with pytest.raises(StartupError, match="too small for all that is preloaded: 'a' had to go again"):
        async with served(models, preload="a,b", budget_bytes=model_bytes):
            pytest.fail("it must not start")
    with pytest.raises(StartupError, match=f"{model_bytes} bytes needed beside {model_bytes} in use"):
        async with served(models, pin="a,b", budget_bytes=model_bytes):
            pytest.fail("it must not start")


async def test_idle_contexts_go_after_their_time(models: dict[str, Path]) -> None:
    async with served(models, context_ttl_seconds=0.01, pin="b") as client:
        watching = client.watch_contexts()
        async with aclosing(watching):
            assert (await anext(watching)).handle.startswith("b@")
            await client.derive("Mary gave", ["mlp_post_act"])
            async for status in watching:
                if status.state is ContextState.NOT_LOADED:
                    break
        assert status.handle.startswith("a@")
        assert await loaded(client) == {"b"}


class Held(FileLoader):
    """Loads when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.begun, self.may_go_on = asyncio.Event(), asyncio.Event()

    def load_model(self, entry: Any, on_progress: Any) -> Any:
        self.loop.call_soon_threadsafe(self.begun.set)
        asyncio.run_coroutine_threadsafe(self.may_go_on.wait(), self.loop).result(30)
        return super().load_model(entry, on_progress)


async def test_the_server_is_not_serving_until_all_is_preloaded_and_tells_how_far_it_is(
    models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dst_grpc.rpc.server")
    registry = Registry.build(models=models, device="cpu", include_embedded=False)
    loader = Held()
    cache = ContextCache(registry, loader=loader)
    parts = Parts.of(Pipeline(cache), cache, lambda: registry)
    server = Server(Settings(port=0, preload=("a", "b")), parts)
    starting = asyncio.create_task(server.start())
    await loader.begun.wait()
    async with AsyncClient(server.address) as client:
        assert await client.health() is ServingStatus.NOT_SERVING
        loader.may_go_on.set()
        await starting
        assert await client.health() is ServingStatus.SERVING
        assert await loaded(client) == {"a", "b"}
    await server.stop()
    lines = [(record.message, getattr(record, "percent", None)) for record in caplog.records]
    told = [line for line in lines if line[0].startswith("preload")]
    assert told[0][0] == "preloading 1 of 2"
    assert ("preloading 1 of 2", 100) in told
    assert told[-1] == ("preloaded 2 of 2", None)
