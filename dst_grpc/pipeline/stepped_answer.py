"""What the answers to causal questions, and to requests for graphs, share: they are computed in short steps, after one
run of a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dst_grpc.domain.results import RunStatistics, RunSummary
from dst_grpc.pipeline.not_finite import error_of
from dst_grpc.pipeline.own_time import own_time
from dst_grpc.pipeline.provenance import provenance_of
from dst_grpc.pipeline.run import splices_of
from dst_grpc.pipeline.stepped_plan import SteppedPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.pipeline.run import RunResult

A = TypeVar("A", bound=SteppedPlan[Any])
P = TypeVar("P")


class SteppedAnswer(ABC, Generic[A, P]):
    """The answer, of parts P, to one request with a plan A."""

    def __init__(
        self,
        asked: A,
        results: Sequence[RunResult],
        model: ModelContext,
        sets: Mapping[str, AutoencoderContext],
    ) -> None:
        """Compute nothing yet; *results* holds that of the plan of *asked*.

        Raises:
            OutOfRange: if the run has values that are not finite.
        """
        (self._first,) = results
        if self._first.recording.not_finite is not None:
            raise error_of(self._first.recording.not_finite, model.decoder.dtype)
        self._asked, self._model, self._sets = asked, model, sets
        self._splices = splices_of(asked.plan, sets)
        self._seconds = 0.0
        self._is_complete = False
        self.held_bytes: int | None = None
        """What it takes from now on, once that is known better than beforehand."""
        self.step_operations: int | None = None
        """Approximate floating-point operations of the next step, likewise."""

    @property
    def is_complete(self) -> bool:
        """Whether there is no further step."""
        return self._is_complete

    def steps(self) -> Iterator[list[P]]:
        """The parts of each step."""
        work = self._work()
        while not self._is_complete:
            self._first.check()
            started = own_time()
            parts = next(work, None)
            self._seconds += own_time() - started
            self._is_complete = parts is None
            yield parts or []

    def summary(self) -> RunSummary:
        """The cost of the whole, and the provenance of the numbers."""
        first, (n_forward, n_backward) = self._first.statistics, self._n_passes
        statistics = RunStatistics(
            forward_passes=first.forward_passes + n_forward,
            backward_passes=n_backward,
            queue_duration=self._first.queue_duration,
            pass_duration=first.pass_duration + self._seconds,
        )
        asked = self._asked
        digest = asked.digest(self._model.handle, [one.handle for one in self._sets.values()])
        provenance = provenance_of([asked.plan], self._model, self._sets, digest=digest, batch_size=self._batch_size)
        return RunSummary(statistics=statistics, provenance=provenance)

    @abstractmethod
    def _work(self) -> Iterator[list[P]]:
        """The parts of each step, in order."""

    @property
    @abstractmethod
    def _n_passes(self) -> tuple[int, int]:
        """Forward and backward passes so far, without the first run."""

    @property
    @abstractmethod
    def _batch_size(self) -> int:
        """Runs that run together."""
