"""Runs plans: first the runs that others read, then the rest, each step as one batch; and the result for each plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.results import RunStatistics
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.pipeline.passes import Batch, Row, run_batch
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.recording import Recording
from dst_grpc.pipeline.runs import Run
from dst_grpc.scalars.derive import Derivation
from dst_grpc.scalars.explained_model import AutoencoderSet, ExplainedModel

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.plan import PlannedScalar
    from dst_grpc.scalars.origins import Origin


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
        return Derivation(model, self.recording.taps, scalar, self.check)


def total_statistics(batches: Iterable[Batch], *, queue_duration: float) -> RunStatistics:
    """The cost of *batches* together, each counted once."""
    each = [batch.statistics for batch in dict.fromkeys(batches)]
    return RunStatistics(
        forward_passes=sum(one.forward_passes for one in each),
        backward_passes=sum(one.backward_passes for one in each),
        queue_duration=queue_duration,
        pass_duration=sum(one.pass_duration for one in each),
    )


def run(
    plans: Sequence[Plan], decoder: Decoder, sets: Mapping[str, AutoencoderSet], check: Check = never_cancelled
) -> list[RunResult]:
    """Run *plans* as one batch, after the runs that they read, which run as one batch for each step of dependency.

    Args:
        plans: of the same model, with the same autoencoders spliced in and the same propagation.
        decoder: the model.
        sets: the autoencoders that the plans use, by name.
        check: raises Cancelled to end the batch.

    Raises:
        Cancelled: what *check* raises.
    """
    splices: dict[Site, Autoencoder] = {
        (info.input.tap, layer): autoencoder
        for info in plans[0].spliced
        for layer, autoencoder in sets[info.name].by_layer.items()
        if layer is not None
    }
    order = _Order(plans)
    read: dict[Run, Mapping[Site, torch.Tensor]] = {}
    results: list[RunResult | None] = [None] * len(plans)
    batches: list[Batch] = []
    for step in range(max(order.steps) + 1):
        check()
        own = [i for i, its_step in enumerate(order.steps) if its_step == step]
        sources = order.sources(step)
        rows = [Row(source, sites, sources=_sources(source, read)) for source, sites in sources.items()]
        rows += [Row(plans[i].run, plans[i].values, plans[i].gradients, _sources(plans[i].run, read)) for i in own]
        propagation = plans[0].run.propagation
        batch, recordings = run_batch(rows, decoder, sets, splices=splices, propagation=propagation, check=check)
        batches.append(batch)
        read |= {source: recording.taps.values for source, recording in zip(sources, recordings, strict=False)}
        for i, recording in zip(own, recordings[len(sources) :], strict=True):
            results[i] = RunResult(plans[i], decoder, sets, recording, tuple(batches))
        read = {source: values for source, values in read.items() if order.is_needed_after(source, step)}
    return [result for result in results if result is not None]


def _sources(run: Run, read: Mapping[Run, Mapping[Site, torch.Tensor]]) -> dict[str, Mapping[Site, torch.Tensor]]:
    """The recordings of the runs that *run* reads, by the names that its interventions give them."""
    return {name: read[run.source(name)] for one in run.interventions for name in one.runs}


class _Order:
    """The order in which runs are executed: a run that reads others is in the step after the last of them."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._sources: dict[Run, tuple[int, frozenset[Site]]] = {}
        """Runs that others read: their step, and the sites that they have to record."""
        self._last_read: dict[Run, int] = {}
        self.steps = [self._step(plan.run) for plan in plans]
        """The step of each plan's run."""

    def _step(self, run: Run) -> int:
        reads = run.reads()
        if not reads:
            return 0
        of_sources = {source: self._step(source) for source in reads}
        step = 1 + max(of_sources.values())
        for source, sites in reads.items():
            _, recorded = self._sources.get(source, (0, frozenset()))
            self._sources[source] = (of_sources[source], recorded | sites)
            self._last_read[source] = max(self._last_read.get(source, 0), step)
        return step

    def sources(self, step: int) -> dict[Run, frozenset[Site]]:
        """Runs of a step that others read, and the sites that they have to record."""
        return {run: sites for run, (its_step, sites) in self._sources.items() if its_step == step}

    def is_needed_after(self, run: Run, step: int) -> bool:
        """Whether a later step reads the recording of *run*."""
        return self._last_read[run] > step
