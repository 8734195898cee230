"""Graphs built in one go, for the tests of this folder."""

from __future__ import annotations

from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.transcoders import Transcoders
from dst_grpc.graphs.building import GraphStep, build
from dst_grpc.graphs.nodes import AttributionGraph
from dst_grpc.graphs.question import GraphQuestion
from dst_grpc.graphs.sources import Sources


def built(
    question: GraphQuestion, decoder: Decoder, sources: Sources | Transcoders
) -> tuple[AttributionGraph, list[GraphStep]]:
    """The graph, and the steps that it took."""
    steps: list[GraphStep] = []
    building = build(question, decoder, sources_of(sources))
    while True:
        try:
            steps.append(next(building))
        except StopIteration as end:
            graph: AttributionGraph = end.value
            return graph, steps


def sources_of(given: Sources | Transcoders) -> Sources:
    """The sources that are *given*, or those of transcoders alone."""
    return Sources(given) if isinstance(given, Transcoders) else given
