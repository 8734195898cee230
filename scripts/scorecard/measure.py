"""Runs workloads on a server and on `transformers`, and compares: requests, agreement, CPU time."""

from __future__ import annotations

import asyncio
import math
import re
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from dst_grpc.client import AsyncClient
from dst_grpc.rpc.server import Server, running_server
from dst_grpc.rpc.settings import Settings
from scripts.scorecard.reference import Reference
from scripts.scorecard.subjects import Subject
from scripts.scorecard.workloads import WORKLOADS, Array, Compared, Rows, Workload

PROMPTS = (1, 3)
"""How many pairs of prompts are asked about at once."""
_STARTED = re.compile(r'^grpc_server_call_started_total\{grpc_method="dst\.v1\.[^"]*"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Line:
    """What a workload takes, and how its answer agrees with that of `transformers`."""

    subject: str
    workload: str
    n_prompts: int
    requests: int
    """Calls that the server counted."""
    top1: float
    """The share of rows whose largest entry is at the same place."""
    distance: float
    """The largest total variation distance of two rows: half the sum of the magnitudes of all differences."""
    cpu_ratio: float
    """CPU time of server and client together, over that of `transformers` with hooks."""


@asynccontextmanager
async def serving(subjects: Sequence[Subject]) -> AsyncIterator[tuple[Server, AsyncClient]]:
    """A server with the models of *subjects*, which counts calls, and a client of it, both in this process."""
    models: dict[str, Any] = {subject.name: str(subject.folder) for subject in subjects}
    # Without recordings of earlier runs: each request is measured as if it were the first about its prompts.
    settings = Settings(port=0, metrics_port=0, models=models, store_bytes=0)
    async with running_server(settings) as server, AsyncClient(server.address) as client:
        yield server, client


async def measured(
    subjects: Sequence[Subject], workloads: Sequence[Workload] = WORKLOADS, *, repeats: int = 1
) -> AsyncIterator[Line]:
    """The lines of *workloads* on each model; CPU times are the least of *repeats*."""
    async with serving(subjects) as (server, client):
        for subject in subjects:
            for workload in workloads:
                for n_prompts in PROMPTS:
                    yield await _line(server, client, subject, workload, n_prompts, repeats)


async def _line(
    server: Server,
    client: AsyncClient,
    subject: Subject,
    workload: Workload,
    n_prompts: int,
    repeats: int,
) -> Line:
    reference = _reference(subject)
    examples = subject.examples[:n_prompts]
    found: list[Rows] = []
    expected: list[Rows] = []
    requests, ours, theirs = 0, math.inf, math.inf
    for _ in range(repeats):
        before, started = await _calls(server), time.process_time()
        found = await workload.ask(client, subject, examples)
        ours = min(ours, time.process_time() - started)
        requests = await _calls(server) - before
        started = time.process_time()
        expected = workload.expect(reference, examples)
        theirs = min(theirs, time.process_time() - started)
    compared = [_compared(*both) for both in zip(found, expected, strict=True)]
    agreements, distances = zip(*compared, strict=True)
    return Line(
        subject.name,
        workload.name,
        n_prompts,
        requests,
        min(agreements),
        max(distances),
        ours / theirs,
    )


@cache
def _reference(subject: Subject) -> Reference:
    return Reference(subject)


async def _calls(server: Server) -> int:
    """Calls of services that the server has counted since it started."""

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as response:
            return str(response.read(), "utf-8")

    return int(sum(float(value) for value in _STARTED.findall(await asyncio.to_thread(read))))


def _compared(found: Rows, expected: Rows) -> tuple[float, float]:
    """Share of rows with the same largest entry, and the largest distance of two rows."""
    if found.values.shape != expected.values.shape:
        raise ValueError(f"shapes are {found.values.shape} and {expected.values.shape}")
    distribution = _DISTRIBUTIONS[found.compared]
    ours, theirs = (distribution(rows.values.astype(np.float64)) for rows in (found, expected))
    top1 = np.abs(ours).argmax(axis=-1) == np.abs(theirs).argmax(axis=-1)
    return float(top1.mean()), float(np.abs(ours - theirs).sum(axis=-1).max() / 2)


def _softmax(values: Array) -> Array:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _shares(values: Array) -> Array:
    return np.asarray(values / np.abs(values).sum(axis=-1, keepdims=True))


_DISTRIBUTIONS: dict[Compared, Callable[[Array], Array]] = {
    Compared.LOGITS: _softmax,
    Compared.PROBABILITIES: np.asarray,
    Compared.SHARES: _shares,
}
