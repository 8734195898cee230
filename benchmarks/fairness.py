"""Fairness: one greedy caller beside five polite ones, over sockets, against a server in a process of its own.

Requests are 80 / 20 small ones and ones of eight times as many tokens, with a deadline of 2 s and Poisson arrivals.
Rates are relative to the capacity that is measured just before: what the six get done that always have requests in
flight. Work is also compared with what a single caller gets done alone, in longer batches. Phases are interleaved, so
that a slow minute slows all. What else the machine does is left out of how long refusals take: the time that the event
loops of both sides waited for a processor.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import socket
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import torch
from safetensors.torch import save_file

from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.pipeline.plan import Plan
from dst_grpc.wire.codec import to_wire
from scripts.serving import running, undisturbed_seconds, write_tokens
from tests.load.common import quantile

_DERIVE = "/dst.v1.DerivedScalarService/Derive"
_GREEDY, _POLITE = "greedy", tuple(f"polite-{i}" for i in range(5))
_TOKENS, _LARGER, _P_LARGE = 16, 8, 0.2
_MEAN_WORK = 1 - _P_LARGE + _P_LARGE * _LARGER
"""Of a request, in small ones."""
_DEADLINE = 2.0
_SECONDS, _ROUNDS = 15.0, 2
_WARM_UP, _WARM_UP_ALONE = 3.0, 11.0
"""Seconds; who is alone is taken for that only after ten."""
_IN_FLIGHT = 48
_CALLERS, _CALLS_EACH = 200, 5
_VOCABULARY, _WINDOW = 257, 256
_CALL_LINE = re.compile(rf" call method={_DERIVE} ")
_REFUSAL_MILLIS = re.compile(rf" call method={_DERIVE} code=RESOURCE_EXHAUSTED millis=([\d.]+) ")


def write_model(folder: Path, n_layers: int, d: int, n_heads: int = 4) -> None:
    """A random model in Hugging Face's layout."""
    f = 4 * d
    config = {"model_type": "gpt2", "n_layer": n_layers, "n_head": n_heads, "n_embd": d, "vocab_size": _VOCABULARY}
    config |= {"n_positions": _WINDOW, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (_VOCABULARY, d), "wpe.weight": (_WINDOW, d)}
    shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    for layer in range(n_layers):
        block: dict[str, tuple[int, ...]] = {f"ln_{i}.{end}": (d,) for i in (1, 2) for end in ("weight", "bias")}
        matrices = (("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, f), ("mlp.c_proj", f, d))
        for name, n_in, n_out in matrices:
            block |= {f"{name}.weight": (n_in, n_out), f"{name}.bias": (n_out,)}
        shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    save_file({k: torch.randn(s, generator=generator) * 0.05 for k, s in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {chr(256 + i): i for i in range(_VOCABULARY - 1)} | {"<|endoftext|>": _VOCABULARY - 1}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<|endoftext|>"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))


def _token_of(name: str) -> str:
    return f"token-of-{name}"


def _request(number: int, n_tokens: int) -> bytes:
    """A question that no recording answers."""
    chance = random.Random(number)
    request = DeriveRequest(
        prompt=Prompt(token_ids=tuple(chance.randrange(_VOCABULARY) for _ in range(n_tokens))),
        loss_fn_config=LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(1,), distractor_token_ids=(7,)),
        derived_scalars=(DerivedScalarSpec(dst=DerivedScalarType.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD),),
    )
    message: bytes = to_wire(request).SerializeToString()
    return message


@dataclass(frozen=True, kw_only=True)
class _Device:
    """What a server runs on, and with which model."""

    name: str
    program: tuple[str, ...]
    n_layers: int
    d_model: int


_SLEEPING = "from benchmarks.fairness import serve_with_a_device_that_sleeps as serve; serve()"
_DEVICES = (
    _Device(name="a device that sleeps", program=("-c", _SLEEPING), n_layers=1, d_model=32),
    _Device(name="this processor", program=("-m", "dst_grpc.cli"), n_layers=6, d_model=256),
)


@dataclass(frozen=True, kw_only=True)
class _Target:
    """A server of this benchmark's own."""

    address: str
    pid: int
    metrics: str
    log: Path

    def refusal_seconds(self) -> list[float]:
        """How long refused calls took within the server."""
        found = _REFUSAL_MILLIS.findall(self.log.read_text(encoding="utf-8"))
        return [float(millis) / 1000 for millis in found]

    async def calls_logged(self) -> int:
        """Lines about calls of Derive, once no more are written: a thread of the server's writes them."""
        before = -1
        while (count := len(_CALL_LINE.findall(self.log.read_text(encoding="utf-8")))) != before:
            before = count
            await asyncio.sleep(0.5)
        return count

    def calls_counted(self, kind: str) -> int:
        """Calls of Derive in a metric."""
        return self._counted(kind, _DERIVE[1:])

    def batches(self) -> tuple[int, int]:
        """How many batches have run, and their tokens."""
        return self._counted("dst_batch_tokens_count", "real"), self._counted("dst_batch_tokens_sum", "real")

    def _counted(self, kind: str, label: str) -> int:
        """The sum of a metric's figures of which a label is *label*."""
        with urllib.request.urlopen(self.metrics) as page:  # noqa: S310  our own
            lines = page.read().decode().splitlines()
        found = [line for line in lines if line.startswith(kind) and f'"{label}"' in line]
        return int(sum(float(line.rpartition(" ")[2]) for line in found))


def serve_with_a_device_that_sleeps() -> None:
    """`dst-grpc serve` on a device that takes its time without the processor's: 10 ms for 16 tokens, 4 ms for a batch.

    What else runs on the machine then hardly changes what the device can do.
    """
    from dst_grpc.cli import main
    from dst_grpc.pipeline import batching

    run = vars(batching)["run"]

    def slow_run(plans: Sequence[Plan], *arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        results = run(plans, *arguments, **options)
        wanted = 0.004 + 0.010 / _TOKENS * sum(len(plan.token_ids) for plan in plans)
        time.sleep(max(wanted - (time.perf_counter() - started), 0.0))
        return results

    vars(batching)["run"] = slow_run
    main()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _serving(device: _Device) -> Iterator[_Target]:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        write_model(top / "model", device.n_layers, device.d_model)
        names = (_GREEDY, *_POLITE, *(f"caller-{i}" for i in range(_CALLERS)))
        write_tokens(top / "tokens", {name: _token_of(name) for name in names})
        command = [*device.program, "serve", "--port", "0"]
        command += ["--model", f"m={top / 'model'}", "--default-model", "m", "--preload", "m", "--store-bytes", "0"]
        port = _free_port()
        command += ["--auth-token-file", str(top / "tokens"), "--metrics-port", str(port)]
        with running(*command, log=top / "log", OMP_NUM_THREADS="1") as found:
            yield _Target(
                address=found.address, pid=found.pid, metrics=f"http://127.0.0.1:{port}/metrics", log=top / "log"
            )


@dataclass
class _Ends:
    """What became of some requests."""

    codes: Counter[str] = field(default_factory=Counter)
    ok: list[float] = field(default_factory=list)
    """Seconds from when one was due to its answer."""
    refused: list[float] = field(default_factory=list)
    """Seconds from when one was sent to its refusal, less those that event loops waited for a processor."""
    work: float = 0.0
    """Of those that were answered before their deadline, in small requests."""

    def add(self, others: _Ends) -> None:
        self.codes += others.codes
        self.ok += others.ok
        self.refused += others.refused
        self.work += others.work

    @property
    def in_time(self) -> float:
        return self.codes["OK"] / max(self.codes.total(), 1)


class _Caller:
    """One caller, on a connection of its own."""

    def __init__(self, target: _Target, name: str, seed: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.aio.insecure_channel(target.address, options=options)
        self._pid = target.pid
        self._call: Any = self.channel.unary_stream(_DERIVE)
        self._metadata = (("authorization", f"Bearer {_token_of(name)}"),)
        self._chance, self._numbers = random.Random(name), itertools.count(seed << 32)
        self.ends = _Ends()

    def question(self) -> tuple[int, bytes]:
        """One of the mixture: its work, in small requests, and its message."""
        work = _LARGER if self._chance.random() < _P_LARGE else 1
        return work, _request(next(self._numbers), _TOKENS * work)

    async def ask(
        self,
        asked: tuple[int, bytes] | None = None,
        due: float | None = None,
        *,
        deadline: float | None = _DEADLINE,
    ) -> None:
        """Send a question and read its answer."""
        work, request = asked or self.question()
        sent = undisturbed_seconds(self._pid)
        due = time.perf_counter() if due is None else due
        try:
            async for _ in self._call(request, timeout=deadline, metadata=self._metadata):
                pass
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            if code == "RESOURCE_EXHAUSTED":
                self.ends.refused.append(undisturbed_seconds(self._pid) - sent)
        else:
            code = "OK"
            self.ends.ok.append(time.perf_counter() - due)
            self.ends.work += work
        self.ends.codes[code] += 1

    async def offer(self, rate: float, seconds: float) -> None:
        """Send requests at Poisson times, whatever becomes of earlier ones."""
        async with asyncio.TaskGroup() as asking:
            due, end = time.perf_counter(), time.perf_counter() + seconds
            while (due := due + self._chance.expovariate(rate)) < end:
                asked = self.question()
                await asyncio.sleep(due - time.perf_counter())
                asking.create_task(self.ask(asked, due))


@asynccontextmanager
async def _callers(target: _Target, names: Sequence[str], seed: int) -> AsyncGenerator[Mapping[str, _Caller], None]:
    found = {name: _Caller(target, name, seed + i) for i, name in enumerate(names)}
    try:
        yield found
    finally:
        await asyncio.gather(*(one.channel.close() for one in found.values()))


async def _capacity(target: _Target, names: Sequence[str], seed: int, warm_up: float = _WARM_UP) -> float:
    """Small requests a second that the server gets done for callers that always have some in flight, after *warm_up*
    seconds of that."""
    async with _callers(target, names, seed) as callers:
        started = end = 0.0

        async def keep_asking(caller: _Caller) -> None:
            while time.perf_counter() < end:
                await caller.ask(deadline=None)

        for seconds in (warm_up, _SECONDS / 2):
            for caller in callers.values():
                caller.ends = _Ends()
            started = time.perf_counter()
            end = started + seconds
            asking = [caller for caller in callers.values() for _ in range(_IN_FLIGHT // len(callers))]
            await asyncio.gather(*map(keep_asking, asking))
        return sum(caller.ends.work for caller in callers.values()) / (time.perf_counter() - started)


async def _phase(target: _Target, rates: Mapping[str, float], seed: int) -> dict[str, _Ends]:
    """Offer requests a second for a while."""
    async with _callers(target, list(rates), seed) as callers:
        offers: list[Awaitable[None]] = [callers[name].offer(rate, _SECONDS) for name, rate in rates.items()]
        await asyncio.gather(*offers)
        return {name: caller.ends for name, caller in callers.items()}


async def _all_at_once(target: _Target) -> Counter[str]:
    """What becomes of calls that very many callers send at the same time."""
    async with _callers(target, [f"caller-{i}" for i in range(_CALLERS)], 10_000) as callers:
        await asyncio.gather(*(one.channel.channel_ready() for one in callers.values()))
        await asyncio.gather(*(one.ask(deadline=60.0) for one in callers.values() for _ in range(_CALLS_EACH)))
        return sum((one.ends.codes for one in callers.values()), Counter[str]())


async def _report(target: _Target) -> list[str]:
    alone, beside, greedy = _Ends(), _Ends(), _Ends()
    tokens_of_batches, worked_seconds = [], 0.0
    everyone = (_GREEDY, *_POLITE)
    best = await _capacity(target, [_GREEDY], 1, _WARM_UP_ALONE)
    capacities = [await _capacity(target, everyone, 20)]
    for number in range(_ROUNDS):
        one = capacities[-1] / _MEAN_WORK
        polite = dict.fromkeys(_POLITE, 0.1 * one)
        for ends in (await _phase(target, polite, 100 + number)).values():
            alone.add(ends)
        (n_batches, n_tokens), started = target.batches(), time.perf_counter()
        found = await _phase(target, polite | {_GREEDY: one}, 200 + number)
        worked_seconds += time.perf_counter() - started  # with those after the last request
        now_batches, now_tokens = target.batches()
        tokens_of_batches.append((now_tokens - n_tokens) / (now_batches - n_batches))
        for name, ends in found.items():
            (greedy if name == _GREEDY else beside).add(ends)
        capacities.append(await _capacity(target, everyone, 300 + number))
    best = (best + await _capacity(target, [_GREEDY], 2, _WARM_UP_ALONE)) / 2
    capacity = sum(capacities) / len(capacities)
    useful = (beside.work + greedy.work) / worked_seconds
    p99, p99_alone = quantile(beside.ok, 0.99), quantile(alone.ok, 0.99)
    refused = [*greedy.refused, *beside.refused]
    in_server = quantile(target.refusal_seconds(), 0.99)
    lines = [
        f"  one greedy caller that offers 1.0 of capacity, five polite ones 0.1 each, deadline {_DEADLINE:g} s",
        f"  capacity: {capacity:.0f} small requests/s ({min(capacities):.0f} to {max(capacities):.0f})",
        f"  polite p99: {p99 * 1e3:.0f} ms, {p99 / p99_alone:.1f} times {p99_alone * 1e3:.0f} ms without the greedy",
        f"  polite p50: {quantile(beside.ok, 0.5) * 1e3:.0f} ms, and {quantile(alone.ok, 0.5) * 1e3:.0f} ms without",
        f"  polite in time: {beside.in_time:.1%} of {beside.codes.total()}, {alone.in_time:.1%} without",
        f"  greedy in time: {greedy.in_time:.0%} of {greedy.codes.total()}, {dict(greedy.codes)}",
        f"  useful work: {useful / best:.2f} of what one caller gets done alone, {best:.0f} small requests/s",
        f"  in batches of {sum(tokens_of_batches) / _ROUNDS:.0f} tokens",
        f"  refused: {len(refused)}, p99 {quantile(refused, 0.99) * 1e3:.1f} ms ({in_server * 1e3:.1f} in the server)",
    ]
    logged, started = await target.calls_logged(), target.calls_counted("grpc_server_call_started_total")
    ended = target.calls_counted("grpc_server_call_duration_seconds_count")
    codes = await _all_at_once(target)
    logged, started = (
        await target.calls_logged() - logged,
        target.calls_counted("grpc_server_call_started_total") - started,
    )
    ended = target.calls_counted("grpc_server_call_duration_seconds_count") - ended
    lines.append(
        f"  {_CALLERS} callers, {_CALLS_EACH} calls each at once: {dict(codes)}; of {codes.total()},"
        f" {started} reached a handler, {logged} were logged, {ended} were measured"
    )
    return lines


def report() -> Iterator[str]:
    """All of it."""
    for device in _DEVICES:
        yield f"fairness, on {device.name}:"
        with _serving(device) as target:
            yield from asyncio.run(_report(target))
