"""Resident memory of a process that loads: how much at most, how much afterwards, and what happens when there is none.

Each test measures a process of its own. `python -m benchmarks contexts` has the figures of larger models.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import checkpoints

_D, _F, _V, _LAYERS = 512, 2048, 8000, 4
_CONFIG = {"n_layer": _LAYERS, "n_head": 8, "n_embd": _D, "n_inner": _F, "vocab_size": _V, "n_positions": 64}


def write(folder: Path, dtype: torch.dtype) -> Path:
    """A model of 67 MB in float32."""
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (_V, _D), "wpe.weight": (64, _D)}
    for i in range(_LAYERS):
        shapes |= {f"h.{i}.{norm}.{part}": (_D,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
        shapes |= {f"h.{i}.attn.c_attn.weight": (_D, 3 * _D), f"h.{i}.attn.c_attn.bias": (3 * _D,)}
        shapes |= {f"h.{i}.attn.c_proj.weight": (_D, _D), f"h.{i}.attn.c_proj.bias": (_D,)}
        shapes |= {f"h.{i}.mlp.c_fc.weight": (_D, _F), f"h.{i}.mlp.c_fc.bias": (_F,)}
        shapes |= {f"h.{i}.mlp.c_proj.weight": (_F, _D), f"h.{i}.mlp.c_proj.bias": (_D,)}
    shapes |= {"ln_f.weight": (_D,), "ln_f.bias": (_D,)}
    tensors = {name: torch.full(shape, 0.01) for name, shape in shapes.items()}
    return checkpoints.write_model(folder, config=_CONFIG, tensors=tensors, dtype=dtype)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("models") / "large", request.param)


PRELUDE = """
import asyncio, gc, json, resource, sys
from pathlib import Path
from dst_grpc.contexts import ContextCache, Registry
from dst_grpc.contexts.device import CountedMemory
from dst_grpc.errors import DstError

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))

def settled():
    gc.collect()
    CountedMemory().reclaim()
    return status("VmRSS")

async def want(cache, name):
    async with cache.lease(cache.registry.model_entry(name)):
        return cache.status(name).bytes_total

async def main(large, small):
    registry = Registry.build(models={"large": Path(large), "small": Path(small)}, device="cpu", include_embedded=False)
    cache = ContextCache(registry)
    # What a process needs once, whatever it loads: code, threads, tokenizers.
    for name in ("small", "large"):
        registry.tokenizer(name)
    await want(cache, "small")
    await cache.unload("small")
"""


def measured(body: str, large: Path, tmp_path: Path, **variables: str) -> dict[str, Any]:
    """What *body*, the end of the program, prints as JSON in a process that has *variables* in its environment."""
    small = checkpoints.write_model(tmp_path / "small")
    indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
    program = f"{PRELUDE}{indented}asyncio.run(main(*sys.argv[1:]))"
    # One thread: what starting others takes is no concern of loading, and fails where memory is short. One arena: each
    # has addresses in reserve, which a limit of addresses would not count.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", **variables}
    command = [sys.executable, "-W", "error", "-c", program, str(large), str(small)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert process.returncode == 0, process.stderr
    found: dict[str, Any] = json.loads(process.stdout)
    return found


def test_loading_takes_little_more_than_the_weights(folder: Path, tmp_path: Path) -> None:
    found = measured(
        """
before = settled()
Path("/proc/self/clear_refs").write_text("5")
weights = await want(cache, "large")
peak = status("VmHWM") - before
await cache.close()
print(json.dumps({"peak": peak, "weights": weights}))
""",
        folder,
        tmp_path,
        # Large blocks are mapped one by one: else the C library keeps some of those that were freed, now more now less.
        MALLOC_MMAP_THRESHOLD_="1048576",
    )
    assert found["weights"] > 60 << 20
    assert found["weights"] * 0.9 < found["peak"] < found["weights"] * 1.1


def test_unloading_gives_all_memory_back(tmp_path: Path) -> None:
    found = measured(
        """
before = settled()
for _ in range(20):
    await want(cache, "large")
    await cache.unload("large")
after = status("VmRSS")
await cache.close()
print(json.dumps({"before": before, "after": after}))
""",
        write(tmp_path / "large", torch.float32),
        tmp_path,
    )
    assert abs(found["after"] / found["before"] - 1) < 0.05


def test_running_out_of_memory_while_loading_is_exhaustion_and_leaves_nothing(tmp_path: Path) -> None:
    found = measured(
        """
before = settled()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + (40 << 20), limits[1]))
try:
    await want(cache, "large")
except DstError as error:
    failure = [type(error).__name__, error.reason, error.metadata]
after = status("VmRSS")
state = cache.status("large")
resource.setrlimit(resource.RLIMIT_AS, limits)
weights = await want(cache, "large")
await cache.close()
print(json.dumps({"failure": failure, "before": before, "after": after, "state": state.state, "weights": weights}))
""",
        write(tmp_path / "large", torch.float32),
        tmp_path,
    )
    assert found["failure"] == ["Exhausted", "OUT_OF_MEMORY", {"needed_bytes": str(found["weights"])}]
    assert found["state"] == "failed"
    assert abs(found["after"] / found["before"] - 1) < 0.05
