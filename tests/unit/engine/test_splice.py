"""Transcoders that stay in their files in the graph: gradients, and which rows are read for them."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from dst_grpc.contexts import AutoencoderContext
from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.splice import first_layer_of
from dst_grpc.engine.stored_transcoder import StoredTranscoder
from dst_grpc.engine.taps import Site, Taps
from tests import models
from tests.plain import CrossLayer, Transcoder, decoders
from tests.transcoders import Matrix, in_memory

TOKENS = torch.tensor([models.TOKENS, models.TOKENS[::-1]])
LATENTS: list[Site] = [(L.ONLINE_MLP_AUTOENCODER_LATENT, layer) for layer in range(3)]
WRITES: list[Site] = [(L.RESID_DELTA_MLP, layer) for layer in range(3)]


@pytest.fixture
def decoder() -> Decoder:
    return models.decoder()


@pytest.fixture
def across() -> AutoencoderContext:
    return models.autoencoders(Transcoder.CROSS_LAYER, 4)


def run(
    decoder: Decoder, context: AutoencoderContext | None, tokens: torch.Tensor = TOKENS, **fields: list[Site]
) -> tuple[torch.Tensor, Taps]:
    taps = Taps(splices={} if context is None else models.splices(context), **fields)  # type: ignore[arg-type]
    logits = decoder.forward(tokens, taps)
    assert logits is not None
    return logits, taps


def rows_read(context: AutoencoderContext, layer: int, part: str) -> set[int]:
    """Rows of a layer's encoder or decoder that were read by their numbers."""
    coder = context.coders[layer]
    assert isinstance(coder, StoredTranscoder)
    return cast("Matrix", getattr(coder, part)).read


def active(taps: Taps, layer: int) -> set[int]:
    return set(taps.values[LATENTS[layer]].flatten(0, 1).any(dim=0).nonzero().squeeze(1).tolist())


@pytest.mark.parametrize("kind", [Transcoder.STORED, Transcoder.CROSS_LAYER])
@pytest.mark.parametrize("activation", AutoencoderActivation)
def test_without_changes_nothing_changes_but_rounding(
    decoder: Decoder, kind: Transcoder, activation: AutoencoderActivation
) -> None:
    logits, _ = run(decoder, models.autoencoders(kind, 4, activation=activation))
    torch.testing.assert_close(logits, run(decoder, None)[0], rtol=0, atol=1e-10)


def test_the_gradient_of_a_latent_is_that_of_all_that_it_writes(decoder: Decoder, across: AutoencoderContext) -> None:
    logits, taps = run(decoder, across, gradients=LATENTS)
    found = taps.gradients(logits[:, -1, 2].sum())
    logits, taps = run(decoder, None, gradients=WRITES)
    writes = taps.gradients(logits[:, -1, 2].sum())
    for layer, one in in_memory(across).items():
        assert isinstance(one, CrossLayer)
        expected = sum((writes[WRITES[at]] @ rows for at, rows in decoders(one, layer).items()), torch.zeros(()))
        torch.testing.assert_close(found[LATENTS[layer or 0]], expected)


@pytest.mark.parametrize("kind", [Transcoder.STORED, Transcoder.CROSS_LAYER])
@pytest.mark.parametrize("is_differentiated", [False, True])
def test_a_decoder_is_read_where_latents_are_active_and_whole_for_their_gradients_alone(
    decoder: Decoder, kind: Transcoder, is_differentiated: bool
) -> None:
    context = models.autoencoders(kind, 4, activation=AutoencoderActivation.TOP_K)
    gradients: list[Site] = [LATENTS[1]] if is_differentiated else [(L.RESID_POST_EMBEDDING, None)]
    logits, taps = run(decoder, context, TOKENS[:1, :1], values=LATENTS, gradients=gradients)
    taps.gradients(logits.sum())
    for layer in range(3):
        coder, here = context.coders[layer], active(taps, layer)
        assert isinstance(coder, StoredTranscoder)
        features = range(coder.n_features) if is_differentiated and layer == 1 else here
        n = len(coder.written)
        assert 0 < len(here) < coder.n_features
        assert rows_read(context, layer, "decoder") == {j * n + at for j in features for at in range(n)}
        assert rows_read(context, layer, "encoder") <= here


def test_no_pass_may_begin_after_latents_that_write_to_its_layers(across: AutoencoderContext) -> None:
    assert first_layer_of(2, models.splices(across).values()) == 0
    assert first_layer_of(2, models.splices(models.autoencoders(Transcoder.STORED)).values()) == 2
