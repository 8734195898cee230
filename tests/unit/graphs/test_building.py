"""How graphs are built: in steps, without autograd, within their memory; what they are asked of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.measure import peak_bytes
from dst_grpc.domain.graph_answers import GraphPhase
from dst_grpc.engine.cancellation import Cancellation
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.transcoders import Transcoders
from dst_grpc.errors import Cancelled, Exhausted, OutOfRange, Reason
from dst_grpc.graphs.building import build
from dst_grpc.graphs.memory import GraphMemory
from dst_grpc.graphs.nodes import FREE_DIRECTION, AttributionGraph
from dst_grpc.graphs.question import ChosenTarget, GraphQuestion, MostProbable, begun
from dst_grpc.graphs.sources import Sources
from tests import models
from tests.models import ARCHITECTURES, TOKENS
from tests.transcoders import TensorTranscoder, random_transcoders

from .building import built
from .test_units import SOURCES

CONFIG = ARCHITECTURES["gemma"]
DECODER = models.decoder(config=CONFIG)
TRANSCODERS = random_transcoders(CONFIG, has_skip=True)
QUESTION = GraphQuestion(token_ids=TOKENS, batch_size=3, update_interval=2)


def memory(question: GraphQuestion, graph: AttributionGraph) -> GraphMemory:
    n_active, n_targets = len(graph.nodes.active), len(graph.nodes.targets)
    return GraphMemory.of(question, DECODER, Sources(TRANSCODERS), n_active=n_active, n_targets=n_targets)


# Steps


@pytest.mark.parametrize("limit", [None, 20])
def test_rows_come_as_they_are_known_and_are_those_of_the_graph(limit: int | None) -> None:
    graph, steps = built(replace(QUESTION, max_feature_nodes=limit), DECODER, TRANSCODERS)
    assert [step.phase for step in steps[:2]] == [GraphPhase.RECORDING, GraphPhase.TARGETS]
    candidates = steps[0].candidates
    assert len(candidates.active) > 20
    nodes = np.concatenate([step.nodes for step in steps])
    rows = np.concatenate([step.rows for step in steps])
    n_left_out = len(candidates) - len(graph.nodes)
    kept = np.r_[graph.nodes.selected, len(candidates.active) : len(candidates)]
    whole = np.zeros((len(candidates), len(candidates)), dtype=np.float32)
    whole[nodes] = rows
    assert (whole[np.ix_(kept, kept)] == graph.adjacency).all()
    assert len(graph.nodes.selected) == (limit or len(candidates.active)) == len(candidates.active) - n_left_out
    assert [step.done for step in steps][-1] == steps[-1].total == len(graph.nodes.selected)
    assert sorted(nodes.tolist()) == [*graph.nodes.selected, *range(candidates.first_target, len(candidates))]


def test_features_of_most_influence_are_the_nodes() -> None:
    whole, _ = built(QUESTION, DECODER, TRANSCODERS)
    graph, _ = built(replace(QUESTION, max_feature_nodes=3), DECODER, TRANSCODERS)
    shares = np.abs(whole.adjacency) / np.maximum(np.abs(whole.adjacency).sum(axis=1, keepdims=True), 1e-10)
    on_targets = (whole.nodes.weights @ shares)[: whole.nodes.n_features]
    assert sorted(np.argsort(-on_targets)[:3].tolist()) == graph.nodes.selected.tolist()


def test_no_autograd_is_recorded() -> None:
    weights = {name: weight.requires_grad_() for name, weight in models.weights(config=CONFIG).items()}
    transcoders = random_transcoders(CONFIG, has_skip=True)
    for one in transcoders.by_layer.values():
        assert isinstance(one, TensorTranscoder)
        for tensor in (one.encoder, one.decoder, one.skip):
            assert tensor is not None
            tensor.requires_grad_()

    def pack(_tensor: torch.Tensor) -> None:
        raise AssertionError("a tensor was saved for a backward pass")

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: torch.zeros(())):
        with pytest.raises(AssertionError, match="saved"):
            transcoders.activations(0, torch.ones(1, CONFIG.d_model, dtype=torch.float64))
        graph, _ = built(QUESTION, Decoder(CONFIG, weights), transcoders)
    assert graph.adjacency.any()


def test_a_cancelled_graph_ends_at_its_next_layer() -> None:
    cancellation = Cancellation()
    building = build(QUESTION, DECODER, Sources(TRANSCODERS), cancellation.check)
    next(building)
    cancellation.cancel()
    with pytest.raises(Cancelled):
        next(building)


def test_a_run_that_is_not_finite_has_no_graph() -> None:
    weights = models.weights(config=CONFIG)
    weights["layers.1.mlp.out.weight"][0] = torch.inf
    with pytest.raises(OutOfRange):
        built(QUESTION, Decoder(CONFIG, weights), TRANSCODERS)


# Memory


@pytest.mark.parametrize("limit", [None, 20])
def test_a_graph_in_the_least_memory_is_the_same_in_smaller_steps(limit: int | None) -> None:
    question = replace(QUESTION, max_feature_nodes=limit)
    graph, steps = built(question, DECODER, TRANSCODERS)
    needed = memory(question, graph).needed
    small = memory(replace(question, memory_bytes=needed), graph)
    assert (small.keeps_layers, small.block_size(len(TOKENS))) == (False, 1)
    same, more = built(replace(question, memory_bytes=needed), DECODER, TRANSCODERS)
    assert len(more) > len(steps)
    assert same.nodes.selected.tolist() == graph.nodes.selected.tolist()
    np.testing.assert_allclose(same.adjacency, graph.adjacency, rtol=1e-5, atol=1e-9)


def test_what_does_not_fit_is_refused_with_numbers_once_features_are_known() -> None:
    graph, _ = built(QUESTION, DECODER, TRANSCODERS)
    needed = memory(QUESTION, graph).needed
    with pytest.raises(Exhausted, match="active units needs about") as caught:
        next(build(replace(QUESTION, memory_bytes=needed - 1), DECODER, Sources(TRANSCODERS)))
    assert caught.value.reason is Reason.MEMORY_BUDGET_EXCEEDED
    assert caught.value.metadata["needed_bytes"] == str(needed)
    assert caught.value.metadata["active_features"] == str(len(graph.nodes.active))


def test_what_can_never_fit_is_refused_before_the_pass() -> None:
    def never() -> None:
        raise AssertionError("the pass began")

    with pytest.raises(
        Exhausted, match=r"tokens needs about \d+ bytes even without units and may have 1000; ask for fewer tokens$"
    ):
        next(build(replace(QUESTION, memory_bytes=1000), DECODER, Sources(TRANSCODERS), never))


@pytest.mark.parametrize("architecture", ["gpt2", "gemma"])
@pytest.mark.parametrize("is_tight", [False, True])
def test_a_graph_takes_no_more_than_is_estimated(architecture: str, is_tight: bool) -> None:
    config = replace(ARCHITECTURES[architecture], d_model=48, d_mlp=96, context_window=100)
    decoder = models.decoder(config=config)
    transcoders = random_transcoders(config, 200, is_cross_layer=is_tight, has_skip=True)
    question = GraphQuestion(token_ids=tuple(i % 19 for i in range(100)), max_feature_nodes=60)
    nodes = built(question, decoder, transcoders)[0].nodes
    sizes = {"n_active": len(nodes.active), "n_targets": len(nodes.targets)}
    if is_tight:
        needed = GraphMemory.of(question, decoder, Sources(transcoders), **sizes).needed
        question = replace(question, memory_bytes=needed)
    estimate = GraphMemory.of(question, decoder, Sources(transcoders), **sizes)
    assert estimate.keeps_layers is not is_tight
    taken = peak_bytes(lambda: built(question, decoder, transcoders))  # of tensors, which rows are not
    assert taken <= estimate.peak - estimate.rows <= 4 * taken


@pytest.mark.parametrize("name", ["neurons and heads", "latents of neurons", "neurons and latents of attention"])
def test_a_graph_of_other_units_takes_no_more_than_is_estimated(name: str) -> None:
    config = replace(ARCHITECTURES["gemma"], d_model=48, d_mlp=96, context_window=60)
    decoder, sources = models.decoder(config=config), SOURCES[name](config)
    question = GraphQuestion(token_ids=tuple(i % 19 for i in range(60)), max_feature_nodes=60, n_zeroed=0)
    nodes = built(question, decoder, sources)[0].nodes
    sizes = {"n_active": len(nodes.active), "n_targets": len(nodes.targets)}
    needed = GraphMemory.of(question, decoder, sources, **sizes).needed
    for limit in (question.memory_bytes, needed):
        asked = replace(question, memory_bytes=limit)
        estimate = GraphMemory.of(asked, decoder, sources, **sizes)
        taken = peak_bytes(lambda asked=asked: built(asked, decoder, sources))  # type: ignore[misc]
        assert taken <= estimate.peak - estimate.rows <= 5 * taken


def test_a_graph_of_neurons_that_can_never_fit_is_refused_before_the_pass() -> None:
    def never() -> None:
        raise AssertionError("the pass began")

    sources, question = Sources(has_neurons=True), replace(QUESTION, memory_bytes=200_000)
    with pytest.raises(Exhausted, match=f"with {CONFIG.n_layers * len(TOKENS) * CONFIG.d_mlp} active units needs"):
        next(build(question, DECODER, sources, never))


# Targets


def test_as_few_logits_are_targets_as_have_the_desired_probability() -> None:
    logits = DECODER.forward(torch.tensor([TOKENS]))
    assert logits is not None
    probabilities, order = logits[0, -1].softmax(0).sort(descending=True)
    for desired in (0.2, 0.6, 0.9):
        asked = MostProbable(max_n_logits=9, desired_logit_prob=desired)
        targets = built(replace(QUESTION, targets=asked), DECODER, TRANSCODERS)[0].nodes.targets
        count = min(int((probabilities.cumsum(0) < desired).sum()) + 1, 9)
        assert targets.token_ids.tolist() == order[:count].tolist()
        np.testing.assert_allclose(targets.weights, probabilities[:count], rtol=1e-6)


def test_targets_are_chosen_tokens_and_free_directions() -> None:
    token = DECODER.unembedding[:, 4] - DECODER.unembedding.mean(dim=1)
    asked = (ChosenTarget(token_id=4, weight=0.5), ChosenTarget(vector=2 * token, name="twice"))
    graph, _ = built(replace(QUESTION, targets=asked), DECODER, TRANSCODERS)
    targets = graph.nodes.targets
    assert (targets.token_ids.tolist(), targets.names) == ([4, FREE_DIRECTION], ("", "twice"))
    assert targets.weights.tolist() == [0.5, 1.0]
    np.testing.assert_allclose(2 * graph.adjacency[-2], graph.adjacency[-1], rtol=1e-4, atol=1e-7)


def test_the_first_tokens_have_no_features_and_no_errors() -> None:
    graph, _ = built(replace(QUESTION, n_zeroed=3), DECODER, TRANSCODERS)
    nodes = graph.nodes
    assert set(nodes.active[:, 1].tolist()) == {3, 4, 5}
    errors = graph.adjacency[:, nodes.first_error : nodes.first_embedding].reshape(-1, nodes.n_layers, nodes.n_tokens)
    assert errors.any(axis=(0, 1)).tolist() == [False] * 3 + [True] * 3
    assert graph.adjacency[:, nodes.first_embedding : nodes.first_target].any(axis=0).all()


@pytest.mark.parametrize("n_zeroed", [len(TOKENS), 99])
def test_a_graph_without_features_has_errors_or_tokens_alone(n_zeroed: int) -> None:
    graph, _ = built(replace(QUESTION, n_zeroed=n_zeroed), DECODER, TRANSCODERS)
    assert (graph.nodes.n_features, len(graph.nodes.active)) == (0, 0)
    assert graph.adjacency[graph.nodes.first_target :, graph.nodes.first_embedding : graph.nodes.first_target].all()


def test_without_any_transcoder_all_is_error() -> None:
    graph, _ = built(QUESTION, DECODER, Transcoders(CONFIG.n_layers, {}))
    assert graph.nodes.n_features == 0
    assert graph.adjacency[graph.nodes.first_target :, : graph.nodes.first_embedding].any()


@pytest.mark.parametrize(
    ("tokens", "special", "begin", "expected"),
    [
        ((5, 6), {1, 2}, (1, 2, None), (1, 5, 6)),
        ((5, 6), {1, 2}, (None, None, 2), (2, 5, 6)),
        ((5, 6), {7, 3}, (None, None, None), (3, 5, 6)),
        ((2, 6), {1, 2}, (1, None, None), (2, 6)),
        ((5, 6), set(), (None, None, None), (5, 6)),
        ((), {1}, (1, None, None), (1,)),
    ],
)
def test_a_prompt_begins_with_a_special_token_if_there_is_one(
    tokens: Any, special: Any, begin: Any, expected: Any
) -> None:
    assert begun(tokens, special, begin) == expected
