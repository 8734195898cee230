"""The pairs of prompts that `patch`, `attribute` and `circuit` are about: their options, and files of pairs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import typer

from dst_grpc.cli._files import read_text
from dst_grpc.cli._tables import human_count
from dst_grpc.errors import InvalidRequest, Violations

COLUMNS = ("clean", "corrupt", "target", "distractor")
"""Columns of a file of pairs; only the first is required."""

CleanArgument = Annotated[
    str | None, typer.Argument(metavar="CLEAN", help="The prompt with the behaviour, taken as it is.")
]
CorruptArgument = Annotated[
    str | None, typer.Argument(metavar="CORRUPT", help="The prompt without it, of as many tokens.")
]
PairsOption = Annotated[
    Path | None,
    typer.Option(
        "--pairs",
        metavar="FILE.csv",
        help=f"Further pairs, one a row: columns {', '.join(COLUMNS)}. Metrics are means over all.",
    ),
]
NoisingOption = Annotated[bool, typer.Option("--noising/--denoising", help="Run the clean prompt, or the corrupt one.")]
AlternativeOption = Annotated[
    str,
    typer.Option(
        "--alternative",
        metavar="NAME",
        help="What takes the place of what is patched or cut: patching (the other prompt's values), mean_by_position, "
        "mean_by_length, mean or zero.",
    ),
]
ReferenceOption = Annotated[
    Path | None, typer.Option("--reference", metavar="FILE", help="The prompts of a mean, one a line.")
]


def check_asked(clean: str | None, *, target: Sequence[str] | None, loss: str | None, pairs: Path | None) -> None:
    """Raise InvalidRequest if there is no pair, or can be no metric."""
    problems = Violations()
    problems.check(clean is not None or pairs is not None, "CLEAN", "is required, or --pairs")
    has_metric = bool(target or loss or pairs)
    problems.check(has_metric, "--target", "is required, or --loss, or --pairs with a column target")
    problems.raise_if_any()


def read_lines(path: Path) -> list[str]:
    return [line for line in read_text(path, "--reference").split("\n") if line]


def read_pairs(path: Path) -> list[dict[str, str | None]]:
    """The pairs of a file, as arguments of `make_pair`.

    Raises:
        InvalidRequest: If it cannot be read or is no CSV, has other columns, or rows of more values than these.
    """
    reader = csv.DictReader(StringIO(read_text(path, "--pairs")), strict=True)
    rows: list[dict[str | Any, Any]] = []
    try:
        columns = reader.fieldnames or ()
        rows.extend(reader)
    except csv.Error as error:
        raise InvalidRequest.of("--pairs", f"{path} is no CSV after {human_count(len(rows), 'row')}: {error}") from None
    if "clean" not in columns or len({*columns}) < len(columns) or not {*columns} <= {*COLUMNS}:
        names = ", ".join(name if name.isprintable() else repr(name) for name in columns)
        has = f"has the columns {names}" if columns else "has no columns"
        wanted = f"it must have clean, and may have {', '.join(COLUMNS[1:])}, each once, with commas between them"
        raise InvalidRequest.of("--pairs", f"{path} {has}; {wanted}")
    problems = Violations()
    for number, row in enumerate(rows, start=1):
        n_values = len(columns) + len(row.get(None, ()))
        problems.check(
            n_values == len(columns),
            "--pairs",
            f"row {number} of {path} has {n_values} values for {human_count(len(columns), 'column')}; one with a comma "
            "must be in quotes",
        )
    problems.raise_if_any()
    return [{"clean": row["clean"] or ""} | {name: row.get(name) or None for name in COLUMNS[1:]} for row in rows]
