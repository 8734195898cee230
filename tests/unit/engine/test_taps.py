"""Taps: what happens at a site, and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.components import Dimension, PassType
from dst_grpc.domain.interventions import Intervention, SetValue
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import AxisSelection, TapSelection
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.interventions import RowIntervention
from dst_grpc.engine.splice import Splice
from dst_grpc.engine.taps import Site, Taps
from dst_grpc.errors import require
from tests import models
from tests.closeness import assert_close
from tests.plain import Kind, Transcoder

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
KINDS: tuple[Kind, ...] = (T.MLP_POST_ACT, T.RESID_DELTA_MLP, T.RESID_DELTA_ATTN, Transcoder.NORMED)
FORWARD, BACKWARD = PassType.FORWARD, PassType.BACKWARD


@pytest.fixture
def decoder() -> Decoder:
    return models.decoder()


def ablation(
    location: L, layer: int | None, axes: tuple[AxisSelection, ...], value: float, **kwargs: Any
) -> RowIntervention:
    """Entries of the first prompt's tap that are set to a number; *kwargs* of `RowIntervention`."""
    pass_type = FORWARD if kwargs.get("gradient_pass") is None else BACKWARD
    at = TapSelection(activation_location_type=location, layer_index=layer, axes=axes, pass_type=pass_type)
    intervention = Intervention(at=at, action=SetValue(scalar=value))
    return RowIntervention(**{"row": 0, "intervention": intervention, **kwargs})


def run(decoder: Decoder, **kwargs: Any) -> tuple[torch.Tensor, Taps]:
    taps = Taps(**kwargs)
    logits = decoder.forward(TOKENS, taps)
    assert logits is not None
    return logits, taps


def gradients(decoder: Decoder, origin_token: int = 2, **kwargs: Any) -> dict[Site, torch.Tensor]:
    """Gradients of one logit of each prompt, where *kwargs* want them."""
    logits, taps = run(decoder, **kwargs)
    return taps.gradients(logits[:, -1, origin_token].sum())


def test_the_recorded_value_is_the_ablated_one(decoder: Decoder) -> None:
    site: Site = (L.MLP_POST_ACT, 1)
    logits, taps = run(decoder, values=[site], interventions=[ablation(*site, (2, 7), 4.5)])
    plain_logits, plain = run(decoder, values=[site])
    assert taps.values[site][0, 2, 7] == 4.5
    changed = taps.values[site] != plain.values[site]
    assert changed.sum() == 1
    assert not torch.equal(logits[0], plain_logits[0])


def test_an_ablation_without_a_layer_is_one_at_every_layer(decoder: Decoder) -> None:
    sites: list[Site] = [(L.MLP_POST_ACT, layer) for layer in range(3)]
    _, taps = run(decoder, values=sites, interventions=[ablation(L.MLP_POST_ACT, None, (2, 7), 4.5)])
    assert [float(taps.values[site][0, 2, 7]) for site in sites] == [4.5] * 3


def test_ablations_apply_in_their_order(decoder: Decoder) -> None:
    site: Site = (L.RESID_POST_MLP, 0)
    both = [ablation(*site, (None, 3), 1.0), ablation(*site, (2, 3), 2.0)]
    _, taps = run(decoder, values=[site], interventions=both)
    assert taps.values[site][0, :, 3].tolist() == [1, 1, 2, 1, 1, 1]
    _, taps = run(decoder, values=[site], interventions=both[::-1])
    assert taps.values[site][0, :, 3].tolist() == [1] * 6


def test_an_ablation_stays_in_its_own_row(decoder: Decoder) -> None:
    site: Site = (L.RESID_POST_MLP, 1)
    logits, taps = run(decoder, values=[site], interventions=[ablation(*site, (None, None), 0.0, row=1)])
    plain_logits, plain = run(decoder, values=[site])
    assert torch.equal(taps.values[site][0], plain.values[site][0])
    torch.testing.assert_close(logits[0], plain_logits[0])
    assert (taps.values[site][1] == 0).all()


