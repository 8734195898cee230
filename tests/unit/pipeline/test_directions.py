"""Actions along directions: their formulas on the plain model, whatever the direction is from."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.domain.interventions import (
    Action,
    AddNormScaled,
    AddVector,
    ClampValue,
    DecoderRow,
    DifferenceOfMeans,
    Direction,
    EncoderRow,
    Intervention,
    ProjectOut,
    SwapDirections,
    UnembeddingRow,
)
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import Prompt, SourceRun
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import PositionList, TapSelection
from dst_grpc.engine.taps import Site
from dst_grpc.errors import InvalidRequest, NotFound
from dst_grpc.pipeline.interventions import with_tensors
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.run import run
from tests import interventions, models, plain
from tests.closeness import assert_close

WORLDS = {
    name: models.world(T.MLP_POST_ACT, T.RESID_POST_MLP, seed=5, config=models.ARCHITECTURES[name])
    for name in ("gpt2", "gemma", "llama")
}
WORLD = WORLDS["gpt2"]
MLP, RESID = "tiny/mlp_post_act", "tiny/resid_post_mlp"
TOKENS, OTHER, LONG = (3, 1, 4, 1, 5, 9), (2, 7, 1, 8), (5, 7, 7, 2, 1, 5, 6, 6, 4)
SOURCES = tuple(SourceRun(name=name, prompt=Prompt(token_ids=tokens)) for name, tokens in (("a", OTHER), ("b", LONG)))
NUMBERS = np.random.default_rng(4).normal(size=8)


def vector(numbers: Any) -> Direction:
    return Direction(direction=RequestTensor(tensor=np.asarray(numbers)))


def means(token: int | None) -> Direction:
    return Direction(direction=DifferenceOfMeans(runs=("a", "b", "a"), minus_runs=("b",), token_index=token))


DIRECTIONS: dict[str, Direction] = {
    "vector": vector(NUMBERS),
    "normalized vector": replace(vector(NUMBERS), normalize=True),
    "unembedding": Direction(direction=UnembeddingRow(token="h")),
    "unembedding by id": Direction(direction=UnembeddingRow(token_id=7)),
    "encoder": Direction(direction=EncoderRow(autoencoder=RESID, latent=3)),
    "decoder": Direction(direction=DecoderRow(autoencoder=RESID, latent=2, layer_index=0)),
    "last tokens": means(-1),
    "all tokens": means(None),
}


def by_hand(name: str, direction: Direction, site: Site) -> torch.Tensor:
    """The vector of a direction, or those [..., n] along the tap's other axes than that of tokens."""
    world, reference = (
        WORLDS[name],
        plain.Plain(WORLDS[name].decoder.config, models.weights(5, WORLDS[name].decoder.config)),
    )
    found: torch.Tensor
    match direction.direction:
        case RequestTensor() as tensor:
            found = torch.tensor(tensor.tensor, dtype=torch.float64)
        case UnembeddingRow():
            found = world.decoder.unembedding[:, 7]
        case EncoderRow() as row:
            found = world.sets[RESID].by_layer[site[1]].encoder[row.latent]
        case DecoderRow() as row:
            found = world.sets[RESID].by_layer[0].decoder[:, row.latent]
        case difference:
            of = {"a": reference.run(OTHER)[site].detach(), "b": reference.run(LONG)[site].detach()}
            chosen = [
                [
                    of[each] if difference.token_index is None else of[each][difference.token_index, None]
                    for each in side
                ]
                for side in (difference.runs, difference.minus_runs)
            ]
            found = torch.cat(chosen[0]).mean(0) - torch.cat(chosen[1]).mean(0)
    return unit(found) if direction.normalize else found


Formula = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
OTHER_DIRECTION = vector(NUMBERS[::-1] + 0.5)


