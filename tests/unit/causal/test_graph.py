"""The graph: its nodes and edges, their names and their order."""

from __future__ import annotations

import pytest

from dst_grpc.causal.graph import Graph
from dst_grpc.domain.architecture import Architecture, ModelDimensions
from dst_grpc.domain.components import AttentionTraceType
from dst_grpc.domain.graph_nodes import Edge, Reader, Source
from tests.causal_goldens import CASES, golden_case, golden_decoder


@pytest.mark.parametrize("name", CASES)
def test_nodes_and_edges_are_those_of_the_library_in_its_order(name: str) -> None:
    case = golden_case(name)
    config = golden_decoder(case.model).config
    graph = Graph.of(config.dimensions, config.architecture)
    assert [str(source) for source in graph.sources] == case.facts["sources"]
    assert [str(reader) for reader in graph.readers] == case.facts["dests"]
    assert [str(edge) for edge in graph.edges] == case.facts["edges"]
    assert graph.n_edges == case.facts["n_edges"]


def test_gpt2_small_has_32491_edges() -> None:
    sizes = ModelDimensions(
        n_layers=12, d_model=768, n_heads=12, n_key_value_heads=12, d_head=64, d_mlp=3072, vocab_size=50257,
        context_window=1024,
    )  # fmt: skip
    graph = Graph.of(sizes, Architecture())
    assert (len(graph.sources), len(graph.readers), graph.n_edges) == (157, 445, 32_491)
    assert graph.first_reader_of(12) == graph.index_of_reader(Reader()) == 444
    assert graph.sources_before(12) == 157


@pytest.mark.parametrize("is_parallel", [False, True])
def test_an_edge_leads_from_what_writes_before_to_what_reads(is_parallel: bool) -> None:
    graph = Graph(n_layers=3, n_heads=2, is_parallel=is_parallel)
    for reader in graph.readers:
        for source in graph.sources:
            earlier = source.layer is None or reader.layer is None or source.layer < reader.layer
            same_layer = source.layer == reader.layer and source.head is not None and reader.head is None
            expected = earlier or (same_layer and not is_parallel)
            assert graph.has(Edge(source, reader)) == expected
            assert graph.mask[graph.index_of_source(source), graph.index_of_reader(reader)] == expected
    assert not graph.has(Edge(Source(3), Reader()))
    assert not graph.has(Edge(Source(), Reader(0, 2, AttentionTraceType.Q)))


def test_names_are_read_as_they_are_written() -> None:
    for edge in Graph(n_layers=2, n_heads=3).edges:
        assert Edge.named(str(edge)) == edge


@pytest.mark.parametrize("name", ["", "a0.h1<q>", "a0", "m", "m0.h1", "a-1.h0", "input ", "logits", "m1234567890"])
def test_what_is_no_name_of_a_source_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not input, a head"):
        Source.named(name)


@pytest.mark.parametrize("name", ["", "a0.h1", "a0.h1<z>", "input", "m1<q>"])
def test_what_is_no_name_of_a_reader_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not an input of a head"):
        Reader.named(name)


@pytest.mark.parametrize("name", ["input", "input-m0", "input->m0->m1"])
def test_what_is_no_name_of_an_edge_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        Edge.named(name)
