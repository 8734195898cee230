"""Grids of patched runs, as the client gives them."""

from __future__ import annotations

import numpy as np

from dst_grpc.client import AttributedNode, PatchAxis, PatchedGrid, PatchGridInfo, PatchGridKind, RankedCell


def test_cells_of_equal_tokens_are_told_apart() -> None:
    axes = (
        PatchAxis(name="layer", labels=("0", "1"), indices=(0, 1)),
        PatchAxis(name="position", labels=(" John", " John"), indices=(3, 9)),
    )
    info = PatchGridInfo(kind=PatchGridKind.NODES, node=AttributedNode.MLP_OUT, axes=axes, cell_count=4)
    metric = np.array([[1.0, -3.0], [0.0, 2.0]])
    grid = PatchedGrid(info, metric[None], metric, metric / 4)
    assert [cell.labels for cell in grid.top(2)] == [("0", "9 ' John'"), ("1", "9 ' John'")]
    assert str(grid.top(1)[0]) == "-3 (-75%) 0 9 ' John'"
    assert grid.labels == (("0", "1"), (" John", " John"))


def test_zero_is_never_negative() -> None:
    assert str(RankedCell(-0.0, -0.001, ("0",))) == "+0 (+0%) 0"
