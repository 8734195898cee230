"""Values and gradients at every tap, for every origin: autograd on the plain model, and finite differences."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import pytest
import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.components import LossFnName, PassType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.engine.taps import Site
from tests import models, plain, traces

RAW = [facts.type for facts in FACTS.values() if facts.is_raw]
KINDS = (T.MLP_POST_ACT, T.RESID_DELTA_MLP, T.RESID_DELTA_ATTN)
CASES: list[tuple[TraceConfig | None, tuple[T, ...]]] = [
    (origin, ()) for origin in [None, *traces.PLAIN_TRACES, *traces.V_TRACES, traces.V_OF_LOSS, *traces.V_CHAINS]
]
CASES += [(origin, (kind,)) for kind in KINDS for origin in [None, *traces.latent_traces(kind)]]
CASES += [
    (traces.trace(traces.ATTENTION_LATENT, 2, 4, 3, post=False), (T.MLP_POST_ACT, T.RESID_DELTA_ATTN)),
    (traces.trace(traces.MLP_LATENT, 1, 4, 3, post=False), (T.RESID_DELTA_MLP, T.RESID_DELTA_ATTN)),
]


SOME_CASES = [
    (origin, kinds)
    for origin, kinds in CASES
    if not kinds or origin is None or origin in traces.latent_traces(kinds[0])[:4] or len(kinds) > 1
]
"""What other architectures than GPT-2's are tried with."""
OTHERS = [
    pytest.param(name, case, id=f"{name}-{'+'.join([traces.name(case[0]), *(kind.value for kind in case[1])])}")
    for name, config in models.ARCHITECTURES.items()
    for case in SOME_CASES
    if traces.is_seen(config, case[0])
]


def case_name(case: tuple[TraceConfig | None, tuple[T, ...]]) -> str:
    return "+".join([traces.name(case[0]), *(kind.value for kind in case[1])])


def plain_of(world: models.World, seed: int) -> plain.Plain:
    sets = {one.dst: one.by_layer for one in world.sets.values()}
    config = world.decoder.config
    return plain.Plain(config, models.weights(seed, config), sets, is_spliced=True)


def request(origin: TraceConfig | None, sets: Iterable[str], *types: T) -> DeriveRequest:
    config = DstConfig(derive_gradients=True)
    fields = traces.fields_of(origin, models.LOSS)
    return models.request(*types, config=config, autoencoders=tuple(sets), **fields)


@pytest.mark.parametrize("case", CASES, ids=case_name)
@pytest.mark.parametrize("seed", range(2))
def test_values_and_gradients_at_every_tap_are_those_of_the_plain_model(
    case: tuple[TraceConfig | None, tuple[T, ...]], seed: int
) -> None:
    check_against_plain(models.world(*case[1], seed=seed), case[0], seed)


@pytest.mark.parametrize(("architecture", "case"), OTHERS)
def test_so_they_are_in_every_architecture(architecture: str, case: tuple[TraceConfig | None, tuple[T, ...]]) -> None:
    """Grouped heads, rotary positions, gates, norms of all kinds, caps, windows, parallel layers."""
    check_against_plain(models.world(*case[1], seed=4, config=models.ARCHITECTURES[architecture]), case[0], 4)


def check_against_plain(world: models.World, origin: TraceConfig | None, seed: int) -> None:
    reference = plain_of(world, seed)
    values = reference.run(models.TOKENS)

    def scalar(taps: plain.Taps) -> torch.Tensor:
        if origin is None:
            return traces.loss(taps[L.LOGITS, None][-1])
        return reference.value(origin, reference.rho(taps, origin), taps, traces.loss)

    gradients = plain.gradients(reference, models.TOKENS, scalar)
    raw = [dst for dst in RAW if world.decoder.config.architecture.why_without(L[dst.name]) is None]
    (outcome,) = world.outcomes(request(origin, world.sets, *raw))
    reported = outcome.loss if origin is None else outcome.activation_value
    assert reported == pytest.approx(float(scalar(values)), rel=1e-9)
    for (dst, pass_type, layer), found in models.tensors(outcome).items():
        site: Site = (L[dst.name], layer)
        expected = values[site] if pass_type is PassType.FORWARD else gradients[site]
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10, msg=partial("{}: {}".format, site))


