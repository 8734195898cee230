"""Loading and unloading: the memory that it takes, what is left afterwards, and that requests under pressure all end.

Each figure comes from a process of its own, whose resident memory is nobody else's. A random model in the shape of
GPT-2 small is written to a temporary folder for it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from benchmarks.measure import forget_peak, resident_bytes
from benchmarks.subjects import GPT2_SMALL
from dst_grpc import embedded
from dst_grpc.contexts import ContextCache, Registry
from dst_grpc.contexts.device import CountedMemory
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.domain.resolution import ContextState
from scripts.real_model.__main__ import ready_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.entries import AutoencoderEntry, ModelEntry
    from dst_grpc.contexts.model import ModelContext

_MIB = 1 << 20
_CYCLES = 50
_CALLERS = 16
_CALLS = 20


def write_gpt2_small(folder: Path, dtype: torch.dtype, *, tied: bool = True) -> Path:
    """A random checkpoint in GPT-2 small's shape, as *dtype*, in Hugging Face's layout."""
    folder.mkdir()
    c = GPT2_SMALL
    d, f = c.d_model, c.d_mlp
    config = {"model_type": "gpt2", "n_layer": c.n_layers, "n_head": c.n_heads, "n_embd": d, "n_inner": f}
    config |= {"vocab_size": c.vocab_size, "n_positions": c.context_window, "layer_norm_epsilon": 1e-5}
    config |= {"activation_function": "gelu_new", "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]]
    shapes = {"wte.weight": (c.vocab_size, d), "wpe.weight": (c.context_window, d), "ln_f.weight": (d,)}
    shapes |= {"ln_f.bias": (d,)} | ({} if tied else {"lm_head.weight": (c.vocab_size, d)})
    for layer in range(c.n_layers):
        block: dict[str, tuple[int, ...]]
        block = {"ln_1.weight": (d,), "ln_1.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,)}
        block |= {"attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,)}
        block |= {"attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,), "mlp.c_fc.weight": (d, f)}
        block |= {"mlp.c_fc.bias": (f,), "mlp.c_proj.weight": (f, d), "mlp.c_proj.bias": (d,)}
        shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: (torch.randn(shape, generator=generator) * 0.02).to(dtype) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes((embedded.MODEL_FOLDER / "tokenizer.json").read_bytes())
    return folder


def _registry(folder: str) -> Registry:
    return Registry.build(models={"a": Path(folder)}, device="cpu", include_embedded=False)


def settled_bytes() -> int:
    """Resident memory without what allocators and garbage keep."""
    gc.collect()
    CountedMemory().reclaim()
    return resident_bytes()


async def _want(cache: ContextCache, name: str) -> None:
    async with cache.lease(cache.registry.model_entry(name)):
        pass


async def _use(cache: ContextCache, name: str) -> None:
    async with cache.lease(cache.registry.model_entry(name)) as lease:
        tokens = torch.tensor([[1, 2, 3]])
        assert torch.isfinite(lease.model.decoder.forward(tokens)).all()  # type: ignore[arg-type]  # it does not stop


async def _peak(folder: str) -> tuple[float, ...]:
    """Peak while loading, beyond what was there, and the weights' bytes."""
    registry = _registry(folder)
    cache = ContextCache(registry)
    before = settled_bytes()
    forget_peak()
    async with cache.lease(cache.registry.model_entry("a")) as lease:
        peak, weights = resident_bytes("VmHWM") - before, lease.model.parameter_bytes
        held = resident_bytes() - before
    await cache.close()
    return peak, held, weights


async def _cycles(folder: str, n: int) -> tuple[float, ...]:
    """Resident memory before, after one and after all cycles of load and unload."""
    registry = _registry(folder)
    registry.tokenizer("a")  # stays, as plans need it without weights
    cache = ContextCache(registry)
    before = settled_bytes()
    once = 0
    for _ in range(n):
        await _want(cache, "a")
        assert (await cache.unload("a")).state is ContextState.NOT_LOADED
        once = once or resident_bytes()
    after = resident_bytes()
    await cache.close()
    return before, once, after


class CountingLoader(FileLoader):
    """Counts loads."""

    def __init__(self) -> None:
        """Nothing was loaded yet."""
        super().__init__()
        self.loads = 0

    def load_model(self, entry: ModelEntry, on_progress: Callable[[int], None]) -> ModelContext:
        """Read the model."""
        self.loads += 1
        return super().load_model(entry, on_progress)

    def load_autoencoders(
        self, entry: AutoencoderEntry, model: ModelContext, on_progress: Callable[[int], None]
    ) -> AutoencoderContext:
        """Read the set."""
        self.loads += 1
        return super().load_autoencoders(entry, model, on_progress)


