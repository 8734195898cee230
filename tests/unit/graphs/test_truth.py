"""Every edge is what changing its source does to its target, with patterns, scales and other features as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.transcoders import Transcoders
from dst_grpc.graphs.frozen_layer import KEYS_AT_ONCE
from dst_grpc.graphs.nodes import GraphNodes
from dst_grpc.graphs.question import ChosenTarget, GraphQuestion
from tests import families, models
from tests.models import ARCHITECTURES
from tests.transcoders import random_transcoders

from .building import built
from .frozen_run import FrozenRun

FACTOR = 2.5
"""What the activation of a feature, an error or an embedding is multiplied by."""
KINDS: dict[str, dict[str, Any]] = {
    "per layer": {},
    "per layer, of the normed residual, not of layer 1": {"input_norm": ModelNorm.MLP_NORM, "without": (1,)},
    "per layer, with a skip connection": {"input_norm": ModelNorm.MLP_NORM_WITHOUT_GAIN, "has_skip": True},
    "across layers": {"is_cross_layer": True, "has_threshold": True},
    "across layers, of the normed residual, with a skip connection": {
        "is_cross_layer": True,
        "input_norm": ModelNorm.MLP_NORM,
        "has_skip": True,
    },
}


class Truth:
    """A graph's edges by intervention."""

    def __init__(self, decoder: Decoder, transcoders: Transcoders, nodes: GraphNodes, n_zeroed: int) -> None:
        self._decoder, self._transcoders, self._nodes, self._n_zeroed = decoder, transcoders, nodes, n_zeroed
        self._run = FrozenRun(decoder, transcoders, nodes.token_ids)
        self._nothing = torch.zeros(nodes.n_tokens, decoder.config.d_model, dtype=torch.float64)

    def column(self, node: int) -> Any:
        """What *node* adds to every node, [n]."""
        nodes, embedding, writes = self._nodes, self._nothing.clone(), dict[int, torch.Tensor]()
        match nodes.kind(node):
            case GraphNodeKind.FEATURE:
                writes = self._writes(node)
            case GraphNodeKind.ERROR:
                layer, token = nodes.error(node)
                writes[layer] = self._nothing.clone()
                writes[layer][token] = self._error(layer)[token]
            case _:
                token = nodes.embedding(node)
                embedding[token] = self._decoder.embed(torch.tensor(nodes.token_ids[token]))
        added = FACTOR - 1
        seen = self._run.changed(added * embedding, {layer: added * write for layer, write in writes.items()})
        features = [self._run.pre_activation_change(nodes.feature(one), seen) for one in range(nodes.n_features)]
        targets = [self._run.projection_change(torch.from_numpy(one).double(), seen) for one in nodes.targets.vectors]
        return np.array([*features, *[0.0] * (nodes.first_target - nodes.first_error), *targets]) / added

    def _writes(self, node: int) -> dict[int, torch.Tensor]:
        """What a feature writes to each layer, [T, d]."""
        layer, token, feature = self._nodes.feature(node)
        found = {}
        for written in self._transcoders.written_layers(layer):
            found[written] = self._nothing.clone()
            row = self._transcoders.decoder_rows(layer, torch.tensor([feature]), written)[0]
            found[written][token] = float(self._nodes.activations[self._nodes.selected[node]]) * row
        return found

    def _error(self, layer: int) -> torch.Tensor:
        """What the transcoders miss of a layer's write, [T, d]; every active feature is a node."""
        missed = self._run.base[L.RESID_DELTA_MLP, layer].clone()
        if self._transcoders.has_layer(layer):
            missed -= self._transcoders.bias(layer)
            skip = self._transcoders.skip(layer)
            if skip is not None:
                missed -= self._run.input(layer, self._run.base) @ skip.t()
        for node in range(self._nodes.n_features):
            missed -= self._writes(node).get(layer, self._nothing)
        missed[: self._n_zeroed] = 0
        return missed


def assert_true(decoder: Decoder, transcoders: Transcoders, tokens: tuple[int, ...], n_zeroed: int = 1) -> None:
    """The edges from some nodes of every kind are true: a float32 number each, in a model of float64."""
    direction = torch.randn(decoder.config.d_model, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    chosen = ChosenTarget(token_id=5), ChosenTarget(token_id=2), ChosenTarget(vector=direction, name="any")
    graph, _ = built(GraphQuestion(token_ids=tokens, targets=chosen, n_zeroed=n_zeroed), decoder, transcoders)
    nodes, truth = graph.nodes, Truth(decoder, transcoders, graph.nodes, n_zeroed)
    kinds = np.split(np.arange(nodes.first_target), [nodes.first_error, nodes.first_embedding])
    generator = np.random.default_rng(1)
    for kind in kinds:
        assert graph.adjacency[:, kind].any()
        for node in generator.choice(kind, min(len(kind), 4), replace=False):
            expected = truth.column(node)
            bound = 1e-6 * np.abs(graph.adjacency).max(axis=1) + 1e-12
            assert (np.abs(graph.adjacency[:, node] - expected) <= bound).all()
    assert not graph.adjacency[nodes.first_error : nodes.first_target].any()
    assert not graph.adjacency[:, nodes.first_target :].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_edges_are_true_in_every_architecture(architecture: str, kind: str) -> None:
    config = ARCHITECTURES[architecture]
    assert_true(models.decoder(config=config), random_transcoders(config, **KINDS[kind]), models.TOKENS)


@pytest.mark.parametrize(
    "family",
    ["gpt2", "gpt_neox", "llama", "mistral", "smollm3 sliding", "qwen2 sliding", "qwen3 sliding", "gemma2", "gemma3"],
)
def test_edges_are_true_in_every_family(family: str, tmp_path: Path) -> None:
    folder = families.save(families.make(family), tmp_path)
    decoder = open_checkpoint(folder).load("cpu", torch.float64)
    assert_true(decoder, random_transcoders(decoder.config, has_skip=True), families.PROMPT)


@pytest.mark.parametrize("architecture", ["llama", "neox"])
def test_edges_are_true_where_keys_are_multiplied_block_by_block(architecture: str) -> None:
    config = ARCHITECTURES[architecture]
    n_tokens = KEYS_AT_ONCE + 30
    tokens = tuple(7 * i % config.vocab_size for i in range(n_tokens))
    assert_true(models.decoder(config=config), random_transcoders(config, has_skip=True), tokens, n_tokens - 8)