@pytest.mark.parametrize("chain", traces.V_CHAINS, ids=traces.name)
def test_a_chain_of_values_moves_with_the_token_at_its_end(chain: TraceConfig) -> None:
    """Or the test above would compare zeros with zeros."""
    (outcome,) = models.world().outcomes(request(chain, (), T.RESID_POST_EMBEDDING))
    gradient = models.tensors(outcome)[T.RESID_POST_EMBEDDING, PassType.BACKWARD, None]
    moved = gradient.abs().sum(dim=1) > 1e-9
    assert moved.tolist() == [token == chain.node_index.tensor_indices[1] for token in range(len(models.TOKENS))]


@pytest.mark.parametrize("kind", KINDS)
def test_traced_latents_after_phi_are_not_all_dead(kind: T) -> None:
    """Or the test above would compare zeros with zeros."""
    world = models.world(kind)
    found = []
    for origin in traces.latent_traces(kind):
        (outcome,) = world.outcomes(request(origin, world.sets, T.RESID_POST_EMBEDDING))
        tensors = models.tensors(outcome)
        found.append(bool(tensors[T.RESID_POST_EMBEDDING, PassType.BACKWARD, None].any()))
    assert sum(found) >= 4


@pytest.mark.parametrize("activation", [AutoencoderActivation.TOP_K, AutoencoderActivation.IDENTITY])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_other_activations_are_those_of_the_plain_model(
    kind: T, activation: AutoencoderActivation
) -> None:
    world = models.world(kind, activation=activation)
    reference = plain_of(world, 0)
    latent, error = plain.LATENT[kind], plain.ERROR[kind]
    gradients = plain.gradients(reference, models.TOKENS, lambda taps: traces.loss(taps[L.LOGITS, None][-1]))
    values = reference.run(models.TOKENS)
    act_times_grad = {
        L.ONLINE_MLP_AUTOENCODER_LATENT: T.ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD,
        L.ONLINE_ATTENTION_AUTOENCODER_LATENT: T.ONLINE_ATTENTION_AUTOENCODER_ACT_TIMES_GRAD,
    }[latent]
    wanted = (act_times_grad, T[latent.name], T[error.name])
    found = world.derive(models.request(*wanted, autoencoders=tuple(world.sets), loss_fn_config=models.LOSS))
    for layer in range(3):
        expected = values[latent, layer] * gradients[latent, layer]
        torch.testing.assert_close(found[act_times_grad, PassType.FORWARD, layer], expected)
        for location in (latent, error):
            expected = values[location, layer]
            torch.testing.assert_close(found[T[location.name], PassType.FORWARD, layer], expected)


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
    world = models.world()
    reference = plain_of(world, 0)
    gradients = plain.gradients(reference, models.TOKENS, lambda taps: by_hand(taps[L.LOGITS, None][-1]))
    given = models.request(T.RESID_POST_ATTN, config=DstConfig(derive_gradients=True), loss_fn_config=config)
    (outcome,) = world.outcomes(given)
    assert outcome.loss == pytest.approx(float(by_hand(reference.run(models.TOKENS)[L.LOGITS, None][-1])))
    for layer in range(3):
        found = models.tensors(outcome)[T.RESID_POST_ATTN, PassType.BACKWARD, layer]
        torch.testing.assert_close(found, gradients[L.RESID_POST_ATTN, layer])


def overwritten(location: L, layer: int | None, entry: tuple[int, ...], value: float) -> AblationSpec:
    index = ActivationIndex(activation_location_type=location, tensor_indices=entry, layer_index=layer)
    return AblationSpec(index=index, value=value)