async def _cold(folder: str) -> tuple[float, ...]:
    """Loads, seconds of one caller alone, seconds of many callers at once, for a model that is not loaded."""
    loader = CountingLoader()
    cache = ContextCache(_registry(folder), loader=loader)
    await _want(cache, "a")  # digests, once
    await cache.unload("a")
    started = time.perf_counter()
    await _want(cache, "a")
    alone = time.perf_counter() - started
    await cache.unload("a")
    loader.loads = 0
    started = time.perf_counter()
    await asyncio.gather(*(_want(cache, "a") for _ in range(_CALLERS)))
    together = time.perf_counter() - started
    await cache.close()
    return loader.loads, alone, together


async def _pressure(_folder: str) -> tuple[float, ...]:
    """Requests that ended well and loads, of callers that want four models where two fit."""
    models = dict.fromkeys("abcd", embedded.MODEL_FOLDER)
    registry = Registry.build(models=models, device="cpu", include_embedded=False)
    loader = CountingLoader()
    budget = int(2.5 * registry.model("a").parameter_bytes)
    cache = ContextCache(registry, loader=loader, budget_bytes=budget)
    turns = asyncio.Semaphore(2)  # more at once than fit would be refused, and rightly
    done = 0

    async def call(i: int) -> None:
        nonlocal done
        for j in range(_CALLS):
            async with turns:
                await _use(cache, "abcd"[(i * 7 + j * 3) % 4])
            done += 1

    await asyncio.gather(*(call(i) for i in range(_CALLERS)))
    await cache.close()
    return done, loader.loads


def _child(work: str, arguments: tuple[object, ...], answer: Connection) -> None:
    answer.send(asyncio.run(globals()[work](*arguments)))


def _measured(work: str, *arguments: object) -> tuple[float, ...]:
    """What *work* returns in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(work, arguments, theirs))
    process.start()
    theirs.close()
    try:
        found: tuple[float, ...] = ours.recv()
    finally:
        process.join()
    return found


def report() -> Iterator[str]:
    """All of it."""
    with tempfile.TemporaryDirectory() as name:
        yield "memory while loading, GPT-2-small shape as float32, over the weights (at most 1.2 is promised)"
        for label, dtype, tied in (
            ("float32 file", torch.float32, True),
            ("bfloat16 file", torch.bfloat16, True),
            ("float32 file, untied", torch.float32, False),
        ):
            folder = write_gpt2_small(Path(name) / label.replace(" ", "-"), dtype, tied=tied)
            peak, held, weights = _measured("_peak", str(folder))
            yield (
                f"  {label:22} peak x {peak / weights:.3f}, then x {held / weights:.3f}"
                f" (weights {weights / _MIB:.0f} MiB)"
            )
        smollm2 = str(ready_folder())
        peak, held, weights = _measured("_peak", smollm2)
        yield f"  {'SmolLM2-135M':22} peak x {peak / weights:.3f}, then x {held / weights:.3f}"
        small = str(Path(name) / "float32-file")
        yield "resident memory before, after the first, and after all of n times load and unload"
        for label, folder_name, n in (
            ("embedded", str(embedded.MODEL_FOLDER), _CYCLES),
            ("GPT-2 small", small, 10),
            ("SmolLM2-135M", smollm2, _CYCLES),
        ):
            before, once, after = _measured("_cycles", folder_name, n)
            yield (
                f"  {label:12} {n} times: {before / _MIB:.0f}, {once / _MIB:.0f}, {after / _MIB:.0f} MiB"
                f" ({100 * (after / before - 1):+.1f} %)"
            )
        for label, folder_name in (("GPT-2 small", small), ("SmolLM2-135M", smollm2)):
            loads, alone, together = _measured("_cold", folder_name)
            yield f"{_CALLERS} callers of a cold {label}: {loads:.0f} load, {together:.2f} s; one alone {alone:.2f} s"
    done, loads = _measured("_pressure", "")
    wanted = _CALLERS * _CALLS
    yield f"{_CALLERS} callers of four models where two fit: {done:.0f} of {wanted} served, {loads:.0f} loads"
