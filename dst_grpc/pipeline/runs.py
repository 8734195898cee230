"""Runs: what determines the numbers that a forward pass and the gradient passes after it record. Plain values.

A run may read what others recorded: it names them, and they are executed before it. The plan of a plain request has
one run that reads none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dst_grpc.domain.interventions import UNCHANGED
from dst_grpc.engine.propagation import PLAIN, Propagation

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.locations import ActivationLocationType
    from dst_grpc.domain.request_tensors import RequestTensor
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.origins import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientPass:
    """One backward pass through a run's graph."""

    origin: Origin
    """The scalar that is differentiated."""
    interventions: tuple[Intervention, ...] = ()
    """What changes the gradients on their way, in order."""
    weight: float = 1.0
    """What its gradients count for in the sum over the run's passes, which formulas read."""

    @property
    def key(self) -> Hashable:
        """What tells it from others, without the numbers of tensors."""
        return self.origin, tuple(one.key for one in self.interventions), self.weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One prompt's forward pass, and the gradient passes after it."""

    token_ids: tuple[int, ...]
    """The prompt; empty if the request had none."""
    interventions: tuple[Intervention, ...] = ()
    """What changes its values, in order; what reads other runs names one layer, if its tap has any."""
    origins: tuple[Origin, ...] = ()
    """Scalars to report."""
    passes: tuple[GradientPass, ...] = ()
    """Gradient passes, made if gradients are wanted."""
    sources: tuple[tuple[str, Run], ...] = ()
    """Runs of the same model, with the same autoencoders in the graph, that interventions read, by name."""
    propagation: Propagation = PLAIN
    """How gradients pass through what is not linear."""

    @property
    def key(self) -> Hashable:
        """What tells it from others, without the numbers of tensors."""
        return (
            self.token_ids,
            tuple(one.key for one in self.interventions),
            self.origins,
            tuple(one.key for one in self.passes),
            tuple((name, source.key) for name, source in self.sources),
            self.propagation,
        )

    @property
    def all_origins(self) -> tuple[Origin, ...]:
        """The scalars that are computed, each once: those to report first."""
        return tuple(dict.fromkeys((*self.origins, *(one.origin for one in self.passes))))

    @property
    def needs_logits(self) -> bool:
        """Whether an origin reads the logits at the last token."""
        return any(origin.needs_logits for origin in self.all_origins)

    @property
    def values(self) -> frozenset[Site]:
        """Taps whose value an origin reads."""
        return frozenset().union(*(origin.values for origin in self.all_origins))

    @property
    def attached(self) -> frozenset[Site]:
        """Taps in the graph that the origin of a gradient pass is differentiated by."""
        return frozenset().union(*(one.origin.attached for one in self.passes))

    @property
    def locations(self) -> frozenset[ActivationLocationType]:
        """Taps that it, or a run that it reads, changes."""
        own = [*self.interventions, *(change for one in self.passes for change in one.interventions)]
        return frozenset(one.at.activation_location_type for one in own).union(
            *(source.locations for _, source in self.sources)
        )

    def reads(self) -> Mapping[Run, frozenset[Site]]:
        """Other runs that have to be executed before it, and what they have to record for its interventions."""
        found: dict[Run, frozenset[Site]] = {}
        for one in self.interventions:
            for name in one.action.runs:
                source = self.source(name)
                site = (one.at.activation_location_type, one.at.layer_index)
                found[source] = found.get(source, frozenset()) | {site}
        return found

    def source(self, name: str) -> Run:
        """The run that an intervention calls *name*."""
        return Run(token_ids=self.token_ids) if name == UNCHANGED else dict(self.sources)[name]

    def with_tensors(self, known: Mapping[RequestTensor, RequestTensor]) -> Run:
        """It with each tensor of a request that *known* has replaced by what stands there."""

        def filled(interventions: tuple[Intervention, ...]) -> tuple[Intervention, ...]:
            return tuple(one.with_tensors(known) for one in interventions)

        passes = tuple(replace(one, interventions=filled(one.interventions)) for one in self.passes)
        return replace(self, interventions=filled(self.interventions), passes=passes)
