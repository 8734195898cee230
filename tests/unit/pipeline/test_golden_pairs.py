"""Patch, Attribute and Circuit against golden data under what must change no number: both cases of a model are pairs of
one request, so that their prompts, of different lengths, share batches, and autoencoders are spliced in."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.client import (
    make_attribute_request,
    make_circuit_request,
    make_pair,
    make_patch_request,
)
from dst_grpc.domain.attribute import AttributedNode
from dst_grpc.domain.attribute_answers import AttributePartKind
from dst_grpc.domain.circuit import CircuitKind, CircuitPartKind
from dst_grpc.domain.patch import PatchGrid
from dst_grpc.domain.patch_answers import PatchPartKind
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.pipeline.attribute_answer import AttributeAnswer
from dst_grpc.pipeline.attribute_planner import plan_attribute
from dst_grpc.pipeline.circuit_answer import CircuitAnswer
from dst_grpc.pipeline.circuit_planner import plan_circuit
from dst_grpc.pipeline.patch_answer import PatchAnswer
from dst_grpc.pipeline.patch_planner import plan_patch
from dst_grpc.pipeline.run import run
from tests import models
from tests.causal_goldens import MODELS, GoldenCase, assert_golden, golden_case, golden_decoder

EVERY_MODEL = pytest.mark.parametrize("model", MODELS)
NODES = {"attn_out": "attn_out_all", "mlp_out": "mlp_out_all", "head": "head_all", "key": "k", "pattern": "pattern"}


def cases_of(model: str) -> list[GoldenCase]:
    cases = [golden_case(f"{model}_{kind}") for kind in ("single", "several")]
    assert len(cases[0].clean) != len(cases[1].clean)
    return cases


@cache
def world_of(model: str) -> models.World:
    """The model, with autoencoders of random weights."""
    decoder = golden_decoder(model)
    sets = [
        models.autoencoders(kind, config=decoder.config, dtype=torch.float32)
        for kind in (T.MLP_POST_ACT, T.RESID_DELTA_ATTN)
    ]
    return models.World(decoder, {one.name: one for one in sets})


def parts_of(
    model: str, plan_of: Callable[..., Any], request_of: Callable[..., Any], answer_of: Callable[..., Any], **asked: Any
) -> tuple[Any, dict[Any, list[Any]]]:
    """The plan of a question about both cases, and all parts of its answer, by kind."""
    world = world_of(model)
    pairs = [
        make_pair(one.clean, one.corrupt, target=[one.target], distractor=[one.distractor]) for one in cases_of(model)
    ]
    plan = plan_of(request_of(pairs=pairs, autoencoders=tuple(world.sets), **asked), world.registry)
    answer = answer_of(plan, run([plan.plan], world.decoder, world.sets), world.context, world.sets)
    found: dict[Any, list[Any]] = {}
    for step in answer.steps():
        for part in step:
            found.setdefault(part.kind, []).append(part.value)
    return plan, found


def patched(model: str, **asked: Any) -> list[list[torch.Tensor]]:
    """The metrics of each grid, of each pair, in the order of cells; NaN where there is none."""
    plan, found = parts_of(model, plan_patch, make_patch_request, PatchAnswer, **asked)
    grids = [[torch.full(info.shape, torch.nan) for _ in range(2)] for info in plan.infos]
    for cells in found[PatchPartKind.CELLS]:
        grids[cells.grid][cells.pair].view(-1)[list(cells.cells)] = torch.tensor(cells.metrics)
    return grids


@EVERY_MODEL
def test_nodes_and_paths_are_patched(model: str) -> None:
    nodes = [PatchGrid(node=AttributedNode(node), all_positions=True) for node in NODES]
    by_edge, by_ioi = {"senders": (), "receivers": ()}, {"senders": (), "receivers": (), "through_mlps": True}
    *found, edges = patched(model, grids=nodes, **by_edge)
    (paths,) = patched(model, **by_ioi)
    for i, case in enumerate(cases_of(model)):
        for key, grid in zip(NODES.values(), found, strict=True):
            assert_golden(grid[i], case.tensors[f"patch.{key}.noise"])
        golden = case.tensors["path.exact.noise"]
        assert edges[i].isnan().equal(golden.isnan())
        assert_golden(edges[i].nan_to_num(), golden.nan_to_num())
        golden = case.tensors["path.ioi.noise"]
        assert_golden(paths[i][~paths[i].isnan()], golden[~golden.isnan()])


@EVERY_MODEL
def test_nodes_are_ablated(model: str) -> None:
    cases = cases_of(model)
    reference = [ids for case in cases for ids in case.facts["mean_set_ids"]]
    nodes = [PatchGrid(node=AttributedNode(node), all_positions=True) for node in ("head", "mlp_out")]
    # Of each length there are the prompts of one case.
    for alternative, key in (("zero", "zero"), ("mean_by_length", "mean_by_position")):
        asked = {"alternative": alternative, "reference": () if alternative == "zero" else reference}
        heads, mlps = patched(model, grids=nodes, **asked)
        for i, case in enumerate(cases):
            assert_golden(heads[i], case.tensors[f"ablate.head.{key}"])
            assert_golden(mlps[i], case.tensors[f"ablate.mlp.{key}"])


METHODS: dict[str, dict[str, Any]] = {
    "eap.denoise": {"orientation": "denoising"},
    "eap_ig.left": {"method": "integrated_inputs", "path_rule": "left"},
    "eap_ig_activations.own_layer": {"method": "integrated_activations"},
}
RULES = {"atp": "plain", "relp": "relp", "gim": "gim"}
SCORED = ("input", "resid_pre", "resid_post", "head", "mlp_out")


def scored(model: str, **asked: Any) -> list[torch.Tensor]:
    """The arrays of scores, means over both pairs."""
    _, found = parts_of(model, plan_attribute, make_attribute_request, AttributeAnswer, **asked)
    (header,), pieces = found[AttributePartKind.HEADER], found[AttributePartKind.VALUES]
    flat = [[one.values for one in pieces if one.tensor_id == info.tensor_id] for info in header.scores]
    return [
        torch.from_numpy(np.concatenate(each)).reshape(info.shape)
        for each, info in zip(flat, header.scores, strict=True)
    ]


@pytest.mark.parametrize("key", METHODS)
@EVERY_MODEL
def test_edges_are_scored(model: str, key: str) -> None:
    (found,) = scored(model, edges=True, **METHODS[key])
    golden = torch.stack([case.tensors[key] for case in cases_of(model)]).mean(dim=0)
    assert_golden(found, golden, of_largest=1e-4)


@pytest.mark.parametrize("key", [*RULES, "atpstar"])
@EVERY_MODEL
def test_nodes_are_scored(model: str, key: str) -> None:
    """Sums over positions, the last axis of the golden scores."""
    nodes, rule = (("query", "key"), {"qk_fix": True}) if key == "atpstar" else (SCORED, {"rule": RULES[key]})
    for node, scores in zip(nodes, scored(model, nodes=nodes, **rule), strict=True):
        name = f"{key}.{node[0] if key == 'atpstar' else node}.noise"
        each = [case.tensors[name] for case in cases_of(model)]
        golden = torch.stack([one.sum(dim=-1) for one in each]).mean(dim=0)
        largest = max(float(one.abs().max()) for one in each)
        assert_golden(scores / largest, golden / largest, relative=1e-4)


@pytest.mark.parametrize("alternative", ["patching", "mean_by_length", "zero"])
@EVERY_MODEL
def test_circuits_are_evaluated(model: str, alternative: str) -> None:
    cases = cases_of(model)
    reference = [ids for case in cases for ids in case.facts["mean_set_ids"]] if "mean" in alternative else ()
    key = "mean_by_position" if "mean" in alternative else alternative
    for i, case in enumerate(cases):
        names = case.facts["sources"], case.facts["dests"]
        edges = [f"{names[0][s]}->{names[1][r]}" for s, r in case.tensors["circuit.order"].tolist()]
        circuits = [edges[:count] for count in case.facts["circuit"]["counts"]]
        asked = {"circuits": circuits, "alternative": alternative, "reference": reference}
        _, found = parts_of(model, plan_circuit, make_circuit_request, CircuitAnswer, **asked)
        given = [one for one in found[CircuitPartKind.EVALUATION] if one.kind is CircuitKind.GIVEN]
        golden = torch.tensor(case.facts["circuit"]["metric"][f"{key}.pruned"])
        assert_golden(torch.tensor([one.metrics[i] for one in given]), golden)