def test_an_axis_of_tokens_ends_where_the_prompt_ends(decoder: Decoder) -> None:
    """Or a prompt would see the pads behind it, where its probabilities are overwritten whole."""
    site: Site = (L.ATTN_QK_PROBS, 1)
    _, taps = run(decoder, values=[site], interventions=[ablation(*site, (None, None, 2), 7.0, n_tokens=4)])
    overwritten = taps.values[site][0, :, :, 2] == 7.0
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:4, :4] = True
    assert torch.equal(overwritten, expected)


def test_overwritten_entries_pass_nothing_upstream(decoder: Decoder) -> None:
    site: Site = (L.RESID_POST_MLP, 1)
    cut = [ablation(*site, (None, None), 1.0)]
    found = gradients(decoder, gradients=[(L.RESID_POST_MLP, 0), site], interventions=cut)
    assert (found[L.RESID_POST_MLP, 0][0] == 0).all()
    assert (found[site][0] != 0).any(), "the gradient at the ablated value itself is recorded"
    assert (found[L.RESID_POST_MLP, 0][1] != 0).any()


def test_a_gradient_is_recorded_as_it_arrives_before_its_backward_ablation(decoder: Decoder) -> None:
    """Q13: the ablation shows upstream, not at its own tap, whether anything upstream is recorded or not."""
    site, upstream = (L.RESID_POST_MLP, 1), (L.RESID_POST_MLP, 0)
    zeroed = ablation(*site, (None, None), 0.0, gradient_pass=0)
    plain = gradients(decoder, gradients=[site, upstream])
    changed = gradients(decoder, gradients=[site, upstream], interventions=[zeroed])
    torch.testing.assert_close(changed[site], plain[site])
    assert (changed[upstream][0] == 0).all()
    torch.testing.assert_close(changed[upstream][1], plain[upstream][1])
    torch.testing.assert_close(gradients(decoder, gradients=[site], interventions=[zeroed])[site], plain[site])


def test_backward_ablations_change_no_value(decoder: Decoder) -> None:
    everywhere = [ablation(L.RESID_POST_ATTN, 1, (None, None), 7.0, gradient_pass=0)]
    logits, _ = run(decoder, gradients=[(L.RESID_POST_EMBEDDING, None)], interventions=everywhere)
    assert torch.equal(logits.detach(), run(decoder)[0])


def test_a_backward_ablation_seeds_an_exact_gradient(decoder: Decoder) -> None:
    """Fake gradients: a loss of zero, and 1 at one neuron, give that neuron's derivative."""
    seed = ablation(L.MLP_PRE_ACT, 1, (3, 7), 1.0, gradient_pass=0)
    site: Site = (L.RESID_POST_ATTN, 1)
    logits, taps = run(decoder, gradients=[site, (L.MLP_PRE_ACT, 1)], interventions=[seed])
    found = taps.gradients(0.0 * logits.sum())[site]
    layer = decoder.layers[1]
    x = taps.attached[site].detach()[0].requires_grad_()
    (expected,) = torch.autograd.grad(layer.mlp_pre_act(layer.mlp_norm(x))[3, 7], x)
    torch.testing.assert_close(found[0], expected)


def test_freezing_the_final_norm_makes_the_gradient_scale_free(decoder: Decoder) -> None:
    site: Site = (L.RESID_POST_MLP, 2)
    freeze = [
        ablation(L.RESID_FINAL_LAYER_NORM_SCALE, None, (None, None), 0.0, row=row, gradient_pass=0) for row in range(2)
    ]
    found = gradients(decoder, gradients=[site], interventions=freeze)[site]
    _, taps = run(decoder, values=[site])
    x = taps.values[site].requires_grad_()
    logits = decoder.final_norm(x, detach_scale=True) @ decoder.unembedding
    (expected,) = torch.autograd.grad(logits[:, -1, 2].sum(), x)
    torch.testing.assert_close(found, expected)


def numeric(decoder: Decoder, site: Site, entry: tuple[int, ...], value: float, step: float) -> float:
    """Derivative of the logit by one entry of a tap, by overwriting the entry on either side of its value."""
    up, down = (
        run(decoder, interventions=[ablation(*site, entry, value + side * step)])[0][0, -1, 2] for side in (1, -1)
    )
    return float(up - down) / (2 * step)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
