"""`make scorecard`: ask all workloads of SmolLM2 and three tiny models, and write docs/scorecard.md."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import torch

from dst_grpc.errors import DstError
from scripts.scorecard.measure import Line, measured
from scripts.scorecard.page import PAGE, rendered
from scripts.scorecard.subjects import Subject, real_subject, tiny_subjects

REPEATS = 2


async def _measured(subjects: Sequence[Subject]) -> list[Line]:
    """All lines, each said as soon as it is known."""
    found = []
    async for line in measured(subjects, repeats=REPEATS):
        print(
            f"{line.subject}, {line.workload}, pairs: {line.n_prompts}, requests: {line.requests}, "
            f"top-1: {line.top1:.3f}, distance: {line.distance:.1e}, CPU time: {line.cpu_ratio:.2f}",
            flush=True,
        )
        found.append(line)
    return found


def main() -> None:
    """Measure, and write the page."""
    torch.set_num_threads(1)
    try:
        subjects = (real_subject(), *tiny_subjects())
        found = asyncio.run(_measured(subjects))
    except DstError as error:
        sys.exit(f"error: {error.message}")
    PAGE.write_text(rendered(found, subjects), encoding="utf-8")
    print(f"{PAGE} is written")


if __name__ == "__main__":
    main()
