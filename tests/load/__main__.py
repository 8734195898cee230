"""Run attacks, each against a server of its own; see the README."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.load import (
    big_lists,
    cancel,
    fuzz,
    greedy_callers,
    guesses,
    large_messages,
    malformed_stream,
    plan_cache,
    put_tensors,
    slow_explain,
    slow_readers,
    small_windows,
    tenants,
    violations,
    worst_requests,
)
from tests.load.common import Attack, Findings, Target, serving, watched

ATTACKS: Mapping[str, Attack] = {
    "violations": violations.attack,
    "big_lists": big_lists.attack,
    "slow_readers": slow_readers.attack,
    "small_windows": small_windows.attack,
    "malformed_stream": malformed_stream.attack,
    "greedy_callers": greedy_callers.attack,
    "plan_cache": plan_cache.attack,
    "fuzz": fuzz.attack,
    "worst_requests": worst_requests.attack,
    "cancel": cancel.attack,
    "tenants": tenants.attack,
    "guesses": guesses.attack,
    "slow_explain": slow_explain.attack,
    "put_tensors": put_tensors.attack,
    "large_messages": large_messages.attack,
}
ARGUMENTS: Mapping[str, Callable[[Path], tuple[str, ...]]] = {
    "greedy_callers": greedy_callers.arguments,
    "fuzz": fuzz.arguments,
    "tenants": tenants.arguments,
    "guesses": guesses.arguments,
    "put_tensors": put_tensors.arguments,
    "large_messages": large_messages.arguments,
    "small_windows": small_windows.arguments,
}
"""What the servers of some attacks are started with, given a folder for files."""


def gpt2_arguments(folder: Path) -> tuple[str, ...]:
    """Arguments that serve a random model in GPT-2 small's shape by default."""
    import torch

    from benchmarks.contexts import write_gpt2_small

    write_gpt2_small(folder / "gpt2", torch.float32)
    return ("--model", f"gpt2={folder / 'gpt2'}", "--default-model", "gpt2", "--preload", "gpt2")


async def _attack(attack: Attack, target: Target, found: Findings) -> None:
    async with watched(target):
        await attack(target, found)


def main() -> int:
    """Run those that are named, or all; answers 1 if a figure is not right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*ATTACKS, []], metavar="NAME", help=", ".join(ATTACKS))
    parser.add_argument("--gpt2", action="store_true", help="serve a model in GPT-2 small's shape")
    given = parser.parse_args()
    found = Findings()
    with tempfile.TemporaryDirectory() as folder:
        model = gpt2_arguments(Path(folder)) if given.gpt2 else ()
        for name in given.names or ATTACKS:
            start = time.perf_counter()
            print(f"{name}", flush=True)
            extra = ARGUMENTS[name](Path(folder)) if name in ARGUMENTS else model
            with serving(*extra) as target:
                asyncio.run(_attack(ATTACKS[name], target, found))
            print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{found.wrong} figures are not right" if found.wrong else "all is right")
    return int(found.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
