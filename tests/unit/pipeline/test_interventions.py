"""Set, add and scale at every tap and any selection: every number that follows is that of the plain model."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from dst_grpc.domain.interventions import Intervention, ScaleValue
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import TapSelection
from dst_grpc.engine.taps import Site
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.recording import Recording
from dst_grpc.pipeline.run import run
from tests import interventions, models, plain
from tests.closeness import assert_close

SPLICED: dict[str, tuple[plain.Kind, ...]] = {
    "gpt2": (T.MLP_POST_ACT, T.RESID_DELTA_ATTN),
    "gemma": (plain.Transcoder.CROSS_LAYER, T.RESID_DELTA_ATTN),
    "neox": (plain.Transcoder.NORMED, T.RESID_DELTA_ATTN),
}
"""By architecture."""
WORLDS = {name: models.world(*kinds, seed=5, config=models.ARCHITECTURES[name]) for name, kinds in SPLICED.items()}
TAPS = [
    (name, location)
    for name, world in WORLDS.items()
    for location in (
        *dict.fromkeys(location for location, _ in models.sites(world.decoder.config)),
        *(tap for kind in SPLICED[name] for tap in models.input_of(kind).splice_taps),
    )
]
PROMPTS = [(3, 1, 4, 1, 5, 9), (2, 6), (5, 3, 5), (8, 9, 7, 9, 3)]
TARGET = 2


def sites_of(world: models.World) -> list[Site]:
    spliced = [tap for one in world.sets.values() for tap in one.input.splice_taps]
    return [*models.sites(world.decoder.config), *((tap, layer) for tap in spliced for layer in range(3))]


def recorded(
    world: models.World, prompts: Sequence[Sequence[int]], changes: Sequence[Sequence[Intervention]]
) -> list[Recording]:
    """Everything that a batch of *prompts*, each with its own *changes*, records."""
    sites = frozenset(sites_of(world))
    plans = [
        make_plan(
            models.request(
                tokens=tokens, interventions=tuple(own), loss_fn_config=models.LOSS, autoencoders=tuple(world.sets)
            ),
            world.registry,
        )
        for tokens, own in zip(prompts, changes, strict=True)
    ]
    wanted = [replace(plan, values=sites, gradients=sites) for plan in plans]
    return [result.recording for result in run(wanted, world.decoder, world.sets)]


def by_hand(
    name: str, world: models.World, tokens: Sequence[int], changes: Sequence[Intervention]
) -> tuple[Mapping[Site, torch.Tensor], Mapping[Site, torch.Tensor]]:
    """Values, and gradients of the loss, of the plain model."""
    config = world.decoder.config
    reference = plain.Plain(config, models.weights(5, config), world.by_kind, is_spliced=True)

    def edit(site: Site, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_() if site == (L.RESID_POST_EMBEDDING, None) else x
        for one in changes:
            if one.at.activation_location_type is site[0] and one.at.layer_index in {None, site[1]}:
                x = interventions.by_hand(x, one)
        return x.view_as(x)

    values = reference.run(tokens, edit)
    logits = values[L.LOGITS, None][-1]
    loss = (logits[2] + 2 * logits[7]) / 3 - logits[11]
    gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
    return values, {site: g for site, g in zip(values, gradients, strict=True) if g is not None}


def check(
    found: Recording, expected: tuple[Mapping[Site, torch.Tensor], Mapping[Site, torch.Tensor]], what: object
) -> None:
    """Every value and gradient is as expected."""
    values, gradients = expected
    name = str(what)
    assert found.taps.values.keys() == values.keys()
    for site, value in values.items():
        text = f"{name}: at {site}"
        gradient = gradients.get(site, torch.zeros_like(value))
        ours = found.taps.gradient(site, value.detach())
        assert_close(found.taps.values[site], value.detach(), rtol=1e-7, atol=1e-8, msg=text)
        assert_close(ours, gradient, rtol=1e-7, atol=1e-8, msg=f"gradient of {text}")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("name", "location"), TAPS)
def test_every_number_of_a_padded_batch_is_that_of_the_plain_model(name: str, location: L, seed: int) -> None:
    """Each prompt has a selection of another kind; the architectures together see every kind with every action."""
    world, chance = WORLDS[name], random.Random(f"{name} {location} {seed}")
    changes = []
    for i, tokens in enumerate(PROMPTS):
        layer = None if location.has_no_layers else chance.choice([None, 0, 1, 2])
        shape = interventions.sizes(
            location, world.decoder.config, len(tokens), models.latents_at(location, SPLICED[name])
        )
        select, act = interventions.SELECTIONS[i], interventions.ACTIONS[(i + seed + list(WORLDS).index(name)) % 4]
        changes.append([interventions.anything(chance, location, layer, shape, select=select, act=act)])
    for tokens, own, found in zip(PROMPTS, changes, recorded(world, PROMPTS, changes), strict=True):
        check(found, by_hand(name, world, tokens, own), own)


@pytest.mark.parametrize("name", WORLDS)
def test_interventions_apply_in_their_order(name: str) -> None:
    """Several at one tap, and at others before and after it."""
    world, chance = WORLDS[name], random.Random(name)
    config, tokens = world.decoder.config, PROMPTS[0]
    places: list[Site] = [
        (L.RESID_POST_MLP, 1),
        (L.RESID_POST_MLP, 1),
        (L.ATTN_VALUE, None),
        (L.RESID_POST_MLP, 1),
        (L.RESID_POST_EMBEDDING, None),
    ]
    own = [interventions.anything(chance, *site, interventions.sizes(site[0], config, len(tokens))) for site in places]
    (found,) = recorded(world, [tokens], [own])
    check(found, by_hand(name, world, tokens, own), own)


def scale_of(location: L, factor: float) -> Intervention:
    return Intervention(at=TapSelection(activation_location_type=location), action=ScaleValue(factor=factor))


@pytest.mark.parametrize(
    ("make", "is_same"),
    [(list, True), (lambda: [scale_of(L.RESID_DELTA_MLP, 1.0)], True), (lambda: [scale_of(L.ATTN_KEY, 0.0)], False)],
)
def test_one_prompt_s_interventions_never_change_another_s_numbers(
    make: Callable[[], list[Intervention]], is_same: bool
) -> None:
    world = WORLDS["gemma"]
    everything = [scale_of(L.RESID_POST_ATTN, -3.0), scale_of(L.ATTN_QK_PROBS, 7.0), scale_of(L.LOGITS, 0.0)]
    (alone,) = recorded(world, PROMPTS[:1], [[]])
    beside, _ = recorded(world, PROMPTS[:2], [make(), everything])
    changed = [
        site
        for site, value in alone.taps.values.items()
        if not torch.allclose(beside.taps.values[site], value, rtol=1e-9, atol=1e-10)
        or not torch.allclose(
            beside.taps.gradient(site, value), alone.taps.gradient(site, value), rtol=1e-9, atol=1e-10
        )
    ]
    assert (changed == []) is is_same
