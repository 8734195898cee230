"""A context is free once its memory is, whoever holds on to it and however."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.contexts import ContextCache, Lease, Registry
from dst_grpc.contexts.device import CudaMemory, memory_of
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.contexts.memory_release import storages_of
from dst_grpc.domain.resolution import ContextState
from dst_grpc.errors import Exhausted
from tests import checkpoints

from .conftest import leased

SET = "a/mlp_post_act"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    folder = checkpoints.write_model(tmp_path / "a")
    checkpoints.write_autoencoders(folder / "autoencoders")
    return Registry.build(models={"a": folder}, device="cpu", include_embedded=False)


@pytest.fixture
async def cache(registry: Registry) -> AsyncIterator[ContextCache]:
    cache = ContextCache(registry, loader=FileLoader(allow_failed_checks=True))
    yield cache
    await cache.close()


def graph_of(lease: Lease) -> torch.Tensor:
    """The end of a graph that needs a weight for its backward pass."""
    x = torch.ones(checkpoints.WIDTH, requires_grad=True)
    return (x * lease.model.decoder.embedding[0]).sum()


HOLDERS: list[tuple[str, Callable[[Lease], Any]]] = [
    ("a", lambda lease: lease.model),
    ("a", lambda lease: lease.model.decoder),
    ("a", lambda lease: lease.model.decoder.layers[1]),
    ("a", lambda lease: lease.model.decoder.layers[1].mlp_bias),
    ("a", lambda lease: lease.model.decoder.embedding[3:4, 1]),
    ("a", lambda lease: lease.model.decoder.unembedding.numpy()),
    ("a", lambda lease: lease.model.decoder.layers[0].mlp_out_norms),
    ("a", graph_of),
    (SET, lambda lease: lease.autoencoders[SET]),
    (SET, lambda lease: lease.autoencoders[SET].by_layer[0]),
    (SET, lambda lease: np.asarray(lease.autoencoders[SET].by_layer[1].latent_bias)),
]
"""What may be kept of which context: the object, a part, a weight, a view of one, what a kept result was made of."""


@pytest.mark.parametrize(("name", "take"), HOLDERS, ids=range(len(HOLDERS)))
async def test_memory_counts_for_as_long_as_anything_holds_any_of_it(
    cache: ContextCache, name: str, take: Callable[[Lease], Any]
) -> None:
    async with leased(cache, "a", [SET]) as lease:
        kept = take(lease)
    unloading = asyncio.create_task(cache.unload(name))
    for _ in range(3):
        await asyncio.to_thread(gc.collect)  # time for it to go as far as it can
    status = cache.status(name)
    assert (status.state, status.bytes_loaded) == (ContextState.UNLOADING, status.bytes_total)
    assert not unloading.done()
    del kept
    assert (await unloading).state is ContextState.NOT_LOADED


async def test_every_byte_of_the_weights_is_watched(cache: ContextCache) -> None:
    async with leased(cache, "a", [SET]) as lease:
        for context in (lease.model, lease.autoencoders[SET]):
            storages = {storage.data_ptr(): storage.nbytes() for storage in storages_of(context)}
            assert sum(storages.values()) == context.parameter_bytes
        assert lease.model.decoder.layers[0].mlp_out_norms.numel() == checkpoints.NEURONS
        # What was worked out from weights and kept is the context's as well.
        assert lease.model.decoder.layers[0].mlp_out_norms.untyped_storage() in list(storages_of(lease.model))
        del context


async def test_results_of_a_run_hold_nothing_of_the_model(cache: ContextCache) -> None:
    async with leased(cache, "a") as lease:
        logits = lease.model.decoder.forward(torch.tensor([[1, 2, 3]]))
    assert (await cache.unload("a")).state is ContextState.NOT_LOADED
    assert logits is not None


class Gpu:
    """Stands in for torch.cuda: what is allocated, and what was asked of it."""

    def __init__(self) -> None:
        self.allocated_bytes = 0
        self.calls: list[str] = []

    def memory_allocated(self, device: torch.device) -> int:
        return self.allocated_bytes

    def synchronize(self, device: torch.device) -> None:
        self.calls.append(f"synchronize {device}")

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 700, 1000


def test_a_gpu_s_memory_is_what_its_allocator_measures_or_the_books_if_they_say_more() -> None:
    gpu = Gpu()
    memory = CudaMemory("cuda:1", gpu)
    assert memory.used_bytes(100) == 100
    gpu.allocated_bytes = 300
    assert memory.used_bytes(100) == 300
    assert memory.allocated == (300, 1000)
    memory.reclaim()
    assert gpu.calls == ["synchronize cuda:1", "empty_cache"]
    assert isinstance(memory_of("cuda:1"), CudaMemory)


async def test_what_a_gpu_still_has_allocated_counts_after_it_was_unloaded(registry: Registry) -> None:
    """Deleted is not free: the allocator decides. Another model is refused while it says that the memory is taken."""
    gpu = Gpu()
    model_bytes = registry.model("a").parameter_bytes
    cache = ContextCache(registry, memory=lambda _: CudaMemory("cuda:0", gpu), budget_bytes=model_bytes)
    gpu.allocated_bytes = 1
    with pytest.raises(Exhausted) as caught:
        async with leased(cache, "a"):
            pass
    assert caught.value.metadata["used_bytes"] == "1"
    gpu.allocated_bytes = 0
    async with leased(cache, "a"):
        pass
    await cache.unload("a")
    assert gpu.calls == ["synchronize cuda:0", "empty_cache"]
    await cache.close()
