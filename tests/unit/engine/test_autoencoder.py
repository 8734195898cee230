"""Autoencoders: the formulas by hand, in numpy, and gradients through what is kept only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.errors import DataLoss
from tests import models

N_INPUTS, LATENTS, TOKENS = 7, 11, 5


@pytest.fixture
def relu() -> Autoencoder:
    return models.autoencoder(N_INPUTS, LATENTS)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(TOKENS, N_INPUTS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def pre_by_hand(autoencoder: Autoencoder, x: torch.Tensor) -> np.ndarray[Any, Any]:
    b_pre, w_enc, b_lat = (t.numpy() for t in (autoencoder.pre_bias, autoencoder.encoder, autoencoder.latent_bias))
    found: np.ndarray[Any, Any] = (x.numpy() - b_pre) @ w_enc.T + b_lat
    return found


def top_k_by_hand(pre: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    """Where the k largest of each row are."""
    kept = np.zeros(pre.shape, dtype=bool)
    for row, mask in zip(pre, kept, strict=True):
        mask[np.argsort(-row)[:k]] = True
    return kept


def test_relu_keeps_what_is_positive(relu: Autoencoder, x: torch.Tensor) -> None:
    pre = pre_by_hand(relu, x)
    np.testing.assert_allclose(relu.pre_activation(x), pre, rtol=1e-12)
    np.testing.assert_allclose(relu.encode(x), np.maximum(pre, 0), rtol=1e-12)


def test_identity_keeps_everything(relu: Autoencoder, x: torch.Tensor) -> None:
    np.testing.assert_allclose(replace(relu, activation=AutoencoderActivation.IDENTITY).encode(x), pre_by_hand(relu, x))


@pytest.mark.parametrize("k", [1, 4, 11])
def test_topk_keeps_the_largest_pre_activations_and_passes_those_through_its_own_activation(
    relu: Autoencoder, x: torch.Tensor, k: int
) -> None:
    pre = pre_by_hand(relu, x)
    kept = top_k_by_hand(pre, k)
    topk = replace(relu, activation=AutoencoderActivation.TOP_K, k=k)
    np.testing.assert_allclose(topk.encode(x), np.where(kept, np.maximum(pre, 0), 0))
    np.testing.assert_allclose(replace(topk, postact=AutoencoderActivation.IDENTITY).encode(x), np.where(kept, pre, 0))
    assert k < LATENTS or (pre[kept] < 0).any(), "negative ones among the kept tell the two apart"


def test_the_decoder_adds_the_pre_bias(relu: Autoencoder, x: torch.Tensor) -> None:
    latents = relu.encode(x)
    expected = latents.numpy() @ relu.decoder.numpy().T + relu.pre_bias.numpy()
    np.testing.assert_allclose(relu.decode(latents, x), expected, rtol=1e-12)


def test_a_skip_connection_is_added_after_the_normalization_is_undone(relu: Autoencoder, x: torch.Tensor) -> None:
    normed = replace(relu, normalization=InputNormalization.LAYER_NORM)
    latents, skip = normed.encode(x), torch.eye(N_INPUTS, dtype=torch.float64) * 3
    np.testing.assert_allclose(replace(normed, skip=skip).decode(latents, x), normed.decode(latents, x) + 3 * x)


@pytest.mark.parametrize("postact", [AutoencoderActivation.RELU, AutoencoderActivation.IDENTITY])
def test_gradient_flows_through_kept_latents_only(relu: Autoencoder, postact: AutoencoderActivation) -> None:
    pre = torch.randn(TOKENS, LATENTS, dtype=torch.float64, requires_grad=True)
    topk = replace(relu, activation=AutoencoderActivation.TOP_K, k=8, postact=postact)
    (gradient,) = torch.autograd.grad(topk.activate(pre).sum(), pre)
    values = pre.detach().numpy()
    passes = top_k_by_hand(values, 8) & ((values > 0) | (postact is AutoencoderActivation.IDENTITY))
    np.testing.assert_array_equal(gradient, passes.astype(float))


def test_any_leading_axes_are_kept(relu: Autoencoder) -> None:
    topk = replace(relu, activation=AutoencoderActivation.TOP_K, k=2)
    x = torch.randn(2, 3, N_INPUTS, dtype=torch.float64)
    assert topk.encode(x).shape == (2, 3, LATENTS)
    torch.testing.assert_close(topk.encode(x)[1], topk.encode(x[1]))
    assert topk.decode(topk.encode(x), x).shape == x.shape


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pre_bias": torch.zeros(LATENTS)}, r"pre_bias has shape \(11,\)"),
        ({"latent_bias": torch.zeros(N_INPUTS)}, r"latent_bias has shape \(7,\)"),
        ({"decoder": torch.zeros(LATENTS, N_INPUTS)}, r"decoder has shape \(11, 7\)"),
        ({"activation": AutoencoderActivation.TOP_K}, "needs 0 < k <= 11, not None"),
        ({"activation": AutoencoderActivation.TOP_K, "k": 0}, "needs 0 < k <= 11, not 0"),
        ({"activation": AutoencoderActivation.TOP_K, "k": 12}, "needs 0 < k <= 11, not 12"),
    ],
)
def test_parts_that_do_not_fit_are_named(relu: Autoencoder, change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataLoss, match=says):
        replace(relu, **change)


def test_sizes_are_read_off_the_encoder(relu: Autoencoder) -> None:
    assert (relu.n_inputs, relu.n_latents) == (N_INPUTS, LATENTS)
    assert relu.parameter_bytes == 8 * (2 * N_INPUTS * LATENTS + N_INPUTS + LATENTS)
    assert repr(relu) == "Autoencoder(7 -> 11, ReLU)"
