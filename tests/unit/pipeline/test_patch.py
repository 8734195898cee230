"""Patch in the pipeline: every cell is the plain model's run with that change, in every architecture; equal cells run
once; blocks of pairs; what is too large."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.client import make_pair, make_patch_request
from dst_grpc.domain.attribute import AttributedNode
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.entry_actions import SetValue
from dst_grpc.domain.interventions import Intervention
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.patch import PatchGrid
from dst_grpc.domain.patch_answers import PatchedCells, PatchMeans, PatchPartKind
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import PositionRange, TapSelection
from dst_grpc.engine.taps import Site
from dst_grpc.errors import InvalidRequest, require
from dst_grpc.pipeline import patch_grids, patch_planner
from dst_grpc.pipeline.patch_answer import PatchAnswer
from dst_grpc.pipeline.patch_planner import PatchPlan, plan_patch
from dst_grpc.pipeline.run import run
from tests import models, plain

CLEAN, CORRUPT = models.TOKENS, (3, 1, 4, 8, 5, 2)
SPLICED: dict[str, tuple[plain.Kind, ...]] = {
    "nothing": (),
    "both": (T.MLP_POST_ACT, T.RESID_DELTA_ATTN),
    "across layers": (plain.Transcoder.CROSS_LAYER,),
}
TAPS = {
    "resid_mid": L.RESID_POST_ATTN,
    "resid_post": L.RESID_POST_MLP,
    "attn_out": L.RESID_DELTA_ATTN,
    "mlp_out": L.RESID_DELTA_MLP,
    "head": L.ATTN_WEIGHTED_SUM_OF_VALUES,
    "query": L.ATTN_QUERY,
    "key": L.ATTN_KEY,
    "value": L.ATTN_VALUE,
    "pattern": L.ATTN_QK_PROBS,
}


def plan(world: models.World, **arguments: Any) -> PatchPlan:
    clean, corrupt = arguments.pop("prompts", (CLEAN, CORRUPT))
    asked = {"target": [2], "distractor": [11], **arguments}
    return plan_patch(make_patch_request(clean, corrupt, **asked), world.registry)


class Answered:
    """An answer, whole."""

    def __init__(self, world: models.World, asked: PatchPlan) -> None:
        results = run([asked.plan], world.decoder, world.sets)
        self.asked, self.answer = asked, PatchAnswer(asked, results, world.context, world.sets)
        self.parts = [part for step in self.answer.steps() for part in step]
        self.cells: list[PatchedCells] = self.of(PatchPartKind.CELLS)
        self.means: list[PatchMeans] = self.of(PatchPartKind.MEANS)

    def of(self, kind: PatchPartKind) -> list[Any]:
        return [part.value for part in self.parts if part.kind is kind]

    def grid(self, i: int) -> torch.Tensor:
        """The mean metrics of a grid without gaps."""
        info, means = self.asked.infos[i], self.means[i]
        assert means.cells == tuple(range(info.size))
        return torch.tensor(means.metrics, dtype=torch.float64).reshape(info.shape)


def site_of(node: str, layer: int) -> Site:
    if node == "resid_pre":
        return (L.RESID_POST_MLP, layer - 1) if layer else (L.RESID_POST_EMBEDDING, None)
    return TAPS[node], layer


@pytest.mark.parametrize("spliced", SPLICED)
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_every_cell_is_the_plain_model_s_run_with_that_change(name: str, spliced: str) -> None:
    config = models.ARCHITECTURES[name]
    world = models.world(*SPLICED[spliced], seed=5, config=config)
    reference = plain.Plain(config, models.weights(5, config), world.by_kind, is_spliced=True)
    with torch.no_grad():
        source = reference.run(CORRUPT, lambda _, x: x)
    chance = random.Random(f"{name} {spliced}")
    nodes = ["resid_pre", *(node for node in TAPS if not (config.parallel and node == "resid_mid"))]

    def metric(edit: Callable[[Site, torch.Tensor], torch.Tensor]) -> float:
        with torch.no_grad():
            logits = reference.run(CLEAN, edit)[L.LOGITS, None][-1]
        return float(logits[2] - logits[11])

    for at_once in (False, True):
        asked = plan(world, nodes=nodes, all_positions=at_once, autoencoders=tuple(world.sets))
        found = Answered(world, asked)
        for i, node in enumerate(nodes):
            grid = found.grid(i)
            n_heads = 1 if node in nodes[: nodes.index("head")] else config.n_heads
            grid = grid.reshape(config.n_layers, n_heads, 1 if at_once else len(CLEAN))
            for layer, head, t in chance.sample(list(product(*map(range, grid.shape))), 3):
                at = site_of(node, layer)
                rows = slice(None) if at_once else t
                entries = (rows,) if n_heads == 1 else (rows, slice(None), head) if node == "pattern" else (rows, head)

                def edit(site: Site, x: torch.Tensor, at: Site = at, entries: Any = entries) -> torch.Tensor:
                    if site != at:
                        return x
                    x = x.clone()
                    x[entries] = source[site][entries]
                    return x

                expected = metric(edit)
                assert float(grid[layer, head, t]) == pytest.approx(expected, rel=1e-7, abs=1e-8), (
                    node,
                    layer,
                    head,
                    t,
                )


def test_equal_cells_run_once_and_those_that_change_nothing_not_at_all() -> None:
    world = models.world()
    layers, tokens = world.decoder.config.n_layers, len(CLEAN)
    asked = plan(world, nodes=["resid_pre", "resid_post", "input"])
    assert len(asked.changes(tokens)) == (layers + 1) * tokens
    found = Answered(world, asked)
    assert (found.grid(0)[1:] == found.grid(1)[:-1]).all()
    assert (found.grid(0)[0] == found.grid(2)).all()
    differ_from = 3
    assert len({float(x) for x in found.grid(0)[:, :differ_from].flatten()}) == 1
    statistics = found.answer.summary().statistics
    # The request's own run, the pair's, what changes nothing, and a pass for each first token.
    assert statistics.forward_passes == 2 + 1 + tokens - differ_from
    assert statistics.backward_passes == 0


def test_pairs_in_several_blocks_have_the_values_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    world = models.world()
    pairs = [make_pair(CLEAN[i:], CORRUPT[i:]) for i in (0, 2, 1)]
    arguments: dict[str, Any] = {"nodes": ["head", "key"], "all_positions": True, "edges": ["a0.h1->m1", "m0->logits"]}
    whole = Answered(world, plan(world, prompts=(None, None), pairs=pairs, **arguments))
    monkeypatch.setattr(patch_planner, "BLOCK_TOKENS", 1)
    apart = plan(world, prompts=(None, None), pairs=pairs, **arguments)
    assert [len(block) for block in apart.blocks()] == [1, 1, 1]
    found = Answered(world, apart)
    for one, other in zip(found.means, whole.means, strict=True):
        np.testing.assert_allclose(one.metrics, other.metrics, rtol=1e-9)
        np.testing.assert_allclose(one.recoveries, other.recoveries, rtol=1e-7)
    alone = [Answered(world, plan(world, prompts=(CLEAN[i:], CORRUPT[i:]), **arguments)) for i in (0, 2, 1)]
    for grid, means in enumerate(whole.means):
        each = [answered.means[grid].metrics for answered in alone]
        np.testing.assert_allclose(means.metrics, np.mean(each, axis=0), rtol=1e-9)
    assert [pair.pair for pair in found.of(PatchPartKind.PAIR)] == [0, 1, 2]


@pytest.mark.parametrize("alternative", ["zero", "mean", "mean_by_position"])
def test_paths_carry_alternatives_too(alternative: str) -> None:
    """What all readers read of a head is what its whole node writes."""
    world = models.world(config=models.ARCHITECTURES["llama"])
    reference = () if alternative == "zero" else (CLEAN, CORRUPT, (1, 2, 3))
    arguments: dict[str, Any] = {"alternative": alternative, "reference": reference}
    by_paths = Answered(world, plan(world, senders=["a1.h2", "m0"], receivers=(), together=True, **arguments))
    heads = PatchGrid(node=AttributedNode.HEAD, all_positions=True, layers=(1,), entries=(2,))
    mlps = PatchGrid(node=AttributedNode.MLP_OUT, all_positions=True, layers=(0,))
    by_nodes = Answered(world, plan(world, grids=[heads, mlps], **arguments))
    nodes = [by_nodes.means[0].metrics[0], by_nodes.means[1].metrics[0]]
    np.testing.assert_allclose(by_paths.means[0].metrics, nodes, rtol=1e-7)


@pytest.mark.parametrize("receivers", [(), ("a2.h0<q>", "logits")])
def test_paths_through_mlps_to_the_logits_go_to_nothing_else_at_once(receivers: tuple[str, ...]) -> None:
    world = models.world()
    asked: dict[str, Any] = {"senders": ["a0.h0"], "receivers": receivers, "through_mlps": True}
    with pytest.raises(InvalidRequest, match="the logits") as caught:
        plan(world, **asked, together=True)
    assert [one.field for one in caught.value.violations] == ["paths[0].receivers"]
    assert plan(world, **asked).cell_count > 1


KINDS: dict[str, dict[str, Any]] = {
    "nodes": {"nodes": ["head", "resid_pre", "mlp_out"], "all_positions": True},
    "late": {"nodes": ["resid_post", "pattern"], "positions": [3]},
    "edges": {"edges": ["a0.h1->m1", "m0->logits", "input->a1.h0<q>"]},
    "paths": {"senders": ["a0.h0", "a0.h1"], "receivers": ["a1.h1<v>", "logits"], "through_mlps": True},
}


def metrics_of(found: Answered) -> np.ndarray[Any, Any]:
    return np.array([metric for means in found.means for metric in means.metrics])


@pytest.mark.parametrize("orientation", ["noising", "denoising"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_metric_at_an_earlier_position_is_that_of_the_prompt_up_to_there(kind: str, orientation: str) -> None:
    """Nothing before a token depends on those after it. What ends there reads its last token alone."""
    world = models.world()
    asked: dict[str, Any] = {**KINDS[kind], "orientation": orientation}

    def found(length: int, **arguments: Any) -> np.ndarray[Any, Any]:
        prompts = CLEAN[:length], CORRUPT[:length]
        return metrics_of(Answered(world, plan(world, prompts=prompts, **asked, **arguments)))

    def loss(name: LossFnName, **fields: Any) -> dict[str, Any]:
        return {"target": None, "distractor": None, "loss": LossFnConfig(name=name, **fields)}

    n_tokens, at = len(CLEAN), 4
    for name, tokens in ((LossFnName.LOG_PROB, {"target_token_ids": (2,)}), (LossFnName.KL_DIVERGENCE, {})):
        early = found(n_tokens, **loss(name, token_index=at, **tokens))
        assert early == pytest.approx(found(at + 1, **loss(name, **tokens)), abs=1e-7)
        assert np.ptp(early) > 1e-4
    if kind == "late":
        return  # nothing changes before that position
    # Both prompts have the same second and third token.
    assert CLEAN[1:3] == CORRUPT[1:3]
    span = found(n_tokens, **loss(LossFnName.CROSS_ENTROPY, span=PositionRange(start=1, stop=3)))
    each = [found(i, **loss(LossFnName.LOG_PROB, target_token_ids=(CLEAN[i],))) for i in (1, 2)]
    assert span == pytest.approx(-np.mean(each, axis=0), abs=1e-7)
    answers = {"target_token_ids": (*CLEAN[1:3], 7)}
    sequence = found(n_tokens, **loss(LossFnName.SEQUENCE_LOG_PROB, token_index=0, **answers))
    each.append(found(3, **loss(LossFnName.LOG_PROB, target_token_ids=(7,))))
    assert sequence == pytest.approx(np.sum(each, axis=0), abs=1e-7)


@pytest.mark.parametrize("orientation", ["noising", "denoising"])
def test_a_divergence_is_from_the_clean_run_or_the_one_that_is_named(orientation: str) -> None:
    world = models.world()
    prompts = {"unchanged": CLEAN, "source": CORRUPT}
    if orientation == "denoising":
        prompts = {"unchanged": CORRUPT, "source": CLEAN}
    vocabulary = world.decoder.config.vocab_size
    for named, of in ((None, CLEAN), *prompts.items()):
        loss = LossFnConfig(name=LossFnName.KL_DIVERGENCE, reference_run=named)
        arguments: dict[str, Any] = {"target": None, "distractor": None, "loss": loss, "orientation": orientation}
        found = Answered(
            world, plan(world, nodes="head", edges=["m0->m1"], all_logits=True, divergence=True, **arguments)
        )
        log_p = last_logits(world, of).log_softmax(dim=-1)
        for cells in found.cells:
            log_q = torch.tensor(cells.logits, dtype=torch.float64).reshape(-1, vocabulary).log_softmax(dim=-1)
            # Logits are sent as float32.
            assert cells.metrics == pytest.approx((log_p.exp() * (log_p - log_q)).sum(dim=-1).tolist(), abs=1e-5)
            if named is None:
                assert cells.metrics == pytest.approx(cells.divergences, abs=1e-12)
        (pair,) = found.of(PatchPartKind.PAIR)
        assert pair.has_recovery
        assert min(pair.metric, pair.source_metric) == pytest.approx(0, abs=1e-12)
        assert (pair.metric < pair.source_metric) == (of == prompts["unchanged"])


def last_logits(world: models.World, tokens: tuple[int, ...]) -> torch.Tensor:
    logits = require(world.decoder.forward(torch.tensor([tokens])))
    return logits[0, -1].double()


def test_changed_logits_are_those_that_the_metric_reads() -> None:
    world = models.world()
    change = Intervention(
        at=TapSelection(activation_location_type=L.LOGITS, axes=(None, 2)), action=SetValue(scalar=5.0)
    )
    loss = LossFnConfig(name=LossFnName.LOG_PROB, target_token_ids=(2,), token_index=3)
    found = Answered(world, plan(world, cells=[change], target=None, distractor=None, loss=loss))
    logits = require(world.decoder.forward(torch.tensor([CLEAN])))[0, 3]
    logits[2] = 5
    assert metrics_of(found) == pytest.approx([float(logits.log_softmax(dim=-1)[2])], abs=1e-9)


def test_a_run_that_a_divergence_names_is_one_of_the_pair_s() -> None:
    loss = LossFnConfig(name=LossFnName.KL_DIVERGENCE, reference_run="mean")
    with pytest.raises(InvalidRequest) as caught:
        make_patch_request(CLEAN, CORRUPT, loss=loss)
    assert [one.field for one in caught.value.violations] == ["loss_fn_config.reference_run"]
    with pytest.raises(InvalidRequest) as caught:
        make_patch_request(
            pairs=[make_pair(CLEAN, CORRUPT, target=[2]), make_pair(CLEAN, loss=replace(loss, reference_run="source"))],
            alternative="zero",
            nodes="head",
        )
    assert [one.field for one in caught.value.violations] == ["pairs[1].corrupt"]


def test_what_is_too_large_is_refused_with_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    world = models.world()
    monkeypatch.setattr(patch_planner, "MAX_RUNS", 35)
    pairs = [make_pair(CLEAN, CORRUPT)]
    assert plan(world, nodes="resid_pre").cell_count == 18
    with pytest.raises(InvalidRequest, match="18 cells of 2 pairs, 36 runs, and may for 35"):
        plan(world, nodes="resid_pre", pairs=pairs)
    monkeypatch.setattr(patch_planner, "MAX_LOGITS", 100)
    with pytest.raises(InvalidRequest, match="19 logits of 18 runs") as caught:
        plan(world, nodes="resid_pre", all_logits=True)
    assert caught.value.violations[0].field == "all_logits"
    assert plan(world, nodes="resid_pre", top_logits=5).cell_count == 18


def test_cells_that_are_too_many_together_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a hundred grids, of a hundred thousand cells each, are asked for by 100 kB."""
    monkeypatch.setattr(patch_grids, "MAX_CELLS", 40)
    made: Counter[str] = Counter()

    def changed(self: patch_grids.NodeGrids, *arguments: Any) -> Intervention:
        made.update(["cell"])
        return change(self, *arguments)

    change = patch_grids.NodeGrids._change
    monkeypatch.setattr(patch_grids.NodeGrids, "_change", changed)
    with pytest.raises(InvalidRequest) as caught:
        plan(models.world(), nodes=["resid_pre", "resid_mid", "mlp_out", "head"], edges=["m0->logits"])
    found = {one.field: one.description for one in caught.value.violations}
    assert found["grids[2]"] == "asks for 18 cells, with those before 54, and may for 40"
    assert found.keys() == {"grids[2]", "grids[3]", "edges"}
    assert made.total() == 36


