"""Attribute in the pipeline: planning, blocks of pairs, latents, verified edges, numbers that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.client import make_attribute_request, make_pair, make_patch_request
from dst_grpc.domain.attribute_answers import (
    AttributedPairs,
    AttributeHeader,
    AttributePart,
    AttributePartKind,
    ScoreValues,
    VerifiedEdges,
)
from dst_grpc.domain.components import Dimension, LossFnName
from dst_grpc.domain.graph_nodes import Source
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.patch_answers import PatchMeans, PatchPartKind
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.taps import Taps, site_entering
from dst_grpc.errors import InvalidRequest, OutOfRange, PreconditionFailed, Reason
from dst_grpc.pipeline.attribute_answer import AttributeAnswer
from dst_grpc.pipeline.attribute_planner import AttributePlan, plan_attribute
from dst_grpc.pipeline.patch_answer import PatchAnswer
from dst_grpc.pipeline.patch_planner import plan_patch
from dst_grpc.pipeline.run import run
from tests import models

CLEAN, CORRUPT = models.TOKENS, (3, 1, 2, 1, 5, 0)
METRIC: dict[str, Any] = {"target": [2], "distractor": [11]}


def plan(world: models.World, **arguments: Any) -> AttributePlan:
    clean, corrupt = arguments.pop("prompts", (CLEAN, CORRUPT))
    return plan_attribute(make_attribute_request(clean, corrupt, **{**METRIC, **arguments}), world.registry)


class Answered:
    """An answer, whole."""

    def __init__(self, world: models.World, asked: AttributePlan) -> None:
        results = run([asked.plan], world.decoder, world.sets)
        self.answer = AttributeAnswer(asked, results, world.context, world.sets)
        self.parts: list[AttributePart] = [part for step in self.answer.steps() for part in step]

    def of(self, kind: AttributePartKind) -> Iterator[Any]:
        return (part.value for part in self.parts if part.kind is kind)

    @property
    def header(self) -> AttributeHeader:
        found: AttributeHeader = next(self.of(AttributePartKind.HEADER))
        return found

    @property
    def arrays(self) -> list[np.ndarray[Any, Any]]:
        """The arrays of scores, put together from their pieces."""
        pieces: list[ScoreValues] = list(self.of(AttributePartKind.VALUES))
        return [
            np.concatenate([piece.values for piece in pieces if piece.tensor_id == info.tensor_id]).reshape(info.shape)
            for info in self.header.scores
        ]


def test_arrays_are_as_the_header_announces() -> None:
    world = models.world(T.RESID_DELTA_MLP, config=models.ARCHITECTURES["gemma"])
    (name,) = world.sets
    nodes = ["input", "head", "neuron", "pattern", "latent", "latent_error"]
    found = Answered(world, plan(world, nodes=nodes, edges=True, by_position=True, autoencoders=name))
    axes = {info.node or info.kind: tuple(axis.dimension for axis in info.axes) for info in found.header.scores}
    layers, tokens, heads = Dimension.LAYERS, Dimension.SEQUENCE_TOKENS, Dimension.ATTN_HEADS
    assert axes == {
        "input": (tokens,),
        "head": (layers, heads, tokens),
        "neuron": (layers, tokens, Dimension.MLP_ACTS),
        "pattern": (layers, heads, tokens),
        "latent": (layers, tokens, Dimension.AUTOENCODER_LATENTS),
        "latent_error": (layers, tokens),
        "edges": (tokens, Dimension.GRAPH_SOURCES, Dimension.GRAPH_READERS),
    }
    assert [array.shape for array in found.arrays] == [info.shape for info in found.header.scores]
    summary = found.answer.summary()
    assert (summary.statistics.forward_passes, summary.statistics.backward_passes) == (2, 1)


def test_pairs_in_several_blocks_have_the_mean_of_one_block() -> None:
    world = models.world()
    pairs = [make_pair(CLEAN[i:], CORRUPT[i:]) for i in (0, 2, 1, 3)] * 40
    asked = plan(world, prompts=(None, None), pairs=pairs, edges=True, nodes="head")
    blocks = list(asked.blocks())
    assert len(blocks) > 1
    assert [i for block in blocks for i in block] == list(range(160))
    found, few = (
        Answered(world, asked),
        Answered(world, plan(world, prompts=(None, None), pairs=pairs[:4], edges=True, nodes="head")),
    )
    for one, other in zip(found.arrays, few.arrays, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    (metrics,) = found.of(AttributePartKind.PAIRS)
    assert isinstance(metrics, AttributedPairs)
    assert len(metrics.pairs) == 160


@pytest.mark.parametrize("name", ["gpt2", "gemma", "neox"])
def test_verified_effects_are_differences_of_the_metric(name: str) -> None:
    """Into the logits a patch moves the last residual by what the source's output changes, and nothing else."""
    world = models.world(config=models.ARCHITECTURES[name])
    found = Answered(world, plan(world, edges=True, verify=10_000))
    (verified,) = found.of(AttributePartKind.VERIFIED)
    assert isinstance(verified, VerifiedEdges)
    assert len(verified.effects) == found.header.edge_count
    place = list(zip(verified.sources, verified.readers, strict=True)).index((0, len(found.header.readers) - 1))
    decoder = world.decoder
    base, source = (decoder.embed(torch.tensor([tokens])) for tokens in (CLEAN, CORRUPT))
    residual = decoder_residual(world)
    metrics = []
    for moved in (residual, residual + (source - base)):
        logits = decoder.unembed(decoder.final_norm(moved))[0, -1]
        metrics.append((logits[2] - logits[11]).item())
    assert verified.effects[place] == pytest.approx(metrics[1] - metrics[0])


