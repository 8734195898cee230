"""Graphs of neurons, heads and latents: edges are what changing their sources does, and nothing is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization
from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as D
from dst_grpc.engine.cancellation import never_cancelled
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.decoder_config import DecoderConfig
from dst_grpc.engine.taps import Site
from dst_grpc.graphs.attention import attention_score
from dst_grpc.graphs.interventions import measured, predicted
from dst_grpc.graphs.local_model import LocalModel
from dst_grpc.graphs.nodes import AttributionGraph
from dst_grpc.graphs.question import ChosenTarget, GraphQuestion
from dst_grpc.graphs.recording import record
from dst_grpc.graphs.sources import Sources
from tests import families, models
from tests.models import ARCHITECTURES, TOKENS
from tests.transcoders import random_transcoders

from .building import built
from .frozen_run import Watched
from .frozen_units import FrozenUnits


def latents(config: DecoderConfig, *kinds: D, layers: tuple[int, ...] = (0, 1, 2), **how: Any) -> dict[D, Any]:
    return {kind: models.autoencoders(kind, config=config, layers=layers, **how).by_layer for kind in kinds}


SOURCES: dict[str, Callable[[DecoderConfig], Sources]] = {
    "neurons": lambda _: Sources(has_neurons=True),
    "heads": lambda _: Sources(has_heads=True),
    "neurons and heads": lambda _: Sources(has_neurons=True, has_heads=True),
    "features and heads": lambda config: Sources(random_transcoders(config, has_skip=True), has_heads=True),
    "cross-layer features and latents of attention": lambda config: Sources(
        random_transcoders(config, is_cross_layer=True), autoencoders=latents(config, D.RESID_DELTA_ATTN, layers=(0, 2))
    ),
    "neurons and latents of attention": lambda config: Sources(
        has_neurons=True,
        autoencoders=latents(config, D.RESID_DELTA_ATTN, normalization=InputNormalization.LAYER_NORM),
    ),
    "latents of neurons": lambda config: Sources(
        autoencoders=latents(config, D.MLP_POST_ACT, normalization=InputNormalization.CENTRED)
    ),
    "heads and latents of the MLP": lambda config: Sources(
        has_heads=True,
        autoencoders=latents(config, D.RESID_DELTA_MLP, activation=AutoencoderActivation.TOP_K, layers=(1, 2)),
    ),
    "neurons and latents of the residual": lambda config: Sources(
        has_neurons=True,
        autoencoders=latents(config, D.RESID_POST_MLP, normalization=InputNormalization.CONSTANT_NORM, layers=(0,)),
    ),
    "features, latents of attention and of the residual after it": lambda config: Sources(
        random_transcoders(config), autoencoders=latents(config, D.RESID_DELTA_ATTN, D.RESID_POST_ATTN, layers=(1,))
    ),
}


def is_without(architecture: str, name: str) -> bool:
    """Whether an architecture has no such sources: no residual between attention and MLP."""
    return ARCHITECTURES[architecture].parallel and "after it" in name


TARGETS = ChosenTarget(token_id=5), ChosenTarget(token_id=2)


def assert_true(decoder: Decoder, sources: Sources, tokens: tuple[int, ...], n_zeroed: int) -> None:
    """The edges from some nodes of every kind are true: a float32 number each, in a model of float64."""
    graph, _ = built(GraphQuestion(token_ids=tokens, targets=TARGETS, n_zeroed=n_zeroed), decoder, sources)
    nodes, truth = graph.nodes, FrozenUnits(decoder, sources, graph.nodes, n_zeroed)
    kinds = np.array([nodes.kind(node).number for node in range(nodes.first_target)])
    generator = np.random.default_rng(1)
    bound = 1e-6 * np.abs(graph.adjacency).max(axis=1) + 1e-12
    for kind in np.unique(kinds):
        of_kind = np.flatnonzero(kinds == kind)
        assert graph.adjacency[:, of_kind].any()
        for node in generator.choice(of_kind, min(len(of_kind), 2), replace=False):
            assert (np.abs(graph.adjacency[:, node] - truth.column(int(node))) <= bound).all()
    assert not graph.adjacency[nodes.first_error : nodes.first_target].any()
    assert not graph.adjacency[:, nodes.first_target :].any()


def n_zeroed(sources: Sources) -> int:
    """Tokens without features, for sources that have any."""
    return 0 if sources.transcoders is None else 1


@pytest.mark.parametrize(
    ("architecture", "name"),
    [(architecture, name) for architecture in ARCHITECTURES for name in SOURCES if not is_without(architecture, name)],
)
def test_edges_are_true_in_every_architecture(architecture: str, name: str) -> None:
    config = ARCHITECTURES[architecture]
    sources = SOURCES[name](config)
    assert_true(models.decoder(config=config), sources, TOKENS, n_zeroed(sources))


@pytest.mark.parametrize(
    "family",
    ["gpt2", "gpt_neox", "llama", "mistral", "smollm3 sliding", "qwen2 sliding", "qwen3 sliding", "gemma2", "gemma3"],
)
def test_edges_are_true_in_every_family(family: str, tmp_path: Path) -> None:
    folder = families.save(families.make(family), tmp_path)
    decoder = open_checkpoint(folder).load("cpu", torch.float64)
    assert_true(decoder, Sources(has_neurons=True, has_heads=True), families.PROMPT[:7], 0)
    sources = Sources(has_neurons=True, autoencoders=latents(decoder.config, D.RESID_DELTA_ATTN, layers=(1,)))
    assert_true(decoder, sources, families.PROMPT[:7], 0)


# What edges add up to


def graph_of(config: DecoderConfig, sources: Sources, **question: Any) -> tuple[AttributionGraph, LocalModel]:
    decoder = models.decoder(config=config)
    asked = GraphQuestion(token_ids=TOKENS, targets=TARGETS, n_zeroed=n_zeroed(sources), **question)
    recording = record(decoder, sources, TOKENS, asked.n_zeroed, never_cancelled)
    graph, _ = built(asked, decoder, sources)
    return graph, LocalModel(decoder, sources, recording, keeps_layers=False, check=never_cancelled)


def last_normed(model: LocalModel) -> torch.Tensor:
    """The last token's residual after the final norm, [d]."""
    taps = Watched()
    model.decoder.forward(torch.tensor([TOKENS]), taps)
    return model.decoder.final_norm(taps.seen[L.RESID_POST_MLP, model.decoder.config.n_layers - 1])[-1]


