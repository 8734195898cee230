"""What the attacks share: a server of their own, calls that never raise, what a process takes, and what is printed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from dst_grpc._gen.dst.v1 import component_pb2, derived_scalar_type_pb2, inference_pb2, resolution_pb2
from scripts.serving import SERVE, Server, running, undisturbed_seconds

DERIVE = "/dst.v1.DerivedScalarService/Derive"
DERIVE_STREAM = "/dst.v1.DerivedScalarService/DeriveStream"
RESOLVE = "/dst.v1.DerivedScalarService/Resolve"
RESOLVE_STREAM = "/dst.v1.DerivedScalarService/ResolveStream"
TOP_K = "/dst.v1.DerivedScalarService/TopK"
EXPLAIN = "/dst.v1.DerivedScalarService/Explain"
LOST = "Internal error from Core"
"""What the client's library says instead of a status that comes while it sends: on a busy machine it may pause for
longer than the server hears it out."""

_MIB = 1 << 20
_MEMORY_MIB = 6000


class Outcome(NamedTuple):
    """How a call ended."""

    code: str
    """Name of its status code; or `LOST`."""
    details: str
    """Its text."""
    seconds: float
    """How long it took."""
    received_bytes: int
    """Bytes of its answer."""


class Target(Server):
    """A server under attack."""

    def channel(self) -> grpc.aio.Channel:
        """A connection of its own, which takes messages of any size."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        return grpc.aio.insecure_channel(self.address, options=options)

    def status(self, key: str, *, unit: int = 1 << 10) -> int:
        """A figure of /proc/PID/status, in MiB, or in *unit* kB; 0 once the process is gone."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith(key):
                    return int(line.split()[1]) // unit
        return 0

    @property
    def memory_mib(self) -> int:
        """Resident memory."""
        return self.status("VmRSS")


@contextmanager
def serving(*arguments: str) -> Iterator[Target]:
    """A server with *arguments*, stopped at the end; what it logs of attacks is of no use."""
    with running(*SERVE, "--log-level", "ERROR", *arguments, log=Path(os.devnull)) as found:
        yield Target(address=found.address, pid=found.pid)


@dataclass
class Peak:
    """The most memory that was seen."""

    mib: int = 0
    """Resident, in MiB."""


@asynccontextmanager
async def watched(target: Target) -> AsyncGenerator[Peak, None]:
    """Follow the memory of *target* within the block, and kill it before it takes the machine's."""
    peak = Peak()

    async def watch() -> None:
        while True:
            peak.mib = max(peak.mib, target.memory_mib)
            if peak.mib > _MEMORY_MIB:
                print(f"killed: it took {peak.mib} MiB")
                os.kill(target.pid, signal.SIGKILL)
                return
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    try:
        yield peak
    finally:
        watching.cancel()


@asynccontextmanager
async def health_checked(target: Target) -> AsyncGenerator[list[float], None]:
    """Check the server's health all the time within the block; the list gets the seconds of each check, less those that
    the event loops of both sides waited for a processor."""
    waits: list[float] = []
    async with target.channel() as channel:
        check: Any = channel.unary_unary(
            "/grpc.health.v1.Health/Check", request_serializer=health_pb2.HealthCheckRequest.SerializeToString
        )

        async def ask() -> None:
            while True:
                start = undisturbed_seconds(target.pid)
                try:
                    with suppress(grpc.aio.AioRpcError):
                        await check(health_pb2.HealthCheckRequest(), timeout=60)
                finally:
                    waits.append(undisturbed_seconds(target.pid) - start)
                await asyncio.sleep(0.02)

        await check(health_pb2.HealthCheckRequest(), timeout=300)
        asking = asyncio.create_task(ask())
        await asyncio.sleep(0.2)
        waits.clear()
        try:
            yield waits
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


async def call(
    channel: grpc.aio.Channel,
    method: str,
    *messages: bytes,
    within: float = 30.0,
    metadata: Sequence[tuple[str, str]] = (),
) -> Outcome:
    """Send *messages*, as any shape of call, and read the whole answer; never raises."""
    start, received = time.perf_counter(), 0
    stream: Any = channel.stream_stream(method)

    async def sent() -> AsyncGenerator[bytes, None]:
        for message in messages:
            yield message

    try:
        async for answer in stream(sent(), timeout=within, metadata=metadata):
            received += len(answer)
    except grpc.aio.AioRpcError as error:
        details = error.details() or ""
        code = LOST if details == LOST else error.code().name
        return Outcome(code, details[:200], time.perf_counter() - start, received)
    return Outcome("OK", "", time.perf_counter() - start, received)


def simple(
    text: str = "John gave a drink to", types: Iterable[str] = ("MLP_POST_ACT",), **fields: Any
) -> inference_pb2.DeriveRequest:
    """A request that any server answers at once."""
    request = inference_pb2.DeriveRequest(prompt=inference_pb2.Prompt(text=text), **fields)
    request.loss_fn_config.name = component_pb2.LOSS_FN_NAME_LOGIT_DIFF
    request.loss_fn_config.target_tokens.append(" Mary")
    add_types(request, types)
    return request


def large(
    number: int, n_tokens: int, types: Iterable[str] = ("ATTN_WRITE", "MLP_WRITE")
) -> inference_pb2.DeriveRequest:
    """A request with a large answer, other than that of any other *number*."""
    request = inference_pb2.DeriveRequest()
    request.prompt.token_ids.token_ids.extend((number * 31 + i * 7) % 5900 for i in range(n_tokens))
    request.loss_fn_config.name = component_pb2.LOSS_FN_NAME_LOGIT_DIFF
    request.loss_fn_config.target_token_ids.append(7)
    add_types(request, types)
    return request


def add_types(request: inference_pb2.DeriveRequest, types: Iterable[str]) -> None:
    """Ask for derived scalars, by name."""
    number_of = derived_scalar_type_pb2.DerivedScalarType.Value
    for name in types:
        request.derived_scalars.add(dst=number_of(f"DERIVED_SCALAR_TYPE_{name}"))


async def estimated(
    channel: grpc.aio.Channel, request: inference_pb2.DeriveRequest, metadata: Sequence[tuple[str, str]] = ()
) -> resolution_pb2.CostEstimate:
    """What the server expects *request* to cost."""
    resolve: Any = channel.unary_stream(RESOLVE)
    merged = resolution_pb2.Resolved()
    message = resolution_pb2.ResolveRequest(request=request).SerializeToString()
    async for answer in resolve(message, timeout=60, metadata=metadata):
        for frame in resolution_pb2.ResolveResponse.FromString(answer).frames:
            merged.MergeFrom(frame.resolved)
    return merged.cost


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which *share* of *values* lie; NaN without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


@dataclass
class Findings:
    """What an attack found: printed as it comes, and counted."""

    wrong: int = 0
    """Figures that are not right."""
    lines: list[str] = field(default_factory=list)
    """What was printed."""

    def say(self, what: str, measured: str, right: str, is_right: bool) -> None:
        """Print a figure beside what it should be."""
        self.wrong += not is_right
        line = f"  {'ok   ' if is_right else 'WRONG'} {what:44s} {measured:40s} right: {right}"
        self.lines.append(line)
        print(line, flush=True)


Attack = Callable[[Target, Findings], Awaitable[None]]
"""An attack on a server: it says what it finds."""
