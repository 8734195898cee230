"""Interventions that read other runs: patching, means, holding. Every number is that of the plain model."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.domain.interventions import (
    UNCHANGED,
    Action,
    AddVector,
    CopyFromRun,
    HoldValue,
    Intervention,
    MeanOverRuns,
    ScaleValue,
    SetValue,
)
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import DeriveRequest, Prompt, SourceRun
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import PositionList, PositionRange, TapSelection
from dst_grpc.engine.taps import Site
from dst_grpc.errors import InvalidRequest
from dst_grpc.pipeline.interventions import with_tensors
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.recording import Recording
from dst_grpc.pipeline.run import run
from tests import interventions, models, plain
from tests.closeness import assert_close

SPLICED: dict[str, tuple[plain.Kind, ...]] = {
    "gpt2": (T.MLP_POST_ACT, T.RESID_DELTA_ATTN),
    "gemma": (plain.Transcoder.CROSS_LAYER, T.RESID_DELTA_ATTN),
    "llama": (T.MLP_POST_ACT, T.RESID_DELTA_ATTN),
    "neox": (T.MLP_POST_ACT, T.RESID_DELTA_ATTN),
}
"""By architecture."""
WORLDS = {name: models.world(*kinds, seed=5, config=models.ARCHITECTURES[name]) for name, kinds in SPLICED.items()}
BASE, SOURCE, THIRD, LONG = (3, 1, 4, 1, 5, 9), (2, 7, 1, 8, 2, 8), (1, 4, 1, 4, 2, 1), (5, 7, 7, 2, 1, 5, 6, 6, 4)
TAPS = [
    (name, location)
    for name, world in WORLDS.items()
    for location in (
        *dict.fromkeys(location for location, _ in models.sites(world.decoder.config)),
        *(tap for kind in SPLICED[name] for tap in models.input_of(kind).splice_taps),
    )
]


def at(location: L, layer: int | None, *axes: Any, action: Action) -> Intervention:
    selection = TapSelection(activation_location_type=location, layer_index=layer, axes=axes)
    return Intervention(at=selection, action=action)


def source(name: str, tokens: Sequence[int] | None, *changes: Intervention) -> SourceRun:
    prompt = None if tokens is None else Prompt(token_ids=tuple(tokens))
    return SourceRun(name=name, prompt=prompt, interventions=changes)


def request(
    world: models.World, *changes: Intervention, tokens: Sequence[int] = BASE, sources: Sequence[SourceRun] = ()
) -> DeriveRequest:
    return models.request(
        tokens=tokens,
        interventions=changes,
        source_runs=tuple(sources),
        loss_fn_config=models.LOSS,
        autoencoders=tuple(world.sets),
    )


def recorded(world: models.World, *requests: DeriveRequest) -> list[Recording]:
    """Everything that a batch records."""
    spliced = [tap for one in world.sets.values() for tap in one.input.splice_taps]
    sites = frozenset((*models.sites(world.decoder.config), *((tap, layer) for tap in spliced for layer in range(3))))
    plans = [replace(make_plan(one, world.registry), values=sites, gradients=sites) for one in requests]
    return [result.recording for result in run(plans, world.decoder, world.sets)]


def reference(name: str) -> plain.Plain:
    world = WORLDS[name]
    config = world.decoder.config
    return plain.Plain(config, models.weights(5, config), world.by_kind, is_spliced=True)


Changed = Mapping[Site, Mapping[tuple[int, ...], torch.Tensor]]
"""Entries of taps and what they are replaced by."""


def by_hand(
    name: str, tokens: Sequence[int], changed: Changed
) -> tuple[Mapping[Site, torch.Tensor], Mapping[Site, torch.Tensor]]:
    """Values and gradients of the loss of the plain model, with entries of taps replaced by constants."""

    def edit(site: Site, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_() if site == (L.RESID_POST_EMBEDDING, None) else x
        x = x.clone()
        for entry, value in changed.get(site, {}).items():
            x[entry] = value
        return x

    values = reference(name).run(tokens, edit)
    logits = values[L.LOGITS, None][-1]
    loss = (logits[2] + 2 * logits[7]) / 3 - logits[11]
    found: Sequence[torch.Tensor | None] = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
    return values, {site: g for site, g in zip(values, found, strict=True) if g is not None}


def check(
    found: Recording, expected: tuple[Mapping[Site, torch.Tensor], Mapping[Site, torch.Tensor]], bound: float = 1e-7
) -> None:
    values, gradients = expected
    assert found.taps.values.keys() == values.keys()
    for site, value in values.items():
        gradient = gradients.get(site, torch.zeros_like(value))
        assert_close(found.taps.values[site], value.detach(), rtol=bound, atol=bound / 10, msg=str(site))
        ours = found.taps.gradient(site, value.detach())
        assert_close(ours, gradient, rtol=bound, atol=bound / 10, msg=f"gradient at {site}")


def selected(selection: TapSelection, x: torch.Tensor) -> list[tuple[int, ...]]:
    """The entries of a tap that are selected."""
    chosen = interventions.is_selected(selection, x.shape)
    return [tuple(map(int, entry)) for entry in np.argwhere(chosen)]


@pytest.mark.parametrize(("name", "location"), TAPS)
def test_selected_entries_are_those_of_another_run(name: str, location: L) -> None:
    """Any tap and selection, in both directions and at once, beside a longer prompt; gradients flow into no source."""
    world, chance = WORLDS[name], random.Random(f"{name} {location}")
    layer = None if location.has_no_layers else chance.randrange(3)
    shape = interventions.sizes(location, world.decoder.config, len(BASE), models.latents_at(location, SPLICED[name]))
    selection = interventions.selection(chance, location, layer, shape, chance.choice(interventions.SELECTIONS))
    patch = Intervention(at=selection, action=CopyFromRun(run="other"))
    there, back, _ = recorded(
        world,
        request(world, patch, sources=[source("other", SOURCE)]),
        request(world, patch, tokens=SOURCE, sources=[source("other", BASE)]),
        request(world, tokens=LONG),
    )
    for found, tokens, other in ((there, BASE, SOURCE), (back, SOURCE, BASE)):
        read = reference(name).run(other)[location, layer].detach()
        entries = {entry: read[entry] for entry in selected(selection, read)}
        check(found, by_hand(name, tokens, {(location, layer): entries}))


@pytest.mark.parametrize("rank", [1, 3])
def test_only_the_component_in_a_subspace_is_taken_from_another_run(rank: int) -> None:
    """Of vectors that are neither orthogonal nor independent; gradients flow through the rest."""
    name, world, site = "llama", WORLDS["llama"], (L.RESID_POST_MLP, 1)
    basis = torch.randn(rank, 8, generator=torch.Generator().manual_seed(rank), dtype=torch.float32)
    rows = torch.cat([basis, basis.sum(0, keepdim=True)])
    patch = at(*site, 3, action=CopyFromRun(run="other", subspace=RequestTensor(tensor=rows.numpy())))
    (found,) = recorded(world, request(world, patch, sources=[source("other", SOURCE)]))
    other = reference(name).run(SOURCE)[site].detach()
    q = torch.linalg.qr(basis.double().T).Q

    def edit(at_site: Site, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_() if at_site == (L.RESID_POST_EMBEDDING, None) else x.view_as(x)
        if at_site != site:
            return x
        x = x.clone()
        x[3] = x[3] + (other[3] - x[3]) @ q @ q.T
        return x

    values = reference(name).run(BASE, edit)
    logits = values[L.LOGITS, None][-1]
    loss = (logits[2] + 2 * logits[7]) / 3 - logits[11]
    gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
    known = {each: g for each, g in zip(values, gradients, strict=True) if g is not None}
    # The rows are float32, so that their span is known to about 1e-7 only: dependent ones are told from others by that.
    check(found, (values, known), bound=1e-5)


@pytest.mark.parametrize("name", WORLDS)
def test_every_layer_is_patched_from_its_own(name: str) -> None:
    patch = at(L.RESID_DELTA_MLP, None, PositionList(positions=(4, 1)), action=CopyFromRun(run="other"))
    (found,) = recorded(WORLDS[name], request(WORLDS[name], patch, sources=[source("other", SOURCE)]))
    read = reference(name).run(SOURCE)
    sites: list[Site] = [(L.RESID_DELTA_MLP, layer) for layer in range(3)]
    changed: Changed = {site: {(t,): read[site][t].detach() for t in (1, 4)} for site in sites}
    check(found, by_hand(name, BASE, changed))


@pytest.mark.parametrize("over_positions", [False, True])
@pytest.mark.parametrize("location", [L.ATTN_WEIGHTED_SUM_OF_VALUES, L.RESID_DELTA_MLP, L.MLP_POST_ACT, L.ATTN_KEY])
def test_a_mean_is_over_runs_or_over_their_positions_too(location: L, over_positions: bool) -> None:
    """Of runs of several lengths, where it is over positions, each of which has the same weight."""
    name, world = "llama", WORLDS["llama"]
    other = LONG if over_positions else THIRD
    sources = [source("a", SOURCE), source("b", other)]
    mean = MeanOverRuns(runs=("a", "b", "a"), over_positions=over_positions)
    axes = (None, 1) if location in {L.ATTN_WEIGHTED_SUM_OF_VALUES, L.ATTN_KEY} else (PositionRange(start=1, stop=5),)
    (found,) = recorded(world, request(world, at(location, 1, *axes, action=mean), sources=sources))
    read = [reference(name).run(tokens)[location, 1].detach() for tokens in (SOURCE, other)]
    if over_positions:
        total = torch.cat([read[0], read[1], read[0]])
        mean_value = total.mean(0).expand(len(BASE), *total.shape[1:])
    else:
        mean_value = (2 * read[0] + read[1]) / 3
    selection = TapSelection(activation_location_type=location, axes=axes)
    entries = {entry: mean_value[entry] for entry in selected(selection, mean_value)}
    check(found, by_hand(name, BASE, {(location, 1): entries}))


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_held_stays_as_it_would_be_without_any_change(name: str) -> None:
    """Patterns of all layers are frozen, while the embedding is doubled."""
    doubled = at(L.RESID_POST_EMBEDDING, None, action=ScaleValue(factor=2.0))
    frozen = at(L.ATTN_QK_PROBS, None, action=HoldValue())
    (found,) = recorded(WORLDS[name], request(WORLDS[name], doubled, frozen))
    read = reference(name).run(BASE)
    changed: dict[Site, Mapping[tuple[int, ...], torch.Tensor]] = {
        (L.RESID_POST_EMBEDDING, None): {(): 2 * read[L.RESID_POST_EMBEDDING, None].detach()}
    }
    changed |= {(L.ATTN_QK_PROBS, layer): {(): read[L.ATTN_QK_PROBS, layer].detach()} for layer in range(3)}
    found_values, expected = found.taps.values, by_hand(name, BASE, changed)[0]
    for site, value in expected.items():
        assert_close(found_values[site], value.detach(), rtol=1e-7, atol=1e-8, msg=str(site))


def test_runs_that_are_read_may_be_changed_and_read_others() -> None:
    """A path: what the second layer writes in a run whose first layer is another prompt's."""
    name, world = "gpt2", WORLDS["gpt2"]
    first: Site = (L.RESID_DELTA_ATTN, 0)
    second: Site = (L.RESID_DELTA_MLP, 1)
    sources = [
        source("path", None, at(*first, action=CopyFromRun(run="other")), at(*second, 0, action=SetValue(scalar=0.5))),
        source("other", SOURCE),
        source("unread", LONG),
    ]
    (found,) = recorded(world, request(world, at(*second, action=CopyFromRun(run="path")), sources=sources))
    read = reference(name).run(SOURCE)[first].detach()
    path = by_hand(name, BASE, {first: {(): read}, second: {(0,): torch.tensor(0.5)}})[0][second].detach()
    check(found, by_hand(name, BASE, {second: {(): path}}))


