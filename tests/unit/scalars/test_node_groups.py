"""Lists of nodes sorted by type and layer, and nodes that are no single entry."""

from __future__ import annotations

import pytest
import torch

from dst_grpc.domain.components import NodeType
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.scalars.node_groups import NodeGroups
from dst_grpc.scalars.node_vectors import mlp_input_vectors, score_input_vectors, written_vectors
from tests import models, traces

HEAD, ROW = traces.node(traces.HEAD, 1, 4, 2, 3), traces.node(traces.HEAD, 1, 4, None, 3)
NEURONS = [
    traces.node(traces.NEURON, 1, 4, 7),
    traces.node(traces.NEURON, 0, 2, 5),
    traces.node(traces.NEURON, 1, 0, 7),
]
NODES = {1: (4, 7), 3: (0, 7)}
"""Entries of the neurons of layer 1, by their place in the list of the head and all neurons."""


def test_nodes_are_grouped_by_type_layer_and_number_of_indices() -> None:
    groups = NodeGroups([HEAD, NEURONS[0], ROW, NEURONS[1], NEURONS[2]])
    assert groups.count == 5
    found = [(g.node_type, g.layer, g.positions.tolist(), g.entries.tolist(), g.is_of_entries) for g in groups]
    assert found == [
        (NodeType.ATTENTION_HEAD, 1, [0], [[4, 2, 3]], True),
        (NodeType.MLP_NEURON, 1, [1, 4], [[4, 7], [0, 7]], True),
        (NodeType.ATTENTION_HEAD, 1, [2], [[4, 3]], False),
        (NodeType.MLP_NEURON, 0, [3], [[2, 5]], True),
    ]
    assert groups.of(NodeType.ATTENTION_HEAD, 1, 2) is list(groups)[2]
    assert groups.of(NodeType.ATTENTION_HEAD, 0, 2) is None


def test_nodes_have_places_in_a_tensor_that_is_long_enough() -> None:
    group = NodeGroups([HEAD, *NEURONS]).of(NodeType.MLP_NEURON, 1, 2)
    assert group is not None
    x = torch.arange(5 * 8).view(5, 8)
    for n_tokens, positions in ((5, [1, 3]), (4, [3])):
        inside, places = group.places_in((n_tokens, 8))
        assert inside.tolist() == positions
        assert x.take(places).tolist() == [x[NODES[i]].item() for i in positions]


@pytest.mark.parametrize("is_flattened", [True, False])
def test_a_head_has_its_place_among_pairs_of_tokens_too(is_flattened: bool) -> None:
    group = NodeGroups([HEAD]).of(NodeType.ATTENTION_HEAD, 1, 3)
    assert group is not None
    x = torch.arange(5 * 5 * 4).view(5, 5, 4)
    shown = x[tuple(torch.tril_indices(5, 5))] if is_flattened else x
    _, places = group.places_in(shown.shape)
    assert shown.take(places).tolist() == [x[4, 2, 3].item()]


def test_rows_of_heads_have_no_vectors_and_nodes_share_directions() -> None:
    types = (T.MLP_WRITE_NORM, T.UNFLATTENED_ATTN_WRITE_NORM, T.RESID_POST_ATTN, T.ATTN_QUERY, T.ATTN_KEY)
    (result,) = models.world().results(models.request(*types, T.RESID_POST_EMBEDDING, T.RESID_POST_MLP))
    model, taps = result.derivation(result.plan.scalars[0]).model, result.recording.taps
    nodes = [ROW, NEURONS[2], HEAD, NEURONS[0]]
    written = written_vectors(model, taps, nodes)
    assert written.nodes == (1, 2, 3)
    assert written.rows[0] == written.rows[2] != written.rows[1]
    assert len(written.directions) == 2
    assert mlp_input_vectors(model, taps, nodes).nodes == (1, 3)
    assert [found.nodes for found in score_input_vectors(model, taps, nodes)] == [(2,), (2,)]
