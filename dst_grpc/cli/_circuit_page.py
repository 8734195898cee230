"""Self-contained HTML page of a circuit: its graph, its curve, its edges."""

from __future__ import annotations

from typing import Any

from dst_grpc.cli._page import self_contained, short
from dst_grpc.client import Alternative, CircuitAnswer, CircuitEvaluation, CircuitKind, CircuitRequest, Orientation

CARRIED = {
    Alternative.PATCHING: "the other prompt's values",
    Alternative.MEAN_BY_POSITION: "means by position",
    Alternative.MEAN_BY_LENGTH: "means by position over prompts of the same length",
    Alternative.MEAN: "means",
    Alternative.ZERO: "nothing",
}
"""What cut edges carry, in words."""
MAX_EDGES = 600
"""Edges that the page draws and lists, the largest."""


def circuit_page(request: CircuitRequest, answer: CircuitAnswer) -> str:
    """The page, as HTML."""
    return self_contained("circuit", circuit_facts(request, answer))


def circuit_facts(request: CircuitRequest, answer: CircuitAnswer) -> dict[str, Any]:
    """The data of the page's script."""
    header, curve, edges = answer.header, answer.curve, answer.edges
    first = request.pairs[0]
    prompts = [prompt.text for prompt in (first.clean, first.corrupt) if prompt is not None and prompt.text is not None]
    return {
        "title": f"A circuit of {len(edges)} of {header.edge_count} edges" if edges else "Circuits",
        "model": header.model,
        "prompts": prompts,
        "pairs": header.pair_count,
        "noising": header.orientation is Orientation.NOISING,
        "whole": short(answer.whole),
        "empty": short(answer.empty),
        "alternative": CARRIED[header.alternative],
        "pruned": header.prune,
        "cpr": None if curve is None else short(curve.cpr),
        "cmd": None if curve is None else short(curve.cmd),
        "wanted": None if request.curve is None else request.curve.wanted_faithfulness,
        "evaluations": [_evaluation(one) for one in answer.evaluations],
        "chosen": None if curve is None else curve.chosen_index,
        "layers": sum(name.startswith("m") for name in answer.sources),
        "heads": sum(name.startswith("a0.") for name in answer.sources),
        "edges": [(edge.source, edge.reader, short(edge.score)) for edge in edges[:MAX_EDGES]],
        "count": len(edges),
        "footer": f"Made by dst-grpc with {answer.trailer.provenance.model}.",
    }


def _evaluation(one: CircuitEvaluation) -> dict[str, Any]:
    names = {CircuitKind.GIVEN: f"given {one.index + 1}", CircuitKind.ACDC: "ACDC"}
    return {
        "kind": one.kind.value,
        "name": names.get(one.kind, one.kind.value) if one.fraction is None else f"{one.fraction:.2%}",
        "fraction": one.fraction,
        "edges": one.edge_count,
        "nodes": one.node_count,
        "metric": short(one.metric),
        "faithfulness": short(one.faithfulness),
    }
