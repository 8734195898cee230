"""A block's small functions, and norms and rotations: what each does, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dst_grpc.domain.components import AttentionTraceType
from dst_grpc.engine.decoder_config import Rotary
from dst_grpc.engine.layer import softcapped
from dst_grpc.engine.rotary import Rotation
from tests import models

FREQUENCIES = (0.7, 0.05)


def rotation(scale: float = 1.0) -> Rotation:
    return Rotation(Rotary(frequencies=FREQUENCIES, scale=scale), torch.device("cpu"), torch.float64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_rotation_turns_each_pair_by_its_angle_and_leaves_the_rest() -> None:
    x = normal(9, 2, 5)
    turned = rotation()(x)
    for t in range(9):
        for pair, frequency in enumerate(FREQUENCIES):
            a, b = x[t, 1, pair], x[t, 1, pair + 2]
            cosine, sine = math.cos(t * frequency), math.sin(t * frequency)
            expected = torch.stack((a * cosine - b * sine, b * cosine + a * sine))
            torch.testing.assert_close(turned[t, 1, [pair, pair + 2]], expected)
    assert torch.equal(turned[..., 4], x[..., 4])


def test_a_rotation_s_factor_stretches_what_is_rotated_alone() -> None:
    x = normal(9, 2, 5)
    torch.testing.assert_close(rotation(1.5)(x)[..., :4], 1.5 * rotation()(x)[..., :4])
    assert torch.equal(rotation(1.5)(x)[..., 4], x[..., 4])


def test_longer_prompts_after_shorter_ones_are_rotated_alike() -> None:
    x = normal(300, 1, 4)
    grown = rotation()
    for n in (1, 70, 64, 300, 2):
        torch.testing.assert_close(grown(x[:n]), rotation()(x)[:n], rtol=0, atol=0)


def test_scores_of_rotated_vectors_depend_on_the_distance_alone() -> None:
    q, k = (normal(4, seed=seed).expand(12, 1, 4) for seed in (1, 2))
    scores = torch.einsum("thc,uhc->tu", rotation()(q), rotation()(k))
    for distance in range(-5, 6):
        same = scores.diagonal(distance)
        torch.testing.assert_close(same, same[:1].expand_as(same))


@pytest.mark.parametrize(("window", "seen"), [(1, [4]), (2, [3, 4]), (4, [1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])])
def test_a_query_sees_itself_and_what_is_within_its_window(window: int, seen: list[int]) -> None:
    config = replace(models.CONFIG, sliding_windows=(window, None, None))
    layer, unbounded = models.decoder(config=config).layers[:2]
    assert layer.hidden(7, torch.device("cpu"))[4].logical_not().nonzero().flatten().tolist() == seen
    assert unbounded.hidden(7, torch.device("cpu"))[4].logical_not().nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    q, k, _ = layer.qkv(normal(7, 8))
    assert layer.attn_probs(layer.attn_scores(q, k))[4, :, 0].nonzero().flatten().tolist() == seen


def test_heads_of_a_group_share_their_key_and_value() -> None:
    layer = models.decoder(config=models.ARCHITECTURES["llama"]).layers[0]
    normed = normal(5, 8)
    (q, k, v), (_, shared_k, shared_v) = layer.qkv(normed), layer.shared_qkv(normed)
    assert q.shape == k.shape == v.shape == (5, 6, 4)
    for head in range(6):
        assert torch.equal(k[:, head], shared_k[:, head // 2])
        assert torch.equal(v[:, head], shared_v[:, head // 2])


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_a_head_s_inputs_are_computed_alone_as_beside_the_others(name: str) -> None:
    config = models.ARCHITECTURES[name]
    normed = normal(2, 5, config.d_model)
    for layer in models.decoder(config=config).layers:
        together = dict(zip("QKV", layer.qkv(normed), strict=True))
        for part, expected in together.items():
            for head in range(config.n_heads):
                found = layer.head_input(AttentionTraceType(part), head, normed)
                torch.testing.assert_close(found, expected[..., head, :])


@pytest.mark.parametrize("name", models.ARCHITECTURES)
@pytest.mark.parametrize("n_tokens", [1, 3, 5, 7])
def test_the_fused_kernel_makes_what_the_steps_make(name: str, n_tokens: int) -> None:
    """Windows of 2 and 4 tokens among them, in prompts of just one token more."""
    normed = normal(2, n_tokens, 8)
    for layer in models.decoder(config=models.ARCHITECTURES[name]).layers:
        q, k, v = layer.qkv(normed)
        steps = layer.attn_mix(layer.attn_probs(layer.attn_scores(q, k)), v)
        torch.testing.assert_close(layer.attn_fused(q, k, v), steps)
        torch.testing.assert_close(layer.attn_fused(*layer.shared_qkv(normed)), steps)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_writes_are_projections_normed_where_the_model_norms_them(name: str) -> None:
    layer = models.decoder(config=models.ARCHITECTURES[name]).layers[1]
    config = models.ARCHITECTURES[name]
    mixed, act = normal(7, config.n_heads, config.d_head), layer.mlp_acts(normal(7, 8))
    for write, project, norm, x in (
        (layer.attn_write, layer.attn_project, layer.attn_post_norm, mixed),
        (layer.mlp_write, layer.mlp_project, layer.mlp_post_norm, act),
    ):
        assert (norm is not None) is config.post_norms
        projected = project(x)
        expected = projected if norm is None else norm.apply(projected, norm.scale(projected))
        torch.testing.assert_close(write(x), expected)
        torch.testing.assert_close(write(x, detach_scale=True), expected)


def test_a_gated_neuron_is_its_gate_s_activation_times_its_other_half() -> None:
    layer, normed = models.decoder(config=models.ARCHITECTURES["llama"]).layers[0], normal(7, 8)
    gate, up = layer.mlp_pre_act(normed), layer.mlp_up(normed)
    assert up is not None
    torch.testing.assert_close(layer.mlp_acts(normed), gate / (1 + (-gate).exp()) * up)


def test_a_cap_bends_and_does_not_cut() -> None:
    x = torch.tensor([-1e6, -2.0, 0.0, 1e-3, 2.0, 1e6], dtype=torch.float64)
    capped = softcapped(x, 3.0)
    torch.testing.assert_close(capped, 3 * torch.tanh(x / 3))
    assert capped.abs().max() <= 3
    assert softcapped(x, None) is x
