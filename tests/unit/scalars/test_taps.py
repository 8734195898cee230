"""Components, directions and edges touch exactly the taps that they name: none is recorded in vain, and none missed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch

from dst_grpc.domain.autoencoders import InputNormalization
from dst_grpc.domain.components import Component, NodeType, PassType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.requests import DerivedScalarSpec
from dst_grpc.domain.scalar_facts import Backward, Direction, ScalarFacts
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.engine.taps import Site
from dst_grpc.pipeline.plan import PlannedScalar
from dst_grpc.pipeline.run import RunResult
from dst_grpc.scalars.derive import Derivation
from dst_grpc.scalars.explained_model import ExplainedModel
from dst_grpc.scalars.recorded_taps import RecordedTaps
from tests import models, traces


class Watched(dict[Site, torch.Tensor]):
    """Notes what is taken from it."""

    def __init__(self, given: dict[Site, torch.Tensor]) -> None:
        super().__init__(given)
        self.touched: set[Site] = set()

    def __getitem__(self, site: Site) -> torch.Tensor:
        self.touched.add(site)
        return super().__getitem__(site)

    def get(self, site: Site, default: torch.Tensor | None = None) -> torch.Tensor | None:  # type: ignore[override]  # no overloads
        if site in self:
            self.touched.add(site)
        return super().get(site, default)


def kinds_for(facts: ScalarFacts) -> tuple[T, ...]:
    """What autoencoders read, of each that the type is tried with."""
    if facts.autoencoder is NodeType.ATTENTION_AUTOENCODER_LATENT or facts.single_layer:
        return (T.RESID_DELTA_ATTN,)
    if facts.type is T.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR:
        return (T.RESID_DELTA_MLP,)
    if facts.type is T.AUTOENCODER_LATENT_GRAD_WRT_RESIDUAL_INPUT:
        return T.RESID_DELTA_MLP, T.RESID_POST_MLP
    if facts.tap is L.ONLINE_RESIDUAL_AUTOENCODER_ERROR:
        return (T.RESID_POST_MLP,)
    is_of_any = facts.autoencoder is NodeType.AUTOENCODER_LATENT and facts.component is Component.LATENT
    return (T.MLP_POST_ACT, T.RESID_POST_MLP) if is_of_any or facts.needs_attribution_node else (T.MLP_POST_ACT,)


def origins_for(facts: ScalarFacts) -> list[TraceConfig | None]:
    """A loss, or traces, that the type is derived with."""
    if facts.direction is Direction.FINAL_ACTIVATION_RESIDUAL_GRAD:
        return [traces.PLAIN_TRACES[2], traces.PLAIN_TRACES[-1], traces.V_TRACES[0], traces.V_OF_LOSS]
    if facts.direction is Direction.FINAL_RESIDUAL_GRAD:
        return [None, traces.PLAIN_TRACES[2], traces.V_OF_LOSS]
    return [None]


def configs_for(facts: ScalarFacts) -> list[DstConfig]:
    config = DstConfig(derive_gradients=facts.backward in {Backward.GRADIENT, Backward.RATIO})
    if facts.single_layer:
        config = replace(config, layer_indices=(1,))
    if facts.direction is Direction.LATENT_READ:
        config = replace(config, trace_config=traces.trace(traces.LATENT, 1, None, 3))
    if facts.needs_fake_grad_index:
        index = ActivationIndex(activation_location_type=L.MLP_POST_ACT, layer_index=1, tensor_indices=(None, 2))
        config = replace(config, activation_index_for_fake_grad=index)
    if not facts.needs_attribution_node:
        return [config]
    head = traces.node(traces.HEAD, 1, 4, 2, 3)
    nodes = [traces.subnode(head, part) for part in (L.ATTN_QUERY, L.ATTN_KEY, L.ATTN_VALUE)]
    others = [traces.node(traces.NEURON, 1, 4, 7), traces.node(traces.LATENT, 1, 4, 6)]
    return [replace(config, node_index_for_attribution=node) for node in [*nodes, *others]]


def derive(result: RunResult, scalar: PlannedScalar, recorded: RecordedTaps) -> list[torch.Tensor]:
    model = ExplainedModel(result.decoder, scalar.topology, tuple(result.sets[info.name] for info in scalar.sets))
    derivation = Derivation(model, recorded, scalar)
    return [tensor for layer in scalar.layers for tensor in derivation.at(layer).values()]


@pytest.mark.parametrize("normalization", [InputNormalization.NONE, InputNormalization.LAYER_NORM])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma", "neox"])
def test_each_type_touches_exactly_the_taps_that_it_names(architecture: str, normalization: InputNormalization) -> None:
    """Types that can be are derived of one run, each from what it names of it."""
    decoder = models.ARCHITECTURES[architecture]
    unsupported = models.world(config=decoder).unsupported
    together: dict[Any, list[DerivedScalarSpec]] = defaultdict(list)
    for dst, facts in FACTS.items():
        # Of inputs that are normalized, what a latent reads is no row of the encoder, and the type is refused.
        of_rows = facts.direction is Direction.ALL_LATENT_READS
        specs = [DerivedScalarSpec(dst=dst, config=config) for config in configs_for(facts)]
        for kind in kinds_for(facts) if dst not in unsupported else ():
            for origin in origins_for(facts):
                if traces.is_seen(decoder, origin):
                    together[kind, InputNormalization.NONE if of_rows else normalization, origin] += specs
    for (kind, how, origin), specs in together.items():
        world = models.world(kind, seed=5, config=decoder, normalization=how)
        fields = traces.fields_of(origin, models.LOSS)
        request = models.request(derived_scalars=tuple(specs), autoencoders=tuple(world.sets), **fields)
        (result,) = world.results(request)
        for scalar in result.plan.scalars:
            check(result, scalar)


def check(result: RunResult, scalar: PlannedScalar) -> None:
    """Derive *scalar* from what it names, and see that all of it is touched."""
    dst = scalar.facts.type
    named = {pass_type: {site for one, site in scalar.taps if one is pass_type} for pass_type in PassType}
    recorded = result.recording.taps
    values = Watched({site: recorded.values[site] for site in named[PassType.FORWARD]})
    gradients = Watched(
        {site: recorded.gradients[site] for site in named[PassType.BACKWARD] if site in recorded.gradients}
    )
    found = derive(result, scalar, RecordedTaps(values, gradients, recorded.n_tokens))
    everything = derive(result, scalar, recorded)
    assert all(torch.equal(one, other) for one, other in zip(found, everything, strict=True)), dst
    assert values.touched == named[PassType.FORWARD], dst
    assert gradients.touched == gradients.keys(), dst


def test_a_value_that_nobody_named_is_an_error_of_ours() -> None:
    world = models.world()
    (result,) = world.results(models.request(T.MLP_WRITE_NORM))
    (scalar,) = result.plan.scalars
    with pytest.raises(Exception, match=r"recorded no value at mlp\.post_act, layer 0"):
        derive(result, scalar, RecordedTaps({}, {}, 6))
