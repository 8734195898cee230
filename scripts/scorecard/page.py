"""The page of the scorecard: writes it, reads it, and says what is no longer true of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from scripts.scorecard.measure import Line
from scripts.scorecard.subjects import Subject
from scripts.scorecard.workloads import WORKLOADS

PAGE: Final = Path(__file__).parents[2] / "docs" / "scorecard.md"
GOAL: Final = 1e-4
"""Distances that answers keep."""
HEAD: Final = """\
# Scorecard

How many requests common workloads take, and how their answers agree with the `transformers` library and hooks. The
kinds of workload are those of [nnbench](https://github.com/ndif-team/nnbench). `make scorecard` writes this page; the
tests ask all of it again, and fail if the number of requests differs, if a largest entry is elsewhere, or if a
distance is larger.

- *pairs*: of prompts, clean and corrupt, that one question is about: one, or three at once.
- *requests*: calls that the server counted. Three pairs are one call too: a request lists them, or is a stream with an
  item for each.
- *top-1*: the share of distributions whose largest entry is at the same place. Distributions are the softmax of the
  logits at the last token, of every changed run; the pattern of each query over keys; of scores and gradients, shares
  of the sum of all magnitudes.
- *distance*: total variation, half the sum of the magnitudes of all differences, of the two distributions that differ
  most, in float32. Stated is the next power of ten but one, at most 1e-4: other machines round in their own way.
- *CPU time*: of client and server together, over that of `transformers` with hooks (eager attention, all pairs in one
  batch, a pass for each changed run; for patching at every position, a pass for each layer). One thread, one machine;
  the only column that is not tested. With the tiny models it tells what a call costs, a few milliseconds.
"""
LATER: Final = """
## Not there yet

| workload | missing |
| --- | --- |
| logit lens | lenses |
| Jacobian lens, rows of the Jacobian | lenses, and several gradients of one run |
| generation of 8 tokens under steering, and under patching | generation |
"""
_TITLES: Final = """\
| workload | RPC | pairs | requests | top-1 | distance at most | CPU time |
| --- | --- | --- | --- | --- | --- | --- |"""
_ROW: Final = re.compile(r"^\| ([^|]+) \| ([^|]+) \| (\d+) \| (\d+) \| ([\d.]+) \| (\S+) \| ([\d.]+) \|$")


def rendered(lines: Sequence[Line], subjects: Sequence[Subject]) -> str:
    """The whole page."""
    calls = {workload.name: workload.call for workload in WORKLOADS}
    parts = [HEAD]
    for subject in subjects:
        parts.append(f"\n## {subject.title} (`{subject.name}`)\n\n{_TITLES}\n")
        for line in lines:
            if line.subject == subject.name:
                call = calls[line.workload].split(" / ")[-1 if line.n_prompts > 1 else 0]
                cells = (
                    line.workload,
                    f"`{call}`",
                    line.n_prompts,
                    line.requests,
                    f"{line.top1:.3f}",
                    _stated(line.distance),
                    f"{line.cpu_ratio:.2f}",
                )
                parts.append(f"| {' | '.join(map(str, cells))} |\n")
    return "".join([*parts, LATER])


def stated(subject: str, workload: str | None = None) -> list[Line]:
    """The lines of the page about a model, of one workload or of all; distances are the most that they may be."""
    lines = _lines(PAGE.read_text(encoding="utf-8"), subject)
    return [line for line in lines if workload in {None, line.workload}]


def _lines(page: str, subject: str) -> Iterator[Line]:
    of = ""
    for row in page.splitlines():
        if row.startswith("## "):
            of = row.partition("`")[2].rstrip("`)")
        elif of == subject and (found := _ROW.match(row)):
            name, _, n_prompts, requests, top1, distance, ratio = found.groups()
            yield Line(of, name, int(n_prompts), int(requests), float(top1), float(distance), float(ratio))


def differences(found: Sequence[Line], said: Sequence[Line]) -> list[str]:
    """What the lines *said* of a model that is not so, as sentences; both are of the same workloads, in one order."""
    problems = []
    for now, before in zip(found, said, strict=True):
        about = f"{now.subject}, {now.workload}, {now.n_prompts} pairs"
        if (before.workload, before.n_prompts) != (now.workload, now.n_prompts):
            problems.append(f"{about}: the page has a line of {before.workload}, {before.n_prompts} pairs in its place")
        if now.requests != before.requests:
            problems.append(f"{about}: {now.requests} requests, not {before.requests}")
        if f"{now.top1:.3f}" != f"{before.top1:.3f}":
            problems.append(f"{about}: top-1 is {now.top1:.3f}, not {before.top1:.3f}")
        if not now.distance <= before.distance:
            problems.append(f"{about}: the distance is {now.distance:.2g}, more than {before.distance:.0e}")
    return problems


def _stated(distance: float) -> str:
    """The next power of ten but one, of nothing what float32 may round; but 1e-4 if that is kept."""
    power = math.ceil(math.log10(max(distance, 1e-8))) + 1
    return f"1e{min(power, -4) if distance <= GOAL else power}"