@pytest.mark.parametrize("seed", range(3))
def test_a_gradient_is_the_derivative_by_the_tap_s_value(name: str, seed: int) -> None:
    config = models.ARCHITECTURES[name]
    decoder, sites = models.decoder(seed, config), models.sites(config)
    logits, taps = run(decoder, values=sites, gradients=sites)
    found = taps.gradients(logits[0, -1, 2])
    generator = torch.Generator().manual_seed(seed)
    for site in sites:
        x, location = taps.values[site][0], site[0]
        token = 5 if location in {L.LOGITS, L.RESID_FINAL_LAYER_NORM_SCALE} else 4
        rest = tuple(int(torch.randint(size, (), generator=generator)) for size in x.shape[1:])
        if Dimension.ATTENDED_TO_SEQUENCE_TOKENS in location.dimensions[1:]:
            rest = (3, rest[1])  # a masked score is not moved by anything
        entry = (token, *rest)
        expected = numeric(decoder, site, entry, float(x[entry]), 1e-5)
        assert float(found[site][0][entry]) == pytest.approx(expected, rel=1e-5, abs=1e-8), site


# Autoencoders in the graph


def spliced(kind: Kind, *, layers: Iterable[int] = (0, 1, 2), **kwargs: Any) -> dict[Site, Splice]:
    found = models.splices(models.autoencoders(kind, 4, **kwargs))
    return {site: splice for site, splice in found.items() if splice.layer in layers}


def weights_of(splices: dict[Site, Splice], site: Site) -> Autoencoder:
    found = splices[site].autoencoder
    assert isinstance(found, Autoencoder)
    return found


def sites_of(kind: Kind, layer: int) -> tuple[Site, Site, Site]:
    """What is reconstructed, the latents, and the error."""
    taps = models.input_of(kind)
    return (taps.spliced_at, layer), (taps.latent_tap, layer), (require(taps.error_tap), layer)


def read_by(kind: Kind, decoder: Decoder, taps: Taps, layer: int) -> torch.Tensor:
    """What the autoencoder of a layer reads in a run; a transcoder what its MLP does."""
    if not isinstance(kind, Transcoder):
        return taps.values[sites_of(kind, layer)[0]]
    return decoder.layers[layer].mlp_norm(taps.values[L.RESID_POST_ATTN, layer])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", AutoencoderActivation)
