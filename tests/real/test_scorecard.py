"""The scorecard's lines about SmolLM2: every workload in one request, and as `transformers` with hooks has it."""

from __future__ import annotations

import pytest

from scripts.scorecard.measure import measured
from scripts.scorecard.page import differences, stated
from scripts.scorecard.subjects import real_subject
from scripts.scorecard.workloads import WORKLOADS, Workload


@pytest.mark.timeout(300)  # up to 600 changed runs of a real model, and once more by the library
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
async def test_the_page_is_true(workload: Workload) -> None:
    subject = real_subject()
    found = [line async for line in measured([subject], [workload])]
    assert differences(found, stated(subject.name, workload.name)) == []
