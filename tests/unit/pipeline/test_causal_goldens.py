"""Patching, ablation, steering, scaling and freezing against golden data of four families, each cell a run.

All cells of a case are asked for at once, beside a longer prompt, with and without an autoencoder spliced in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.interventions import (
    UNCHANGED,
    Action,
    AddVector,
    CopyFromRun,
    DifferenceOfMeans,
    Direction,
    Intervention,
    MeanOverRuns,
    ScaleValue,
    SetValue,
)
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DeriveRequest, Prompt, SourceRun
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import PositionList, TapSelection
from dst_grpc.engine.taps import site_entering
from dst_grpc.errors import require
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.run import run
from tests import models
from tests.causal_goldens import CASES, DIRECTIONS, GoldenCase, assert_golden, golden_case, golden_decoder

N_LAYERS, N_HEADS, N_SHARED = 3, 4, 2
LONGER = tuple(range(1, 13))
COPY = CopyFromRun(run="source")
Cell = tuple[tuple[int, ...], tuple[Intervention, ...]]
"""Where in the golden tensor it is, and what it does."""


def at(location: L, layer: int | None, *axes: Any, action: Action = COPY) -> tuple[Intervention, ...]:
    selection = TapSelection(activation_location_type=location, layer_index=layer, axes=axes)
    return (Intervention(at=selection, action=action),)


def by_layer(make: Callable[[int], tuple[Intervention, ...]]) -> list[Cell]:
    return [((layer,), make(layer)) for layer in range(N_LAYERS)]


def by_head(make: Callable[[int, int], tuple[Intervention, ...]], count: int = N_HEADS) -> list[Cell]:
    return [((layer, head), make(layer, head)) for layer in range(N_LAYERS) for head in range(count)]


def by_position(case: GoldenCase, make: Callable[[int, int], tuple[Intervention, ...]]) -> list[Cell]:
    return [((layer, t), make(layer, t)) for layer in range(N_LAYERS) for t in range(len(case.clean))]


def copies_of_group(location: L, layer: int, group: int) -> tuple[Intervention, ...]:
    """A key or value that heads share, as all its heads' copies."""
    heads = PositionList(positions=(2 * group, 2 * group + 1))
    return at(location, layer, None, heads)


def patches(case: GoldenCase) -> dict[str, list[Cell]]:
    """What is copied from the other run of a pair, in either direction."""
    z, q, k, v = L.ATTN_WEIGHTED_SUM_OF_VALUES, L.ATTN_QUERY, L.ATTN_KEY, L.ATTN_VALUE
    heads = itertools.product(range(N_LAYERS), range(N_HEADS), range(len(case.clean)))
    found: dict[str, list[Cell]] = {
        "patch.resid_pre": by_position(case, lambda layer, t: at(*site_entering(layer), t)),
        "patch.resid_post": by_position(case, lambda layer, t: at(L.RESID_POST_MLP, layer, t)),
        "patch.attn_out": by_position(case, lambda layer, t: at(L.RESID_DELTA_ATTN, layer, t)),
        "patch.mlp_out": by_position(case, lambda layer, t: at(L.RESID_DELTA_MLP, layer, t)),
        "patch.attn_out_all": by_layer(lambda layer: at(L.RESID_DELTA_ATTN, layer)),
        "patch.mlp_out_all": by_layer(lambda layer: at(L.RESID_DELTA_MLP, layer)),
        "patch.head_all": by_head(lambda layer, head: at(z, layer, None, head)),
        "patch.head": [((layer, head, t), at(z, layer, t, head)) for layer, head, t in heads],
        "patch.q": by_head(lambda layer, head: at(q, layer, None, head)),
        "patch.k": by_head(lambda layer, head: at(k, layer, None, head)),
        "patch.v": by_head(lambda layer, head: at(v, layer, None, head)),
        "patch.pattern": by_head(lambda layer, head: at(L.ATTN_QK_PROBS, layer, None, None, head)),
        "freeze.pattern": [*by_layer(lambda layer: at(L.ATTN_QK_PROBS, layer)), ((3,), at(L.ATTN_QK_PROBS, None))],
    }
    if case.model != "neox":
        found["patch.resid_mid"] = by_position(case, lambda layer, t: at(L.RESID_POST_ATTN, layer, t))
    if case.model in {"llama", "gemma2"}:
        found["patch.k_group"] = by_head(lambda layer, group: copies_of_group(k, layer, group), N_SHARED)
        found["patch.v_group"] = by_head(lambda layer, group: copies_of_group(v, layer, group), N_SHARED)
    return found


