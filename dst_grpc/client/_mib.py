"""Circuits as files of the Mechanistic Interpretability Benchmark and of the EAP-IG library (`Graph.to_json`).

A file is a JSON object of three objects. `cfg` holds `n_layers`, `n_heads`, `parallel_attn_mlp` and `d_model`. `nodes`
has for each source, and for "logits", whether it is `in_graph`, and perhaps a `score`. `edges` has for each edge, by
name, its `score` and whether it is `in_graph`. The benchmark's metric is negated while it attributes, so that important
edges have positive scores; those of this package, with the clean prompt run, are negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dst_grpc.client._circuits import CircuitAnswer
from dst_grpc.domain.circuit import KeptCircuit
from dst_grpc.domain.graph_nodes import Edge, Reader, Source
from dst_grpc.domain.pairs import Orientation
from dst_grpc.errors import InvalidRequest, Violations

Array = np.ndarray[Any, np.dtype[Any]]


def mib_json(answer: CircuitAnswer) -> dict[str, Any]:
    """The circuit of *answer*, with the scores of all edges if they were asked for, as the object of a file.

    A circuit of nodes with latents has no edges, and latents are nodes under their own names: the benchmark does not
    know these, but `read_mib_json` does.

    Raises:
        InvalidRequest: If the answer has no circuit and no scores.
    """
    if answer.header.node_count:
        return _of_nodes(answer)
    edges = answer.circuit or answer.found
    scores = answer.scores
    if edges is None and scores is None:
        raise InvalidRequest.of("", "the answer has neither a circuit nor the scores of all edges")
    sign = -1.0 if answer.header.orientation is Orientation.NOISING else 1.0
    sources, readers = answer.sources, answer.readers
    kept: dict[tuple[int, int], float] = {}
    if edges is not None:
        of_edges: Sequence[float] = edges.scores or [0.0] * len(edges.sources)
        kept = dict(zip(zip(edges.sources, edges.readers, strict=True), of_edges, strict=True))
    all_edges = (
        kept
        if answer.all_scores is None
        else dict.fromkeys(zip(answer.all_scores.sources, answer.all_scores.readers, strict=True))
    )
    in_graph = {source for source, _ in kept}

    def score(edge: tuple[int, int]) -> float:
        return sign * float(kept.get(edge, 0.0) if scores is None else scores[edge])

    return {
        "cfg": _cfg(answer),
        "nodes": {
            **{name: {"in_graph": i in in_graph} for i, name in enumerate(sources)},
            "logits": {"in_graph": True},
        },
        "edges": {
            f"{sources[s]}->{readers[r]}": {"score": score((s, r)), "in_graph": (s, r) in kept} for s, r in all_edges
        },
    }


def _of_nodes(answer: CircuitAnswer) -> dict[str, Any]:
    """The object of a file of a circuit of nodes."""
    kept, scores = answer.kept_nodes or answer.found_nodes, answer.all_node_scores
    found = scores or kept
    if found is None:
        raise InvalidRequest.of("", "the answer has neither a circuit nor the scores of all nodes")
    sign = -1.0 if answer.header.orientation is Orientation.NOISING else 1.0
    in_graph = set(() if kept is None else kept.nodes)
    nodes = {
        answer.node_name(node): {"score": sign * float(score), "in_graph": node in in_graph}
        for node, score in zip(found.nodes, found.scores or [0.0] * len(found.nodes), strict=True)
    }
    return {"cfg": _cfg(answer), "nodes": {**nodes, "logits": {"in_graph": True}}, "edges": {}}


def _cfg(answer: CircuitAnswer) -> dict[str, Any]:
    """What the model is like. In parallel layers no edge leads from a head to the MLP of its layer."""
    n_layers = sum(name.startswith("m") for name in answer.readers)
    n_heads = sum(name.startswith("a0.") for name in answer.readers) // 3
    before = [1 + layer * (n_heads + 1) for layer in range(n_layers)]
    sequential = sum(3 * n_heads * n + n + n_heads for n in before) + 1 + n_layers * (n_heads + 1)
    return {
        "n_layers": n_layers,
        "n_heads": n_heads,
        "parallel_attn_mlp": answer.header.edge_count != sequential,
        "d_model": answer.header.d_model,
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class MibCircuit:
    """The circuit of a file."""

    kept: KeptCircuit
    """The edges that are in the graph; of a file without edges, the nodes that are."""
    scores: Array
    """Scores of edges [S, D], 0 where there is no edge; important ones are positive."""


def read_mib_json(file: Mapping[str, Any]) -> MibCircuit:
    """The circuit in the object of a file. Give its scores with `scores_orientation="denoising"`.

    Raises:
        InvalidRequest: If a key is missing, or an edge is none of the graph that `cfg` describes.
    """
    problems = Violations()
    for key in ("cfg", "nodes", "edges"):
        problems.check(isinstance(file.get(key), Mapping), key, "is required, an object")
    problems.raise_if_any()
    cfg = file["cfg"]
    for key in ("n_layers", "n_heads"):
        problems.check(isinstance(cfg.get(key), int) and cfg[key] > 0, f"cfg.{key}", "is required, a number above 0")
    problems.raise_if_any()
    n_layers, n_heads = cfg["n_layers"], cfg["n_heads"]
    scores = np.zeros((1 + n_layers * (n_heads + 1), n_layers * (3 * n_heads + 1) + 1), np.float32)
    kept = []
    for name, facts in file["edges"].items():
        path = f"edges[{name!r}]"
        try:
            edge = Edge.named(name)
            place = _source(edge.source, n_heads), _reader(edge.reader, n_layers, n_heads)
            scores[place] = facts["score"]
        except (ValueError, IndexError, KeyError, TypeError):
            problems.add(path, "is no edge of the graph that cfg describes, with a score")
            continue
        if facts.get("in_graph"):
            kept.append(name)
    problems.raise_if_any()
    nodes: tuple[str, ...] = ()
    if not file["edges"]:
        nodes = tuple(name for name, facts in file["nodes"].items() if facts.get("in_graph") and name != "logits")
    return MibCircuit(kept=KeptCircuit(edges=tuple(kept), nodes=nodes), scores=scores)


def _source(source: Source, n_heads: int) -> int:
    """Its place among the sources."""
    if source.layer is None:
        return 0
    if source.head is not None and source.head >= n_heads:
        raise IndexError(source.head)
    return 1 + source.layer * (n_heads + 1) + (n_heads if source.head is None else source.head)


def _reader(reader: Reader, n_layers: int, n_heads: int) -> int:
    """Its place among the readers."""
    if reader.layer is None:
        return n_layers * (3 * n_heads + 1)
    first = reader.layer * (3 * n_heads + 1)
    if reader.layer >= n_layers:
        raise IndexError(reader.layer)
    if reader.head is None or reader.part is None:
        return first + 3 * n_heads
    if reader.head >= n_heads:
        raise IndexError(reader.head)
    return first + "QKV".index(reader.part.value) * n_heads + reader.head
