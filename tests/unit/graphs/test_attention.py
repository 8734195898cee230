"""What pairs of nodes contribute to the score of a head: exactly the score, and the largest first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dst_grpc.domain.components import AttentionTraceType
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.engine.taps import Taps
from dst_grpc.graphs.attention import CONSTANT, AttentionScore, attention_score
from dst_grpc.graphs.changes import carried, writes_of
from dst_grpc.graphs.local_model import LocalModel
from tests import models
from tests.models import ARCHITECTURES, TOKENS
from tests.transcoders import random_transcoders

from .test_head_loadings import graph_of

QUERY, KEY = len(TOKENS) - 1, len(TOKENS) - 2


def all_pairs(model: LocalModel, layer: int, head: int) -> tuple[AttentionScore, np.ndarray]:
    """Every pair's contribution, [N + 1, N + 1], the constants last."""
    size = model.n_sources + 1
    found = attention_score(model, layer, head, QUERY, KEY, top_k=size**2)
    matrix = np.zeros((size, size), dtype=np.float32)
    matrix[found.queries, found.keys] = found.contributions  # the constants are the last: -1
    return found, matrix


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_contributions_add_up_to_the_score_of_the_run(architecture: str) -> None:
    config = ARCHITECTURES[architecture]
    decoder = models.decoder(config=config)
    _, model = graph_of(decoder, random_transcoders(config, has_skip=True))
    sites = [(tap, layer) for tap in (L.ATTN_QK_LOGITS, L.ATTN_QK_PROBS) for layer in range(config.n_layers)]
    taps = Taps(values=sites)
    decoder.forward(torch.tensor([TOKENS]), taps)
    for layer, head in ((0, 0), (config.n_layers - 1, config.n_heads - 1)):
        found, matrix = all_pairs(model, layer, head)
        size = float(np.abs(matrix).sum())
        scores, probabilities = (
            taps.values[tap, layer][0, QUERY, KEY, head] for tap in (L.ATTN_QK_LOGITS, L.ATTN_QK_PROBS)
        )
        assert found.capped == pytest.approx(float(scores), abs=1e-9)
        assert found.probability == pytest.approx(float(probabilities), abs=1e-9)
        assert matrix.sum(dtype=np.float64) == pytest.approx(found.score, abs=1e-6 * size)
        assert abs(found.remainder) <= 1e-6 * size
        assert len(set(zip(found.queries, found.keys, strict=True))) == matrix.size


@pytest.mark.parametrize("architecture", ["gpt2", "neox"])
def test_a_pair_contributes_what_its_nodes_add_to_query_and_key(architecture: str) -> None:
    config, layer, head = ARCHITECTURES[architecture], 2, 1
    decoder = models.decoder(config=config)
    graph, model = graph_of(decoder, random_transcoders(config, is_cross_layer=True))
    _, matrix = all_pairs(model, layer, head)
    weights, entering = decoder.layers[layer], model.recording.layers[layer].entering
    scale = weights.attn_norm.scale(entering)
    one = torch.tensor([head])

    def added(part: AttentionTraceType, node: int, token: int) -> torch.Tensor:
        """What *node* adds to the query or key of *token*, its norm as it was."""
        change = carried(model, writes_of(model, graph.nodes, node), layer).entering[layer]
        without, with_node = (weights.attn_norm.apply(x, scale) for x in (entering, entering + change))
        before, after = (weights.inputs_of_heads(part, one, x)[token, 0] for x in (without, with_node))
        return after - before

    nodes = graph.nodes
    for q_node, k_node in ((nodes.first_embedding + QUERY, 0), (nodes.first_error + KEY, nodes.first_embedding + KEY)):
        q, k = added(AttentionTraceType.Q, q_node, QUERY), added(AttentionTraceType.K, k_node, KEY)
        assert matrix[q_node, k_node] == pytest.approx(float(q @ k), rel=1e-4, abs=1e-7)


def test_the_largest_pairs_come_first_and_the_rest_is_told() -> None:
    config = ARCHITECTURES["gemma"]
    _, model = graph_of(models.decoder(config=config), random_transcoders(config))
    _, matrix = all_pairs(model, 1, 0)
    found = attention_score(model, 1, 0, QUERY, KEY, top_k=5)
    largest = np.sort(np.abs(matrix), axis=None)[::-1][:5]
    np.testing.assert_allclose(np.abs(found.contributions), largest, rtol=1e-6)
    assert found.contributions.sum() + found.remainder == pytest.approx(found.score, rel=1e-5)
    np.testing.assert_allclose(matrix[found.queries, found.keys], found.contributions, rtol=1e-6)


def test_nodes_after_a_token_contribute_nothing_there() -> None:
    config = ARCHITECTURES["llama"]
    graph, model = graph_of(models.decoder(config=config), random_transcoders(config))
    _, matrix = all_pairs(model, 2, 3)
    tokens, nodes = graph.nodes.tokens[: graph.nodes.first_target], np.abs(matrix)
    assert not nodes[:, :CONSTANT][:, tokens > KEY].any()
    assert nodes[:, :CONSTANT][:, tokens <= KEY].any()
