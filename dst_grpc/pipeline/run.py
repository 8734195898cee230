"""Running plans: one forward and one backward pass for a batch of them, and what each records.

Prompts are padded on the right; every plan keeps its own ablations and origin, and the sum of the origins is
differentiated once. What a batch shares (model, autoencoders in the graph) is the caller's to see to.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.results import RunStatistics
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.taps import Taps
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.store import Recording
from dst_grpc.scalars.derive import Derivation
from dst_grpc.scalars.explained_model import AutoencoderSet, ExplainedModel
from dst_grpc.scalars.recompute import trace_value
from dst_grpc.scalars.recorded_taps import RecordedTaps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.plan import PlannedScalar


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a run gave one plan."""

    plan: Plan
    decoder: Decoder
    sets: Mapping[str, AutoencoderSet]
    """Autoencoders by name."""
    recording: Recording
    """What its pass recorded."""
    statistics: RunStatistics
    batch_size: int
    """Prompts that ran together."""
    batch: object = field(default_factory=object)
    """The same object for all that ran together."""

    def derivation(self, scalar: PlannedScalar) -> Derivation:
        """The computation of one of the plan's derived scalars."""
        model = ExplainedModel(self.decoder, tuple(self.sets[info.name] for info in scalar.sets))
        return Derivation(model, self.recording.taps, scalar.task)


def run(plans: Sequence[Plan], decoder: Decoder, sets: Mapping[str, AutoencoderSet]) -> list[Outcome]:
    """Run *plans* as one batch.

    Args:
        plans: of prompts, all of the same model and with the same autoencoders spliced in.
        decoder: the model.
        sets: the autoencoders that the plans use, by name.
    """
    started, batch = time.perf_counter(), object()
    taps = _taps(plans, sets)
    tokens, last = _padded(plans, decoder)
    stops = [plan.stop_after_layer for plan in plans]
    stop = None if None in stops else max(s for s in stops if s is not None)
    logits = decoder.forward(tokens, taps, logits_at=last, stop_after_layer=stop)
    with torch.set_grad_enabled(any(plan.gradients for plan in plans)):
        origins = [_origin(row, plan, decoder, sets, taps, logits) for row, plan in enumerate(plans)]
    gradients: dict[Site, torch.Tensor] = {}
    differentiated = [origin.value for origin in origins if origin.value is not None]
    if taps.graph_starts_at_layer is not None:
        gradients = taps.gradients(torch.stack(differentiated).sum())
    taps.attached.clear()
    statistics = RunStatistics(
        forward_passes=1,
        backward_passes=1 if taps.graph_starts_at_layer is not None else 0,
        pass_duration=time.perf_counter() - started,
    )
    return [
        Outcome(
            plan=plan,
            decoder=decoder,
            sets=sets,
            recording=Recording(
                _recorded_taps(row, plan, taps, gradients), plan.gradients, origin.loss, origin.activation_value
            ),
            statistics=statistics,
            batch_size=len(plans),
            batch=batch,
        )
        for row, (plan, origin) in enumerate(zip(plans, origins, strict=True))
    ]


def _taps(plans: Sequence[Plan], sets: Mapping[str, AutoencoderSet]) -> Taps:
    splices: dict[Site, Autoencoder] = {
        (info.input.tap, layer): autoencoder
        for info in plans[0].spliced
        for layer, autoencoder in sets[info.name].by_layer.items()
        if layer is not None
    }
    return Taps(
        values=frozenset().union(*(plan.values for plan in plans)),
        gradients=frozenset().union(*(plan.gradients for plan in plans)),
        ablations=[
            replace(ablation, row=row, n_tokens=len(plan.token_ids))
            for row, plan in enumerate(plans)
            for ablation in plan.ablations
        ],
        splices=splices,
    )


def _padded(plans: Sequence[Plan], decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [b, T], padded on the right with 0, and the position [b] of each prompt's own last token."""
    lengths = [len(plan.token_ids) for plan in plans]
    tokens = torch.zeros(len(plans), max(lengths), dtype=torch.long)
    for row, plan in enumerate(plans):
        tokens[row, : lengths[row]] = torch.tensor(plan.token_ids)
    last = torch.tensor(lengths) - 1
    return tokens.to(decoder.device), last.to(decoder.device)


@dataclass(frozen=True, slots=True, eq=False)
class _Origin:
    value: torch.Tensor | None
    """What to differentiate: the traced value, else the loss."""
    loss: float | None
    activation_value: float | None


def _origin(
    row: int,
    plan: Plan,
    decoder: Decoder,
    sets: Mapping[str, AutoencoderSet],
    taps: Taps,
    logits: torch.Tensor | None,
) -> _Origin:
    loss = value = None
    if plan.loss is not None and logits is not None:
        position = 0 if logits.shape[1] == 1 else len(plan.token_ids) - 1
        loss = value = plan.loss(logits[row, position])
    trace = plan.request.trace_config
    if trace is not None:
        model = ExplainedModel(decoder, tuple(sets[info.name] for info in plan.origin_sets))

        def recorded(site: Site) -> torch.Tensor:
            return taps.values[site][row, : len(plan.token_ids)]

        site = model.topology.residual_of_trace(trace).site
        rho = taps.attached.get(site, taps.values[site])[row, : len(plan.token_ids)]
        value = trace_value(model, trace, rho, recorded, plan.loss)
    reported = None if loss is None else loss.item()
    return _Origin(
        value,
        None if reported is None or math.isnan(reported) else reported,
        value.item() if trace is not None and value is not None else None,
    )


def _recorded_taps(row: int, plan: Plan, taps: Taps, gradients: Mapping[Site, torch.Tensor]) -> RecordedTaps:
    """One plan's part of a batch, cut to its prompt's own length."""
    n_tokens = len(plan.token_ids)

    def own(site: Site, x: torch.Tensor) -> torch.Tensor:
        x = x[row]
        for axis, dimension in enumerate(site[0].dimensions):
            if dimension.is_sequence_token_dimension:
                x = x.narrow(axis, 0, n_tokens)
        return x

    return RecordedTaps(
        {site: own(site, taps.values[site]) for site in plan.values},
        {site: own(site, gradients[site]) for site in plan.gradients if site in gradients},
        n_tokens,
    )
