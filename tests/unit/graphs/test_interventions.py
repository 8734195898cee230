"""Features set to other activations: edges are exactly what they do while layers are held, and the model's own run is
what they do if none is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.taps import site_entering
from dst_grpc.engine.transcoders import Transcoders
from dst_grpc.graphs.interventions import measured, predicted
from dst_grpc.graphs.nodes import AttributionGraph, GraphNodes
from tests import models
from tests.models import ARCHITECTURES, TOKENS
from tests.transcoders import random_transcoders

from .frozen_run import FrozenRun, Watched
from .test_head_loadings import graph_of
from .test_truth import KINDS


def some_features(graph: AttributionGraph, count: int = 3) -> list[int]:
    """Features with the largest outgoing edges."""
    sizes = np.abs(graph.adjacency[:, : graph.nodes.n_features]).sum(axis=0)
    return [int(one) for one in np.argsort(-sizes)[:count]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_feature_does_while_all_else_is_held_is_its_edges(architecture: str, kind: str) -> None:
    config = ARCHITECTURES[architecture]
    graph, model = graph_of(models.decoder(config=config), random_transcoders(config, **KINDS[kind]))
    before = graph.nodes.activations[graph.nodes.selected]
    chosen = some_features(graph)
    wanted = {node: float(before[node]) * factor for node, factor in zip(chosen, (0.0, 3.0, -1.0), strict=True)}
    found, expected = measured(model, graph.nodes, wanted), predicted(graph, wanted)
    size = np.abs(graph.adjacency[:, chosen]).sum(axis=1) * 3
    assert np.abs(expected).max() > 0.01
    assert (np.abs(found - expected) <= 1e-6 * size + 1e-9).all()


class Steered(Watched):
    """The model's own run, with something added to MLPs' writes."""

    def __init__(self, writes: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self._writes = writes

    def visit(self, location: L, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        if location is L.RESID_DELTA_MLP and layer in self._writes:
            x = x + self._writes[layer]
        return super().visit(location, layer, x)


class Plain:
    """Runs of a decoder in which features are set by hand."""

    def __init__(self, decoder: Decoder, transcoders: Transcoders) -> None:
        self._decoder, self._transcoders = decoder, transcoders

    def activation(self, place: tuple[int, int, int], writes: dict[int, torch.Tensor]) -> float:
        """That of a feature in the run with *writes*."""
        layer, token, feature = place
        return float(self._transcoders.activations(layer, self.input(layer, writes))[token, feature])

    def input(self, layer: int, writes: dict[int, torch.Tensor]) -> torch.Tensor:
        """What the transcoder of *layer* reads in that run."""
        site = site_entering(layer) if self._decoder.config.parallel else (L.RESID_POST_ATTN, layer)
        return self._transcoders.input(layer, self._run(writes).seen[site], self._decoder.layers[layer])

    def normed(self, writes: dict[int, torch.Tensor]) -> torch.Tensor:
        """The last residual of the last token, after the final norm."""
        last = (L.RESID_POST_MLP, self._decoder.config.n_layers - 1)
        return self._decoder.final_norm(self._run(writes).seen[last])[-1]

    def adding(
        self, writes: dict[int, torch.Tensor], place: tuple[int, int, int], amount: float
    ) -> dict[int, torch.Tensor]:
        """*writes*, and those of a feature whose activation grows by *amount*."""
        layer, token, feature = place
        found = dict(writes)
        for written in self._transcoders.written_layers(layer):
            own = torch.zeros(len(TOKENS), self._decoder.config.d_model, dtype=torch.float64)
            own[token] = amount * self._transcoders.decoder_rows(layer, torch.tensor([feature]), written)[0]
            found[written] = found.get(written, 0.0) + own
        return found

    def changes(self, nodes: GraphNodes, writes: dict[int, torch.Tensor]) -> np.ndarray:
        """What is different with *writes*, by node."""
        found = np.zeros(len(nodes))
        for node in range(nodes.n_features):
            layer, token, feature = nodes.feature(node)
            row = self._transcoders.encoder_rows(layer, torch.tensor([feature]))[0]
            found[node] = float((self.input(layer, writes) - self.input(layer, {}))[token] @ row)
        vectors = torch.from_numpy(nodes.targets.vectors).double()
        found[nodes.first_target :] = vectors @ (self.normed(writes) - self.normed({}))
        return found

    def _run(self, writes: dict[int, torch.Tensor]) -> Watched:
        taps = Steered(writes)
        self._decoder.forward(torch.tensor([TOKENS]), taps)
        return taps


@pytest.mark.parametrize("kind", ["per layer, of the normed residual, not of layer 1", "across layers"])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma", "neox"])
def test_if_nothing_is_held_the_model_runs_with_features_set(architecture: str, kind: str) -> None:
    config = ARCHITECTURES[architecture]
    decoder, transcoders = models.decoder(config=config), random_transcoders(config, **KINDS[kind])
    graph, model = graph_of(decoder, transcoders)
    nodes, plain = graph.nodes, Plain(decoder, transcoders)
    tokens, layers = nodes.features[:, 1], nodes.features[:, 0]
    first = int(np.flatnonzero(layers == 0)[0])
    last = int(np.flatnonzero((layers == config.n_layers - 1) & (tokens >= tokens[first]))[0])
    wanted = {first: 2.0, last: -1.5}
    writes = dict[int, torch.Tensor]()
    for node, activation in wanted.items():  # what the second one is before it is set depends on the first
        place = nodes.feature(node)
        writes = plain.adding(writes, place, activation - plain.activation(place, writes))
    expected = plain.changes(nodes, writes)
    found = measured(model, nodes, wanted, first_free=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("is_cross_layer", [False, True])
def test_layers_before_the_first_free_one_are_held(*, is_cross_layer: bool) -> None:
    config = ARCHITECTURES["gpt2"]
    decoder, transcoders = models.decoder(config=config), random_transcoders(config, is_cross_layer=is_cross_layer)
    graph, model = graph_of(decoder, transcoders)
    nodes = graph.nodes
    wanted = {0: 3.0}
    held, mixed = measured(model, nodes, wanted), measured(model, nodes, wanted, first_free=2)
    free = measured(model, nodes, wanted, first_free=0)
    early = nodes.features[:, 0] < 2
    np.testing.assert_array_equal(mixed[: nodes.n_features][early], held[: nodes.n_features][early])
    assert np.abs(mixed - held).max() > 1e-3
    assert np.abs(mixed - free).max() > 1e-3
    # The layers from there on are the model's own, begun with the residual that held ones leave.
    frozen = FrozenRun(decoder, transcoders, TOKENS)
    place = nodes.feature(0)
    writes = Plain(decoder, transcoders).adding({}, place, 3.0 - float(nodes.activations[nodes.selected[0]]))
    entering = frozen.changed(0.0, writes)[site_entering(2)]
    taps = Steered({layer: write for layer, write in writes.items() if layer >= 2})
    decoder.forward(torch.tensor([TOKENS]), taps, entering=(2, entering[None]))
    last = (L.RESID_POST_MLP, config.n_layers - 1)
    change = decoder.final_norm(taps.seen[last])[-1] - decoder.final_norm(frozen.base[last])[-1]
    expected = torch.from_numpy(nodes.targets.vectors).double() @ change
    np.testing.assert_allclose(mixed[nodes.first_target :], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("first_free", [None, 0, 1, 3])
def test_a_feature_set_to_its_own_activation_changes_nothing(first_free: int | None) -> None:
    config = ARCHITECTURES["gemma"]
    graph, model = graph_of(models.decoder(config=config), random_transcoders(config))
    node = some_features(graph, 1)[0]
    same = {node: float(graph.nodes.activations[graph.nodes.selected[node]])}
    assert np.abs(measured(model, graph.nodes, same, first_free)).max() < 1e-6
    assert not predicted(graph, same, first_free).any()


def test_features_of_free_layers_respond_in_turn_but_not_below_zero() -> None:
    config = ARCHITECTURES["gpt2"]
    graph, _ = graph_of(models.decoder(config=config), random_transcoders(config))
    nodes = graph.nodes
    before = nodes.activations[nodes.selected]
    relative = np.zeros(len(nodes))
    relative[0] = 9.0
    for node in range(1, nodes.n_features):
        if nodes.features[node, 0] >= 1:
            relative[node] = max(float(graph.adjacency[node].astype(float) @ relative) / before[node], -1)
    assert (relative == -1).any()
    wanted = {0: 10.0 * float(before[0])}
    np.testing.assert_allclose(predicted(graph, wanted, 1), graph.adjacency @ relative, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(predicted(graph, wanted), graph.adjacency[:, 0] * 9, rtol=1e-4, atol=1e-6)
