"""Graphs as files of the viewers of circuit-tracer and Neuronpedia.

Ids of nodes are theirs: `LAYER_FEATURE_TOKEN` of a feature, `0_LAYER_TOKEN` of an error, `E_ID_TOKEN` of an embedding,
`LAYERS+1_ID_TOKEN` of a logit. They can collide: an error may be called as a feature of layer 0 is. Our own names do
not (`domain.graph_node_table`), and are the ids of nodes that circuit-tracer does not have: neurons, heads, latents and
their errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dst_grpc.client._graph_views import NodeRow
from dst_grpc.client._graphs import GraphAnswer
from dst_grpc.domain.graph_node_table import ERROR_KINDS, UNIT_KINDS, GraphNodeKind, label_of

_TYPES = {
    GraphNodeKind.FEATURE: "cross layer transcoder",
    GraphNodeKind.ERROR: "mlp reconstruction error",
    GraphNodeKind.EMBEDDING: "embedding",
    GraphNodeKind.TARGET: "logit",
    GraphNodeKind.NEURON: "neuron",
    GraphNodeKind.HEAD: "attention head",
    GraphNodeKind.MLP_LATENT: "mlp latent",
    GraphNodeKind.ATTENTION_LATENT: "attention latent",
    GraphNodeKind.RESIDUAL_LATENT: "residual latent",
    GraphNodeKind.ATTENTION_ERROR: "attention reconstruction error",
    GraphNodeKind.RESIDUAL_ERROR: "residual reconstruction error",
}


def viewer_json(
    graph: GraphAnswer, *, slug: str = "graph", scan: str = "", labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The pruned *graph* as the viewers read it; it fits Neuronpedia's graph-schema.json, version 1.

    Args:
        graph: The answer of `graph`, with the edges that pruning left, or more.
        slug: What the viewers call it.
        scan: What they call its model and transcoders; the model's name unless it is given.
        labels: Texts of features by the names of their nodes, such as "f3.120@5", or without the token: "f3.120".
    """
    header, rows = graph.header, graph.nodes
    left = graph if len(graph.edges) == graph.summary.kept_edge_count else graph.prune(*_thresholds(graph))
    ends, sources, weights = left.edges.ends, left.edges.sources, left.edges.weights
    joined = np.zeros(len(rows), dtype=bool)
    joined[ends] = joined[sources] = True
    shown = [
        i for i, row in enumerate(rows) if joined[i] or row.kind in {GraphNodeKind.EMBEDDING, GraphNodeKind.TARGET}
    ]
    ids = {i: _id(graph, i, rows[i]) for i in shown}
    order = np.lexsort((sources, ends))
    return {
        "metadata": {
            "slug": slug,
            "scan": scan or header.model.partition("@")[0],
            "transcoder_list": [],
            "prompt_tokens": list(header.token_strings),
            "prompt": "".join(header.token_strings),
            "node_threshold": graph.summary.node_threshold,
            "schema_version": 1,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [_node(graph, i, rows[i], ids[i], labels or {}) for i in shown],
        "links": [
            {"source": ids[source], "target": ids[end], "weight": weight}
            for source, end, weight in zip(
                sources[order].tolist(), ends[order].tolist(), weights[order].tolist(), strict=True
            )
        ],
    }


def _thresholds(graph: GraphAnswer) -> tuple[float, float]:
    return graph.summary.node_threshold, graph.summary.edge_threshold


def _first_target(graph: GraphAnswer) -> int:
    return len(graph.table) - len(graph.header.targets)


def _id(graph: GraphAnswer, place: int, row: NodeRow) -> str:
    """The viewers' id of a node."""
    match row.kind:
        case GraphNodeKind.FEATURE:
            return f"{row.layer}_{row.feature}_{row.token}"
        case GraphNodeKind.ERROR:
            return f"0_{row.layer}_{row.token}"
        case GraphNodeKind.EMBEDDING:
            return f"E_{row.feature}_{row.token}"
        case kind if kind is not GraphNodeKind.TARGET:
            return row.name
    target = graph.header.targets[place - _first_target(graph)]
    named = target.name if row.feature is None else row.feature
    return f"{graph.header.layer_count + 1}_{named}_{row.token}"


def _node(graph: GraphAnswer, place: int, row: NodeRow, own_id: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """A node of the file."""
    found: dict[str, Any] = {
        "node_id": own_id,
        "feature": -1,
        "layer": str(row.layer),
        "ctx_idx": row.token,
        "feature_type": _TYPES[row.kind],
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{row.layer}_{row.token}-0",
        "clerp": "",
        "influence": row.cumulative_score,
        "activation": None,
    }
    match row.kind:
        case GraphNodeKind.FEATURE:
            label = label_of(row.name, labels)
            found |= {
                "feature": _paired(row.layer or 0, row.feature or 0),
                "activation": row.activation,
                "clerp": label,
            }
            found["jsNodeId"] = f"{row.layer}_{row.feature}-0"
        case kind if kind in UNIT_KINDS:
            found |= {"feature": row.feature, "activation": row.activation}
            found |= {"clerp": label_of(row.name, labels) or row.name, "jsNodeId": f"{row.name.partition('@')[0]}-0"}
        case kind if kind is not GraphNodeKind.ERROR and kind in ERROR_KINDS:
            found |= {"clerp": row.name, "jsNodeId": f"{row.name.partition('@')[0]}-{row.token}"}
        case GraphNodeKind.EMBEDDING:
            text = graph.header.token_strings[row.token]
            found |= {"feature": row.token, "layer": "E", "jsNodeId": f"E_{row.feature}-{row.token}"}
            found["clerp"] = f'Emb: "{text}"'
        case GraphNodeKind.TARGET:
            index = place - _first_target(graph)
            target = graph.header.targets[index]
            named = target.name if row.feature is None else row.feature
            found |= {"feature": row.feature, "layer": str(graph.header.layer_count + 1), "influence": None}
            found |= {"token_prob": target.weight, "is_target_logit": index == 0, "jsNodeId": f"L_{named}-{row.token}"}
            found["clerp"] = f'Output "{target.name}" (p={target.weight:.3f})'
    return found


def _paired(a: int, b: int) -> int:
    """Cantor's number of a pair."""
    return (a + b) * (a + b + 1) // 2 + b