def test_the_unchanged_run_of_a_run_that_is_read_is_its_own() -> None:
    name, world = "gpt2", WORLDS["gpt2"]
    zero = at(L.RESID_POST_EMBEDDING, None, action=ScaleValue(factor=0.0))
    kept = at(L.RESID_POST_MLP, 0, action=CopyFromRun(run=UNCHANGED))
    sources = [source("other", SOURCE, zero, kept)]
    (found,) = recorded(
        world, request(world, at(L.RESID_POST_MLP, 1, action=CopyFromRun(run="other")), sources=sources)
    )
    site: Site = (L.RESID_POST_MLP, 1)
    check(found, by_hand(name, BASE, {site: {(): reference(name).run(SOURCE)[site].detach()}}))


def test_stored_tensors_are_found_in_the_runs_that_are_read_too() -> None:
    world = WORLDS["gpt2"]
    put, numbers = RequestTensor(handle="v"), RequestTensor(tensor=np.linspace(-1, 1, 8))

    def asked(vector: RequestTensor) -> DeriveRequest:
        steer = at(L.RESID_POST_MLP, 0, action=AddVector(vector=vector))
        patch = at(L.RESID_POST_MLP, 1, action=CopyFromRun(run="steered"))
        return request(world, patch, sources=[source("steered", None, steer)])

    planned = make_plan(asked(put), world.registry)
    (found,) = with_tensors([planned], interventions.Shelf(v=numbers), [""])
    assert found.run.key == make_plan(asked(numbers), world.registry).run.key
    (path,) = (violation.field for violation in refused(lambda: with_tensors([planned], None, [""])))
    assert path == "source_runs[0].interventions[0].add.vector.handle"