def decoder_residual(world: models.World) -> torch.Tensor:
    taps = Taps(values=[site_entering(3)])
    world.decoder.forward(torch.tensor([CLEAN]), taps)
    return taps.values[site_entering(3)]


def refused(error: type[Exception], world: models.World, **arguments: Any) -> Any:
    with pytest.raises(error) as caught:
        plan(world, **arguments)
    return caught.value


def test_what_the_model_rules_out_is_refused_by_its_path() -> None:
    world, parallel = models.world(), models.world(config=models.ARCHITECTURES["neox"])
    shallow = models.world(config=replace(models.CONFIG, n_layers=1))
    rms = models.world(config=models.ARCHITECTURES["llama"])
    zero = {"prompts": (CLEAN, None), "method": "integrated_gradients", "baseline": "zero"}
    for field, found in (
        ("nodes[0]", refused(InvalidRequest, parallel, nodes="resid_mid")),
        ("grad_drop", refused(InvalidRequest, shallow, nodes="head", grad_drop=True)),
        ("path_rule", refused(InvalidRequest, rms, path_rule="trapezoid", **zero)),
        ("pairs[0].corrupt", refused(InvalidRequest, world, prompts=(CLEAN, CORRUPT[1:]))),
        ("pairs[1].clean", refused(InvalidRequest, world, pairs=[make_pair(CLEAN[1:], CORRUPT[1:])], by_position=True)),
        ("loss_fn_config.target_token_ids[0]", refused(InvalidRequest, world, target=[19])),
    ):
        assert [violation.field for violation in found.violations] == [field]
    assert refused(PreconditionFailed, world, nodes="latent").reason is Reason.AUTOENCODER_REQUIRED
    assert plan(rms, path_rule="right", **zero).request.effective_steps == 20


