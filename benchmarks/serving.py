"""Serving over loopback, beside the same plan in process, and a raw byte stream."""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import torch
from safetensors.torch import save_file

from benchmarks.bare import bare_server
from dst_grpc.client import AsyncClient
from dst_grpc.contexts.registry import Registry
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.errors import require
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.run import run
from dst_grpc.rpc.server import running_server
from dst_grpc.rpc.settings import Settings
from dst_grpc.wire.codec import to_wire
from dst_grpc.wire.envelope import CHUNK_BYTES
from scripts.serving import Server

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_PROMPT = "When Mary and John went to the store, John gave a drink to"
_SMALL = (DerivedScalarType.MLP_ACT_TIMES_GRAD, DerivedScalarType.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD)
_LARGE_BYTES = 64 << 20
_BYTES = "/bench.Bench/Bytes"
_DERIVE = "/dst.v1.DerivedScalarService/Derive"
_BUFFER = memoryview(bytearray(range(256)) * (_LARGE_BYTES // 256))
"""What the raw stream sends: as many bytes of real memory as our answer has."""
_ROUNDS = 9


def small_request(target: int = 0) -> DeriveRequest:
    """A small question to the embedded model; each *target* makes a run of its own, which no recording answers."""
    return DeriveRequest(
        prompt=Prompt(text=_PROMPT),
        loss_fn_config=LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(target,), distractor_token_ids=(7,)),
        derived_scalars=tuple(DerivedScalarSpec(dst=dst) for dst in _SMALL),
    )


def large_request() -> DeriveRequest:
    """A 64 MiB answer of the wide model: the neurons of 1,024 tokens."""
    return DeriveRequest(
        model="wide",
        prompt=Prompt(token_ids=tuple(i % 256 for i in range(1024))),
        derived_scalars=(DerivedScalarSpec(dst=DerivedScalarType.MLP_POST_ACT),),
    )


def write_wide_model(folder: Path) -> None:
    """A model with small weights and large activations, in Hugging Face's layout."""
    n_layers, d, f, window = 4, 32, 4096, 1024
    config = {"model_type": "gpt2", "n_layer": n_layers, "n_head": 2, "n_embd": d, "n_inner": f, "vocab_size": 257}
    config |= {"n_positions": window, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"wte.weight": (257, d), "wpe.weight": (window, d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
    for layer in range(n_layers):
        block = {"ln_1.weight": (d,), "ln_1.bias": (d,), "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,)}
        block |= {"attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,)}
        block |= {
            "mlp.c_fc.weight": (d, f),
            "mlp.c_fc.bias": (f,),
            "mlp.c_proj.weight": (f, d),
            "mlp.c_proj.bias": (d,),
        }
        shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(0)
    save_file({k: torch.randn(s, generator=generator) * 0.1 for k, s in shapes.items()}, folder / "model.safetensors")
    vocabulary = {chr(256 + i): i for i in range(256)} | {"<|endoftext|>": 256}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<|endoftext|>"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))


async def _bytes(_request: bytes, _: object) -> AsyncIterator[bytes]:
    for start in range(0, _LARGE_BYTES, CHUNK_BYTES):
        yield bytes(_BUFFER[start : start + CHUNK_BYTES])


async def _serve(wide: str, ready: Connection) -> None:
    """Our server, and a bare one on the same event loop; until the pipe closes."""
    handlers: dict[str, Any] = {_BYTES: grpc.unary_stream_rpc_method_handler(_bytes)}
    settings = Settings(port=0, models={"wide": Path(wide)}, default_model="embedded", log_level="WARNING")
    async with bare_server(handlers.get) as bare, running_server(settings) as server:
        ready.send((server.address, bare))
        await asyncio.to_thread(ready.poll, None)


def _serve_in_process(wide: str, ready: Connection) -> None:
    asyncio.run(_serve(wide, ready))


@contextmanager
def _servers() -> Iterator[tuple[Server, str]]:
    """Our server, and the address of the bare one, in a process of their own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        write_wide_model(Path(folder))
        process = context.Process(target=_serve_in_process, args=(folder, theirs))
        process.start()
        try:
            address, bare_address = ours.recv()
            yield Server(address, require(process.pid)), bare_address
        finally:
            ours.send("stop")
            process.join(30)


async def _medians(
    calls: dict[str, Callable[[], Awaitable[object]]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Seconds of each of *calls* by *clock*, the calls in turn."""
    for call in calls.values():
        await call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = clock()
            await call()
            found[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in found.items()}


async def _drain(stream: Any) -> int:
    return sum([len(message) async for message in stream])


async def _derive(client: AsyncClient, targets: Iterator[int]) -> None:
    await client.derive_request(small_request(next(targets)))


def in_process() -> Callable[[], Awaitable[object]]:
    """The small question without a server: plan, run, derive."""
    from dst_grpc.contexts.loading import FileLoader

    registry = Registry.build(models={}, device="cpu")
    targets = itertools.count()
    decoder = FileLoader().load_model(registry.model_entry("embedded"), lambda _: None).decoder

    async def call() -> None:
        (outcome,) = run([make_plan(small_request(next(targets)), registry)], decoder, {})
        for scalar in outcome.plan.scalars:
            derivation = outcome.derivation(scalar)
            for layer in scalar.layers:
                for tensor in derivation.at(layer).values():
                    tensor.numpy()

    return call


async def _report(server: Server, bare_address: str) -> list[str]:
    lines = []
    async with (
        grpc.aio.insecure_channel(bare_address) as bare,
        grpc.aio.insecure_channel(server.address) as channel,
        AsyncClient(server.address) as client,
    ):
        stream: Any = bare.unary_stream(_BYTES)
        large = to_wire(large_request())
        targets = itertools.count()
        over_loopback = partial(_derive, client, targets)
        found = await _medians({"in process": in_process(), "over loopback": over_loopback}, 50)
        added = (found["over loopback"] - found["in process"]) * 1e3
        lines.append(
            f"Derive, small answer: {found['over loopback'] * 1e3:.2f} ms over loopback,"
            f" {found['in process'] * 1e3:.2f} ms in process: p50 + {added:.2f} ms"
        )
        derive: Any = channel.unary_stream(_DERIVE)  # messages are taken as bytes, like those of the raw stream
        payload = large.SerializeToString()
        size = await _drain(derive(payload))
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "ours": lambda: _drain(derive(payload)),
            "raw": lambda: _drain(stream(b"")),
        }
        # Seconds are the slower one's of server and client; the processor's time is the server's alone.
        taken = await _medians(calls, _ROUNDS, lambda: server.cpu_seconds)
        found = await _medians(calls | {"client": lambda: client.derive_request(large_request())}, _ROUNDS)
        rates = {name: size / 1e6 / seconds for name, seconds in found.items()}
        lines.append(
            f"Derive, {size >> 20} MiB answer: {rates['ours']:.0f} MB/s, {rates['ours'] / rates['raw']:.0%} of a raw"
            f" byte stream with the same chunks ({rates['raw']:.0f} MB/s); into numpy {rates['client']:.0f} MB/s;"
            f" {taken['ours'] * 1e3:.0f} ms of the server's processor time, {taken['raw'] / taken['ours']:.2f} of which"
            " the raw stream takes"
        )
    return lines


def report() -> Iterator[str]:
    """All of it."""
    with _servers() as (server, bare_address):
        yield from asyncio.run(_report(server, bare_address))