def refused(make: Any) -> Any:
    with pytest.raises(InvalidRequest) as caught:
        make()
    return caught.value.violations


def in_subspace(rows: Any) -> CopyFromRun:
    return CopyFromRun(run=UNCHANGED, subspace=RequestTensor(tensor=rows))


COPY = at(L.RESID_POST_MLP, 1, action=CopyFromRun(run="other"))


@pytest.mark.parametrize(
    ("changes", "sources", "expected"),
    [
        ([COPY], [], ["interventions[0].copy.run"]),
        ([COPY], [source("othr", SOURCE)], ["interventions[0].copy.run"]),
        (
            [at(L.RESID_POST_MLP, 1, action=MeanOverRuns(runs=("a", "b")))],
            [source("a", SOURCE)],
            ["interventions[0].mean.runs[1]"],
        ),
        ([COPY], [source("other", LONG)], ["interventions[0].copy.run"]),
        ([at(L.RESID_POST_MLP, 1, 5, action=CopyFromRun(run="other"))], [source("other", LONG)], []),
        (
            [at(L.RESID_POST_MLP, 1, PositionList(positions=(0, 3)), action=CopyFromRun(run="other"))],
            [source("other", LONG[:3])],
            ["interventions[0].copy.run"],
        ),
        (
            [at(L.ATTN_QK_PROBS, 1, 2, None, 0, action=CopyFromRun(run="other"))],
            [source("other", LONG)],
            ["interventions[0].copy.run"],
        ),
        (
            [at(L.ATTN_QK_PROBS, 1, action=MeanOverRuns(runs=("other",)))],
            [source("other", SOURCE), source("other", BASE)],
            ["source_runs[1].name"],
        ),
        (
            [
                at(
                    L.RESID_POST_MLP,
                    1,
                    action=CopyFromRun(run=UNCHANGED, subspace=RequestTensor(tensor=np.ones((2, 7)))),
                )
            ],
            [],
            ["interventions[0].copy.subspace.tensor"],
        ),
        (
            [
                at(
                    L.RESID_POST_MLP,
                    1,
                    action=CopyFromRun(run=UNCHANGED, subspace=RequestTensor(tensor=np.zeros((2, 8)))),
                )
            ],
            [],
            ["interventions[0].copy.subspace.tensor"],
        ),
        ([], [source(UNCHANGED, SOURCE)], ["source_runs[0].name"]),
        ([], [source("a", (1, 99))], ["source_runs[0].prompt.token_ids.token_ids[1]"]),
        ([], [source("a", (1,) * 300)], ["source_runs[0].prompt"]),
        (
            [],
            [source("a", SOURCE, at(L.RESID_POST_MLP, 7, action=ScaleValue(factor=2.0)))],
            ["source_runs[0].interventions[0].at.layer_index"],
        ),
        (
            [COPY],
            [source("other", SOURCE, at(L.RESID_POST_MLP, 0, action=CopyFromRun(run="a"))), source("a", None, COPY)],
            ["source_runs[0].interventions[0].copy.run", "source_runs[1].interventions[0].copy.run"],
        ),
    ],
)
def test_what_cannot_be_read_is_refused_at_its_field(
    changes: Sequence[Intervention], sources: Sequence[SourceRun], expected: list[str]
) -> None:
    world = WORLDS["gpt2"]

    def ask() -> None:
        make_plan(request(world, *changes, sources=sources), world.registry)

    if not expected:
        ask()
        return
    assert sorted(violation.field for violation in refused(ask)) == expected


