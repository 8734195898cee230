"""Each seeded fault is of code that is there: `make faults`, which seeds them, takes too long for every run."""

from __future__ import annotations

import pytest

from tests.faults.__main__ import FAULTS, ROOT


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"])
def test_a_fault_replaces_one_place(fault: dict[str, str]) -> None:
    assert (ROOT / fault["file"]).read_text(encoding="utf-8").count(fault["sound"]) == 1
    assert (ROOT / fault["caught_by"]).exists()
    assert fault["faulty"] != fault["sound"]
