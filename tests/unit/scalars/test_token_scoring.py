"""Scored tokens and token pairs, beside the plain formulas and autograd on whole prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dst_grpc.domain.components import (
    AttentionTraceType,
    ComponentTypeForAttention,
    ComponentTypeForMlp,
    NodeType,
    PreOrPostAct,
)
from dst_grpc.domain.explain import NodeAblation
from dst_grpc.domain.explanations import ExplainPart, NodeTokens, RunExplanation
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.scalars import FACTS
from dst_grpc.pipeline.run import run
from dst_grpc.scalars.edges import node_write
from dst_grpc.scalars.explained_model import ExplainedModel
from dst_grpc.scalars.recompute import activation
from dst_grpc.scalars.recorded_taps import RecordedTaps
from dst_grpc.scalars.task import Task
from dst_grpc.scalars.token_scoring import extreme_tokens
from tests import explaining, models, traces

PLAIN = models.world()
LATENTS = models.world(T.RESID_DELTA_MLP, T.RESID_DELTA_ATTN)
NEURON_LATENTS = models.world(T.MLP_POST_ACT)
COUNT = 5
ALL: dict[str, Any] = {
    "component_type_for_mlp": ComponentTypeForMlp.AUTOENCODER_LATENT,
    "component_type_for_attention": ComponentTypeForAttention.AUTOENCODER_LATENT,
    "autoencoders": tuple(LATENTS.sets),
}
OF_NEURONS = {"component_type_for_mlp": ComponentTypeForMlp.AUTOENCODER_LATENT}
NAMES = tuple(f"tiny/{kind}" for kind in (T.MLP_POST_ACT, T.RESID_DELTA_ATTN))
CASES: list[tuple[models.World, dict[str, Any]]] = [
    (PLAIN, {}),
    (LATENTS, ALL),
    (LATENTS, {**OF_NEURONS, "autoencoders": tuple(LATENTS.sets)}),
    (NEURON_LATENTS, {**OF_NEURONS, "autoencoders": tuple(NEURON_LATENTS.sets)}),
    *(
        (models.world(T.MLP_POST_ACT, T.RESID_DELTA_ATTN, config=config), {**shown, "autoencoders": NAMES})
        for config in models.ARCHITECTURES.values()
        for shown in ({}, {**ALL, "autoencoders": NAMES})
    ),
]
"""Worlds, the other architectures among them, and what is asked of them."""


def every_embedding(world: models.World) -> torch.Tensor:
    """[V, d]."""
    return world.decoder.embed(torch.arange(world.decoder.config.vocab_size))


def explained(world: models.World, fields: dict[str, Any]) -> tuple[RunExplanation, ExplainedModel, RecordedTaps]:
    """A run explained with a neuron and a head set by hand, and what it recorded."""
    neuron = NodeAblation(node_index=traces.node(NodeType.MLP_NEURON, 0, 2, 5), value=3.0)
    head = NodeAblation(node_index=traces.node(NodeType.ATTENTION_HEAD, 1, 3, 1, 2), value=0.25)
    request = explaining.request(node_ablations=(neuron, head), scored_token_count=COUNT, k=6, **fields)
    (found,) = explaining.explain(world, request).runs
    model = ExplainedModel(world.decoder, tuple(world.sets.values()))
    asked = explaining.plan(world, request)
    (outcome,) = run(asked.plans, world.decoder, world.sets)
    return found, model, outcome.recording.taps


def is_hidden(world: models.World, node: NodeIndex) -> bool:
    """Whether a sliding window keeps a head from seeing its pair of tokens."""
    t, u, _ = node.tensor_indices
    assert t is not None
    assert u is not None
    assert node.layer_index is not None
    window = world.decoder.layers[node.layer_index].window
    return window is not None and t - u >= window


def scored(found: RunExplanation, part: ExplainPart) -> dict[NodeIndex, NodeTokens]:
    tokens, table = found.tokens_of(part), found.node_table
    assert tokens is not None
    assert table is not None
    assert [one.node for one in tokens.nodes] == sorted(one.node for one in tokens.nodes)
    return {table.nodes[one.node]: one for one in tokens.nodes}


def assert_scores(found: NodeTokens, scores: torch.Tensor) -> None:
    """The lists are the ends of *scores* [V]."""
    ranked = scores.sort(descending=True).values.tolist()
    assert [one.score for one in found.top] == pytest.approx(ranked[:COUNT], rel=1e-5, abs=1e-7)
    assert [one.score for one in found.bottom] == pytest.approx(ranked[::-1][:COUNT], rel=1e-5, abs=1e-7)
    largest = max(abs(ranked[0]), abs(ranked[-1]))
    for one in (*found.top, *found.bottom):
        assert one.score == pytest.approx(scores[one.token_id].item(), rel=1e-5, abs=1e-7)
        assert one.token == models.tokenizer().token_strings([one.token_id])[0]
        assert one.normalized_score == pytest.approx(one.score / largest if largest else 0.0, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_output_tokens_are_scored_by_what_a_node_writes(case: int) -> None:
    world, fields = CASES[case]
    found, model, taps = explained(world, fields)
    nodes = scored(found, ExplainPart.UPVOTED_OUTPUT_TOKENS)
    assert found.node_table is not None
    assert nodes.keys() == set(found.node_table.nodes)
    decoder = world.decoder
    for node, tokens in nodes.items():
        t = node.tensor_indices[0]
        assert t is not None
        if node.node_type is NodeType.LAYER:
            write = taps.value((L.RESID_POST_EMBEDDING, None))[t]
        else:
            task = Task(facts=FACTS[T.SINGLE_NODE_WRITE], layers=(), passes=(), topology=model.topology, node=node)
            write = node_write(model, taps, task)[t]
        scores = (write * decoder.final_norm.gain) @ decoder.unembedding
        assert_scores(tokens, scores - scores.mean())


@pytest.mark.parametrize("case", range(len(CASES)))
def test_input_tokens_of_mlps_are_scored_by_what_a_node_reads(case: int) -> None:
    world, fields = CASES[case]
    found, model, taps = explained(world, fields)
    nodes = scored(found, ExplainPart.INPUT_TOKENS_THAT_UPVOTE_MLP)
    readers = {NodeType.MLP_NEURON, NodeType.MLP_AUTOENCODER_LATENT}
    assert found.node_table is not None
    assert nodes.keys() == {node for node in found.node_table.nodes if node.node_type in readers}
    for node, tokens in nodes.items():
        assert node.layer_index is not None
        t = node.tensor_indices[0]
        rho = taps.value(model.topology.residual_before(node.node_type, node.layer_index).site)
        leaf = rho.clone().requires_grad_()
        value = activation(model, node.node_type, node.layer_index, leaf, at=PreOrPostAct.PRE, detach_scale=True)[
            node.tensor_indices
        ]
        (gradient,) = torch.autograd.grad(value, leaf)
        assert_scores(tokens, every_embedding(world) @ gradient[t])


@pytest.mark.parametrize("case", [0, *range(4, len(CASES), 2)])
@pytest.mark.parametrize("through", [AttentionTraceType.Q, AttentionTraceType.K])
def test_input_tokens_of_heads_are_scored_by_what_raises_their_score(through: AttentionTraceType, case: int) -> None:
    """At the query with the key held, at the key with the query held: autograd on the whole prompt."""
    of_query = through is AttentionTraceType.Q
    parts = ExplainPart.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q, ExplainPart.INPUT_TOKENS_THAT_UPVOTE_ATTN_K
    world, fields = CASES[case]
    found, model, taps = explained(world, fields)
    nodes = scored(found, parts[0] if of_query else parts[1])
    assert found.node_table is not None
    heads = {node for node in found.node_table.nodes if node.node_type is NodeType.ATTENTION_HEAD}
    assert nodes.keys() == {node for node in heads if not is_hidden(world, node)}
    for node, tokens in nodes.items():
        layer = node.layer_index
        assert layer is not None
        rho = taps.value((L.RESID_POST_MLP, layer - 1) if layer else (L.RESID_POST_EMBEDDING, None))
        leaf = rho.clone().requires_grad_()
        value = activation(model, node.node_type, layer, leaf, at=PreOrPostAct.PRE, through=through, detach_scale=True)[
            node.tensor_indices
        ]
        (gradient,) = torch.autograd.grad(value, leaf)
        at = node.tensor_indices[0 if of_query else 1]
        assert_scores(tokens, every_embedding(world) @ gradient[at])
        elsewhere = [t for t in range(len(models.TOKENS)) if t != at]
        assert not gradient[elsewhere].any()


def test_latents_of_attention_attend_to_the_tokens_that_their_activation_comes_from() -> None:
    found, _, taps = explained(LATENTS, {**ALL, "token_pair_count": 4})
    assert found.token_pairs is not None
    assert found.node_table is not None
    context = LATENTS.sets["tiny/resid_delta_attn"]
    pairs = {found.node_table.nodes[one.node]: dict(one.attended_tokens) for one in found.token_pairs.nodes}
    active = 0
    for node in found.node_table.nodes:
        if node.node_type is not NodeType.ATTENTION_AUTOENCODER_LATENT:
            assert node not in pairs
            continue
        t, j = node.tensor_indices
        layer = node.layer_index
        assert t is not None
        assert layer is not None
        autoencoder = context.by_layer[layer]
        latent = autoencoder.encode(taps.value((L.RESID_DELTA_ATTN, layer)))[t, j]
        if latent <= 0:
            assert node not in pairs
            continue
        active += 1
        probs, values = taps.value((L.ATTN_QK_PROBS, layer)), taps.value((L.ATTN_VALUE, layer))
        out = LATENTS.decoder.layers[layer].attn_out
        writes = torch.einsum("uh,uhc,hcd->ud", probs[t], values, out)
        attributions = writes @ autoencoder.encoder[j]
        best = sorted(range(t + 1), key=lambda u: -attributions[u].item())[:4]
        assert list(pairs[node]) == best
        for u in best:
            assert pairs[node][u] == pytest.approx(attributions[u].item(), rel=1e-5, abs=1e-7)
    assert active > 3


@pytest.mark.parametrize("n_tokens", [3, 5000, 9000])
@pytest.mark.parametrize("centred", [True, False])
def test_tokens_are_found_in_every_chunk_of_the_vocabulary(n_tokens: int, centred: bool) -> None:
    generator = torch.Generator().manual_seed(n_tokens)
    vectors = torch.randn(4, 8, generator=generator)
    vocabulary = torch.randn(8, n_tokens, generator=generator)
    found = extreme_tokens(vectors, vocabulary, 10, centred=centred)
    scores = vectors @ vocabulary
    scores = scores - scores.mean(dim=1, keepdim=True) if centred else scores
    ranked = scores.sort(dim=1).values
    count = min(10, n_tokens)
    torch.testing.assert_close(found.top, ranked[:, -count:].flip(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.bottom, ranked[:, :count], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.gather(1, found.top_ids), found.top, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.gather(1, found.bottom_ids), found.bottom, rtol=1e-5, atol=1e-5)


def test_a_list_of_nodes_that_cannot_be_scored_is_empty() -> None:
    (found,) = explaining.explain(
        LATENTS, explaining.request(parts=(ExplainPart.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q,), **ALL)
    ).runs
    tokens = found.tokens_of(ExplainPart.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q)
    assert tokens is not None
    assert tokens.nodes == ()
    assert found.node_table is not None
