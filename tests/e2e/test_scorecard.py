"""The scorecard's lines about tiny models: every workload in one request, and as `transformers` with hooks has it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scripts.scorecard.measure import PROMPTS, measured
from scripts.scorecard.page import GOAL, PAGE, differences, rendered, stated
from scripts.scorecard.subjects import Subject, tiny_subjects
from scripts.scorecard.workloads import WORKLOADS

SUBJECTS = tiny_subjects()


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
async def test_the_page_is_true(subject: Subject) -> None:
    assert differences([line async for line in measured([subject])], stated(subject.name)) == []


@pytest.mark.parametrize("name", ["smollm2", *(subject.name for subject in SUBJECTS)])
def test_every_workload_takes_one_request_and_agrees(name: str) -> None:
    lines = stated(name)
    assert [(line.workload, line.n_prompts) for line in lines] == [(w.name, n) for w in WORKLOADS for n in PROMPTS]
    assert {(line.requests, line.top1) for line in lines} == {(1, 1.0)}
    assert all(line.distance <= GOAL for line in lines)


def test_what_is_not_true_is_found() -> None:
    said = stated(SUBJECTS[0].name)
    first, second, *others = said
    for worse in (
        replace(first, requests=2),
        replace(first, top1=0.9994),
        replace(first, distance=2 * first.distance),
        replace(first, distance=float("nan")),
    ):
        assert len(differences([worse, second, *others], said)) == 1
    assert len(differences([second, first, *others], said)) == 2
    assert differences(said, said) == []


def test_the_page_is_written_as_it_is_read() -> None:
    page = PAGE.read_text(encoding="utf-8")
    lines = [line for subject in SUBJECTS for line in stated(subject.name)]
    # What is stated is the next power of ten but one.
    written = rendered([replace(line, distance=line.distance / 50) for line in lines], SUBJECTS)
    assert set(written.splitlines()) <= set(page.splitlines())