@pytest.mark.parametrize("architecture", ["llama", "gemma"])
@pytest.mark.parametrize("name", ["neurons", "neurons and heads"])
def test_without_biases_edges_into_a_node_add_up_to_what_it_is(architecture: str, name: str) -> None:
    config = ARCHITECTURES[architecture]
    graph, model = graph_of(config, SOURCES[name](config))
    nodes = graph.nodes
    assert not nodes.errors
    sums = graph.effects.sum(axis=1, dtype=np.float64)
    size = np.abs(graph.effects).sum(axis=1)
    assert (np.abs(sums[: nodes.n_features] - nodes.activations) <= 1e-6 * size[: nodes.n_features]).all()
    expected = torch.from_numpy(nodes.targets.vectors).double() @ last_normed(model)
    assert (np.abs(sums[nodes.n_features :] - expected.numpy()) <= 1e-6 * size[nodes.n_features :]).all()


@pytest.mark.parametrize("kind", [D.RESID_DELTA_ATTN, D.RESID_DELTA_MLP, D.MLP_POST_ACT, D.RESID_POST_MLP])
def test_latents_and_errors_are_all_that_is_reconstructed(kind: D) -> None:
    config = ARCHITECTURES["llama"]
    by_layer = {layer: replace(one, pre_bias=0 * one.pre_bias) for layer, one in latents(config, kind)[kind].items()}
    sources = Sources(has_neurons=kind in {D.RESID_DELTA_ATTN, D.RESID_POST_MLP}, autoencoders={kind: by_layer})
    graph, model = graph_of(config, sources)
    expected = torch.from_numpy(graph.nodes.targets.vectors).double() @ last_normed(model)
    found = graph.effects[graph.nodes.n_features :]
    assert (np.abs(found.sum(axis=1) - expected.numpy()) <= 1e-6 * np.abs(found).sum(axis=1)).all()


def test_no_path_leads_through_what_units_stand_for() -> None:
    config = ARCHITECTURES["gpt2"]
    graph, _ = graph_of(config, Sources(has_heads=True))
    nodes = graph.nodes
    heads = np.flatnonzero(nodes.feature_kinds == GraphNodeKind.HEAD.number)
    for target in range(nodes.first_target, len(nodes)):
        earlier = heads[nodes.features[heads, 1] < len(TOKENS) - 1]
        assert not graph.adjacency[target, earlier].any()  # only the last token's heads act without others
        assert graph.adjacency[target, heads[nodes.features[heads, 1] == len(TOKENS) - 1]].all()
    graph, _ = graph_of(config, SOURCES["neurons and latents of the residual"](config))
    late = graph.adjacency[graph.nodes.first_target :]
    assert not late[:, graph.nodes.first_embedding : graph.nodes.first_target].any()  # all passes through layer 0's end


# Units that are set


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        (architecture, name)
        for architecture in ("gemma", "neox")
        for name in SOURCES
        if not is_without(architecture, name)
    ],
)
def test_what_units_do_while_all_else_is_held_is_their_edges(architecture: str, name: str) -> None:
    config = ARCHITECTURES[architecture]
    graph, model = graph_of(config, SOURCES[name](config))
    nodes = graph.nodes
    before = nodes.activations[nodes.selected]
    sizes = np.abs(graph.adjacency[:, : nodes.n_features]).sum(axis=0)
    chosen = [
        int(of_kind[np.argmax(sizes[of_kind])])
        for of_kind in (np.flatnonzero(nodes.feature_kinds == kind) for kind in np.unique(nodes.feature_kinds))
    ]
    wanted = {node: float(before[node]) * factor for node, factor in zip(chosen, (0.0, 3.0, -1.0), strict=False)}
    found, expected = measured(model, nodes, wanted), predicted(graph, wanted)
    assert np.abs(expected).max() > 1e-3
    size = np.abs(graph.adjacency[:, chosen]).sum(axis=1) * 3
    assert (np.abs(found - expected) <= 1e-6 * size + 1e-9).all()


