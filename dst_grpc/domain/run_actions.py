"""Actions that read what other runs of the request have at the same tap: patching, mean ablation, freezing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

from dst_grpc.domain.actions import (
    UNCHANGED,
    Action,
    Context,
    Positions,
    Reading,
    Values,
    check_one_token_axis,
    check_vectors,
)
from dst_grpc.domain.directions import check_run_name
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.selections import TapSelection
from dst_grpc.errors import Violations


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyFromRun(Action):
    """Replaces the selected entries by what they are in another run: activation patching, in either direction, and,
    with a run of another prompt, resample ablation; or only their components in a subspace: interchange intervention
    with a rotation (DAS)."""

    arm = "copy"
    run: str
    """Name of the run; UNCHANGED is this run without any intervention."""
    subspace: RequestTensor | None = None
    """Vectors [k, n] along the last axis that span a subspace; None = the whole space."""

    def __post_init__(self) -> None:
        """Check the name; raises InvalidRequest."""
        problems = Violations()
        check_run_name(problems, "run", self.run)
        problems.raise_if_any()

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The run."""
        return (Reading(run=self.run, path=f"{self.arm}.run"),)

    def apply(self, x: Values, context: Context) -> Values | float:
        """The other run's y; with a subspace, x + P (y - x), P being the orthogonal projection on it."""
        other = context.of_run(self.run)
        return other if self.subspace is None else x + context.projected(other - x, self.subspace)

    def check(self, problems: Violations, at: TapSelection) -> None:
        """A subspace needs vectors."""
        Action.check(self, problems, at)
        if self.subspace is not None:
            check_vectors(problems, at, self.arm)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldValue(Action):
    """Keeps the selected entries as they are in this run without any intervention, whatever is changed before them:
    freezing."""

    arm = "hold"

    @property
    def readings(self) -> tuple[Reading, ...]:
        """This run, unchanged."""
        return (Reading(run=UNCHANGED),)

    def apply(self, x: Values, context: Context) -> Values | float:
        """Their unchanged values."""
        del x
        return context.of_run(UNCHANGED)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanOverRuns(Action):
    """Replaces the selected entries by their mean over other runs: mean ablation."""

    arm = "mean"
    runs: tuple[str, ...]
    """Names of the runs; one that is named twice counts twice."""
    over_positions: bool = False
    """Whether the mean is over all tokens of the runs too, so that every position gets the same; else it is by
    position."""

    def __post_init__(self) -> None:
        """Check the names; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        problems.check(bool(self.runs), "runs", "must name at least one run")
        for i, name in enumerate(self.runs):
            check_run_name(problems, f"runs[{i}]", name)
        problems.raise_if_any()

    @property
    def _positions(self) -> Positions:
        return Positions.ALL if self.over_positions else Positions.SAME

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The runs."""
        return tuple(
            Reading(run=name, path=f"{self.arm}.runs[{i}]", positions=self._positions)
            for i, name in enumerate(self.runs)
        )

    def apply(self, x: Values, context: Context) -> Values | float:
        """Their mean: over positions, each position of each run has the same weight."""
        del x
        values = [context.of_run(name, self._positions) for name in self.runs]
        if not self.over_positions:
            return reduce(add, values) * (1 / len(values))
        return reduce(add, [one.sum(0) for one in values]) * (1 / sum(map(len, values)))

    def check(self, problems: Violations, at: TapSelection) -> None:
        """A mean over positions needs a tap with one axis of tokens."""
        Action.check(self, problems, at)
        if self.over_positions:
            check_one_token_axis(problems, f"{self.arm}.over_positions", at)
