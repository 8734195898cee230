"""Runs plans, and the runs that they read, in batches; and the result for each plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dst_grpc.domain.results import RunStatistics
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.splice import Splice, splices_of_set
from dst_grpc.pipeline.arrangement import MAX_BATCH_TOKENS, Arrangement, nothing_kept, rows_of
from dst_grpc.pipeline.passes import Batch, run_batch
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.recording import Recording
from dst_grpc.scalars.derive import Derivation
from dst_grpc.scalars.directions import read_together
from dst_grpc.scalars.explained_model import AutoencoderSet, ExplainedModel

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.arrangement import Kept
    from dst_grpc.pipeline.plan import PlannedScalar
    from dst_grpc.scalars.origins import Origin
    from dst_grpc.scalars.token_vectors import TokenVectors


@dataclass(frozen=True, slots=True, eq=False)
class RunResult:
    """The result of a plan's run."""

    plan: Plan
    decoder: Decoder
    sets: Mapping[str, AutoencoderSet]
    """Autoencoders by name."""
    recording: Recording
    """Its recording."""
    batches: tuple[Batch, ...]
    """The batches that it took: those of the runs that it reads, then its own. Plans that ran together share them."""
    queue_duration: float = 0.0
    """Seconds that it waited for the device."""
    together: Mapping[Site, TokenVectors] = field(default_factory=dict)
    """Gradients that are read together with those of plans that ran in the same batch."""
    check: Check = never_cancelled
    """Called while the answer is computed from it; raises Cancelled if the request is cancelled."""

    @property
    def batch_size(self) -> int:
        """Runs that ran together."""
        return self.batches[-1].size if self.batches else 1

    @property
    def statistics(self) -> RunStatistics:
        """Cost of its batches."""
        return total_statistics(self.batches, queue_duration=self.queue_duration)

    @property
    def loss(self) -> float | None:
        """Value of the loss, which may be NaN; None if there is none."""
        return self._scalar(self.plan.loss)

    @property
    def activation_value(self) -> float | None:
        """Value of the traced activation; None if there is no trace."""
        return self._scalar(self.plan.trace)

    @property
    def target(self) -> float | None:
        """The value that effects are shares of: the traced activation, else the loss; None if there is neither."""
        return self.loss if self.plan.trace is None else self.activation_value

    def _scalar(self, origin: Origin | None) -> float | None:
        if origin is None:
            return None
        return self.recording.scalars[self.plan.run.origins.index(origin)]

    def derivation(self, scalar: PlannedScalar) -> Derivation:
        """The computation of one of the plan's derived scalars."""
        model = ExplainedModel(self.decoder, scalar.topology, tuple(self.sets[info.name] for info in scalar.sets))
        return Derivation(model, replace(self.recording.taps, together=self.together), scalar, self.check)


def total_statistics(batches: Iterable[Batch], *, queue_duration: float) -> RunStatistics:
    """The cost of *batches* together, each counted once."""
    each = [batch.statistics for batch in dict.fromkeys(batches)]
    return RunStatistics(
        forward_passes=sum(one.forward_passes for one in each),
        backward_passes=sum(one.backward_passes for one in each),
        queue_duration=queue_duration,
        pass_duration=sum(one.pass_duration for one in each),
    )


def splices_of(plan: Plan, sets: Mapping[str, AutoencoderSet]) -> dict[Site, Splice]:
    """The autoencoders that *plan* splices in, by the site that each reconstructs; *sets* are those in use, by name."""
    found = [splice for info in plan.spliced for splice in splices_of_set(info.input, sets[info.name].coders)]
    return {splice.site: splice for splice in found}


def run(
    plans: Sequence[Plan],
    decoder: Decoder,
    sets: Mapping[str, AutoencoderSet],
    check: Check = never_cancelled,
    *,
    max_tokens: int = MAX_BATCH_TOKENS,
    kept: Kept = nothing_kept,
) -> list[RunResult]:
    """Run *plans*, and the runs that they read, in as few batches as they fit into.

    Args:
        plans: of the same model, with the same autoencoders spliced in and the same propagation.
        decoder: the model.
        sets: the autoencoders that the plans use, by name.
        check: raises Cancelled to end the batch.
        max_tokens: tokens of a batch, pads included.
        kept: what is kept of runs that plans read.

    Raises:
        Cancelled: what *check* raises.
    """
    splices = splices_of(plans[0], sets)
    propagation = plans[0].run.propagation
    arranged = Arrangement.of(plans, decoder.config.n_layers, max_tokens, kept)
    recorded: dict[int, Mapping[Site, torch.Tensor]] = {}
    logits: dict[int, Mapping[int, torch.Tensor]] = {}
    took: dict[int, dict[Batch, None]] = {}
    results: dict[int, RunResult] = {}
    for nodes in arranged.batches:
        check()
        rows = rows_of(nodes, recorded, logits)
        batch, recordings = run_batch(rows, decoder, sets, splices=splices, propagation=propagation, check=check)
        together = read_together(
            [
                (() if node.plan is None else node.plan.scalars, recording.taps)
                for node, recording in zip(nodes, recordings, strict=True)
            ]
        )
        for node, recording, gradients in zip(nodes, recordings, together, strict=True):
            took[id(node)] = {one: None for read in node.read for one in took[id(read)]} | {batch: None}
            if node.recorded:
                recorded[id(node)] = recording.taps.values
            logits[id(node)] = recording.logits
            if node.plan is not None:
                results[id(node)] = RunResult(
                    node.plan, decoder, sets, recording, tuple(took[id(node)]), together=gradients
                )
    return [results[id(node)] for node in arranged.of_plans]
