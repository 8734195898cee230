"""`dst-grpc graph`: which features of transcoders (or neurons, heads, latents), tokens and errors make the next token,
as a summary or a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from dst_grpc.cli._arguments import PromptArgument
from dst_grpc.cli._console import ModelOption, ServerOption, TimeoutOption, console
from dst_grpc.cli._files import check_writable, read_json, write_text
from dst_grpc.cli._graph_page import graph_page, shown_features, units_in_words
from dst_grpc.cli._progress import Work, asking
from dst_grpc.cli._tables import print_rows
from dst_grpc.cli._token_names import token_name, token_names
from dst_grpc.client import (
    DEFAULT_TARGET,
    Client,
    GraphAnswer,
    GraphPhase,
    GraphScoredFeature,
    NodeRow,
    make_graph_request,
    viewer_json,
)
from dst_grpc.domain.graph import DEFAULT_EDGE_THRESHOLD, DEFAULT_NODE_THRESHOLD
from dst_grpc.domain.graph_node_table import ERROR_KINDS, UNIT_KINDS, GraphNode, label_of
from dst_grpc.domain.graph_probes import SCORED_KINDS
from dst_grpc.errors import InvalidRequest, Violations, first_of

PHASES = {
    GraphPhase.RECORDING: Work("running the prompt", "step"),
    GraphPhase.TARGETS: Work("edges into targets", "target"),
    GraphPhase.FEATURES: Work("edges into nodes", "node"),
    GraphPhase.PRUNING: Work("pruning", "step"),
}
PATHS = 5
_LABELLED = (*UNIT_KINDS, *ERROR_KINDS)
_TOKENS = 3
"""Tokens to print that a feature raises."""

TranscodersOption = Annotated[
    str | None,
    typer.Option(
        "--transcoders", metavar="NAME", help="The set of transcoders. Default: the model's, if it has only one set."
    ),
]
NodesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--nodes",
        metavar="SOURCE",
        help="What nodes are made of: features of transcoders, neurons, heads, or latents of --autoencoder; may be "
        "repeated. Default: features, or latents if there is --autoencoder.",
    ),
]
LatentsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--autoencoder", metavar="NAME", help="A set of autoencoders whose latents are nodes; may be repeated."
    ),
]
GraphTargetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="TOKEN",
        help="Trace back from this token (mind the leading space); may be repeated. Default: the likely next tokens.",
    ),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE.json", help='Names of nodes to show: {"f3.120": "capitals"}.'),
]


def graph(
    prompt: PromptArgument,
    *,
    transcoders: TranscodersOption = None,
    nodes: NodesOption = None,
    autoencoder: LatentsOption = None,
    target: GraphTargetOption = None,
    max_features: Annotated[
        int | None,
        typer.Option(
            "--max-features",
            metavar="N",
            min=1,
            help="At most so many of --nodes, those of the largest influence. Default: all that are active; with "
            "neurons, 500.",
        ),
    ] = None,
    node_threshold: Annotated[
        float,
        typer.Option("--node-threshold", metavar="SHARE", help="The share of influence that kept nodes have, 0 to 1."),
    ] = DEFAULT_NODE_THRESHOLD,
    edge_threshold: Annotated[
        float, typer.Option("--edge-threshold", metavar="SHARE", help="The same of kept edges.")
    ] = DEFAULT_EDGE_THRESHOLD,
    begin: Annotated[
        bool, typer.Option("--begin/--no-begin", help="Put a special token first, if the prompt has none there.")
    ] = True,
    labels: LabelsOption = None,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="How many of --nodes to print.")] = 10,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the graph.")] = None,
    to_json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the file of circuit-tracer's and Neuronpedia's viewers."),
    ] = None,
    model: ModelOption = None,
    server: ServerOption = DEFAULT_TARGET,
    timeout: TimeoutOption = None,
) -> None:
    """Compute the attribution graph of a prompt: which features, tokens and errors act on which, and on the logits.

    A feature is named f3.120@5: feature 120 of layer 3 at token 5; an error of a transcoder e3@5, a token t5. With
    --nodes, a neuron n3.120@5, a head h3.2@5, a latent m3.l120@5 (of the MLP), a3.l120@5 (of attention) or r3.l120@5
    (of the residual), and their errors e3@5, a3.error@5 and r3.error@5.

    Example: dst-grpc graph "The capital of France is" --html graph.html
    """
    if html is not None and to_json is not None and html.absolute() == to_json.absolute():
        raise InvalidRequest.of("--json", f"must be another file than that of --html, {html}")
    check_writable(html, "--html")
    check_writable(to_json, "--json")
    known = {} if labels is None else read_labels(labels)
    request = make_graph_request(
        prompt,
        transcoders or None,
        sources=nodes or (),
        autoencoders=autoencoder or (),
        targets=target or (),
        max_feature_nodes=max_features,
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        begin_token="automatic" if begin else "as_given",
        model=model or None,
    )
    with asking(server, lambda news: PHASES[news.phase]) as (client, show):
        answer = client.graph_request(request, on_progress=show, timeout=timeout)
        names = shown_features(answer) if html is not None else [row.name for row in answer.top(top, SCORED_KINDS)]
        wants_tokens = html is not None or to_json is None
        scored = _scored(client, answer, names if wants_tokens else (), timeout)
    _tell_unknown(known, answer)
    if to_json is not None:
        write_text(to_json, json.dumps(viewer_json(answer, labels=known), ensure_ascii=False), "--json")
        typer.echo(f"{to_json} is written")
    if html is not None:
        write_text(html, graph_page(answer, known, scored), "--html")
        typer.echo(f"{html} is written")
    if to_json is None and html is None:
        _print(answer, known, top, scored)


def _scored(
    client: Client, graph: GraphAnswer, names: Sequence[str], timeout: float | None
) -> Sequence[GraphScoredFeature]:
    """The tokens of the features of these *names*, none if the graph is not kept; which it is no longer then."""
    if graph.handle is None:
        return ()
    found = client.feature_tokens(graph, names, timeout=timeout) if names else ()
    client.drop_graph(graph)
    return found


def read_labels(path: Path) -> dict[str, str]:
    """Texts by the names of nodes, with their token or without, from a file of one JSON object."""
    found = read_json(path, "--labels")
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InvalidRequest.of("--labels", f"{path} must hold one object with texts by the names of nodes")
    problems = Violations()
    for name in found:
        said = (
            f"{name!r} is no name: a feature is f3.120 or, at a token, f3.120@5, an error e3 or e3@5, a neuron n3.120, "
            "a head h3.2, a latent m3.l120, a3.l120 or r3.l120"
        )
        problems.check(_can_be_labelled(name), "--labels", said)
    problems.raise_if_any()
    return found


def _can_be_labelled(name: str) -> bool:
    try:
        return GraphNode.named(name if "@" in name else f"{name}@0").kind in _LABELLED
    except ValueError:
        return False


def _tell_unknown(labels: Mapping[str, str], answer: GraphAnswer) -> None:
    """Say which *labels* are of no node of the graph: they may be of features that are not active, or mistaken."""
    known = {*answer.names, *(name.partition("@")[0] for name in answer.names)}
    unknown = [name for name in labels if name not in known]
    if unknown:
        text = f"--labels: {len(unknown)} of {len(labels)} are of no node of this graph: {first_of(unknown)}"
        console(stderr=True).print(Text(text), soft_wrap=True)


def _at(tokens: Sequence[str], row: NodeRow, labels: Mapping[str, str]) -> str:
    """The token and the label of a node."""
    label = label_of(row.name, labels)
    return f"{tokens[row.token]!r}{f', {label}' if label else ''}"


def _print(answer: GraphAnswer, labels: Mapping[str, str], top: int, scored: Sequence[GraphScoredFeature]) -> None:
    out, header, summary = console(), answer.header, answer.summary
    tokens = token_names(header.token_strings, header.token_ids)
    out.print(Text.assemble(("Tokens: ", "bold"), " ".join(f"{i}{text!r}" for i, text in enumerate(tokens))))
    if header.is_begin_token_added:
        out.print(f"{tokens[0]!r} was put first: transcoders do not explain the first token.")
    out.print(Text("Targets:", style="bold"))
    print_rows(out, ("target", "weight"), [[repr(one.name), f"{one.weight:.4g}"] for one in header.targets])
    out.print(
        f"{header.feature_count} of {header.active_feature_count} active {units_in_words(header)}; pruned to "
        f"{summary.kept_node_count} of {header.node_count} nodes and {summary.kept_edge_count} of {summary.edge_count}"
        " edges"
    )
    out.print(
        f"replacement score {summary.replacement_score:.3f}: the share of influence from tokens, not errors; "
        f"completeness {summary.completeness_score:.3f}"
    )
    raised = {one.node: [repr(token_name(token.token, token.token_id)) for token in one.promoted] for one in scored}
    rows = [
        [
            row.name,
            _at(tokens, row, labels),
            f"{row.activation:z.4g}",
            f"{row.cumulative_score:.3f}",
            "yes" if row.kept else "no",
            ", ".join(raised.get(row.name, ())[:_TOKENS]),
        ]
        for row in answer.top(top)
    ]
    if rows:
        out.print(Text(f"{units_in_words(header).capitalize()} of the largest influence:", style="bold"))
        print_rows(out, ("node", "at", "activation", "score", "kept", "raises"), rows)
        out.print("A score is the share of all influence that a node and all of more have, tokens and errors too.")
    first = answer.names[len(answer.table) - len(header.targets)]
    out.print(Text(f"Strongest paths from tokens to {header.targets[0].name!r}:", style="bold"))
    paths = [path for token in range(len(tokens)) for path in answer.paths(f"t{token}", first, PATHS, kinds=UNIT_KINDS)]
    shown = sorted(paths, key=lambda one: -abs(one.strength))[:PATHS]
    strengths = [f"{path.strength:+z#.3g}" for path in shown]  # three digits of each, as they can be of any size
    width = max(map(len, strengths), default=0)
    for path, strength in zip(shown, strengths, strict=True):
        start = int(path.nodes[0].removeprefix("t"))
        out.print(Text(f"  {strength:<{width}}  {tokens[start]!r} {' -> '.join(path.nodes)}"))
    if not shown:
        out.print("  none, along the edges that pruning left: higher thresholds leave more")
