"""Losses: their values and gradients are those of the plain model, wherever and of whatever they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from dst_grpc.domain.components import AttentionTraceType, LossFnName, PassType
from dst_grpc.domain.interventions import (
    CopyFromRun,
    DetachGradient,
    DifferenceOfMeans,
    Direction,
    EncoderRow,
    Intervention,
    ScaleValue,
    UnembeddingRow,
)
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig, TapSum
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import Prompt, SourceRun
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import PositionRange, TapSelection
from dst_grpc.engine.taps import Site
from dst_grpc.errors import InvalidRequest
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.run import run
from tests import models, plain, traces
from tests.closeness import assert_close

WORLDS = {
    name: models.world(T.RESID_POST_MLP, seed=3, config=models.ARCHITECTURES[name])
    for name in ("gpt2", "gemma", "neox")
}
WORLD = WORLDS["gpt2"]
TOKENS, LONG, SHORT = (3, 1, 4, 1, 5, 9), (5, 7, 7, 2, 1, 5, 6, 6, 4), (2, 7, 1, 8)
EMBEDDING: Site = (L.RESID_POST_EMBEDDING, None)
Taps = Mapping[Site, torch.Tensor]
N = LossFnName


def loss(name: LossFnName, *targets: int, distractors: tuple[int, ...] = (), **fields: Any) -> LossFnConfig:
    return LossFnConfig(name=name, target_token_ids=targets, distractor_token_ids=distractors, **fields)


def tap(location: L, layer: int | None, *axes: Any, direction: Direction | None = None) -> LossFnConfig:
    at = TapSelection(activation_location_type=location, layer_index=layer, axes=axes)
    return LossFnConfig(name=N.TAP, tap=TapSum(at=at, direction=direction))


def log_p(taps: Taps, position: int) -> torch.Tensor:
    return taps[L.LOGITS, None][position].log_softmax(-1)


def entropy(taps: Taps, position: int) -> torch.Tensor:
    p = taps[L.LOGITS, None][position].softmax(-1)
    return -(p * p.log()).sum()


NUMBERS = [0.5, -1.0, 2.0, 0.0, 1.0, -0.5, 0.25, 3.0]
VECTOR = torch.tensor(NUMBERS, dtype=torch.float64)
LOSSES: dict[str, tuple[LossFnConfig, Callable[[Taps], torch.Tensor]]] = {
    "probs": (loss(N.PROBS, 2, 7), lambda t: log_p(t, -1).exp()[[2, 7]].sum()),
    "probs with distractors": (
        loss(N.PROBS, 2, 7, distractors=(1, 1, 3)),
        lambda t: log_p(t, -1).exp()[[2, 7]].sum() - log_p(t, -1).exp()[[1, 1, 3]].sum(),
    ),
    "log probability": (loss(N.LOG_PROB, 4), lambda t: log_p(t, -1)[4]),
    "log probabilities of sets": (
        loss(N.LOG_PROB, 4, 5, distractors=(6, 8)),
        lambda t: log_p(t, -1).exp()[[4, 5]].sum().log() - log_p(t, -1).exp()[[6, 8]].sum().log(),
    ),
    "logit difference elsewhere": (
        loss(N.LOGIT_DIFF, 2, distractors=(3,), token_index=-3),
        lambda t: t[L.LOGITS, None][3, 2] - t[L.LOGITS, None][3, 3],
    ),
    "answer in sequence": (
        loss(N.SEQUENCE_LOG_PROB, 5, 9, 2),
        lambda t: log_p(t, 3)[5] + log_p(t, 4)[9] + log_p(t, 5)[2],
    ),
    "answer within the prompt": (
        loss(N.SEQUENCE_LOG_PROB, 4, 1, token_index=1),
        lambda t: log_p(t, 1)[4] + log_p(t, 2)[1],
    ),
    "entropy": (loss(N.ENTROPY), lambda t: entropy(t, -1)),
    "entropy at the start": (loss(N.ENTROPY, token_index=0), lambda t: entropy(t, 0)),
    "cross entropy": (
        loss(N.CROSS_ENTROPY),
        lambda t: -sum((log_p(t, i)[TOKENS[i + 1]] for i in range(5)), torch.zeros(())) / 5,
    ),
    "cross entropy of a span": (
        loss(N.CROSS_ENTROPY, span=PositionRange(start=2, stop=4)),
        lambda t: -(log_p(t, 1)[4] + log_p(t, 2)[1]) / 2,
    ),
    "an entry": (tap(L.ATTN_QK_PROBS, 1, 4, 2, 1), lambda t: t[L.ATTN_QK_PROBS, 1][4, 2, 1]),
    "entries": (
        tap(L.MLP_POST_ACT, 2, PositionRange(start=1, stop=3), 5),
        lambda t: t[L.MLP_POST_ACT, 2][1:3, 5].sum(),
    ),
    "a projection": (
        tap(L.RESID_POST_MLP, 1, 5, direction=Direction(direction=RequestTensor(tensor=NUMBERS))),  # type: ignore[arg-type]
        lambda t: t[L.RESID_POST_MLP, 1][5] @ VECTOR,
    ),
    "a projection on a unit vector": (
        tap(L.RESID_DELTA_ATTN, 0, 5, direction=Direction(direction=UnembeddingRow(token_id=7), normalize=True)),
        lambda t: t[L.RESID_DELTA_ATTN, 0][5] @ t[L.LOGITS, None].new_tensor(0.0),  # made below, of the weights
    ),
    "a logit by its tap": (tap(L.LOGITS, None, 2, 11), lambda t: t[L.LOGITS, None][2, 11]),
}


def formula(name: str, world: models.World) -> Callable[[Taps], torch.Tensor]:
    if name != "a projection on a unit vector":
        return LOSSES[name][1]
    column = world.decoder.unembedding[:, 7]
    return lambda t: t[L.RESID_DELTA_ATTN, 0][5] @ column / torch.linalg.vector_norm(column)


def planned(world: models.World, config: LossFnConfig, *changes: Intervention, **fields: Any) -> Plan:
    request = models.request(
        **{"tokens": TOKENS, "interventions": changes, "loss_fn_config": config, **fields},
    )
    sites = frozenset(models.sites(world.decoder.config))
    return replace(make_plan(request, world.registry), values=sites, gradients=sites)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_is_its_formula_and_so_are_its_gradients(kind: str) -> None:
    """Beside prompts of other lengths with losses of other kinds."""
    name = sorted(WORLDS)[len(kind) % len(WORLDS)]
    world, config = WORLDS[name], LOSSES[kind][0]
    others = (
        planned(world, loss(N.CROSS_ENTROPY), tokens=LONG),
        planned(world, loss(N.LOGIT_DIFF, 1), tokens=SHORT),
    )
    (found, *_) = run([planned(world, config), *others], world.decoder, world.sets)
    reference = plain.Plain(world.decoder.config, models.weights(3, world.decoder.config))

    def edit(site: Site, x: torch.Tensor) -> torch.Tensor:
        return x.requires_grad_() if site == EMBEDDING else x.view_as(x)

    taps = reference.run(TOKENS, edit)
    value = formula(kind, world)(taps)
    gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(value, list(taps.values()), allow_unused=True)
    assert found.loss == pytest.approx(value.item(), rel=1e-9)
    for (site, x), gradient in zip(taps.items(), gradients, strict=True):
        expected = torch.zeros_like(x) if gradient is None else gradient
        ours = found.recording.taps.gradient(site, x.detach())
        assert_close(ours, expected, rtol=1e-7, atol=1e-9, msg=str(site))


PATCH = Intervention(
    at=TapSelection(activation_location_type=L.RESID_POST_MLP, layer_index=1, axes=(2,)),
    action=CopyFromRun(run="other"),
)
SOURCES = (
    SourceRun(name="other", prompt=Prompt(token_ids=(2, 7, 1, 8, 2, 8))),
    SourceRun(name="longer", prompt=Prompt(token_ids=LONG)),
)


@pytest.mark.parametrize("max_tokens", [1000, 1])
@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (loss(N.KL_DIVERGENCE), (-1, TOKENS, -1)),
        (loss(N.KL_DIVERGENCE, token_index=2), (2, TOKENS, 2)),
        (loss(N.KL_DIVERGENCE, reference_run="longer"), (-1, LONG, -1)),
        (loss(N.KL_DIVERGENCE, reference_run="longer", token_index=-2), (-2, LONG, -2)),
        (loss(N.KL_DIVERGENCE, reference_run="other", token_index=4), (4, (2, 7, 1, 8, 2, 8), 4)),
    ],
)
def test_a_divergence_is_from_another_run(
    config: LossFnConfig, positions: tuple[int, tuple[int, ...], int], max_tokens: int
) -> None:
    """In one batch with it, or after it; no gradient flows into it."""
    own, tokens, at = positions
    made = planned(WORLD, config, PATCH, source_runs=SOURCES)
    beside = planned(WORLD, loss(N.ENTROPY), tokens=LONG)
    (found, _) = run([made, beside], WORLD.decoder, WORLD.sets, max_tokens=max_tokens)
    reference = plain.Plain(WORLD.decoder.config, models.weights(3, WORLD.decoder.config))
    patched = reference.run((2, 7, 1, 8, 2, 8))[L.RESID_POST_MLP, 1].detach()

    def edit(site: Site, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_() if site == EMBEDDING else x
        if site == (L.RESID_POST_MLP, 1):
            x = torch.cat([x[:2], patched[2:3], x[3:]])
        return x

    taps = reference.run(TOKENS, edit)
    of_reference = log_p(reference.run(tokens), at).detach()
    value = (of_reference.exp() * (of_reference - log_p(taps, own))).sum()
    (gradient,) = torch.autograd.grad(value, [taps[EMBEDDING]])
    assert found.loss == pytest.approx(value.item(), rel=1e-9)
    assert_close(found.recording.taps.gradients[EMBEDDING], gradient, rtol=1e-7, atol=1e-9)


def test_two_runs_may_be_compared_with_one_another() -> None:
    """Each is asked for, and the reference of the other."""
    one = planned(WORLD, loss(N.KL_DIVERGENCE, reference_run="longer"), source_runs=SOURCES)
    other = planned(
        WORLD,
        loss(N.KL_DIVERGENCE, reference_run="same"),
        tokens=LONG,
        source_runs=(SourceRun(name="same", prompt=Prompt(token_ids=TOKENS)),),
    )
    together = run([one, other], WORLD.decoder, WORLD.sets)
    alone = [run([each], WORLD.decoder, WORLD.sets)[0] for each in (one, other)]
    assert [each.loss for each in together] == pytest.approx([each.loss for each in alone], rel=1e-9)


def test_a_divergence_from_the_same_run_is_0_and_has_no_gradient_to_ask_for() -> None:
    same = (SourceRun(name="same"),)
    for config in (loss(N.KL_DIVERGENCE), loss(N.KL_DIVERGENCE, reference_run="same")):
        fields: dict[str, Any] = {"tokens": TOKENS, "loss_fn_config": config, "source_runs": same}
        (found,) = run([make_plan(models.request(**fields), WORLD.registry)], WORLD.decoder, {})
        assert found.loss == pytest.approx(0.0, abs=1e-15)
        assert refused(lambda: make_plan(models.request(T.MLP_ACT_TIMES_GRAD, **fields), WORLD.registry)) == [  # noqa: B023
            "loss_fn_config.reference_run"
        ]
    other = {"tokens": TOKENS, "loss_fn_config": loss(N.KL_DIVERGENCE, reference_run="other"), "source_runs": SOURCES}
    assert make_plan(models.request(T.MLP_ACT_TIMES_GRAD, **other), WORLD.registry).gradients  # type: ignore[arg-type]


def refused(make: Callable[[], object]) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        make()
    return [violation.field for violation in caught.value.violations]


RESID = tap(L.RESID_POST_MLP, 1, 5)


@pytest.mark.parametrize(
    ("config", "fields", "expected"),
    [
        (loss(N.ENTROPY, token_index=6), {}, "token_index"),
        (loss(N.ENTROPY, token_index=-7), {}, "token_index"),
        (loss(N.SEQUENCE_LOG_PROB, 5, 8, 2), {}, "target_tokens"),
        (loss(N.SEQUENCE_LOG_PROB, 5, 9, 2, token_index=4), {}, "token_index"),
        (loss(N.CROSS_ENTROPY, span=PositionRange(start=2, stop=7)), {}, "span.stop"),
        (loss(N.KL_DIVERGENCE, reference_run="none"), {}, "reference_run"),
        (loss(N.KL_DIVERGENCE, reference_run="short", token_index=5), {}, "token_index"),
        (loss(N.LOG_PROB, 99), {}, "target_token_ids[0]"),
        (tap(L.RESID_POST_MLP, 9, 5), {}, "tap.at.layer_index"),
        (tap(L.RESID_POST_MLP, 1, 7), {}, "tap.at.axes[0]"),
        (
            tap(L.RESID_POST_MLP, 1, 5, direction=Direction(direction=RequestTensor(tensor=[1.0]))),  # type: ignore[arg-type]
            {},
            "tap.direction.vector.tensor",
        ),
        (
            tap(
                L.RESID_POST_MLP,
                1,
                5,
                direction=Direction(direction=EncoderRow(autoencoder="tiny/resid_post_mlp", latent=99)),
            ),
            {},
            "tap.direction.encoder_row.latent",
        ),
    ],
)
def test_what_a_loss_cannot_read_is_refused_at_its_field(
    config: LossFnConfig, fields: dict[str, Any], expected: str
) -> None:
    short = (SourceRun(name="short", prompt=Prompt(token_ids=SHORT)),)
    assert refused(lambda: planned(WORLD, config, source_runs=short, **fields)) == [f"loss_fn_config.{expected}"]


def test_a_prompt_too_short_for_a_loss_is_refused() -> None:
    assert refused(lambda: planned(WORLD, loss(N.SEQUENCE_LOG_PROB, 1, 2, 3), tokens=(1, 2))) == ["prompt"]
    assert refused(lambda: planned(WORLD, loss(N.CROSS_ENTROPY), tokens=(1,))) == ["prompt"]


def test_a_loss_before_the_last_residual_has_no_direct_effects() -> None:
    kind = T.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD
    assert refused(lambda: make_plan(models.request(kind, loss_fn_config=RESID), WORLD.registry)) == [
        "derived_scalars[0].dst"
    ]
    assert make_plan(models.request(T.MLP_ACT_TIMES_GRAD, loss_fn_config=RESID), WORLD.registry).gradients


def test_a_trace_through_a_value_needs_a_loss_of_the_last_token() -> None:
    trace = traces.trace(traces.HEAD, 1, 4, 2, 1, through=AttentionTraceType.V)
    for config in (loss(N.CROSS_ENTROPY), loss(N.ENTROPY, token_index=1), RESID):
        assert refused(lambda: planned(WORLD, config, trace_config=trace)) == ["loss_fn_config"]  # noqa: B023
    assert planned(WORLD, loss(N.LOG_PROB, 3), trace_config=trace).trace


def test_gradients_that_a_loss_of_a_tap_sends_nowhere_are_not_changed() -> None:
    """Else another prompt of the batch, whose gradient does reach them, would set them."""
    cut = Intervention(
        at=TapSelection(activation_location_type=L.RESID_POST_MLP, pass_type=PassType.BACKWARD), action=DetachGradient()
    )
    made = planned(WORLD, RESID, cut)
    assert [one.at.layer_index for one in made.run.passes[0].interventions] == [0, 1]


def test_losses_are_told_apart() -> None:
    scaled = Intervention(
        at=TapSelection(activation_location_type=L.RESID_POST_EMBEDDING), action=ScaleValue(factor=2.0)
    )
    configs = [config for config, _ in LOSSES.values()]
    keys = {planned(WORLD, config, scaled).run_key for config in configs}
    assert len(keys) == len(configs)


def test_cost_counts_the_tokens_whose_logits_are_read() -> None:
    one, several = (planned(WORLD, config).cost for config in (loss(N.ENTROPY), loss(N.CROSS_ENTROPY)))
    vocabulary, width = 19, 8
    assert several.floating_point_operations - one.floating_point_operations == 2 * 4 * vocabulary * width
    assert several.peak_bytes > one.peak_bytes


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: loss(N.ENTROPY, 1), "target_tokens"),
        (lambda: loss(N.LOG_PROB), "target_tokens"),
        (lambda: loss(N.SEQUENCE_LOG_PROB, 1, distractors=(2,)), "distractor_tokens"),
        (lambda: loss(N.CROSS_ENTROPY, token_index=1), "token_index"),
        (lambda: loss(N.ENTROPY, token_index=-(2**31)), "token_index"),
        (lambda: loss(N.ENTROPY, reference_run="a"), "reference_run"),
        (lambda: loss(N.KL_DIVERGENCE, reference_run=""), "reference_run"),
        (lambda: loss(N.ENTROPY, span=PositionRange(start=1, stop=2)), "span"),
        (lambda: loss(N.CROSS_ENTROPY, span=PositionRange(start=0, stop=2)), "span.start"),
        (lambda: loss(N.TAP), "tap"),
        (lambda: replace(RESID, name=N.ENTROPY), "tap"),
        (lambda: tap(L.RESID_POST_MLP, None, 1), "at.layer_index"),
        (
            lambda: tap(L.RESID_POST_MLP, 1, direction=Direction(direction=RequestTensor(handle="h"))),
            "direction.vector.handle",
        ),
        (
            lambda: tap(
                L.RESID_POST_MLP, 1, direction=Direction(direction=DifferenceOfMeans(runs=("a",), minus_runs=("b",)))
            ),
            "direction.difference_of_means",
        ),
        (
            lambda: tap(L.RESID_POST_MLP, 1, 2, 3, direction=Direction(direction=UnembeddingRow(token_id=1))),
            "at.axes[1]",
        ),
    ],
)
def test_what_cannot_be_is_refused_without_a_model(make: Callable[[], object], expected: str) -> None:
    assert refused(make) == [expected]