def changes_of_clean(case: GoldenCase) -> dict[str, list[Cell]]:
    """Ablations and scalings of the clean run."""
    z, mlp = L.ATTN_WEIGHTED_SUM_OF_VALUES, L.RESID_DELTA_MLP
    reference = tuple(f"mean{i}" for i in range(len(case.facts["mean_set_ids"])))
    actions: dict[str, Action] = {
        "zero": SetValue(scalar=0.0),
        "mean": MeanOverRuns(runs=reference, over_positions=True),
        "mean_by_position": MeanOverRuns(runs=reference),
        **{f"resample{i}": CopyFromRun(run=name) for i, name in enumerate(reference)},
    }
    found: dict[str, list[Cell]] = {}
    for name, action in actions.items():
        found[f"ablate.head.{name}"] = by_head(lambda layer, head, a=action: at(z, layer, None, head, action=a))  # type: ignore[misc]
        found[f"ablate.mlp.{name}"] = by_layer(lambda layer, a=action: at(mlp, layer, action=a))  # type: ignore[misc]
    if case.model == "gemma2":
        for name in ("mean", "mean_by_position"):
            # The norm's input is linear in the neurons, so that their mean makes its mean.
            found[f"ablate.mlp_before_post_norm.{name}"] = by_layer(
                lambda layer, a=actions[name]: at(L.MLP_POST_ACT, layer, action=a)  # type: ignore[misc]
            )
    for factor in ("0.5", "2.0"):
        scaled = ScaleValue(factor=float(factor))
        found[f"scale.head.{factor}"] = by_head(lambda layer, head, a=scaled: at(z, layer, None, head, action=a))  # type: ignore[misc]
    return found


def steering(case: GoldenCase) -> dict[str, list[Cell]]:
    """Steering of the corrupt run towards the clean one."""
    means = DifferenceOfMeans(runs=("source",), minus_runs=(UNCHANGED,), token_index=-1)
    add = AddVector(direction=Direction(direction=means), factor=1.5)
    last = len(case.clean) - 1
    return {
        "steer.all_positions": by_layer(lambda layer: at(L.RESID_POST_MLP, layer, action=add)),
        "steer.last_position": by_layer(lambda layer: at(L.RESID_POST_MLP, layer, last, action=add)),
    }


def loss(case: GoldenCase, name: LossFnName = LossFnName.LOGIT_DIFF) -> LossFnConfig:
    if name is LossFnName.KL_DIVERGENCE:
        return LossFnConfig(name=name, reference_run="clean")
    return LossFnConfig(name=name, target_token_ids=(case.target,), distractor_token_ids=(case.distractor,))


def asked(case: GoldenCase) -> Iterator[tuple[str, list[Cell], bool, LossFnConfig]]:
    """Keys of golden tensors, their cells, whether the base is the clean prompt, and the loss."""
    for direction in DIRECTIONS:
        is_clean = direction == "noise"
        for key, cells in patches(case).items():
            yield f"{key}.{direction}", cells, is_clean, loss(case)
        heads = patches(case)["patch.head_all"]
        yield f"patch.head_all.{direction}.prob_diff", heads, is_clean, loss(case, LossFnName.PROBS)
        yield f"patch.head_all.{direction}.kl_from_clean", heads, is_clean, loss(case, LossFnName.KL_DIVERGENCE)
    for key, cells in changes_of_clean(case).items():
        yield key, cells, True, loss(case)
    for key, cells in steering(case).items():
        yield key, cells, False, loss(case)


def request(case: GoldenCase, *, is_clean: bool, world: models.World, **fields: Any) -> DeriveRequest:
    base, source = (case.clean, case.corrupt) if is_clean else (case.corrupt, case.clean)
    named = {"source": source, "clean": case.clean}
    named |= {f"mean{i}": tuple(ids) for i, ids in enumerate(case.facts["mean_set_ids"])}
    sources = tuple(SourceRun(name=name, prompt=Prompt(token_ids=ids)) for name, ids in named.items())
    return models.request(tokens=base, source_runs=sources, autoencoders=tuple(world.sets), **fields)


def losses(case: GoldenCase, world: models.World) -> Mapping[str, torch.Tensor]:
    """The metric of every cell, by key; each also with the logits that it was made of."""
    plans, places = [], []
    for key, cells, is_clean, metric in asked(case):
        for place, changes in cells:
            made = request(case, is_clean=is_clean, world=world, interventions=changes, loss_fn_config=metric)
            plan = make_plan(made, world.registry)
            has_logits = f"{key}.last_logits" in case.tensors
            plans.append(replace(plan, values=frozenset({(L.LOGITS, None)} if has_logits else ())))
            places.append((key, place))
    beside = models.request(tokens=LONGER, loss_fn_config=loss(case), autoencoders=tuple(world.sets))
    plans.insert(len(plans) // 2, make_plan(beside, world.registry))
    places.insert(len(places) // 2, ("", ()))
    found: dict[str, torch.Tensor] = {}
    for (key, place), result in zip(places, run(plans, world.decoder, world.sets), strict=True):
        if not key:
            continue
        found.setdefault(key, torch.full_like(case.tensors[key], torch.nan))[place] = require(result.loss)
        logits = result.recording.taps.values.get((L.LOGITS, None))
        if logits is not None:
            of_key = f"{key}.last_logits"
            found.setdefault(of_key, torch.full_like(case.tensors[of_key], torch.nan))[place] = logits[-1]
    return found


@pytest.mark.parametrize("is_spliced", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_changed_run_has_the_golden_metric(name: str, is_spliced: bool) -> None:
    case = golden_case(name)
    decoder = golden_decoder(case.model)
    sets = [models.autoencoders(T.MLP_POST_ACT, config=decoder.config, dtype=torch.float32)] if is_spliced else []
    found = losses(case, models.World(decoder, {one.name: one for one in sets}))
    meant = {key for key in case.tensors if key.split(".")[0] in {"patch", "ablate", "steer", "scale", "freeze"}}
    assert found.keys() == meant
    for key, tensor in found.items():
        assert_golden(tensor, case.tensors[key])