@pytest.mark.parametrize(
    ("method", "orientation", "path_rule", "steps", "vanishes"),
    [
        ("attribution_patching", "noising", None, None, True),
        ("attribution_patching", "denoising", None, None, False),
        ("clean_corrupt", "noising", None, None, False),
        ("integrated_inputs", "noising", "right", 1, True),
        ("integrated_inputs", "noising", "right", 2, False),
        ("integrated_inputs", "noising", "left", 1, False),
        ("integrated_inputs", "denoising", "left", 1, True),
        ("integrated_inputs", "denoising", "right", 1, False),
        ("integrated_activations", "noising", "right", 1, True),
        ("integrated_gradients", "noising", "right", 1, True),
        ("integrated_gradients", "denoising", "left", 1, True),
        ("integrated_gradients", "noising", "trapezoid", 1, False),
        ("integrated_gradients", "noising", "gauss_legendre", 1, False),
    ],
)
def test_a_divergence_is_refused_where_gradients_are_those_of_its_minimum_alone(
    method: str, orientation: str, path_rule: str | None, steps: int | None, vanishes: bool
) -> None:
    world = models.world()
    asked = {"method": method, "orientation": orientation, "path_rule": path_rule, "steps": steps}
    # The clean run, by default and by its name.
    for named in (None, "unchanged" if orientation == "noising" else "source"):
        loss = LossFnConfig(name=LossFnName.KL_DIVERGENCE, reference_run=named)
        divergence: dict[str, Any] = {"target": None, "distractor": None, "loss": loss, **asked}
        if vanishes:
            error = refused(InvalidRequest, world, **divergence)
            assert [one.field for one in error.violations] == ["loss_fn_config.name"]
        else:
            assert max(np.abs(scores).max() for scores in Answered(world, plan(world, **divergence)).arrays) > 1e-6


def test_effects_of_edges_on_a_divergence_are_verified() -> None:
    world = models.world()
    loss = LossFnConfig(name=LossFnName.KL_DIVERGENCE, reference_run="source")
    asked = plan(world, target=None, distractor=None, loss=loss, edges=True, nodes=(), verify=400)
    found, graph = Answered(world, asked), asked.graph
    (verified,) = found.of(AttributePartKind.VERIFIED)
    (pairs,) = found.of(AttributePartKind.PAIRS)
    edge = (graph.index_of_source(Source(0)), len(graph.readers) - 1)
    place = list(zip(verified.sources, verified.readers, strict=True)).index(edge)
    one = plan_patch(make_patch_request(CLEAN, CORRUPT, loss=loss, edges=["m0->logits"]), world.registry)
    patched = PatchAnswer(one, run([one.plan], world.decoder, world.sets), world.context, {})
    (means,) = [part.value for step in patched.steps() for part in step if part.kind is PatchPartKind.MEANS]
    assert isinstance(means, PatchMeans)
    assert pairs.pairs[0].source == pytest.approx(0, abs=1e-12)
    assert verified.effects[place] == pytest.approx(means.metrics[0] - pairs.pairs[0].base, abs=1e-9)


def test_more_work_is_estimated_to_cost_more() -> None:
    world = models.world()
    small, large = plan(world, nodes="head"), plan(world, edges=True, method="integrated_activations")
    assert large.floating_point_operations > small.floating_point_operations
    assert plan(world, edges=True, by_position=True).peak_bytes > plan(world, edges=True).peak_bytes
    assert plan(world, nodes="head", rule="gim").peak_bytes > small.peak_bytes


def test_digests_tell_questions_apart_but_not_their_ids() -> None:
    world = models.world()
    one, same, other = (
        plan(world, nodes="head", request_id=request_id, rule=rule)
        for request_id, rule in (("1", "plain"), ("2", "plain"), ("1", "relp"))
    )
    assert one.digest("m", ()) == same.digest("m", ()) != other.digest("m", ())


def test_numbers_that_are_not_finite_are_an_error() -> None:
    world = models.world(dtype=torch.float32)
    world.decoder.layers[1].mlp_out[0, 0] = 3e38
    asked = plan(world, nodes="head", prompts=((3, 1), (4, 1)))
    with pytest.raises(OutOfRange):
        Answered(world, asked)
