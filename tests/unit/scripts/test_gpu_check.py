"""The checks of a GPU, as far as a CPU can try them; `make gpu-check DEVICE=cpu` runs all of them."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from dst_grpc.errors import InvalidRequest
from scripts.gpu_check.device import Device
from scripts.gpu_check.findings import Finding, table_of
from scripts.gpu_check.memory import pinned_copies

CPU = Device("cpu")


def finding(*, is_right: bool | None) -> Finding:
    return Finding(check="memory", what="weights", got="3 MiB", wanted="2 MiB", is_right=is_right)


def test_a_line_says_what_was_found_and_whether_it_is_right() -> None:
    out = io.StringIO()
    found = [finding(is_right=True), finding(is_right=False), finding(is_right=None)]
    Console(file=out, width=100).print(table_of(found, "cpu"))
    lines = [line.split() for line in out.getvalue().splitlines() if "weights" in line]
    assert [line[-1] for line in lines] == ["ok", "WRONG", "-"]
    assert {"3", "MiB", "2"} <= set(lines[0])


def test_a_device_that_is_not_there_is_refused() -> None:
    assert Device.picked("cpu") == CPU
    with pytest.raises(InvalidRequest, match="no 'cuda:99'"):
        Device.picked("cuda:99")


def test_a_peak_is_that_of_the_tensors_alive_at_once() -> None:
    def work() -> None:
        first = torch.empty(1 << 20)
        del first
        second, third = torch.empty(1 << 20), torch.empty(1 << 19)
        del second, third

    assert CPU.peak(work) == 4 * ((1 << 20) + (1 << 19))


def test_memory_runs_short_and_comes_back() -> None:
    # In a process of its own: other threads of this one would be short of memory too.
    script = (
        "import torch\n"
        "from scripts.gpu_check.device import Device\n"
        "with Device('cpu').short_of_memory(1 << 28):\n"
        "    try:\n"
        "        torch.ones(1 << 28)\n"
        "    except RuntimeError:\n"
        "        print('refused')\n"
        "print(len(torch.empty(1 << 28)))\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["refused", str(1 << 28)]


def test_copies_to_the_host_are_equal_and_a_cpu_has_no_rate() -> None:
    equal, rate = pinned_copies(CPU)
    assert equal.is_right
    assert rate.is_right is None