def test_at_most_eight_runs_read_one_another_in_a_row() -> None:
    def chain(length: int) -> list[SourceRun]:
        read = [at(L.RESID_POST_MLP, 0, action=CopyFromRun(run=str(i + 1))) for i in range(length - 1)]
        return [source(str(i), None, *read[i : i + 1]) for i in range(length)]

    start = at(L.RESID_POST_MLP, 0, action=CopyFromRun(run="0"))
    assert request(WORLDS["gpt2"], start, sources=chain(8)).source_runs
    (first,) = refused(lambda: request(WORLDS["gpt2"], start, sources=chain(9)))
    assert first.field == "source_runs[0].interventions[0].copy.run"
    fields = [one.field for one in refused(lambda: request(WORLDS["gpt2"], start, sources=chain(12)))]
    assert fields == [f"source_runs[{i}].interventions[0].copy.run" for i in range(4)]


def test_the_cost_counts_the_runs_that_are_read() -> None:
    world = WORLDS["gpt2"]
    alone = make_plan(request(world), world.registry).cost
    beside = make_plan(request(world, COPY, sources=[source("other", SOURCE)]), world.registry).cost
    assert beside.floating_point_operations > alone.floating_point_operations * 4 / 3
    assert beside.peak_bytes > alone.peak_bytes


def test_what_is_not_finite_is_found_in_the_run_that_reads_it() -> None:
    """And in no other of the batch."""
    world = models.world(dtype=torch.float32)
    huge = at(L.RESID_POST_EMBEDDING, None, action=ScaleValue(factor=3e38))
    patch = at(L.RESID_POST_EMBEDDING, None, 2, action=CopyFromRun(run="huge"))
    patched = request(world, patch, sources=[source("huge", SOURCE, huge, huge)])
    found, beside = recorded(world, patched, request(world, tokens=LONG))
    assert beside.not_finite is None
    assert found.not_finite is not None
    assert found.not_finite.activation_location_type is L.RESID_POST_EMBEDDING
    assert found.not_finite.token_index == 2