def test_own_cells_are_planned_for_so_many_lengths_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Intervention(
        at=TapSelection(activation_location_type=L.MLP_POST_ACT, layer_index=0, axes=(0, None)),
        action=SetValue(scalar=0.0),
    )
    pairs = [make_pair(CLEAN[:n], CORRUPT[:n], target=[2]) for n in (2, 3, 3, 2)]
    request = make_patch_request(pairs=pairs, cells=[cell] * 5)
    monkeypatch.setattr(patch_planner, "MAX_PLANNED_CELLS", 10)
    found = plan_patch(request, models.world().registry)
    assert {length: len(plans) for length, plans in found.cells.items()} == {2: 5, 3: 5}
    monkeypatch.setattr(patch_planner, "MAX_PLANNED_CELLS", 9)
    with pytest.raises(InvalidRequest, match="cells: holds 5 cells, planned for each of 2 lengths of prompts"):
        plan_patch(request, models.world().registry)


def test_more_cells_are_estimated_to_cost_more() -> None:
    world = models.world()
    few, many = plan(world, nodes="mlp_out", layers=[0]), plan(world, nodes=["mlp_out", "head"])
    late = plan(world, nodes="mlp_out", layers=[2])
    assert late.floating_point_operations < few.floating_point_operations < many.floating_point_operations
    assert few.peak_bytes < many.peak_bytes
    assert many.n_steps > 0
