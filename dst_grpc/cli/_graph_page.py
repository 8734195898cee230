"""Self-contained HTML page of an attribution graph: layers up, tokens along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dst_grpc.cli._page import self_contained, short
from dst_grpc.cli._token_names import token_name, token_names
from dst_grpc.client import GraphAnswer, GraphHeader, GraphNodeKind, GraphScoredFeature, GraphSource, NodeRow
from dst_grpc.domain.graph_node_table import ERROR_KINDS, UNIT_KINDS, label_of
from dst_grpc.domain.graph_probes import SCORED_KINDS

MAX_NODES = 600
"""Nodes that the page draws, those of the largest influence."""
MAX_EDGES = 4000
"""Edges that the page draws between them, those of the largest shares of their targets."""


def graph_page(graph: GraphAnswer, labels: Mapping[str, str], scored: Iterable[GraphScoredFeature] = ()) -> str:
    """The page, as HTML.

    Args:
        graph: The graph.
        labels: Texts by the names of features, with their token or without.
        scored: Tokens of features.
    """
    return self_contained("graph", graph_facts(graph, labels, scored))


def shown_features(graph: GraphAnswer) -> list[str]:
    """The names of the features, neurons and latents that the page draws."""
    rows = graph.nodes
    return [rows[i].name for i in _shown(graph, rows) if rows[i].kind in SCORED_KINDS]


def _shown(graph: GraphAnswer, rows: Sequence[NodeRow]) -> list[int]:
    """The numbers of the nodes that the page draws, of its *rows*: those with edges that matter most, all tokens and
    targets."""
    joined = {*graph.edges.ends.tolist(), *graph.edges.sources.tolist()}
    always = {i for i, row in enumerate(rows) if row.kind in {GraphNodeKind.EMBEDDING, GraphNodeKind.TARGET}}
    by_influence = sorted(joined | always, key=lambda i: (i not in always, rows[i].cumulative_score, i))
    return sorted(by_influence[:MAX_NODES])


def graph_facts(
    graph: GraphAnswer, labels: Mapping[str, str], scored: Iterable[GraphScoredFeature] = ()
) -> dict[str, Any]:
    """The data of the page's script."""
    tokens = {
        one.node: [
            [token_name(token.token, token.token_id) for token in kind]
            for kind in (one.read, one.promoted, one.suppressed)
        ]
        for one in scored
    }
    header, summary = graph.header, graph.summary
    rows = graph.nodes  # made anew whenever they are asked for
    shown = _shown(graph, rows)
    places = {number: place for place, number in enumerate(shown)}
    numbers = {row.name: i for i, row in enumerate(rows)}
    ends = ((numbers[edge.source], numbers[edge.target], edge) for edge in graph.above(0.0))
    drawn = [(places[source], places[end], edge) for source, end, edge in ends if source in places and end in places]
    drawn.sort(key=lambda one: -one[2].share)
    return {
        "title": f"What makes {header.targets[0].name!r}",
        "model": header.model,
        "sources": ", ".join(filter(None, (*header.sources, header.transcoders, *header.autoencoders))),
        "units": units_in_words(header),
        "tokens": list(token_names(header.token_strings, header.token_ids)),
        "added": header.is_begin_token_added,
        "layers": header.layer_count,
        "targets": [{"name": one.name, "weight": short(one.weight)} for one in header.targets],
        "replacement": short(summary.replacement_score),
        "completeness": short(summary.completeness_score),
        "nodes": [
            {
                "name": row.name,
                "kind": row.kind.value,
                "shape": _shape(row.kind),
                "layer": header.layer_count if row.kind is GraphNodeKind.TARGET else row.layer,
                "token": row.token,
                "activation": short(row.activation),
                "score": short(row.cumulative_score),
                "label": _label(graph, i, row, labels),
                "tokens": tokens.get(row.name),
            }
            for i, row in zip(shown, map(rows.__getitem__, shown), strict=True)
        ],
        "edges": [(source, end, short(edge.weight), short(edge.share)) for source, end, edge in drawn[:MAX_EDGES]],
        "nodeCount": summary.kept_node_count,
        "edgeCount": len(graph.edges),
        "footer": f"Made by dst-grpc with {graph.trailer.provenance.model}.",
    }


def units_in_words(header: GraphHeader) -> str:
    """What the units of a graph are."""
    return " and ".join(header.sources or (GraphSource.FEATURES,))  # older servers say nothing


def _shape(kind: GraphNodeKind) -> str:
    """How the page draws nodes of *kind*."""
    return "unit" if kind in UNIT_KINDS else "error" if kind in ERROR_KINDS else "end"


def _label(graph: GraphAnswer, number: int, row: NodeRow, labels: Mapping[str, str]) -> str:
    """What a node is called besides its name."""
    first_target = len(graph.table) - len(graph.header.targets)
    if number >= first_target:
        return graph.header.targets[number - first_target].name
    if row.kind is GraphNodeKind.EMBEDDING:
        return graph.header.token_strings[row.token]
    return label_of(row.name, labels)
