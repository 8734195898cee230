"""`dst-grpc circuit`: which edges of a model carry a behaviour, as a curve, a table and a graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from dst_grpc.cli import _arguments as arguments
from dst_grpc.cli._circuit_page import CARRIED, circuit_page
from dst_grpc.cli._console import ModelOption, ServerOption, TimeoutOption, console, print_json_line
from dst_grpc.cli._files import check_page, read_json, write_text
from dst_grpc.cli._pairs import (
    AlternativeOption,
    CleanArgument,
    CorruptArgument,
    PairsOption,
    ReferenceOption,
    check_asked,
    read_lines,
    read_pairs,
)
from dst_grpc.cli._pictures import Paper
from dst_grpc.cli._progress import Work, asking
from dst_grpc.cli._tables import print_rows
from dst_grpc.client import (
    DEFAULT_TARGET,
    CircuitAnswer,
    CircuitEvaluation,
    CircuitKind,
    CircuitRequest,
    CircuitStage,
    Orientation,
    make_circuit_request,
    mib_json,
    read_mib_json,
)
from dst_grpc.domain.circuit import DEFAULT_STEPS, DEFAULT_WANTED_FAITHFULNESS
from dst_grpc.errors import InvalidRequest, Violations

STAGES = {
    CircuitStage.SCORES: Work("scoring", "pair"),
    CircuitStage.EVALUATION: Work("running circuits", "run"),
    CircuitStage.SEARCH: Work("searching", "step"),
}
_BAR = 24
ScoresOption = Annotated[
    Path | None,
    typer.Option("--scores", metavar="FILE.json", help="Rank edges by the scores of a MIB file, instead of EAP-IG."),
]
EvaluateOption = Annotated[
    list[Path] | None,
    typer.Option("--evaluate", metavar="FILE.json", help="Evaluate the circuit of a MIB file; may be repeated."),
]


def circuit(
    clean: CleanArgument = None,
    corrupt: CorruptArgument = None,
    *,
    target: arguments.TargetOption = None,
    distractor: arguments.DistractorOption = None,
    loss: arguments.LossOption = None,
    pairs: PairsOption = None,
    orientation: Annotated[
        str,
        typer.Option("--orientation", metavar="noising|denoising", help="Run the clean prompt, or the corrupt one."),
    ] = "noising",
    alternative: AlternativeOption = "patching",
    reference: ReferenceOption = None,
    select: Annotated[
        str | None,
        typer.Option(
            "--select", metavar="NAME", help="Edges to keep: the largest (absolute, the default), signed or greedy."
        ),
    ] = None,
    faithfulness: Annotated[
        float | None,
        typer.Option(
            "--faithfulness",
            metavar="SHARE",
            help=f"Show the smallest circuit that is at least so faithful. Default: {DEFAULT_WANTED_FAITHFULNESS}.",
        ),
    ] = None,
    fraction: Annotated[
        list[float] | None,
        typer.Option(
            "--fraction", metavar="SHARE", help="A fraction of edges to keep; may be repeated. Default: those of MIB."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, help=f"Steps of EAP-IG. Default: {DEFAULT_STEPS}.")
    ] = None,
    scores: ScoresOption = None,
    evaluate: EvaluateOption = None,
    acdc: Annotated[
        float | None,
        typer.Option("--acdc", metavar="THRESHOLD", help="Search with ACDC instead of a curve: one run per edge."),
    ] = None,
    prune: Annotated[
        bool | None, typer.Option("--prune/--no-prune", help="Leave out edges on no path through. Default: they are.")
    ] = None,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Edges to print.")] = 20,
    autoencoder: arguments.AutoencoderOption = None,
    latents: Annotated[
        bool, typer.Option("--latents", help="A circuit of nodes, of which the autoencoders' latents are some.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the graph instead.")
    ] = None,
    model: ModelOption = None,
    server: ServerOption = DEFAULT_TARGET,
    timeout: TimeoutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the circuit as a file of MIB.")] = False,
) -> None:
    """Find which edges of the model carry a behaviour: the smallest circuit that keeps it.

    Edges are ranked by EAP-IG (the change of each source between both prompts, times the gradient at each reader).
    Circuits of growing size are run, all other edges cut; faithfulness is the share of the metric that a circuit keeps.
    Edges are printed as in the EAP-IG library: a0.h1->a2.h0<q>, m0->m1, input->a0.h3<v>, m3->logits.

    Example: dst-grpc circuit "Mary and John; John gave a drink to" "Mary and John; Mary gave a drink to" --target "
    Mary" --distractor " John"
    """
    check_asked(clean, target=target, loss=loss, pairs=pairs)
    of_curve = {"select": select, "faithfulness": faithfulness, "fraction": fraction, "steps": steps}
    if latents:
        _check_latents(scores, html)
    has_curve = acdc is None or scores is not None
    if not has_curve:
        _check_search(of_curve)
    check_page(html, as_json=as_json)
    file = None if scores is None else _mib(scores, "--scores")
    request = make_circuit_request(
        clean,
        corrupt,
        target=target,
        distractor=distractor,
        loss=loss,
        pairs=() if pairs is None else read_pairs(pairs),
        orientation=orientation,
        alternative=alternative,
        reference=() if reference is None else read_lines(reference),
        prune=prune,
        circuits=[_mib(path, "--evaluate").kept for path in evaluate or ()],
        autoencoders=autoencoder or (),
        latents=latents,
        acdc_threshold=acdc,
        model=model or None,
        **(_curve(of_curve, with_scores=as_json) if has_curve else {}),
        **({} if file is None else {"scores": file.scores, "scores_orientation": "denoising"}),
    )
    with asking(server, lambda news: STAGES[news.stage]) as (client, show):
        answer = client.circuit_request(request, on_progress=show, timeout=timeout)
    if as_json:
        print_json_line(mib_json(answer))
    elif html is not None:
        write_text(html, circuit_page(request, answer), "--html")
        typer.echo(f"{html} is written")
    else:
        _print(request, answer, top)


def _check_latents(scores: Path | None, html: Path | None) -> None:
    """Refuse what is of edges alone; raises InvalidRequest."""
    problems = Violations()
    problems.check(scores is None, "--scores", "must be absent with --latents: the file ranks edges")
    problems.check(html is None, "--html", "must be absent with --latents: the page draws edges")
    problems.raise_if_any()


def _check_search(of_curve: Mapping[str, Any]) -> None:
    """Refuse what is of curves alone; raises InvalidRequest."""
    problems = Violations()
    for name, value in of_curve.items():
        problems.check(value is None, f"--{name}", "must be absent with --acdc: it is about curves")
    problems.raise_if_any()


def _curve(of_curve: Mapping[str, Any], *, with_scores: bool) -> dict[str, Any]:
    """The arguments of the curve, as far as they were given."""
    names = {"select": "selection", "faithfulness": "wanted_faithfulness", "fraction": "fractions", "steps": "steps"}
    return {"with_scores": with_scores} | {names[one]: value for one, value in of_curve.items() if value is not None}


# Files


def _mib(path: Path, option: str) -> Any:
    """The circuit of a file."""
    file = read_json(path, option)
    if not isinstance(file, Mapping):
        raise InvalidRequest.of(option, f"{path} holds no JSON object")
    try:
        return read_mib_json(file)
    except InvalidRequest as error:
        raise error.under(option) from None


# Printing


def _print(request: CircuitRequest, answer: CircuitAnswer, top: int) -> None:
    out = console()
    paper = Paper.of(out)
    header = answer.header
    is_noising, of_nodes = header.orientation is Orientation.NOISING, bool(header.node_count)
    what = f"{header.node_count} nodes; cut nodes are" if of_nodes else f"{header.edge_count} edges; cut edges carry"
    out.print(
        Text.assemble(
            (f"The whole model{'' if is_noising else ', on the corrupt prompt'}: ", "bold"),
            f"{answer.whole:z.4g}, without any {'node' if of_nodes else 'edge'}: {answer.empty:z.4g}, the mean over "
            f"{header.pair_count} pair{'s' * (header.pair_count > 1)}; {what} {CARRIED[header.alternative]}"
            f"{'' if header.prune or of_nodes else ', not pruned'}",
        )
    )
    if answer.of_kind(CircuitKind.WHOLE)[0].faithfulness is None:
        out.print("Both metrics are the same, so that faithfulness is undefined: do the prompts differ in the answer?")
    rows = [
        *(_row(f"given {one.index + 1}", one, paper) for one in answer.of_kind(CircuitKind.GIVEN)),
        *(_row(f"{one.fraction:.2%}", one, paper) for one in answer.of_kind(CircuitKind.CURVE)),
        *(_row("ACDC", one, paper) for one in answer.of_kind(CircuitKind.ACDC)),
    ]
    columns = ["kept", "edges", "nodes", "metric", "faithfulness", ""]
    if of_nodes:  # none has edges
        for cells in (columns, *rows):
            del cells[1]
    print_rows(out, columns, rows)
    curve = answer.curve
    if curve is not None and curve.cpr is not None and curve.cmd is not None:
        out.print(f"area under faithfulness (CPR) {curve.cpr:z.4f}, under its distance from 1 (CMD) {curve.cmd:z.4f}")
    _print_items(request, answer, top)


def _row(name: str, one: CircuitEvaluation, paper: Paper) -> list[str]:
    if one.faithfulness is None:
        return [name, str(one.edge_count), str(one.node_count), f"{one.metric:z.4g}", "", ""]
    bar = paper.bar(min(max(one.faithfulness, 0.0), 1.0), 1.0, _BAR)
    return [name, str(one.edge_count), str(one.node_count), f"{one.metric:z.4g}", f"{one.faithfulness:z.3f}", bar]


def _print_items(request: CircuitRequest, answer: CircuitAnswer, top: int) -> None:
    """Print the circuit's edges, or its nodes."""
    out = console()
    of_nodes = bool(answer.header.node_count)
    items, item = (answer.nodes, "node") if of_nodes else (answer.edges, "edge")
    has_scores = (answer.kept_nodes or answer.circuit) is not None
    is_known = answer.of_kind(CircuitKind.WHOLE)[0].faithfulness is not None
    if request.curve is not None and answer.curve is not None and answer.curve.chosen_index is None and is_known:
        out.print(f"No circuit of the curve is as faithful as {request.curve.wanted_faithfulness:g}.")
    if not items:
        return
    out.print(Text(f"The circuit's {len(items)} {item}s{', the largest first' if has_scores else ''}:", style="bold"))
    if has_scores and request.curve is not None and request.curve.scores is None:
        out.print(f"A score is about how much the metric changes if its {item} is cut.")
    rows = [[str(one), *([f"{one.score:+z.4g}"] if has_scores else [])] for one in items[:top]]
    print_rows(out, (item, "score") if has_scores else (item,), rows)
    if len(items) > top:
        out.print(f"... and {len(items) - top} more: --top, {'' if of_nodes else '--html '}or --json shows them")
