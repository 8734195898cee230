"""Values and gradients at every tap, for every origin: autograd on the plain model, and differences of values."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from dst_grpc.domain.components import LossFnName, PassType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from tests import models, plain, traces
from tests.closeness import assert_close
from tests.explained import N_LAYERS, Explained
from tests.unit.scalars.formulas import FORMULAS

if TYPE_CHECKING:
    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.engine.taps import Site

KINDS = (T.MLP_POST_ACT, T.RESID_DELTA_MLP, T.RESID_DELTA_ATTN)
BOTH = (T.MLP_POST_ACT, T.RESID_DELTA_ATTN)
RAW = {dst: L[dst.name] for dst in FORMULAS if dst.name in L.__members__ and "online" not in dst.value}
V_TO_LATENTS = [
    traces.trace(traces.HEAD, 1, 4, 2, 3, through=traces.V, downstream=traces.trace(node_type, 2, 4, 6, post=False))
    for node_type in (traces.MLP_LATENT, traces.ATTENTION_LATENT)
]
EVERY_ORIGIN = [
    *(Explained(origin=origin) for origin in (None, *traces.PLAIN_TRACES, *traces.V_TRACES, traces.V_OF_LOSS)),
    *(Explained(origin=origin) for origin in traces.V_CHAINS),
    *(Explained(kinds=(kind,), origin=origin) for kind in KINDS for origin in traces.latent_traces(kind)),
    *(Explained(kinds=BOTH, origin=origin) for origin in V_TO_LATENTS),
]
SOME_ORIGINS = [
    traces.PLAIN_TRACES[1],
    traces.PLAIN_TRACES[3],
    *traces.PLAIN_TRACES[4:9:2],
    traces.V_TRACES[0],
    traces.V_TRACES[2],
    traces.V_OF_LOSS,
    traces.V_CHAINS[1],
]
OTHERS = [
    x
    for architecture in models.ARCHITECTURES
    if architecture != "gpt2"
    for x in (
        *(Explained(architecture, origin=origin) for origin in SOME_ORIGINS),
        *(Explained(architecture, (kind,), origin) for kind in KINDS for origin in traces.latent_traces(kind)[:2]),
        *(Explained(architecture, BOTH, origin) for origin in V_TO_LATENTS),
    )
    if traces.is_seen(models.ARCHITECTURES[architecture], x.origin)
]


@pytest.mark.parametrize("x", [*EVERY_ORIGIN, *OTHERS], ids=str)
def test_values_and_gradients_at_every_tap_are_those_of_the_plain_model(x: Explained) -> None:
    raw = {dst: location for dst, location in RAW.items() if x.has(location)}
    given = models.request(*raw, config=DstConfig(derive_gradients=True), **x.fields)
    (result,) = x.world.results(given)
    reported = result.loss if x.origin is None else result.activation_value
    assert reported == pytest.approx(float(x.scalar(x.value)), rel=1e-9)
    for (dst, pass_type, layer), found in models.tensors(result).items():
        site: Site = (raw[dst], layer)
        expected = x.value[site] if pass_type is PassType.FORWARD else x.gradient[site]
        assert_close(found, expected, rtol=1e-8, atol=1e-10, msg=str(site))


def moved(x: Explained) -> torch.Tensor:
    """The tokens whose embedding the origin moves with, [T]."""
    return x.gradient[L.RESID_POST_EMBEDDING, None].abs().sum(dim=1) > 1e-9


def test_what_an_origin_reads_it_moves_with() -> None:
    """Or zeros would be compared with zeros above. Of latents some are 0, and so are their gradients."""
    latents = []
    for x in EVERY_ORIGIN:
        origin = x.origin
        if origin is None:
            assert moved(x).all()
        elif origin.attention_trace_type is traces.V:
            key = origin.node_index.tensor_indices[1] or 0
            assert moved(x)[key]
            assert not moved(x)[key + 1 :].any()
        elif "latent" in origin.node_index.node_type.value:
            latents.append(bool(moved(x).any()))
        else:
            assert moved(x).any(), x
    assert sum(latents) > len(latents) / 2


@pytest.mark.parametrize(
    ("config", "by_hand"),
    [
        (models.LOSS, traces.loss),
        (LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(2, 7)), lambda y: (y[2] + y[7]) / 2),
        (LossFnConfig(name=LossFnName.LOGIT_MINUS_MEAN, target_token_ids=(4, 4)), lambda y: y[4] - y.sum() / 19),
        (
            LossFnConfig(name=LossFnName.PROBS, target_token_ids=(3, 5, 5)),
            lambda y: (y[3].exp() + 2 * y[5].exp()) / y.exp().sum(),
        ),
        (LossFnConfig(name=LossFnName.ZERO), lambda y: 0 * y[0]),
        (LossFnConfig(name=LossFnName.LOGIT_DIFF, target_tokens=("c", "h")), lambda y: (y[2] + y[7]) / 2),
    ],
    ids=["difference", "targets", "minus mean", "probabilities", "zero", "by words"],
)
def test_losses_are_their_formulas(config: LossFnConfig, by_hand: plain.Loss) -> None:
    x = Explained()
    gradients = plain.gradients(x.plain, models.TOKENS, lambda taps: by_hand(taps[L.LOGITS, None][-1]))
    given = models.request(T.RESID_POST_ATTN, config=DstConfig(derive_gradients=True), loss_fn_config=config)
    (result,) = x.world.results(given)
    assert result.loss == pytest.approx(float(by_hand(x.value[L.LOGITS, None][-1])))
    for layer in range(N_LAYERS):
        found = models.tensors(result)[T.RESID_POST_ATTN, PassType.BACKWARD, layer]
        torch.testing.assert_close(found, gradients[L.RESID_POST_ATTN, layer])


def traced_value(x: Explained, *ablations: AblationSpec) -> float:
    (result,) = x.world.results(models.request(ablation_specs=ablations, **x.fields))
    value = result.activation_value
    assert value is not None
    return value


def at(location: L, layer: int | None, entry: tuple[int | None, ...], value: float) -> AblationSpec:
    index = ActivationIndex(activation_location_type=location, tensor_indices=entry, layer_index=layer)
    return AblationSpec(index=index, value=value)


# Only with detached parts does a derivative differ from the difference of values, so these have none.
WHOLE = [traces.PLAIN_TRACES[3], traces.PLAIN_TRACES[4], traces.trace(traces.MLP_LATENT, 2, 4, 6, post=False)]


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
@pytest.mark.parametrize("origin", WHOLE, ids=traces.name)
def test_a_gradient_is_what_the_traced_value_does_when_a_tap_is_moved(architecture: str, origin: TraceConfig) -> None:
    """Autograd of neither model has a say in this."""
    x = Explained(architecture, (T.RESID_DELTA_MLP,), origin)
    if not traces.is_seen(x.config, origin):
        x = replace(x, origin=traces.trace(traces.HEAD, 2, 4, 3, 3, through=traces.QK))
    for dst, layer, entry in (
        (T.ATTN_VALUE, 1, (3, 4, 1)),
        (T.MLP_PRE_ACT, 0, (3, 8)),
        (T.RESID_POST_EMBEDDING, None, (3, 5)),
    ):
        result = x.run(DerivedScalarSpec(dst=dst, config=DstConfig(derive_gradients=True)))
        (scalar,) = result.plan.scalars
        found = result.derivation(scalar).at(layer)
        value, gradient = (float(found[pass_type][entry]) for pass_type in (PassType.FORWARD, PassType.BACKWARD))
        up, down = (traced_value(x, at(L[dst.name], layer, entry, value + side)) for side in (1e-5, -1e-5))
        assert gradient == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-8), dst


@pytest.mark.parametrize("site", [(L.MLP_POST_ACT, 2), (L.MLP_INPUT_LAYER_NORM_SCALE, 2), (L.RESID_POST_MLP, 2)])
def test_ablations_in_the_traced_layer_after_its_residual_do_not_reach_the_trace(site: Site) -> None:
    """Q16."""
    x, (location, layer) = Explained(origin=traces.trace(traces.NEURON, 2, 4, 7)), site
    everywhere = (None,) * len(location.dimensions)
    assert traced_value(x, at(location, layer, everywhere, 3.0)) == traced_value(x)
    assert traced_value(x, at(location, 1, everywhere, 3.0)) != traced_value(x)