NUMERIC = [
    *traces.PLAIN_TRACES[2:6],
    # Only with detached parts does a derivative differ from the difference of values, so these have none.
    *(traces.trace(traces.MLP_LATENT, 2, 4, 6, post=post) for post in (False, True)),
]


MOVED = [
    pytest.param(architecture, seed, origin, id=f"{architecture}-{seed}-{traces.name(origin)}")
    for architecture, seed in [("gpt2", 0), ("gpt2", 1), ("gpt2", 2), *((name, 0) for name in models.ARCHITECTURES)]
    for origin in NUMERIC
    if not origin.detach_layer_norm_scale and traces.is_seen(models.GPT2_AND_OTHERS[architecture], origin)
]


@pytest.mark.parametrize(("architecture", "seed", "origin"), MOVED)
def test_a_trace_s_gradient_is_what_the_traced_value_does_when_a_tap_is_moved(
    architecture: str, seed: int, origin: TraceConfig
) -> None:
    world = models.world(T.RESID_DELTA_MLP, seed=seed, config=models.GPT2_AND_OTHERS[architecture])
    generator = torch.Generator().manual_seed(seed)
    (outcome,) = world.outcomes(request(origin, world.sets, T.ATTN_VALUE, T.MLP_PRE_ACT, T.RESID_POST_EMBEDDING))
    tensors = models.tensors(outcome)
    if origin.attention_trace_type not in {None, traces.QK}:
        pytest.fail("a trace through one input only has detached parts")
    for dst, layer in ((T.ATTN_VALUE, 1), (T.MLP_PRE_ACT, 0), (T.RESID_POST_EMBEDDING, None)):
        value = tensors[dst, PassType.FORWARD, layer]
        entry = (3, *(int(torch.randint(size, (), generator=generator)) for size in value.shape[1:]))
        moved = []
        for side in (1, -1):
            spec = overwritten(L[dst.name], layer, entry, float(value[entry]) + side * 1e-5)
            given = models.request(trace_config=origin, ablation_specs=(spec,), autoencoders=tuple(world.sets))
            (changed,) = world.outcomes(given)
            assert changed.activation_value is not None
            moved.append(changed.activation_value)
        gradient = float(tensors[dst, PassType.BACKWARD, layer][entry])
        assert gradient == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-4, abs=1e-8), (dst, entry)


@pytest.mark.parametrize("site", [(L.MLP_POST_ACT, 2), (L.MLP_INPUT_LAYER_NORM_SCALE, 2), (L.RESID_POST_MLP, 2)])
def test_ablations_in_the_traced_layer_after_its_residual_do_not_reach_the_trace(site: Site) -> None:
    """Q16."""
    world, origin = models.world(), traces.trace(traces.NEURON, 2, 4, 7)
    location, layer = site
    spec = AblationSpec(
        index=ActivationIndex(
            activation_location_type=location, layer_index=layer, tensor_indices=(None,) * len(location.dimensions)
        ),
        value=3.0,
    )
    values = [
        world.outcomes(models.request(trace_config=origin, ablation_specs=specs))[0].activation_value
        for specs in ((), (spec,))
    ]
    assert values[0] == values[1]


def test_the_sum_over_embeddings_of_act_times_grad_is_the_directional_derivative() -> None:
    """TOKEN_ATTRIBUTION sums to the derivative of the loss when all embeddings grow together."""
    world = models.world()
    reference = plain_of(world, 0)
    (attribution,) = world.one(T.TOKEN_ATTRIBUTION, loss_fn_config=models.LOSS).values()

    def grown(by: float) -> float:
        def edit(site: Site, x: torch.Tensor) -> torch.Tensor:
            return x * (1 + by) if site[0] is L.RESID_POST_EMBEDDING else x

        return float(traces.loss(reference.run(models.TOKENS, edit)[L.LOGITS, None][-1]))

    assert attribution.shape == (6, 1)
    assert float(attribution.sum()) == pytest.approx((grown(1e-5) - grown(-1e-5)) / 2e-5, rel=1e-6)
