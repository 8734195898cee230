"""Tables for terminals of every width, and numbers as text for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dst_grpc.client import AutoencoderInfo, ContextState

NUMBERS = {"layer", "value", "size", "position", "id", "hits", "pins", "idle", "memory", "weights", "latents"}
"""Columns that are aligned right."""


def print_rows(out: Console, columns: Sequence[str], rows: Iterable[Sequence[str]], *, fold: str | None = None) -> None:
    """Print a table; where it would not fit, each row as a block of lines below its first cell.

    Args:
        out: The console.
        columns: Names of the columns.
        rows: Cells, taken as they are: no markup.
        fold: A column of long text, which is wrapped if the others leave it a third of the width.
    """
    listed = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        numeric = name in NUMBERS
        table.add_column(name, justify="right" if numeric else "left", no_wrap=name != fold, overflow="fold")
    for row in listed:
        table.add_row(*map(Text, row))
    if _width(columns, listed, fold) <= (out.width * 2 // 3 if fold else out.width):
        out.print(table)
        return
    indent = max(map(len, columns[1:]), default=0)
    for row in listed:
        out.print(Text(row[0], style="bold"), overflow="fold")
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, min_width=indent + 2)
        grid.add_column(overflow="fold")
        for name, cell in zip(columns[1:], row[1:], strict=True):
            if cell:
                grid.add_row(f"  {name}", Text(cell))
        out.print(grid)


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]], fold: str | None) -> int:
    """Width of the table without the column that may be wrapped."""
    widths = [
        max(Text(cell).cell_len for cell in (name, *(row[i] for row in rows)))
        for i, name in enumerate(columns)
        if name != fold
    ]
    return sum(widths) + 2 * len(widths)


def human_bytes(count: int) -> str:
    """A number of bytes, with its unit."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def human_value(value: float) -> str:
    """A derived scalar: four decimals, or more for a small one."""
    if math.isnan(value):
        return "nan"
    return f"{value:+z.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:+.2e}"


def human_count(count: int, noun: str) -> str:
    """A number with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def human_ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers with ranges: "0-3, 5"."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def human_check(info: AutoencoderInfo) -> str:
    """The self-check of an autoencoder set: its figures over all layers, with the declared ones in brackets."""
    if not info.measured:
        return "not loaded" if info.state is not ContextState.AVAILABLE else "none"
    facts = [_figure("L0", [c.l0 for c in info.measured], [c.l0 for c in info.declared], "z.1f")]
    unexplained, promised = (
        [c.fraction_of_variance_unexplained for c in checks if c.fraction_of_variance_unexplained is not None]
        for checks in (info.measured, info.declared)
    )
    facts.append(_figure("unexplained", unexplained, promised, "z.2f"))
    facts.append(_figure("cosine", [c.orientation for c in info.measured if c.orientation is not None], [], "z.2f"))
    facts += dict.fromkeys(c.reading for c in info.measured if c.reading)
    return ", ".join(fact for fact in facts if fact)


def _figure(name: str, measured: Sequence[float], declared: Sequence[float], form: str) -> str:
    """The range of one figure; empty if it was not measured."""
    found, promised = _span(measured, form), _span(declared, form)
    if not found:
        return ""
    return f"{name} {found} ({promised})" if promised else f"{name} {found}"


def _span(values: Sequence[float], form: str) -> str:
    return " to ".join(dict.fromkeys([format(min(values), form), format(max(values), form)])) if values else ""
