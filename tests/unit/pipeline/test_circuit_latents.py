"""Circuits with latents: every circuit of nodes is the plain model's run with all other nodes replaced; scores."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.measure import peak_bytes
from dst_grpc.client import make_attribute_request, make_circuit_request, make_patch_request
from dst_grpc.domain.attribute import AttributedNode
from dst_grpc.domain.attribute_answers import AttributeHeader, ScoreValues
from dst_grpc.domain.autoencoders import InputNormalization
from dst_grpc.domain.circuit import CircuitKind, CircuitPartKind
from dst_grpc.domain.graph_nodes import node_named
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.patch import PatchGrid
from dst_grpc.domain.patch_answers import PatchMeans
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.taps import Site
from dst_grpc.errors import InvalidRequest, PreconditionFailed, require
from dst_grpc.pipeline.attribute_answer import AttributeAnswer
from dst_grpc.pipeline.attribute_planner import plan_attribute
from dst_grpc.pipeline.circuit_answer import CircuitAnswer
from dst_grpc.pipeline.circuit_planner import CircuitPlan, plan_circuit
from dst_grpc.pipeline.patch_answer import PatchAnswer
from dst_grpc.pipeline.patch_planner import plan_patch
from dst_grpc.pipeline.run import run
from tests import models, plain
from tests.plain import Kind, Transcoder

CLEAN, CORRUPT = models.TOKENS, (3, 1, 4, 8, 5, 2)
REFERENCE = [(3, 1, 8, 1, 2, 9), (4, 4, 7, 1, 1, 2), (9, 2, 6, 5, 3, 5)]
SETS: dict[str, tuple[Kind, ...]] = {
    "neurons": (T.MLP_POST_ACT,),
    "writes": (T.RESID_DELTA_MLP, T.RESID_DELTA_ATTN),
    "transcoders": (Transcoder.NORMED, T.RESID_DELTA_ATTN),
    "across layers": (Transcoder.CROSS_LAYER,),
    "residuals": (T.RESID_POST_MLP, T.MLP_POST_ACT),
    "residuals within": (T.RESID_POST_ATTN, T.RESID_DELTA_ATTN),
}
PLACES: dict[Kind, str] = {
    **dict.fromkeys(Transcoder, "m"),
    T.MLP_POST_ACT: "m",
    T.RESID_DELTA_MLP: "m",
    T.RESID_DELTA_ATTN: "a",
}
ALTERNATIVES = ("patching", "mean_by_position", "mean", "zero")
METRIC: dict[str, Any] = {"target": [2], "distractor": [11]}
Edit = Callable[[Site, torch.Tensor], torch.Tensor]


def plan(world: models.World, **arguments: Any) -> CircuitPlan:
    asked = {**METRIC, "autoencoders": tuple(world.sets), "latents": True, **arguments}
    return plan_circuit(make_circuit_request(CLEAN, CORRUPT, **asked), world.registry)


class Answered:
    """An answer, whole."""

    def __init__(self, world: models.World, asked: CircuitPlan) -> None:
        results = run([asked.plan], world.decoder, world.sets)
        answer = CircuitAnswer(asked, results, world.context, world.sets)
        self.parts = [part for step in answer.steps() for part in step]

    def of(self, kind: CircuitPartKind) -> list[Any]:
        return [part.value for part in self.parts if part.kind is kind]

    def metrics(self, kind: CircuitKind) -> list[float]:
        return [one.metric for one in self.of(CircuitPartKind.EVALUATION) if one.kind is kind]


@cache
def world_of(architecture: str, sets: str) -> models.World:
    config = models.ARCHITECTURES[architecture]
    # The scale of what an autoencoder writes may depend on what it reads; of one layer there is none.
    fields: dict[str, Any] = {"normalization": InputNormalization.LAYER_NORM, "layers": (0, 2)}
    return models.world(*SETS[sets], seed=5, config=config, **fields)


class ByHand:
    """The nodes of a model with autoencoders, and runs of it in which some are replaced."""

    def __init__(self, architecture: str, sets: str, alternative: str) -> None:
        self.config, self.sets = models.ARCHITECTURES[architecture], SETS[sets]
        world = world_of(architecture, sets)
        self.model = plain.Plain(self.config, models.weights(5, self.config), world.by_kind, is_spliced=True)
        self.instead = self._instead(alternative)

    def values(self, tokens: tuple[int, ...]) -> Mapping[Site, torch.Tensor]:
        with torch.no_grad():
            found = self.model.run(tokens)
        embedding = L.RESID_POST_EMBEDDING, None
        return {**found, embedding: found[embedding] - self.model.positions(len(tokens))}

    def _instead(self, alternative: str) -> Mapping[Site, torch.Tensor]:
        if alternative == "patching":
            return self.values(CORRUPT)
        if alternative == "zero":
            return {site: torch.zeros_like(x) for site, x in self.values(CLEAN).items()}
        runs = [self.values(tokens) for tokens in REFERENCE]
        means = {site: torch.stack([one[site] for one in runs]).mean(dim=0) for site in runs[0]}
        if alternative == "mean_by_position":
            return means
        return {site: x.mean(dim=0, keepdim=True).expand_as(x) for site, x in means.items()}

    @property
    def nodes(self) -> dict[str, tuple[Site, Any]]:
        """The site of each node, and its entries there."""
        found: dict[str, tuple[Site, Any]] = {"input": ((L.RESID_POST_EMBEDDING, None), slice(None))}
        layers, read = range(self.config.n_layers), {PLACES.get(kind, "r") for kind in self.sets}
        for layer in layers:
            has_sets = layer in (0, 2)
            if not (has_sets and "a" in read):
                for head in range(self.config.n_heads):
                    found[f"a{layer}.h{head}"] = (L.ATTN_WEIGHTED_SUM_OF_VALUES, layer), (slice(None), head)
            if not (has_sets and "m" in read):
                found[f"m{layer}"] = (L.RESID_DELTA_MLP, layer), slice(None)
        for layer, kind in product((0, 2), self.sets):
            facts, name = models.input_of(kind), f"{PLACES.get(kind, 'r')}{layer}"
            for latent in range(models.LATENTS[kind]):
                found[f"{name}.l{latent}"] = (facts.latent_tap, layer), (slice(None), latent)
            found[f"{name}.error"] = (require(facts.error_tap), layer), slice(None)
        return found

    def metric(self, kept: set[str]) -> float:
        cut = [node for name, node in self.nodes.items() if name not in kept]

        def edit(site: Site, x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            for own, entries in cut:
                if own == site:
                    x[entries] = self.instead[site][entries]
                    if own[0] is L.RESID_POST_EMBEDDING:
                        x += self.model.positions(len(CLEAN))
            return x

        with torch.no_grad():
            logits = self.model.run(CLEAN, edit)[L.LOGITS, None][-1]
        return float(logits[2] - logits[11])


@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_a_circuit_is_the_plain_model_s_run_with_all_other_nodes_replaced(architecture: str, sets: str) -> None:
    if models.ARCHITECTURES[architecture].parallel and T.RESID_POST_ATTN in SETS[sets]:
        return  # there is no such residual
    chance = random.Random(f"{architecture} {sets}")
    world = world_of(architecture, sets)
    for alternative in ALTERNATIVES:
        by_hand = ByHand(architecture, sets, alternative)
        names = list(by_hand.nodes)
        kept = [names, [], *(chance.sample(names, k) for k in (len(names) // 2, len(names) - 3, len(names) - 1))]
        reference = REFERENCE if "mean" in alternative else ()
        found = Answered(world, plan(world, circuits=kept, alternative=alternative, reference=reference))
        expected = [by_hand.metric(set(one)) for one in kept]
        assert found.metrics(CircuitKind.GIVEN) == pytest.approx(expected, rel=1e-8, abs=1e-9)
        assert found.metrics(CircuitKind.WHOLE) == found.metrics(CircuitKind.GIVEN)[:1]
        assert found.metrics(CircuitKind.EMPTY) == found.metrics(CircuitKind.GIVEN)[1:2]
        assert np.ptp(expected) > 1e-3
        if alternative == "patching":
            logits = by_hand.values(CORRUPT)[L.LOGITS, None][-1]
            assert expected[1] == pytest.approx(float(logits[2] - logits[11]), rel=1e-8, abs=1e-9)


def test_all_that_an_autoencoder_has_is_kept_by_one_name() -> None:
    world = world_of("gpt2", "writes")
    by_hand = ByHand("gpt2", "writes", "zero")
    short = [name for name in by_hand.nodes if "." not in name or ".h" in name] + ["m0", "m2", "a0", "a2"]
    found = Answered(world, plan(world, circuits=[short, list(by_hand.nodes)], alternative="zero"))
    one, other = found.metrics(CircuitKind.GIVEN)
    assert one == other
    (header,) = found.of(CircuitPartKind.HEADER)
    assert header.node_count == len(by_hand.nodes)
    assert [(part.name, part.latent_count, part.has_error) for part in header.parts] == [
        ("a0", 9, True),
        ("m0", 11, True),
        ("a2", 9, True),
        ("m2", 11, True),
    ]


@pytest.mark.parametrize(
    "kind", [T.MLP_POST_ACT, T.RESID_DELTA_ATTN, T.RESID_POST_MLP, Transcoder.NORMED, Transcoder.CROSS_LAYER]
)
@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_to_cut_one_latent_is_to_patch_it(kind: Kind, alternative: str) -> None:
    world = models.world(kind, seed=5)
    name = PLACES.get(kind, "r")
    reference = REFERENCE if "mean" in alternative else ()
    asked: dict[str, Any] = {"alternative": alternative, "reference": reference}
    latents = range(models.LATENTS[kind])
    grids = [
        PatchGrid(node=AttributedNode.LATENT, layers=(1,), entries=tuple(latents), all_positions=True),
        PatchGrid(node=AttributedNode.LATENT_ERROR, layers=(1,), all_positions=True),
    ]
    request = make_patch_request(CLEAN, CORRUPT, grids=grids, autoencoders=tuple(world.sets), **METRIC, **asked)
    one = plan_patch(request, world.registry)
    patched = PatchAnswer(one, run([one.plan], world.decoder, world.sets), world.context, world.sets)
    parts = [part for step in patched.steps() for part in step]
    means = [part.value for part in parts if isinstance(part.value, PatchMeans)]
    expected = [metric for grid in means for metric in grid.metrics]
    nodes = plan(world, curve=True).nodes
    assert nodes is not None
    cut = [*(f"{name}1.l{i}" for i in latents), f"{name}1.error"]
    kept = []
    for one_cut in cut:
        mask = np.ones(nodes.count, dtype=bool)
        mask[nodes.places_of(node_named(one_cut))] = False
        kept.append(mask)
    # Scores that leave out one node each: the circuit of all but one is the largest but the whole.
    found = []
    for mask in kept:
        fraction = (nodes.count - 0.5) / nodes.count
        answered = Answered(world, plan(world, scores=mask.astype(np.float32), fractions=[fraction], **asked))
        found += answered.metrics(CircuitKind.CURVE)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-10)
    assert np.ptp(expected) > 1e-6


def test_scores_of_one_point_are_those_of_attribution_patching() -> None:
    """At the run itself; every node, in the order of the header."""
    world = world_of("gemma", "writes")
    found = Answered(world, plan(world, steps=1, with_scores=True))
    (scores,) = found.of(CircuitPartKind.NODE_SCORES)
    (header,) = found.of(CircuitPartKind.HEADER)
    nodes = [AttributedNode.LATENT, AttributedNode.LATENT_ERROR, AttributedNode.HEAD, AttributedNode.MLP_OUT]
    request = make_attribute_request(
        CLEAN, CORRUPT, nodes=[*nodes, AttributedNode.INPUT], autoencoders=tuple(world.sets), **METRIC
    )
    one = plan_attribute(request, world.registry)
    answer = AttributeAnswer(one, run([one.plan], world.decoder, world.sets), world.context, world.sets)
    parts = [part for step in answer.steps() for part in step]
    infos = next(part.value.scores for part in parts if isinstance(part.value, AttributeHeader))
    arrays = {part.value.tensor_id: part.value.values for part in parts if isinstance(part.value, ScoreValues)}
    expected: dict[str, float] = {}
    # For each kind of node, the sets are in the same order.
    widths = [info.shape[-1] for info in infos if info.node is AttributedNode.LATENT]
    places = iter(["am"[width == models.LATENTS[T.RESID_DELTA_MLP]] for width in widths] * 2)
    for info in infos:
        values = arrays[info.tensor_id].reshape(info.shape)
        is_part = info.node in {AttributedNode.LATENT, AttributedNode.LATENT_ERROR}
        place = next(places) if is_part else ""
        for i, layer in enumerate(info.layer_indices):
            match info.node:
                case AttributedNode.LATENT:
                    expected |= {f"{place}{layer}.l{j}": score for j, score in enumerate(values[i])}
                case AttributedNode.LATENT_ERROR:
                    expected[f"{place}{layer}.error"] = values[i]
                case AttributedNode.HEAD:
                    expected |= {f"a{layer}.h{j}": score for j, score in enumerate(values[i])}
                case AttributedNode.MLP_OUT:
                    expected[f"m{layer}"] = values[i]
        if info.node is AttributedNode.INPUT:
            expected["input"] = float(values)
    names = list(header.sources)
    for part in header.parts:
        names += [f"{part.name}.l{i}" for i in range(part.latent_count)] + [f"{part.name}.error"] * part.has_error
    assert scores.nodes == tuple(range(len(names)))
    wanted = np.array([expected[name] for name in names])
    np.testing.assert_allclose(scores.scores, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_a_curve_keeps_the_nodes_of_the_largest_scores(alternative: str) -> None:
    world = world_of("llama", "residuals")
    reference = REFERENCE if "mean" in alternative else ()
    by_hand = ByHand("llama", "residuals", alternative)
    found = Answered(
        world,
        plan(
            world,
            alternative=alternative,
            reference=reference,
            fractions=[0.25, 0.6, 1],
            with_scores=True,
            wanted_faithfulness=0.999,
            selection="signed",
        ),
    )
    (scores,), (kept,), (header,) = (
        found.of(kind) for kind in (CircuitPartKind.NODE_SCORES, CircuitPartKind.NODES, CircuitPartKind.HEADER)
    )
    names = list(header.sources)
    for part in header.parts:
        names += [f"{part.name}.l{i}" for i in range(part.latent_count)] + [f"{part.name}.error"] * part.has_error
    order = np.argsort(scores.scores, kind="stable")
    counts = [int(fraction * len(names)) for fraction in (0.25, 0.6, 1)]
    expected = [by_hand.metric({names[i] for i in order[:count]}) for count in counts]
    assert found.metrics(CircuitKind.CURVE) == pytest.approx(expected, rel=1e-7, abs=1e-8)
    curve = [one for one in found.of(CircuitPartKind.EVALUATION) if one.kind is CircuitKind.CURVE]
    assert [one.node_count for one in curve] == counts
    assert [one.edge_count for one in curve] == [0] * 3
    (summary,) = found.of(CircuitPartKind.CURVE)
    assert summary.of_nodes
    assert len(kept.nodes) == counts[summary.chosen_index]
    magnitudes = np.abs(kept.scores)
    assert (np.diff(magnitudes) <= 0).all()


@pytest.mark.parametrize("threshold", [0.003, 0.02, 0.2])
def test_a_search_tries_each_node_from_the_last_layer_to_the_first(threshold: float) -> None:
    """As it is described, one after the other on the plain model."""
    by_hand = ByHand("gpt2", "neurons", "patching")
    heads = range(by_hand.config.n_heads)
    order = []
    for layer in reversed(range(by_hand.config.n_layers)):
        latents = [f"m{layer}.l{i}" for i in range(models.LATENTS[T.MLP_POST_ACT])]
        mlp = [*latents, f"m{layer}.error"] if layer in (0, 2) else [f"m{layer}"]
        order += [*reversed(mlp), *(f"a{layer}.h{head}" for head in reversed(heads))]
    order.append("input")
    kept = set(order)
    assert kept == set(by_hand.nodes)
    metric = by_hand.metric(kept)
    for node in order:
        changed = by_hand.metric(kept - {node})
        if metric - changed < threshold:  # what should stay small is how far the metric falls
            kept, metric = kept - {node}, changed
    world = world_of("gpt2", "neurons")
    asked = plan(world, acdc_threshold=threshold, acdc_of_metric=True)
    found = Answered(world, asked)
    (nodes,) = found.of(CircuitPartKind.FOUND_NODES)
    assert asked.nodes is not None
    expected = {asked.nodes.places_of(node_named(name)).start for name in kept}
    assert set(nodes.nodes) == expected
    assert found.metrics(CircuitKind.ACDC) == pytest.approx([metric], abs=1e-8)
    last = found.of(CircuitPartKind.PROGRESS)[-1]
    assert (last.done, last.total, last.kept_edge_count) == (len(order), len(order), len(kept))
    assert 0 < len(kept) < len(order)


def test_an_answer_takes_no_more_memory_than_is_estimated() -> None:
    world = models.world(T.MLP_POST_ACT, T.RESID_DELTA_ATTN)
    pairs = [{"clean": CLEAN, "corrupt": CORRUPT, **METRIC}] * 8
    request = make_circuit_request(pairs=pairs, autoencoders=tuple(world.sets), latents=True)
    asked = plan_circuit(request, world.registry)
    # The model of the tests has numbers of 8 bytes, twice those that are estimated for.
    assert peak_bytes(lambda: Answered(world, asked)) <= 2 * asked.peak_bytes


def refused(error: type[Exception], world: models.World, **arguments: Any) -> list[str]:
    with pytest.raises(error) as caught:
        plan(world, **arguments)
    return [one.field for one in caught.value.violations]  # type: ignore[attr-defined]


def test_what_cannot_be_asked_of_latents_is_refused_at_its_field() -> None:
    world = world_of("gpt2", "residuals")
    assert refused(InvalidRequest, world, circuits=[["m0.l15", "m0.l14", "m1.l0", "a0.l1", "r2.error", "m1"]]) == [
        "circuits[0].nodes[0]",
        "circuits[0].nodes[2]",
        "circuits[0].nodes[3]",
    ]
    assert refused(InvalidRequest, world, circuits=[["m0->logits"]]) == ["circuits[0].edges"]
    assert refused(InvalidRequest, world, circuits=[["input"]], prune=True) == ["prune"]
    assert refused(InvalidRequest, world, selection="greedy") == ["curve.selection"]
    assert refused(InvalidRequest, world, scores=np.zeros(5)) == ["curve.scores"]
    assert refused(InvalidRequest, world, circuits=[["m0.l1"]], latents=False) == ["circuits[0].nodes[0]"]
    assert refused(PreconditionFailed, world, autoencoders=(), circuits=[["m0.l1"]]) == ["autoencoders"]
