"""Many requests for more than fits, on real weights: all of them are answered, each by the model that it asked for."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
import torch

from dst_grpc.contexts import ContextCache, Registry
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.domain.resolution import ContextState
from dst_grpc.errors import NotFound, PreconditionFailed
from tests import checkpoints

from .conftest import leased

NAMES = "abcd"
TOKENS = torch.tensor([[1, 2, 3, 4]])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    root = tmp_path_factory.mktemp("models")
    models = {
        name: checkpoints.write_model(root / name, tensors=checkpoints.weights(seed=seed))
        for seed, name in enumerate(NAMES)
    }
    return Registry.build(models=models, device="cpu", include_embedded=False)


@pytest.fixture(scope="module")
def expected(registry: Registry) -> dict[str, torch.Tensor]:
    """Logits of every model alone."""
    found = {}
    for name in NAMES:
        logits = FileLoader().load_model(registry.model_entry(name), lambda _: None).decoder.forward(TOKENS)
        assert logits is not None
        found[name] = logits
    return found


async def test_under_pressure_no_request_fails_and_none_is_served_by_what_was_freed(
    registry: Registry, expected: dict[str, torch.Tensor]
) -> None:
    budget = int(2.5 * registry.model("a").parameter_bytes)
    cache = ContextCache(registry, budget_bytes=budget)
    ended: Counter[str] = Counter()
    most = 0
    turns = asyncio.Semaphore(2)  # three models at once would not fit, and would be refused rightly
    choices = random.Random(0)

    async def call() -> None:
        nonlocal most
        async with turns:
            name = choices.choice(NAMES)
            async with leased(cache, name) as lease:
                model = lease.model
                logits = await asyncio.to_thread(model.decoder.forward, TOKENS)
                status = cache.status(name)
                assert (model.name, status.state) == (name, ContextState.AVAILABLE)
                assert status.pins > 0
                assert logits is not None
                assert torch.equal(logits, expected[name])
                most = max(most, sum(status.bytes_loaded for status in cache.statuses()))
                del model

    async def watch() -> None:
        async for status in cache.watch():
            if status.state is ContextState.UNLOADING:
                ended[status.handle[0]] += 1

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(call() for _ in range(200)))
    assert set(ended) == set(NAMES)  # every one of them had to go at some time
    assert most <= budget
    assert all(status.pins == 0 for status in cache.statuses())
    await cache.close()
    await watcher


async def test_loading_unloading_and_using_at_once_undo_nothing(
    registry: Registry, expected: dict[str, torch.Tensor]
) -> None:
    """Two operators who load and unload without rest, and callers between them."""
    cache = ContextCache(registry)
    refused: Counter[str] = Counter()

    async def operate() -> None:
        for _ in range(20):
            statuses = [status async for status in cache.load("a")]
            assert statuses[-1].state is ContextState.AVAILABLE
            try:
                assert (await cache.unload("a")).state is ContextState.NOT_LOADED
            except (NotFound, PreconditionFailed) as error:
                refused[error.reason] += 1

    async def call() -> None:
        for _ in range(20):
            async with leased(cache, "a") as lease:
                logits = await asyncio.to_thread(lease.model.decoder.forward, TOKENS)
            assert logits is not None
            assert torch.equal(logits, expected["a"])

    await asyncio.gather(operate(), operate(), *(call() for _ in range(4)))
    assert set(refused) <= {"CONTEXT_IN_USE", "CONTEXT_NOT_FOUND"}
    assert refused["CONTEXT_IN_USE"]
    await cache.close()
