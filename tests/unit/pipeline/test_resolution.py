"""What clients are told of plans: canonical configs, and handles as far as they are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dst_grpc.contexts import ContextCache
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.resolution import ContextState, Resolution
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.resolution import Resolver
from tests import models, traces

from .planning import ATTN, NEURON, PARTIAL, WORLD, plan


@pytest.fixture
async def resolver() -> Resolver:
    return Resolver(ContextCache(WORLD.registry), lambda n_bytes: n_bytes)


def handle(name: str) -> str:
    return WORLD.registry.entry(name).handle


async def test_the_canonical_config_has_every_context_and_default_filled_in(resolver: Resolver) -> None:
    found = plan(T.MLP_AUTOENCODER_LATENT, T.LOGITS, autoencoders=(PARTIAL, ATTN), model=None)
    resolution = await resolver.resolution(found, WORLD.registry)
    latents, logits = resolution.scalars
    assert latents.config == DstConfig(
        model_name="tiny",
        model_context=handle("tiny"),
        multi_autoencoder_context=(handle(PARTIAL), handle(ATTN)),
        layer_indices=(1,),
        device_for_raw_activations="cpu",
    )
    assert logits.config.layer_indices is None
    assert resolution.config == replace(latents.config, layer_indices=None)
    assert [info.handle for info in resolution.autoencoders] == [handle(PARTIAL), handle(ATTN)]
    assert [context.state for context in resolution.contexts] == [ContextState.NOT_LOADED] * 3


async def test_a_trace_that_a_config_inherits_is_told(resolver: Resolver) -> None:
    origin = traces.trace(NEURON, 1, 4, 3)
    found = plan(T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD, trace_config=origin)
    resolution = await resolver.resolution(found, WORLD.registry)
    assert resolution.scalars[0].config.trace_config == resolution.config.trace_config == origin


async def test_the_bytes_told_are_those_that_the_process_takes() -> None:
    found = plan(T.LOGITS)
    resolution = await Resolver(ContextCache(WORLD.registry), lambda n_bytes: 3 * n_bytes).resolution(
        found, WORLD.registry
    )
    assert resolution.cost == replace(found.cost, peak_bytes=3 * found.cost.peak_bytes)


async def test_a_config_in_canonical_form_plans_the_same(resolver: Resolver) -> None:
    first = plan(T.MLP_AUTOENCODER_LATENT, config=DstConfig(autoencoder_context=PARTIAL))
    canonical = (await resolver.resolution(first, WORLD.registry)).scalars[0].config
    again = plan(T.MLP_AUTOENCODER_LATENT, config=canonical)
    assert again.scalars[0] == first.scalars[0]


async def test_of_files_whose_digest_is_not_known_the_name_is_told_until_it_is() -> None:
    entry = models.model_entry("tiny", models.CONFIG, digested=False)
    registry = models.FakeRegistry([entry])
    resolver = Resolver(ContextCache(registry), lambda n_bytes: n_bytes)
    found = make_plan(models.request(T.LOGITS), registry)

    async def told() -> tuple[Any, ...]:
        resolution: Resolution = await resolver.resolution(found, registry)
        return resolution.scalars[0].config.model_context, resolution.config.model_context, resolution.model.handle

    assert await told() == ("tiny", "tiny", "")
    entry.digest()
    assert await told() == (entry.handle,) * 3
    assert "@" in entry.handle
