"""Scored tokens and attended tokens, beside the plain model's writes and autograd on whole prompts."""

from __future__ import annotations

import weakref
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch

from dst_grpc.domain.components import (
    AttentionTraceType,
    ComponentTypeForAttention,
    ComponentTypeForMlp,
    NodeType,
)
from dst_grpc.domain.explanations import ExplainPart
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.decoder import Decoder
from dst_grpc.scalars import token_scoring
from dst_grpc.scalars.extremes import Columns, in_columns
from dst_grpc.scalars.token_scoring import distinct_directions, extreme_tokens
from tests import explaining, models, plain
from tests.explained import N_TOKENS, Explained

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.domain.explanations import NodeTokens, RunExplanation
    from dst_grpc.domain.indices import NodeIndex

COUNT = 5
CASES = [
    Explained(architecture, (mlp_kind, T.RESID_DELTA_ATTN))
    for architecture, mlp_kind in zip(
        models.ARCHITECTURES, (T.RESID_DELTA_MLP, T.MLP_POST_ACT) * len(models.ARCHITECTURES), strict=False
    )
]
every_case = pytest.mark.parametrize("x", CASES, ids=str)
of_either = pytest.mark.parametrize("latents", [False, True], ids=["neurons and heads", "latents"])


@cache
def run_explained(x: Explained, latents: bool, *parts: ExplainPart, unit_length: bool = False) -> RunExplanation:
    """One run, of which neurons and heads are shown, or latents."""
    mlp = ComponentTypeForMlp.AUTOENCODER_LATENT if latents else ComponentTypeForMlp.NEURON
    attention = ComponentTypeForAttention.AUTOENCODER_LATENT if latents else ComponentTypeForAttention.ATTENTION_HEAD
    request = explaining.request(
        component_type_for_mlp=mlp,
        component_type_for_attention=attention,
        autoencoders=tuple(x.world.sets),
        scored_token_count=COUNT,
        token_pair_count=4,
        k=6,
        parts=parts,
        unit_length_embeddings=unit_length,
    )
    (found,) = explaining.explain(x.world, request).runs
    return found


def nodes_of(found: RunExplanation) -> tuple[NodeIndex, ...]:
    assert found.node_table is not None
    return tuple(found.node_table.nodes)


def scored(found: RunExplanation, part: ExplainPart) -> dict[NodeIndex, NodeTokens]:
    """What is said of each node; the list is in the order of the table."""
    tokens = found.tokens_of(part)
    assert tokens is not None
    assert [one.node for one in tokens.nodes] == sorted(one.node for one in tokens.nodes)
    return {nodes_of(found)[one.node]: one for one in tokens.nodes}


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


def pre_activation_gradient(x: Explained, node: NodeIndex, through: AttentionTraceType | None = None) -> torch.Tensor:
    """Of one node at the residual before it, the norm's scale held, [T, d]."""
    layer = node.layer_index
    assert layer is not None

    def value(rho: torch.Tensor) -> torch.Tensor:
        found = x.plain.activations(node.node_type, layer, rho, post=False, detach=True, through=through)
        return found[node.tensor_indices]

    return plain.local_gradient(value, x.value[x.before(node)])


@every_case
@of_either
def test_output_tokens_are_scored_by_what_a_node_writes(x: Explained, latents: bool) -> None:
    """Through the final norm's gain, each vector's mean over the vocabulary taken off."""
    found = run_explained(x, latents)
    nodes = scored(found, ExplainPart.UPVOTED_OUTPUT_TOKENS)
    assert nodes.keys() == set(nodes_of(found))
    gain = x.plain.weights["final_norm.gain"] + x.config.norm_gain_offset
    for node, tokens in nodes.items():
        t = node.tensor_indices[0]
        assert t is not None
        of_embedding = node.node_type is NodeType.LAYER
        write = x.value[L.RESID_POST_EMBEDDING, None] if of_embedding else x.node_write(node)
        scores = (write[t] * gain) @ x.plain.weights["unembedding"]
        assert_scores(tokens, scores - scores.mean())


@every_case
@of_either
@pytest.mark.parametrize("unit_length", [False, True], ids=["embeddings", "unit length"])
def test_input_tokens_are_scored_by_what_a_node_reads(x: Explained, latents: bool, unit_length: bool) -> None:
    """At the token of a neuron or latent of an MLP; of a head at its query, the key held, and the other way round."""
    found = run_explained(x, latents, unit_length=unit_length)
    vocabulary = x.plain.embedded(range(x.config.vocab_size))
    if unit_length:
        vocabulary = vocabulary / x.plain.weights["embedding"].norm(dim=1, keepdim=True)
    mlp = {NodeType.MLP_NEURON, NodeType.MLP_AUTOENCODER_LATENT}
    readers: dict[ExplainPart, tuple[AttentionTraceType | None, set[NodeType]]] = {
        ExplainPart.INPUT_TOKENS_THAT_UPVOTE_MLP: (None, mlp),
        ExplainPart.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q: (AttentionTraceType.Q, {NodeType.ATTENTION_HEAD}),
        ExplainPart.INPUT_TOKENS_THAT_UPVOTE_ATTN_K: (AttentionTraceType.K, {NodeType.ATTENTION_HEAD}),
    }
    for part, (through, node_types) in readers.items():
        if latents and through is not None:
            assert found.tokens_of(part) is None
            continue
        nodes = scored(found, part)
        assert nodes.keys() == {node for node in nodes_of(found) if node.node_type in node_types and x.sees(node)}
        for node, tokens in nodes.items():
            gradient = pre_activation_gradient(x, node, through)
            at = node.tensor_indices[1 if through is AttentionTraceType.K else 0]
            assert_scores(tokens, vocabulary @ gradient[at])
            assert through is None or not gradient[[t for t in range(N_TOKENS) if t != at]].any()