def unit(v: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return found


def along(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (x * unit(v)).sum(-1, keepdim=True)


def capped(x: torch.Tensor, v: torch.Tensor, factor: float, cap: float) -> torch.Tensor:
    length = (abs(factor) * torch.linalg.vector_norm(v, dim=-1, keepdim=True)).clamp(max=cap)
    norms: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    added: torch.Tensor = norms * length * (-1 if factor < 0 else 1) * unit(v)
    return x + added


ACTIONS: dict[str, tuple[Callable[[Direction], Action], Formula]] = {
    "add": (lambda d: AddVector(direction=d, factor=-1.5), lambda x, v, _: x - 1.5 * v),
    "clamp to": (
        lambda d: ClampValue(direction=d, minimum=0.3, maximum=0.3),
        lambda x, v, _: x + (0.3 - along(x, v)) * unit(v),
    ),
    "clamp between": (
        lambda d: ClampValue(direction=d, minimum=-0.2, maximum=0.25),
        lambda x, v, _: x + (along(x, v).clamp(-0.2, 0.25) - along(x, v)) * unit(v),
    ),
    "project out": (lambda d: ProjectOut(direction=d), lambda x, v, _: x - along(x, v) * unit(v)),
    "halve": (lambda d: ProjectOut(direction=d, factor=0.5), lambda x, v, _: x - 0.5 * along(x, v) * unit(v)),
    "add by norm": (
        lambda d: AddNormScaled(direction=d, factor=-0.1),
        lambda x, v, _: x - 0.1 * x.norm(dim=-1, keepdim=True) * v,
    ),
    "add by norm, cut": (
        lambda d: AddNormScaled(direction=d, factor=-4.0, cap=0.5),
        lambda x, v, _: capped(x, v, -4.0, 0.5),
    ),
    "swap": (
        lambda d: SwapDirections(direction=d, target=OTHER_DIRECTION),
        lambda x, v, t: x + along(x, v) * (unit(t) - unit(v)),
    ),
}


def at(location: L, layer: int | None, *axes: Any, action: Action) -> Intervention:
    selection = TapSelection(activation_location_type=location, layer_index=layer, axes=axes)
    return Intervention(at=selection, action=action)


def planned(world: models.World, *changes: Intervention, **fields: Any) -> Plan:
    request = models.request(
        tokens=TOKENS, interventions=changes, source_runs=SOURCES, loss_fn_config=models.LOSS, **fields
    )
    made = make_plan(request, world.registry)
    sites = frozenset(models.sites(world.decoder.config))
    return replace(made, values=sites, gradients=sites)


def check(name: str, change: Intervention, formula: Callable[[torch.Tensor, Site], torch.Tensor]) -> None:
    """Values and gradients, beside another prompt, are those of the plain model with a formula at selected entries."""
    world = WORLDS[name]
    beside = replace(planned(world), values=frozenset(), gradients=frozenset({(L.RESID_POST_EMBEDDING, None)}))
    found, _ = run([planned(world, change), beside], world.decoder, world.sets)
    reference = plain.Plain(world.decoder.config, models.weights(5, world.decoder.config))

    def edit(site: Site, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_() if site == (L.RESID_POST_EMBEDDING, None) else x
        if change.at.activation_location_type is not site[0] or change.at.layer_index not in {None, site[1]}:
            return x.view_as(x)
        chosen = torch.from_numpy(interventions.is_selected(change.at, x.shape))
        return torch.where(chosen, formula(x, site), x)

    values = reference.run(TOKENS, edit)
    logits = values[L.LOGITS, None][-1]
    loss = (logits[2] + 2 * logits[7]) / 3 - logits[11]
    gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
    taps = found.recording.taps
    for (site, value), gradient in zip(values.items(), gradients, strict=True):
        assert_close(taps.values[site], value.detach(), rtol=1e-7, atol=1e-8, msg=str(site))
        expected = torch.zeros_like(value) if gradient is None else gradient
        ours = taps.gradient(site, value.detach())
        assert_close(ours, expected, rtol=1e-7, atol=1e-8, msg=f"gradient at {site}")


@pytest.mark.parametrize("kind", DIRECTIONS)
@pytest.mark.parametrize("act", ACTIONS)
def test_an_action_is_its_formula_along_any_direction(act: str, kind: str) -> None:
    name = random.Random(f"{act} {kind}").choice(list(WORLDS))
    make, formula = ACTIONS[act]
    direction = DIRECTIONS[kind]
    change = at(L.RESID_POST_MLP, 1, PositionList(positions=(4, 0, 3)), action=make(direction))
    target = by_hand(name, OTHER_DIRECTION, (L.RESID_POST_MLP, 1))
    check(name, change, lambda x, site: formula(x, by_hand(name, direction, site), target))


@pytest.mark.parametrize("axes", [(None, 1), (2,)])
def test_a_difference_of_means_has_the_other_axes_of_the_tap(axes: tuple[Any, ...]) -> None:
    """Heads have a direction each, and every layer has its own."""
    change = at(L.ATTN_WEIGHTED_SUM_OF_VALUES, None, *axes, action=ProjectOut(direction=means(0)))
    check("llama", change, lambda x, site: x - along(x, v := by_hand("llama", means(0), site)) * unit(v))


def test_every_layer_has_the_row_of_its_own_autoencoder() -> None:
    direction = Direction(direction=EncoderRow(autoencoder=RESID, latent=1))
    change = at(L.RESID_POST_MLP, None, action=AddVector(direction=direction))
    check("gpt2", change, lambda x, site: x + by_hand("gpt2", direction, site))


def test_entries_are_limited_one_by_one_without_a_direction() -> None:
    change = at(L.MLP_POST_ACT, 1, None, PositionList(positions=(2, 5)), action=ClampValue(maximum=0.1))
    check("gpt2", change, lambda x, _: x.clamp(max=0.1))


def test_the_autoencoders_that_directions_are_of_are_used_and_tell_runs_apart() -> None:
    change = at(L.RESID_POST_MLP, 1, action=AddVector(direction=DIRECTIONS["encoder"]))
    found = planned(WORLD, change)
    assert [entry.name for entry in found.autoencoders] == [RESID]
    other = at(L.RESID_POST_MLP, 1, action=AddVector(direction=DIRECTIONS["decoder"]))
    assert len({found.run_key, planned(WORLD, other).run_key, planned(WORLD).run_key}) == 3


def test_a_stored_tensor_may_be_a_direction() -> None:
    put = Direction(direction=RequestTensor(handle="v"))
    stored = planned(WORLD, at(L.RESID_POST_MLP, 1, action=ProjectOut(direction=put)))
    inline = planned(WORLD, at(L.RESID_POST_MLP, 1, action=ProjectOut(direction=vector(NUMBERS))))
    (found,) = with_tensors([stored], interventions.Shelf(v=RequestTensor(tensor=NUMBERS)), [""])
    assert found.run.key == inline.run.key
    for numbers in (np.zeros(8), np.ones(7), np.ones((1, 8))):
        with pytest.raises(InvalidRequest) as caught:
            with_tensors([stored], interventions.Shelf(v=RequestTensor(tensor=numbers)), [""])
        assert [one.field for one in caught.value.violations] == [
            "interventions[0].project_out.direction.vector.handle"
        ]


def refusal(change: Callable[[], Intervention], **fields: Any) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        planned(WORLD, change(), **fields)
    return [violation.field for violation in caught.value.violations]


OUT = "interventions[0].project_out.direction"


@pytest.mark.parametrize(
    ("location", "axes", "direction", "expected"),
    [
        (L.RESID_POST_MLP, (), vector(np.ones(7)), [f"{OUT}.vector.tensor"]),
        (L.RESID_POST_MLP, (), vector(np.zeros(8)), [f"{OUT}.vector.tensor"]),
        (L.ATTN_QUERY, (), Direction(direction=UnembeddingRow(token_id=1)), [f"{OUT}.unembedding_row"]),
        (
            L.RESID_POST_MLP,
            (),
            Direction(direction=UnembeddingRow(token_id=99)),
            [f"{OUT}.unembedding_row.token_id"],
        ),
        (
            L.RESID_POST_MLP,
            (),
            Direction(direction=UnembeddingRow(token="a b")),
            [f"{OUT}.unembedding_row.token"],
        ),
        (
            L.RESID_POST_MLP,
            (),
            Direction(direction=EncoderRow(autoencoder=RESID, latent=99, layer_index=7)),
            [f"{OUT}.encoder_row.layer_index", f"{OUT}.encoder_row.latent"],
        ),
        (
            L.RESID_POST_EMBEDDING,
            (),
            Direction(direction=DecoderRow(autoencoder=RESID, latent=0)),
            [f"{OUT}.decoder_row.layer_index"],
        ),
        (
            L.RESID_POST_MLP,
            (),
            Direction(direction=DecoderRow(autoencoder=MLP, latent=0)),
            [f"{OUT}.decoder_row.autoencoder"],
        ),
        (
            L.RESID_POST_MLP,
            (),
            Direction(direction=DifferenceOfMeans(runs=("a",), minus_runs=("b",), token_index=6)),
            [f"{OUT}.difference_of_means.runs[0]"],
        ),
        (
            L.RESID_POST_MLP,
            (),
            Direction(direction=DifferenceOfMeans(runs=("a",), minus_runs=("c",))),
            [f"{OUT}.difference_of_means.minus_runs[0]"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_its_field(
    location: L, axes: tuple[Any, ...], direction: Direction, expected: Sequence[str]
) -> None:
    layer = None if location.has_no_layers else 1
    assert refusal(lambda: at(location, layer, *axes, action=ProjectOut(direction=direction))) == expected


def test_an_unknown_autoencoder_is_not_found() -> None:
    unknown = Direction(direction=EncoderRow(autoencoder="tiny/none", latent=0))
    with pytest.raises(NotFound):
        planned(WORLD, at(L.RESID_POST_MLP, 1, action=ProjectOut(direction=unknown)))


def test_equal_means_have_no_direction() -> None:
    same = Direction(direction=DifferenceOfMeans(runs=("a",), minus_runs=("a",)))
    (changed,) = run([planned(WORLD, at(L.RESID_POST_MLP, 1, action=AddVector(direction=same)))], WORLD.decoder, {})
    (plainly,) = run([planned(WORLD)], WORLD.decoder, {})
    # Up to rounding: it runs beside the run that it reads, and products of more rows may sum in another order.
    assert changed.loss == pytest.approx(plainly.loss, rel=1e-12)
    with pytest.raises(InvalidRequest, match=r"is 0, or not finite, at resid.post_mlp of layer 1"):
        run([planned(WORLD, at(L.RESID_POST_MLP, 1, action=ProjectOut(direction=same)))], WORLD.decoder, {})


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: at(L.ATTN_QK_PROBS, 1, action=ProjectOut(direction=vector([1.0]))), "at.activation_location_type"),
        (lambda: at(L.RESID_POST_MLP, 1, None, 3, action=ProjectOut(direction=vector([1.0]))), "at.axes[1]"),
        (ClampValue, ""),
        (lambda: ClampValue(minimum=1.0, maximum=0.0), "maximum"),
        (lambda: ClampValue(minimum=float("nan")), "minimum"),
        (lambda: AddNormScaled(direction=vector([1.0]), factor=1.0, cap=-1.0), "cap"),
        (AddVector, ""),
        (lambda: AddVector(vector=RequestTensor(tensor=NUMBERS), direction=vector(NUMBERS)), ""),
        (UnembeddingRow, ""),
        (lambda: UnembeddingRow(token="a", token_id=1), ""),
        (lambda: EncoderRow(autoencoder="", latent=0), "autoencoder"),
        (lambda: DecoderRow(autoencoder="a", latent=-1), "latent"),
        (lambda: DifferenceOfMeans(runs=(), minus_runs=("a",)), "runs"),
        (lambda: DifferenceOfMeans(runs=("a",), minus_runs=("",)), "minus_runs[0]"),
        (lambda: DifferenceOfMeans(runs=("a",), minus_runs=("b",), token_index=2**31), "token_index"),
    ],
)
def test_what_cannot_be_is_refused_without_a_model(make: Callable[[], object], expected: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make()
    assert [violation.field for violation in caught.value.violations] == [expected]