def test_without_ablations_a_splice_changes_nothing_but_rounding(
    decoder: Decoder, kind: Kind, activation: AutoencoderActivation
) -> None:
    logits, _ = run(decoder, splices=spliced(kind, activation=activation))
    assert_close(logits, run(decoder)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_and_error_are_what_is_reconstructed(decoder: Decoder, kind: Kind) -> None:
    splices = spliced(kind, layers=[1])
    site, latents, error = sites_of(kind, 1)
    _, taps = run(decoder, values=[site, latents, error, (L.RESID_POST_ATTN, 1)], splices=splices)
    autoencoder, x = weights_of(splices, site), read_by(kind, decoder, taps, 1)
    torch.testing.assert_close(taps.values[latents], autoencoder.encode(x))
    torch.testing.assert_close(taps.values[error] + autoencoder.decode(taps.values[latents], x), taps.values[site])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_latents_and_error_follow_from_that_of_the_output(decoder: Decoder, kind: Kind) -> None:
    """At latents g Wdec, at the error g, at what is reconstructed g again, and all before as without the splice."""
    splices = spliced(kind, layers=[1])
    site, latents, error = sites_of(kind, 1)
    before: list[Site] = [(L.RESID_POST_ATTN, 1), (L.ATTN_VALUE, 1)]
    found = gradients(decoder, gradients=[site, latents, error, *before], splices=splices)
    plain = gradients(decoder, gradients=[site, *before])
    g = plain[site]
    torch.testing.assert_close(found[latents], g @ weights_of(splices, site).decoder)
    torch.testing.assert_close(found[error], g)
    for one in (site, *before):
        torch.testing.assert_close(found[one], plain[one])


@pytest.mark.parametrize("kind", KINDS)
def test_ablating_a_latent_takes_its_write_out_of_the_output(decoder: Decoder, kind: Kind) -> None:
    splices = spliced(kind, layers=[1])
    site, latents, error = sites_of(kind, 1)
    _, plain = run(decoder, values=[site, latents, error], splices=splices)
    latent = int(plain.values[latents][0, 4].argmax())
    cut = [ablation(*latents, (4, latent), 0.0)]
    logits, taps = run(decoder, values=[site, latents, error], splices=splices, interventions=cut)
    torch.testing.assert_close(taps.values[error], plain.values[error])
    assert taps.values[latents][0, 4, latent] == 0
    moved = plain.values[site].clone()
    moved[0, 4] -= plain.values[latents][0, 4, latent] * weights_of(splices, site).decoder[:, latent]
    expected, _ = run(
        decoder, interventions=[ablation(*site, (4, i), float(value)) for i, value in enumerate(moved[0, 4])]
    )
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("kind", [T.RESID_DELTA_MLP, Transcoder.NORMED])
def test_ablating_the_error_leaves_the_reconstruction(decoder: Decoder, kind: Kind) -> None:
    splices = spliced(kind, layers=[2])
    site, _, error = sites_of(kind, 2)
    following, before = (L.RESID_POST_MLP, 2), (L.RESID_POST_ATTN, 2)
    cut = [ablation(*error, (None, None), 0.0)]
    _, taps = run(decoder, values=[site, following, before], splices=splices, interventions=cut)
    autoencoder, x = weights_of(splices, site), read_by(kind, decoder, taps, 2)
    expected = taps.values[before] + autoencoder.decode(autoencoder.encode(x), x)
    torch.testing.assert_close(taps.values[following][0], expected[0])


@pytest.mark.parametrize("kind", [Transcoder.RAW, Transcoder.CENTRED, Transcoder.NORMED])
def test_a_transcoder_reads_the_scale_of_the_norm_as_its_tap_leaves_it(decoder: Decoder, kind: Transcoder) -> None:
    scale: Site = (L.MLP_INPUT_LAYER_NORM_SCALE, 1)
    latents = sites_of(kind, 1)[1]
    changed = [ablation(*scale, (None, None), 2.5)]
    _, taps = run(decoder, values=[latents, (L.RESID_POST_ATTN, 1)], splices=spliced(kind), interventions=changed)
    rho, norm = taps.values[L.RESID_POST_ATTN, 1][0], decoder.layers[1].mlp_norm
    centred = (rho - rho.mean(dim=-1, keepdim=True)) / 2.5
    read = {
        Transcoder.RAW: rho,
        Transcoder.CENTRED: centred,
        Transcoder.NORMED: centred * norm.gain + require(norm.bias),
    }[kind]
    expected = spliced(kind)[L.RESID_DELTA_MLP, 1].autoencoder.encode(read)
    torch.testing.assert_close(taps.values[latents][0], expected)


def test_each_layer_has_an_autoencoder_of_its_own(decoder: Decoder) -> None:
    splices = spliced(T.MLP_POST_ACT)
    sites: list[Site] = [(L.ONLINE_MLP_AUTOENCODER_LATENT, layer) for layer in range(3)]
    inputs: list[Site] = [(L.MLP_POST_ACT, layer) for layer in range(3)]
    _, taps = run(decoder, values=sites + inputs, splices=splices)
    for layer in range(3):
        expected = splices[L.MLP_POST_ACT, layer].autoencoder.encode(taps.values[L.MLP_POST_ACT, layer])
        torch.testing.assert_close(taps.values[L.ONLINE_MLP_AUTOENCODER_LATENT, layer], expected)


def test_two_autoencoders_may_be_in_the_graph_at_once(decoder: Decoder) -> None:
    both = spliced(T.RESID_DELTA_ATTN) | spliced(T.MLP_POST_ACT)
    logits, _ = run(decoder, splices=both)
    assert_close(logits, run(decoder)[0], rtol=0, atol=1e-10)


def test_no_gradient_is_found_where_the_origin_does_not_depend_on_the_tap(decoder: Decoder) -> None:
    sites: list[Site] = [(L.RESID_POST_MLP, 0), (L.RESID_POST_MLP, 2)]
    _, taps = run(decoder, gradients=sites)
    assert taps.gradients(taps.attached[sites[0]].sum()).keys() == {sites[0]}
    assert taps.gradients(torch.tensor(1.0)) == {}
