"""`dst-grpc patch`: what a metric would be if one place were as in another prompt's run, as heat maps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dst_grpc.cli import _arguments as arguments
from dst_grpc.cli._circuit import (
    AlternativeOption,
    CleanArgument,
    CorruptArgument,
    PairsOption,
    ReferenceOption,
    read_lines,
    read_pairs,
)
from dst_grpc.cli._console import ModelOption, ServerOption, TimeoutOption, connect, console, errors_reported
from dst_grpc.cli._pictures import LABEL, Paper, coloured, title
from dst_grpc.cli._progress import progress_bar
from dst_grpc.client import (
    DEFAULT_TARGET,
    Alternative,
    AttributedNode,
    Orientation,
    PatchAnswer,
    PatchedGrid,
    PatchGrid,
    PatchRequest,
    make_patch_request,
)
from dst_grpc.client._requests import member
from dst_grpc.domain.patch import LISTED_ENTRIES, OF_HEADS
from dst_grpc.errors import InvalidRequest

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
"""Recovery that is dark where all others are smaller."""
_CELL = 7
"""Columns of a cell."""

SitesOption = Annotated[
    str,
    typer.Option(
        "--sites",
        metavar="NAME,...",
        help=f"What to change: {', '.join(SITES)}, or nodes by name, such as resid_post, query, key, value, pattern. "
        "Of heads all positions at once, of the others each by itself.",
    ),
]
PositionsOption = Annotated[
    bool | None,
    typer.Option("--by-position/--all-positions", help="A cell for each position, or one for all of them."),
]


def patch(
    clean: CleanArgument = None,
    corrupt: CorruptArgument = None,
    *,
    target: arguments.TargetOption = None,
    distractor: arguments.DistractorOption = None,
    loss: arguments.LossOption = None,
    sites: SitesOption = "resid,heads",
    noising: Annotated[
        bool, typer.Option("--noising/--denoising", help="Run the clean prompt, or the corrupt one.")
    ] = True,
    by_position: PositionsOption = None,
    layer: Annotated[list[int] | None, typer.Option("--layer", help="A layer; may be repeated.")] = None,
    position: Annotated[list[int] | None, typer.Option("--position", help="A position; may be repeated.")] = None,
    head: Annotated[list[int] | None, typer.Option("--head", help="A head; may be repeated.")] = None,
    edge: Annotated[
        list[str] | None,
        typer.Option("--edge", metavar="NAME", help="Change one edge, such as a0.h1->m2; may be repeated."),
    ] = None,
    pairs: PairsOption = None,
    alternative: AlternativeOption = "patching",
    reference: ReferenceOption = None,
    autoencoder: arguments.AutoencoderOption = None,
    model: ModelOption = None,
    server: ServerOption = DEFAULT_TARGET,
    timeout: TimeoutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Patch activations: run one prompt with one place at a time as it is in the other, and show what that changes.

    Cells show the recovery: 0 % where the change makes no difference, 100 % where the run becomes as the other one.
    Noising, the default, runs the clean prompt with values of the corrupt one: what breaks the behaviour. Denoising is
    the reverse: what restores it. With --alternative zero or mean nodes are ablated; without CORRUPT cells then show
    the metric.

    Example: dst-grpc patch "Mary and John; John gave a drink to" "Mary and John; Mary gave a drink to" --target "
    Mary" --distractor " John"
    """
    with errors_reported(as_json=as_json):
        request = make_patch_request(
            clean,
            corrupt,
            target=target,
            distractor=distractor,
            loss=loss,
            pairs=() if pairs is None else read_pairs(pairs),
            orientation=Orientation.NOISING if noising else Orientation.DENOISING,
            alternative=alternative,
            reference=() if reference is None else read_lines(reference),
            grids=list(_grids(sites, by_position, layer or (), position or (), head or ())),
            edges=edge or (),
            autoencoders=autoencoder or (),
            model=model or None,
        )
        with connect(server) as client, progress_bar() as progress:
            task = progress.add_task("running cells", total=None)
            answer = client.patch_request(
                request,
                on_progress=lambda news: progress.update(task, completed=news.done, total=news.total),
                timeout=timeout,
            )
        if as_json:
            typer.echo(json.dumps(_document(answer), ensure_ascii=False))
        else:
            out = console()
            for picture in heat_maps(request, answer, Paper.of(out)):
                out.print(picture)


def _grids(
    sites: str, by_position: bool | None, layers: Sequence[int], positions: Sequence[int], heads: Sequence[int]
) -> Iterator[PatchGrid]:
    """The grids that are asked for."""
    for name in filter(None, (one.strip() for one in sites.split(","))):
        node = SITES.get(name) or member(AttributedNode, name, "--sites")
        if node in LISTED_ENTRIES:
            one = "mlp.post_act@3[13,5]" if node is AttributedNode.NEURON else "online_mlp_autoencoder_latent@3[13,5]"
            problem = f"{name} are too many for a grid of all; `dst-grpc derive --patch {one}` takes single ones"
            raise InvalidRequest.of("--sites", problem)
        try:
            yield PatchGrid(
                node=node,
                all_positions=node in OF_HEADS if by_position is None else not by_position,
                layers=() if node is AttributedNode.INPUT else tuple(layers),
                positions=tuple(positions),
                entries=tuple(heads) if node in OF_HEADS else (),
            )
        except InvalidRequest as error:
            raise error.under("--sites") from None


