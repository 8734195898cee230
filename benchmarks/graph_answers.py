"""Answers about an attribution graph of the usual size: their bytes, and how long questions about a kept graph take.

The graph is of a random model in the shape of GPT-2 small with random transcoders of 4,096 ReLU features a layer, of 64
tokens and 1,000 features.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import graph_weights as w
from benchmarks.graphs import built, subject
from benchmarks.measure import conditions, interleaved
from dst_grpc._gen.dst.v1 import graph_pb2
from dst_grpc.client._graphs import GraphViewCollector
from dst_grpc.domain.graph import GraphSource
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_queries import (
    GraphEdgeQuery,
    GraphNeighbours,
    GraphPathQuery,
    GraphPruning,
    QueryGraphRequest,
)
from dst_grpc.domain.results import Provenance, RunStatistics, RunSummary
from dst_grpc.graphs.influence import scores
from dst_grpc.graphs.question import GraphQuestion
from dst_grpc.pipeline.graph_parts import edge_parts, node_parts, score_parts
from dst_grpc.pipeline.graph_query import answer_query
from dst_grpc.pipeline.whole_graph import WholeGraph, pruned
from dst_grpc.wire.envelope import Envelope
from dst_grpc.wire.frames import ValueCutter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dst_grpc.domain.graph_answers import GraphPart
    from dst_grpc.domain.graph_queries import GraphQuestion as Question

_TOKENS, _NODES = w.CASES[-1]
_ROUNDS = 15


def whole_graph() -> WholeGraph:
    """The graph."""
    asked = GraphQuestion(token_ids=tuple(w.prompt(_TOKENS)), max_feature_nodes=_NODES, batch_size=w.BATCH_SIZE)
    graph, _ = built(asked, *subject())
    edges, of_graph = GraphEdges.of_matrix(graph.effects, graph.nodes.readers), scores(graph)
    return WholeGraph(
        model="gpt2",
        transcoders="gpt2/random",
        autoencoders=(),
        sources=(GraphSource.FEATURES,),
        token_strings=("token",) * _TOKENS,
        nodes=graph.nodes,
        edges=edges,
        of_graph=of_graph,
        scores=pruned(graph, of_graph, len(edges), 0.8, 0.98).scores,
        provenance=Provenance(model="gpt2", model_digest="0" * 64),
    )


def messages_of(parts: Sequence[GraphPart | RunSummary]) -> list[bytes]:
    """The messages that an answer of *parts* is."""
    cut = ValueCutter(graph_pb2.GraphFrame).cut
    return [message for part in parts for message in Envelope("").pack(cut(part))]


def report() -> Iterator[str]:
    """Bytes of the pruned and the whole graph, and bytes and time of questions, with the reading of their answers."""
    graph = whole_graph()
    n_edges, n_nodes = len(graph.edges), len(graph.nodes)
    yield (
        f"an attribution graph of {n_nodes} nodes ({len(graph.nodes.active)} active features), {n_edges} edges: "
        f"kept in {graph.byte_count / 1e6:.1f} MB"
    )
    summary = RunSummary(statistics=RunStatistics(forward_passes=2, backward_passes=1), provenance=graph.provenance)
    nodes = [*node_parts(graph.table), *score_parts(graph.scores)]
    left = graph.pruned(0.8, 0.98)
    for name, edges in (("pruned", left.edges), ("whole", graph.edges)):
        size = sum(map(len, messages_of([*nodes, *edge_parts(edges), summary])))
        yield (
            f"  {name}: {len(edges)} edges in {size / 1e6:.3f} MB, {size / len(edges) / 8:.3f} times 8 bytes an edge"
        )
    target, first = graph.table.names[-1], f"t{_TOKENS - 1}"
    least = float(np.quantile(np.abs(graph.edges.weights), 0.999))
    questions: dict[str, Question] = {
        "20 strongest neighbours": GraphNeighbours(node=target, top_k=20),
        "10 strongest paths": GraphPathQuery(source=first, target=target),
        "edges above a weight": GraphEdgeQuery(min_weight=least),
        "other thresholds": GraphPruning(node_threshold=0.5, edge_threshold=0.9),
    }
    work: dict[str, Callable[[], list[bytes]]] = {
        name: partial(_answered, graph, asked) for name, asked in questions.items()
    }
    found = interleaved(work, _ROUNDS)
    yield f"  questions about it, answered and read, {conditions(_ROUNDS)}"
    for name, piece in work.items():
        size = sum(map(len, piece()))
        yield f"    {name:<24} {found.milliseconds(name):6.1f} ms, {size / 1e3:.1f} kB"


def _answered(graph: WholeGraph, question: Question) -> list[bytes]:
    """The messages that answer *question*, which are read as a client does."""
    messages = messages_of(answer_query(graph, QueryGraphRequest(graph="graph", query=question)))
    collector = GraphViewCollector()
    for message in messages:
        collector.add(graph_pb2.QueryGraphResponse.FromString(message))
    return messages


if __name__ == "__main__":
    for line in report():
        print(line)
