"""The taps agree with the specification's section 2.1, row by row (`specified_locations.tsv`)."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalars import FACTS
from tests.unit.domain.test_scalars import LETTERS

ROWS = list(
    csv.DictReader(Path(__file__).with_name("specified_locations.tsv").read_text().splitlines(), delimiter="\t")
)


def test_every_location_is_specified() -> None:
    assert [row["member"] for row in ROWS] == [location.name for location in ActivationLocationType]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["member"])
def test_the_facts_of_a_location_are_the_specified_ones(row: dict[str, str]) -> None:
    location = ActivationLocationType[row["member"]]
    assert location.value == row["value"]
    assert location.dimensions == tuple(LETTERS[letter] for letter in row["shape"].split(","))
    assert location.has_no_layers == (row["layers"] == "none")
    assert location.node_type == row["node"]
    within = location.location_within_layer
    assert (within.name if within else "-") == row["location"].replace("raises", "-")


def test_a_raw_type_has_the_facts_of_its_tap() -> None:
    for dst, facts in FACTS.items():
        if facts.is_raw:
            assert facts.tap is not None
            assert facts.tap.name == dst.name
            assert facts.dimensions == facts.tap.dimensions
            assert facts.once == facts.tap.has_no_layers
