"""Heat maps for a terminal: the kinds of nodes that they are of, and numbers by layer, head and position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dst_grpc.cli._facts import decimals_for, number_text
from dst_grpc.cli._pictures import LABEL, Paper, coloured
from dst_grpc.client import AttributedNode
from dst_grpc.client._requests import member

SITES = {
    "resid": AttributedNode.RESID_PRE,
    "attn": AttributedNode.ATTN_OUT,
    "mlp": AttributedNode.MLP_OUT,
    "heads": AttributedNode.HEAD,
}
"""Short names of nodes."""
MAX_ROWS = 64
"""Rows of a heat map; of a taller one, those with the largest values."""
_SMALLEST_SHARE = 0.02
"""Share that is dark where all others are smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """An array to draw: a row for each place along its last axis, a column for each along the one before, and of three
    axes a table for each place along the first."""

    values: Any
    """The numbers, NaN where there is none."""
    axes: Sequence[str]
    """What each axis runs over, as a word: "layer", "head", "position", ..."""
    labels: Sequence[Sequence[str]]
    """Labels along each axis: numbers, tokens or names."""
    numbers: Sequence[int] = ()
    """The positions of rows that are tokens."""
    is_share: bool = False
    """Whether the numbers are shares, to be shown in percent."""


def sites_of(text: str) -> tuple[AttributedNode, ...]:
    """The nodes that `--sites` names.

    Raises:
        InvalidRequest: If there is no such node; the nearest are named, else all.
    """
    names = filter(None, (one.strip() for one in text.split(",")))
    return tuple(member(AttributedNode, name, "--sites", SITES) for name in names)


def heat_tables(heat: Heat, paper: Paper) -> Iterator[RenderableType]:
    """The tables of an array of at most three axes, on one scale."""
    values, labels, axes = heat.values, heat.labels, heat.axes
    if values.ndim == 3:
        for i, label in enumerate(labels[0]):
            yield Text(f"{axes[0]} {label}", style="cyan")
            yield _table(heat, values[i], axes[1:], labels[1:], paper)
    elif values.ndim == 2:
        yield _table(heat, values, axes, labels, paper)
    else:
        yield _table(heat, values.reshape(1, -1), ("", *(axes or [""])), (("",), *(labels or [("",)])), paper)


def _table(
    heat: Heat, values: Any, axes: Sequence[str], labels: Sequence[Sequence[str]], paper: Paper
) -> RenderableType:
    """One table, of some of its *values* [columns, rows]."""
    columns, rows = labels
    largest = max(float(np.nanmax(np.abs(heat.values), initial=0)), _SMALLEST_SHARE if heat.is_share else 0) or 1.0
    decimals = decimals_for([largest])
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    table.add_column("")
    fitting = max((paper.width - LABEL - 6) // (decimals + 6), 1)
    for label in columns[:fitting]:
        table.add_column(f"{axes[0]} {label}" if len(columns) <= 3 else label, justify="right")
    shown: Sequence[int] = range(len(rows))
    if len(rows) > MAX_ROWS:
        order = np.argsort(-np.nanmax(np.abs(values), axis=0), kind="stable")[:MAX_ROWS]
        shown = sorted(order.tolist())
    is_position = axes[1] == "position"
    for row in shown:
        name = f"{heat.numbers[row]:3} {paper.token(rows[row], LABEL)}" if is_position else _named(axes[1], rows[row])
        found = values[:fitting, row].tolist()
        table.add_row(name, *(_cell(value, largest, decimals, paper, is_share=heat.is_share) for value in found))
    left = len(columns) - fitting
    if left > 0:
        table.caption = f"{left} more columns do not fit; --json has all"
    return Padding(table, (0, 0, 0, 2), expand=False)


def _named(axis: str, label: str) -> str:
    """A row that is no token: a number with what it counts, or a name."""
    return f"{axis} {label}" if label.isdecimal() else label


def _cell(value: float, largest: float, decimals: int, paper: Paper, *, is_share: bool) -> Text:
    """One cell: a shade and a number, none where there is no cell."""
    if np.isnan(value):
        return Text("")
    number = f"{value:+z.0%}" if is_share else number_text(value, decimals)
    if not number.strip("+-0.%"):
        number = "0%" if is_share else "0"
    return coloured(
        f"{paper.shade(min(abs(value) / largest, 1.0))} {number}", value if abs(value) >= largest / 50 else 0
    )
