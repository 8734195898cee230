"""What the tests of contexts share: a registry of tiny checkpoints, and a loader that loads nothing at will."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from dst_grpc.contexts import AutoencoderContext, ContextCache, Lease, ModelContext, Registry
from dst_grpc.contexts.entries import AutoencoderEntry, ContextEntry, ModelEntry
from dst_grpc.engine.decoder import Decoder
from tests import checkpoints


def leased(
    cache: ContextCache, model: str = "", autoencoders: Iterable[str] = (), **options: Any
) -> AbstractAsyncContextManager[Lease]:
    """Lease what the names or handles mean in the registry that *cache* has now."""
    registry, refs = cache.registry, list(autoencoders)
    entries = [registry.autoencoder_entry(ref, model) for ref in refs]
    handles = [ref for ref in (model, *refs) if "@" in ref]
    return cache.lease(registry.model_entry(model), entries, handles=handles, **options)


def whole(registry: Registry) -> Registry:
    """*registry*, if nothing of it failed; raises what the first that did is told for."""
    for failed in registry.failed:
        raise failed.told()
    return registry


class Panic(BaseException):
    """As libraries in other languages raise it: no Exception."""


class FakeLoader:
    """Makes contexts without weights. By name: waits for a gate, raises an error, counts its calls."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.errors: dict[str, BaseException] = {}
        self.gates: dict[str, threading.Event] = {}
        self.begun: defaultdict[str, threading.Event] = defaultdict(threading.Event)

    def _begin(self, entry: ContextEntry, on_progress: Callable[[int], None]) -> None:
        self.calls[entry.name] += 1
        self.begun[entry.name].set()
        on_progress(entry.parameter_bytes // 2)
        if entry.name in self.gates:
            assert self.gates[entry.name].wait(30)
        if entry.name in self.errors:
            raise self.errors[entry.name]
        on_progress(entry.parameter_bytes)

    def load_model(self, entry: ModelEntry, on_progress: Callable[[int], None]) -> ModelContext:
        self._begin(entry, on_progress)
        config = entry.checkpoint.config
        weights = {name: torch.empty(shape, device="meta") for name, shape in config.weight_shapes().items()}
        return ModelContext(
            handle=entry.handle,
            name=entry.name,
            decoder=Decoder(config, weights),
            tokenizer=entry.tokenizer(),
            digest=entry.files.digest(),
            device=entry.device,
            element_type=entry.element_type,
            parameter_bytes=entry.parameter_bytes,
        )

    def load_autoencoders(
        self, entry: AutoencoderEntry, model: ModelContext, on_progress: Callable[[int], None]
    ) -> AutoencoderContext:
        assert model.name == entry.model.name
        self._begin(entry, on_progress)
        return AutoencoderContext(
            handle=entry.handle,
            name=entry.name,
            model=model.name,
            dst=entry.dst,
            by_layer={},
            digest=entry.files.digest(),
            device=entry.device,
            parameter_bytes=entry.parameter_bytes,
            measured=entry.declared,
        )

    def gate(self, name: str) -> threading.Event:
        """Make loads of *name* wait until the gate that this returns is set."""
        return self.gates.setdefault(name, threading.Event())

    async def has_begun(self, name: str) -> None:
        """Wait until a load of *name* runs."""
        assert await asyncio.to_thread(self.begun[name].wait, 30)


class Clock:
    """Time that passes when told to, and a little whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three equally large models, the first with autoencoders beside it."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    for seed, name in enumerate(("a", "b", "c")):
        found[name] = checkpoints.write_model(root / name, tensors=checkpoints.weights(seed=seed))
    checkpoints.write_autoencoders(root / "a" / "autoencoders")
    return found


@pytest.fixture
def registry(folders: dict[str, Path]) -> Registry:
    return Registry.build(models=folders, device="cpu", include_embedded=False)


@pytest.fixture
def model_bytes(registry: Registry) -> int:
    return registry.model("a").parameter_bytes


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
async def cache(registry: Registry, loader: FakeLoader) -> AsyncIterator[ContextCache]:
    cache = ContextCache(registry, loader=loader, clock=Clock())
    yield cache
    for gate in loader.gates.values():
        gate.set()
    await cache.close()
