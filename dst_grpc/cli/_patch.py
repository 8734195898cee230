"""`dst-grpc patch`: what a metric would be if one place were as in another prompt's run, as heat maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import RenderableType
from rich.text import Text

from dst_grpc.cli import _arguments as arguments
from dst_grpc.cli._console import ModelOption, ServerOption, TimeoutOption, console, print_json_line
from dst_grpc.cli._heat_maps import SITES, Heat, heat_tables, sites_of
from dst_grpc.cli._pairs import (
    AlternativeOption,
    CleanArgument,
    CorruptArgument,
    NoisingOption,
    PairsOption,
    ReferenceOption,
    check_asked,
    read_lines,
    read_pairs,
)
from dst_grpc.cli._pictures import Paper, title
from dst_grpc.cli._progress import Work, asking
from dst_grpc.client import (
    DEFAULT_TARGET,
    Alternative,
    AttributedNode,
    Orientation,
    PatchAnswer,
    PatchGrid,
    PatchRequest,
    make_patch_request,
)
from dst_grpc.domain.patch import LISTED_ENTRIES, OF_HEADS
from dst_grpc.errors import InvalidRequest, Violations

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
    noising: NoisingOption = True,
    by_position: PositionsOption = None,
    layer: Annotated[list[int] | None, typer.Option("--layer", metavar="N", help="A layer; may be repeated.")] = None,
    position: Annotated[
        list[int] | None, typer.Option("--position", metavar="N", help="A position; may be repeated.")
    ] = None,
    head: Annotated[list[int] | None, typer.Option("--head", metavar="N", help="A head; may be repeated.")] = None,
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
    check_asked(clean, target=target, loss=loss, pairs=pairs)
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
    with asking(server, lambda _: Work("patching", "run")) as (client, show):
        answer = client.patch_request(request, on_progress=show, timeout=timeout)
    if as_json:
        print_json_line(_document(answer))
    else:
        out = console()
        for picture in heat_maps(request, answer, Paper.of(out)):
            out.print(picture)


def _grids(
    sites: str, by_position: bool | None, layers: Sequence[int], positions: Sequence[int], heads: Sequence[int]
) -> Iterator[PatchGrid]:
    """The grids that are asked for."""
    nodes, problems = sites_of(sites), Violations()
    for option, given, needed in (
        ("--layer", layers, any(node is not AttributedNode.INPUT for node in nodes)),
        ("--head", heads, any(node in OF_HEADS for node in nodes)),
    ):
        problems.check(needed or not given, option, f"must be absent: the sites {sites!r} have no {option[2:]}s")
    problems.raise_if_any()
    for node in nodes:
        if node in LISTED_ENTRIES:
            one = "mlp.post_act@3[13,5]" if node is AttributedNode.NEURON else "online_mlp_autoencoder_latent@3[13,5]"
            problem = f"{node} are too many for a grid of all; `dst-grpc derive --patch {one}` takes single ones"
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
            raise error.under("grids") from None


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
        heat = Heat(
            values=grid.recovery if has_recovery else grid.metric,
            axes=grid.axes,
            labels=grid.labels,
            numbers=grid.info.axes[-1].indices if grid.info.axes else (),
            is_share=has_recovery,
        )
        yield from heat_tables(heat, paper)


def _headline(request: PatchRequest, answer: PatchAnswer) -> Text:
    """Which runs there are, and their metrics."""
    if request.alternative is not Alternative.PATCHING:
        change = f"each place replaced by its {request.alternative.value.replace('_', ' ')}"
        change = change.replace("its zero", "zero")
        return Text(f"The prompt's metric is {answer.base:+z.3f}; {change}.", style="bold")
    names = ("clean", "corrupt") if request.orientation is Orientation.NOISING else ("corrupt", "clean")
    n_pairs = f" Means over {len(answer.pairs)} pairs." if len(answer.pairs) > 1 else ""
    text = f"The {names[0]} prompt is run ({answer.base:+z.3f}), one place as in the {names[1]} one "
    text += f"({answer.source:+z.3f}).{n_pairs}"
    if not any(pair.has_recovery for pair in answer.pairs):
        text += " Both metrics are the same, so that recovery is undefined: do the prompts differ in the answer?"
    return Text(text, style="bold")
