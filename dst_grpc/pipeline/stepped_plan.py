"""Plans of requests whose answers are computed in steps, after one run of a prompt."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Generic, Self, TypeVar

from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.domain.circuit import CircuitRequest
from dst_grpc.domain.graph import GraphRequest
from dst_grpc.domain.graph_probes import ProbeGraphRequest
from dst_grpc.domain.patch import PatchRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.domain.request_tensors import TensorSource
    from dst_grpc.pipeline.plan import Plan

R = TypeVar("R", AttributeRequest, CircuitRequest, GraphRequest, PatchRequest, ProbeGraphRequest)


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppedPlan(ABC, Generic[R]):
    """A request, checked and completed."""

    request: R
    """The request."""
    plan: Plan
    """The plan of the run that the answer begins with."""

    @property
    def plans(self) -> tuple[Plan, ...]:
        """That plan."""
        return (self.plan,)

    held_bytes: ClassVar[int | None] = None
    """It takes as much once that run is over: the answer runs the others."""

    @property
    @abstractmethod
    def peak_bytes(self) -> int:
        """Estimated memory, without weights."""

    @property
    @abstractmethod
    def floating_point_operations(self) -> int:
        """Approximate operations of the whole."""

    @property
    @abstractmethod
    def n_steps(self) -> int:
        """About how many steps there are."""

    @property
    def tensor_handles(self) -> Sequence[str]:
        """Handles of the tensors that it names."""
        return ()

    def with_tensors(self, tensors: TensorSource | None) -> Self:
        """The same plan with those tensors; *tensors* has them, None = none are kept.

        Raises:
            InvalidRequest: if they do not fit.
            NotFound: for an unknown handle.
        """
        del tensors
        return self

    def digest(self, model: str, autoencoders: Sequence[str]) -> str:
        """SHA-256 of everything that determines the answer's numbers, given the handles of what was loaded for it."""
        return hashlib.sha256(repr((model, tuple(autoencoders), self._question)).encode()).hexdigest()

    @property
    def _question(self) -> object:
        """What is asked, without the names by which it is asked for."""
        return replace(self.request, request_id="", model=None)  # type: ignore[call-arg]  # ProbePlan has its own
