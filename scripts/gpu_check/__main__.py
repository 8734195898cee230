"""`make gpu-check`: what only a GPU can show, as one table, within eight minutes. Needs no network.

Parity with the reference on the device; bytes of weights and passes against the allocator; memory that runs out;
cancelling and interrupting between launches; copies through pinned memory; throughput of batches. On a CPU all of it
runs too, but for what is about a GPU alone; there the times say nothing.

Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from scripts.gpu_check.device import Device, served
from scripts.gpu_check.findings import table_of
from scripts.gpu_check.memory import out_of_memory, peaks, pinned_copies, weights
from scripts.gpu_check.parity import parity
from scripts.gpu_check.speed import interrupting, throughput

if TYPE_CHECKING:
    from scripts.gpu_check.findings import Finding

_MINUTES = 8.0
_FOR_THE_REST = 60.0
"""Seconds of the whole that are kept for what comes after the throughput."""


async def _all(device: Device, folder: Path, ends: float) -> list[Finding]:
    found = [*parity(device, folder), *pinned_copies(device)]
    async with served(device, folder) as subject:
        found += [one async for one in weights(subject)]
        found += [one async for one in peaks(subject)]
        found += [one async for one in throughput(subject, ends - _FOR_THE_REST - time.monotonic())]
        found += [one async for one in interrupting(subject)]
        found += [one async for one in out_of_memory(subject)]  # last, as it leaves the allocator in pieces
    return found


def main() -> int:
    """Check, print the table; the exit status."""
    arguments = argparse.ArgumentParser(description="check what only a GPU can show")
    arguments.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    arguments.add_argument("--minutes", type=float, default=_MINUTES, help="for all of it; large batches go first")
    given = arguments.parse_args()
    device = Device.picked(given.device)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_all(device, Path(folder), started + 60 * given.minutes))
    seconds = time.monotonic() - started
    title = f"{device.name}: {device.title}, torch {torch.__version__}, {seconds:.0f} s"
    Console(width=160).print(table_of(found, title))
    return int(any(finding.is_right is False for finding in found))


if __name__ == "__main__":
    sys.exit(main())