class Steered(Watched):
    """The model's own run, with a tap changed."""

    def __init__(self, site: Site, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._site, self._change = site, change

    def visit(self, location: L, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        if (location, layer) == self._site:
            x = torch.stack([self._change(x[0])])
        return super().visit(location, layer, x)


FREE = {
    "neurons": (GraphNodeKind.NEURON, L.MLP_POST_ACT),
    "heads": (GraphNodeKind.HEAD, L.ATTN_WEIGHTED_SUM_OF_VALUES),
    "neurons and latents of attention": (GraphNodeKind.ATTENTION_LATENT, L.RESID_DELTA_ATTN),
    "latents of neurons": (GraphNodeKind.MLP_LATENT, L.MLP_POST_ACT),
}


@pytest.mark.parametrize("architecture", ["gpt2", "gemma", "neox"])
@pytest.mark.parametrize("name", FREE)
def test_if_nothing_is_held_the_model_runs_with_units_set(architecture: str, name: str) -> None:
    config, (kind, tap) = ARCHITECTURES[architecture], FREE[name]
    sources = SOURCES[name](config)
    graph, model = graph_of(config, sources)
    nodes = graph.nodes
    node = int(np.flatnonzero(nodes.feature_kinds == kind.number)[2])
    layer, token, number = nodes.feature(node)
    activation = float(nodes.activations[node])

    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        if "LATENT" in kind.name:
            (by_layer,) = sources.autoencoders.values()
            autoencoder = by_layer[layer]
            latent = autoencoder.encode(x)
            more = latent.clone()
            more[token, number] = 3 * activation
            return x + autoencoder.decode(more, x) - autoencoder.decode(latent, x)
        x[token, number] = 3 * x[token, number]
        return x

    tokens = torch.tensor([TOKENS])
    seen, base = Steered((tap, layer), change), Watched()
    model.decoder.forward(tokens, seen)
    model.decoder.forward(tokens, base)
    last = (L.RESID_POST_MLP, config.n_layers - 1)
    final = [model.decoder.final_norm(one.seen[last])[-1] for one in (seen, base)]
    expected = torch.from_numpy(nodes.targets.vectors).double() @ (final[0] - final[1])
    found = measured(model, nodes, {node: 3 * activation}, first_free=0)
    np.testing.assert_allclose(
        found[nodes.first_target :], expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max())
    )
    if kind is GraphNodeKind.NEURON:
        neurons = (seen.seen[L.MLP_POST_ACT, 2] - base.seen[L.MLP_POST_ACT, 2])[tuple(nodes.features[-1, 1:])]
        assert found[nodes.n_features - 1] == pytest.approx(float(neurons), rel=1e-5, abs=1e-9)
    same = measured(model, nodes, {node: activation}, first_free=0)
    assert np.abs(same).max() < 1e-6


# Questions and limits


def test_the_units_of_most_influence_are_the_nodes() -> None:
    config = ARCHITECTURES["llama"]
    whole, _ = graph_of(config, SOURCES["neurons and heads"](config))
    graph, _ = graph_of(config, SOURCES["neurons and heads"](config), max_feature_nodes=9)
    assert graph.nodes.n_features == 9
    assert {GraphNodeKind.NEURON.number, GraphNodeKind.HEAD.number} >= set(graph.nodes.feature_kinds.tolist())
    kept = np.r_[graph.nodes.selected, whole.nodes.first_error : len(whole.nodes)]
    np.testing.assert_allclose(graph.adjacency, whole.adjacency[np.ix_(kept, kept)], rtol=1e-5, atol=1e-7)


def test_a_score_is_made_of_neurons_and_heads() -> None:
    config = ARCHITECTURES["gemma"]
    graph, model = graph_of(config, SOURCES["neurons and heads"](config))
    found = attention_score(model, 2, 1, 4, 3, top_k=10_000)
    assert found.contributions.sum() + found.remainder == pytest.approx(found.score, rel=1e-5)
    assert abs(found.remainder) < 1e-6 * np.abs(found.contributions).sum()
    assert graph.nodes.first_target > found.queries.max() > 0


def test_no_autograd_is_recorded() -> None:
    config = ARCHITECTURES["gemma"]
    weights = {name: weight.requires_grad_() for name, weight in models.weights(config=config).items()}

    def pack(_tensor: torch.Tensor) -> None:
        raise AssertionError("a tensor was saved for a backward pass")

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: torch.zeros(())):
        sources = Sources(has_neurons=True, has_heads=True)
        graph, _ = built(GraphQuestion(token_ids=TOKENS), Decoder(config, weights), sources)
    assert graph.adjacency.any()
