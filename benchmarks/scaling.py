"""More processes behind Envoy on the same processors: whether they lose anything of what one gets done.

`dst-grpc serve --devices cpu`, `cpu,cpu` and four of it, each behind the Envoy of `deploy/envoy` and with one thread a
process for torch. Three of four requests are small ones to the embedded model, one has gradients at 64 tokens. They say
that they are of sixteen models, for the ring, and are new each time, so that no recording answers. Rounds are
interleaved.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import trustme

from scripts.serving import Server, running
from tests.load.common import DERIVE, large, simple
from tests.mesh.proxy import DEPLOY, deployed, envoy_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROCESSES = (1, 2, 4)
_ROUTES, _IN_FLIGHT, _SECONDS, _ROUNDS = 16, 16, 8.0, 5
_GRADIENTS = ("MLP_ACT_TIMES_GRAD", "UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD")
_LEAST = 0.9


@dataclass
class _Rig:
    """Some processes, and Envoy in front of them."""

    address: str
    root: bytes
    processes: list[Server]
    rates: list[float] = field(default_factory=list)
    """Calls a second, by round."""
    cpu: list[float] = field(default_factory=list)
    """Processor seconds of the servers a call, by round."""


def _request(number: int) -> bytes:
    if number % 4:
        return simple(text=f"John gave {number} drinks to").SerializeToString()
    return large(number, 64, _GRADIENTS).SerializeToString()


async def _round(rig: _Rig, numbers: Iterator[int]) -> None:
    """Keep requests in flight for some seconds."""
    credentials = grpc.ssl_channel_credentials(rig.root)
    until, done = time.perf_counter() + _SECONDS, 0
    async with grpc.aio.secure_channel(rig.address, credentials) as channel:
        derive: Any = channel.unary_stream(DERIVE)

        async def ask() -> None:
            nonlocal done
            while time.perf_counter() < until:
                number = next(numbers)
                metadata = (("dst-model", f"model-{number % _ROUTES}"),)
                async for _ in derive(_request(number), metadata=metadata, timeout=60):
                    pass
                done += 1

        started, cpu = time.perf_counter(), sum(process.cpu_seconds for process in rig.processes)
        await asyncio.gather(*(ask() for _ in range(_IN_FLIGHT)))
        rig.rates.append(done / (time.perf_counter() - started))
        rig.cpu.append((sum(process.cpu_seconds for process in rig.processes) - cpu) / done)


def _children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def _started(count: int, folder: Path, authority: trustme.CA, stack: ExitStack) -> _Rig:
    devices = ",".join(["cpu"] * count)
    command = ("-m", "dst_grpc.cli", "serve", "--port", "0", "--devices", devices, "--log-level", "WARNING")
    supervisor = stack.enter_context(running(*command, OMP_NUM_THREADS="1"))
    addresses = supervisor.address.split(",")
    ports = [int(address.rpartition(":")[2]) for address in addresses]
    run = deployed(authority, folder / f"run-{count}")
    proxy = stack.enter_context(envoy_of(DEPLOY / "envoy.yaml", ports, run, run))
    proxy.wait_for("cluster.servers.membership_healthy", count)
    processes = [Server(address="", pid=pid) for pid in _children(supervisor.pid)]
    return _Rig(proxy.address, authority.cert_pem.bytes(), processes)


def report() -> Iterator[str]:
    """Calls a second of two and of four processes, over those of one."""
    authority, numbers = trustme.CA(), itertools.count()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        rigs = {count: _started(count, Path(folder), authority, stack) for count in _PROCESSES}
        for rig in rigs.values():
            asyncio.run(_round(rig, numbers))
            rig.rates.clear()
            rig.cpu.clear()
        for _ in range(_ROUNDS):
            for rig in rigs.values():
                asyncio.run(_round(rig, numbers))
    one = rigs[_PROCESSES[0]]
    yield f"Processes behind Envoy, one thread each, {_IN_FLIGHT} calls in flight, {_ROUNDS} rounds of {_SECONDS:.0f} s"
    for count, rig in rigs.items():
        ratio = statistics.median(ours / its for ours, its in zip(rig.rates, one.rates, strict=True))
        cpu = statistics.median(rig.cpu) / statistics.median(one.cpu)
        yield (
            f"  {count}: {statistics.median(rig.rates):.0f} calls/s, x {ratio:.2f} of one ({_LEAST} is right);"
            f" processor time of the servers a call x {cpu:.2f}"
        )