@every_case
def test_latents_of_attention_attend_to_the_tokens_that_their_activation_comes_from(x: Explained) -> None:
    found, kind = run_explained(x, True), T.RESID_DELTA_ATTN
    assert found.token_pairs is not None
    pairs = {nodes_of(found)[one.node]: dict(one.attended_tokens) for one in found.token_pairs.nodes}
    active = [
        node
        for node in nodes_of(found)
        if node.node_type is NodeType.ATTENTION_AUTOENCODER_LATENT
        and x.latents(kind, node.layer_index or 0)[node.tensor_indices] > 0
    ]
    assert len(active) > 3
    assert pairs.keys() == set(active)
    for node, found_tokens in pairs.items():
        layer, (t, latent) = node.layer_index or 0, node.tensor_indices
        assert t is not None
        writes = x.pair_writes(layer)[t].sum(dim=1)
        attributions = (writes @ x.autoencoder(kind, layer).encoder[latent])[: t + 1].tolist()
        best = sorted(attributions, reverse=True)[:4]
        assert list(found_tokens.values()) == pytest.approx(best, rel=1e-5, abs=1e-7)
        assert [attributions[u] for u in found_tokens] == pytest.approx(best, rel=1e-5, abs=1e-7)


def test_an_embedding_of_length_0_has_score_0_at_any_length() -> None:
    """As the rows that fill a vocabulary up to a round number are."""
    weights = models.weights()
    weights["embedding"][4] = 0
    lengths = Decoder(models.CONFIG, weights).embedding_lengths
    expected = weights["embedding"].norm(dim=1)
    expected[4] = 1
    torch.testing.assert_close(lengths, expected)


@pytest.mark.parametrize("n_tokens", [3, 9000])
@pytest.mark.parametrize("centred", [True, False])
def test_tokens_are_found_in_every_chunk_of_the_vocabulary(n_tokens: int, centred: bool) -> None:
    generator = torch.Generator().manual_seed(n_tokens)
    vectors = torch.randn(4, 8, generator=generator)
    vocabulary = torch.randn(8, n_tokens, generator=generator)
    found = extreme_tokens(vectors, vocabulary, 10)
    found = found.minus((vectors @ vocabulary).mean(dim=1)) if centred else found
    scores = vectors @ vocabulary
    scores = scores - scores.mean(dim=1, keepdim=True) if centred else scores
    ranked = scores.sort(dim=1).values
    count = min(10, n_tokens)
    torch.testing.assert_close(found.top, ranked[:, -count:].flip(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.bottom, ranked[:, :count], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.gather(1, found.top_ids), found.top, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.gather(1, found.bottom_ids), found.bottom, rtol=1e-5, atol=1e-5)


def test_multiples_of_a_vector_are_one_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, 16, generator=generator)
    vectors = torch.stack([2 * base[0], base[1], -0.5 * base[0], 3 * base[2], torch.zeros(16), base[2], base[1]])
    directions, rows, factors = distinct_directions(vectors)
    assert len(directions) == 4
    torch.testing.assert_close(directions[rows] * factors.unsqueeze(1), vectors)
    assert len(distinct_directions(torch.randn(50, 16, generator=generator))[0]) == 50


def test_vectors_are_let_go_of_before_scores_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[weakref.ref[torch.Tensor]] = []
    are_there: list[bool] = []

    def noted(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        given.append(weakref.ref(vectors))
        return distinct_directions(vectors)

    def watched(n: int, k: int, at_once: int) -> Iterator[Columns]:
        are_there.append(given[-1]() is not None)
        return in_columns(n, k, at_once)

    monkeypatch.setattr(token_scoring, "distinct_directions", noted)
    monkeypatch.setattr(token_scoring, "in_columns", watched)
    parts = [part for part in ExplainPart if part.scores_tokens]
    run_explained.__wrapped__(CASES[0], False, *parts)
    assert are_there
    assert not any(are_there)


def test_opposite_vectors_have_each_other_s_tokens() -> None:
    generator = torch.Generator().manual_seed(1)
    vector, vocabulary = torch.randn(8, generator=generator), torch.randn(8, 5000, generator=generator)
    found = extreme_tokens(torch.stack((vector, -2 * vector)), vocabulary, 5)
    assert torch.equal(found.top_ids[0], found.bottom_ids[1])
    assert torch.equal(found.bottom_ids[0], found.top_ids[1])
    torch.testing.assert_close(found.top[0] * -2, found.bottom[1])


def test_a_list_of_nodes_that_cannot_be_scored_is_empty() -> None:
    x, part = Explained(kinds=(T.RESID_DELTA_MLP, T.RESID_DELTA_ATTN)), ExplainPart.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q
    assert scored(run_explained(x, True, part), part) == {}
