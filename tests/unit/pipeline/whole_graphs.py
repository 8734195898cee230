"""Golden graphs as the pipeline keeps them."""

from __future__ import annotations

from dst_grpc.domain.graph import GraphSource
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.graphs.influence import scores
from dst_grpc.pipeline.whole_graph import WholeGraph, pruned
from tests.fake_runs import SUMMARY
from tests.graph_goldens import golden_graph


def whole_graph(name: str = "gpt2_plt_relu_whole") -> WholeGraph:
    """The golden graph of that name, pruned as by default."""
    graph = golden_graph(name).graph
    edges, of_graph = GraphEdges.of_matrix(graph.effects, graph.nodes.readers), scores(graph)
    return WholeGraph(
        model="gpt2",
        transcoders="gpt2/plt_relu",
        autoencoders=(),
        sources=(GraphSource.FEATURES,),
        token_strings=tuple(f" w{token}" for token in graph.nodes.token_ids),
        nodes=graph.nodes,
        edges=edges,
        of_graph=of_graph,
        scores=pruned(graph, of_graph, len(edges), 0.8, 0.98).scores,
        provenance=SUMMARY.provenance,
    )