def _document(answer: PatchAnswer) -> dict[str, Any]:
    """The answer for programs."""

    def numbers(values: Any) -> Any:
        """Nested lists, null where there is no number."""
        found: Any = np.asarray(values).astype(object)
        found[np.isnan(np.asarray(values, float))] = None
        return found.tolist()

    return {
        "model": answer.header.model,
        "orientation": answer.header.orientation.value,
        "alternative": answer.header.alternative.value,
        "tokens": list(answer.tokens),
        "base": answer.base,
        "source": None if np.isnan(answer.source) else answer.source,
        "grids": [
            {
                "kind": grid.info.kind.value,
                "node": grid.info.node and grid.info.node.value,
                "all_positions": grid.info.all_positions,
                "axes": list(grid.axes),
                "labels": [list(labels) for labels in grid.labels],
                "metric": numbers(grid.metric),
                "recovery": numbers(grid.recovery),
            }
            for grid in answer.grids
        ],
    }


# Heat maps


def heat_maps(request: PatchRequest, answer: PatchAnswer, paper: Paper) -> Iterator[RenderableType]:
    """What was asked, and a heat map of each grid."""
    yield _headline(request, answer)
    for grid in answer.grids:
        has_recovery = not np.isnan(grid.recovery).all()
        what = str(grid.info.node or "edges").replace("_", " ")
        where = ", all positions at once" if grid.info.all_positions and grid.info.node is not None else ""
        by = " by ".join(reversed(grid.axes)) or "once"
        yield title(f"{what}{where}", f"{'recovery' if has_recovery else 'metric'}, {by}")
        yield from _heat(grid, grid.recovery if has_recovery else grid.metric, paper, is_share=has_recovery)


def _headline(request: PatchRequest, answer: PatchAnswer) -> Text:
    """Which runs there are, and their metrics."""
    if request.alternative is not Alternative.PATCHING:
        change = f"each place replaced by its {request.alternative.value.replace('_', ' ')}"
        change = change.replace("its zero", "zero")
        return Text(f"The prompt's metric is {answer.base:+.3f}; {change}.", style="bold")
    names = ("clean", "corrupt") if request.orientation is Orientation.NOISING else ("corrupt", "clean")
    n_pairs = f" Means over {len(answer.pairs)} pairs." if len(answer.pairs) > 1 else ""
    text = f"The {names[0]} prompt is run ({answer.base:+.3f}), one place as in the {names[1]} one "
    text += f"({answer.source:+.3f}).{n_pairs}"
    if not any(pair.has_recovery for pair in answer.pairs):
        text += " Both metrics are the same, so that recovery is undefined: do the prompts differ in the answer?"
    return Text(text, style="bold")


def _heat(grid: PatchedGrid, values: Any, paper: Paper, *, is_share: bool) -> Iterator[RenderableType]:
    """A table with a row for each place along the last axis, and a column for each along the one before."""
    numbers = grid.info.axes[-1].indices if grid.info.axes else ()
    if values.ndim == 3:
        for i, label in enumerate(grid.labels[0]):
            yield Text(f"{grid.axes[0]} {label}", style="cyan")
            yield _table(
                grid.labels[1], grid.labels[2], grid.axes[1:], values[i], paper, numbers=numbers, is_share=is_share
            )
        return
    if values.ndim < 2:
        rows = grid.labels[0] if grid.labels else ("",)
        axes = ("", grid.axes[0] if grid.axes else "")
        yield _table(("",), rows, axes, values.reshape(1, -1), paper, numbers=numbers, is_share=is_share)
        return
    yield _table(grid.labels[0], grid.labels[1], grid.axes, values, paper, numbers=numbers, is_share=is_share)


def _table(
    columns: Sequence[str],
    rows: Sequence[str],
    axes: Sequence[str],
    values: Any,
    paper: Paper,
    *,
    numbers: Sequence[int],
    is_share: bool,
) -> RenderableType:
    """One heat map, of *values* [columns, rows]; rows that are tokens have *numbers*."""
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    table.add_column("")
    fitting = max((paper.width - LABEL - 6) // (_CELL + 1), 1)
    for label in columns[:fitting]:
        table.add_column(f"{axes[0]} {label}" if len(columns) <= 3 else label, justify="right")
    largest = max(float(np.nanmax(np.abs(values), initial=0)), _SMALLEST_SHARE if is_share else 0) or 1.0
    shown: Sequence[int] = range(len(rows))
    if len(rows) > MAX_ROWS:
        order = np.argsort(-np.nanmax(np.abs(values), axis=0), kind="stable")[:MAX_ROWS]
        shown = sorted(order.tolist())
    is_position = axes[-1] == "position"
    for row in shown:
        name = f"{numbers[row]:3} {paper.token(rows[row], LABEL)}" if is_position else _named(axes[-1], rows[row])
        cells = [_cell(float(values[column, row]), largest, paper, is_share=is_share) for column in range(len(columns))]
        table.add_row(name, *cells[:fitting])
    left = len(columns) - fitting
    if left > 0:
        table.caption = f"{left} more columns do not fit; ask for --json, or for some with --layer"
    return Padding(table, (0, 0, 0, 2), expand=False)


def _named(axis: str, label: str) -> str:
    """A row that is no token: a number with what it counts, or a name."""
    return f"{axis} {label}" if label.isdecimal() else label


def _cell(value: float, largest: float, paper: Paper, *, is_share: bool) -> Text:
    """One cell: a shade and a number, none where there is no cell."""
    if np.isnan(value):
        return Text("")
    number = f"{value:+.0%}" if is_share else f"{value:+.2f}"
    number = "0%" if number in {"+0%", "-0%"} else number
    return coloured(
        f"{paper.shade(min(abs(value) / largest, 1.0))} {number}", value if abs(value) >= largest / 50 else 0
    )
