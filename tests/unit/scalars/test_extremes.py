"""The largest and smallest entries: what sorting gives, whatever the sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc.scalars.extremes import RunningExtremes, extremes, in_columns


@given(
    n_rows=st.integers(1, 3),
    n=st.integers(1, 3000),
    k=st.integers(1, 60),
    seed=st.integers(0, 99),
    largest=st.booleans(),
    ties=st.booleans(),
)
def test_the_extremes_are_those_of_sorting(n_rows: int, n: int, k: int, seed: int, largest: bool, ties: bool) -> None:
    x = torch.randn(n_rows, n, generator=torch.Generator().manual_seed(seed))
    x = x.round() if ties else x
    values, positions = extremes(x, k, largest=largest)
    expected = x.sort(dim=1, descending=largest).values[:, :k]
    assert torch.equal(values, expected)
    assert torch.equal(x.gather(1, positions), values)
    assert all(len(set(row.tolist())) == min(k, n) for row in positions)


@pytest.mark.parametrize("place", [0, 63, 64, 9_999, 10_007])
@pytest.mark.parametrize("largest", [True, False])
def test_an_extreme_is_found_wherever_it_is(place: int, largest: bool) -> None:
    x = torch.zeros(1, 10_008)
    x[0, place] = 1.0 if largest else -1.0
    values, positions = extremes(x, 1, largest=largest)
    assert positions.item() == place
    assert values.item() == x[0, place].item()


@given(
    n_rows=st.integers(1, 4),
    n=st.integers(1, 3000),
    k=st.integers(1, 12),
    at_once=st.integers(1, 1000),
    seed=st.integers(0, 99),
    largest=st.booleans(),
    ties=st.booleans(),
)
def test_columns_seen_one_after_the_other_have_the_extremes_of_all(
    n_rows: int, n: int, k: int, at_once: int, seed: int, largest: bool, ties: bool
) -> None:
    x = torch.randn(n_rows, n, generator=torch.Generator().manual_seed(seed))
    x = x.round() if ties else x
    k = min(k, n)
    found = RunningExtremes(k, largest=largest)
    seen: list[int] = []
    for columns in in_columns(n, k, at_once):
        found.see(x[:, columns.start : columns.stop], columns)
        seen += range(columns.start, columns.stop)
    values, places = found.best()
    assert seen == list(range(n))
    assert torch.equal(values, x.sort(dim=1, descending=largest).values[:, :k])
    assert torch.equal(x.gather(1, places), values)
    assert all(len(set(row.tolist())) == k for row in places)
