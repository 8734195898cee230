"""Runs: all that determines what a forward pass and its gradient passes record. Plain values.

A run may read the recordings of others: it names them, and they are executed before it. The plan of a simple request
has one run that reads none.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

from dst_grpc.domain.interventions import UNCHANGED
from dst_grpc.engine.propagation import PLAIN, Propagation

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.locations import ActivationLocationType
    from dst_grpc.domain.request_tensors import RequestTensor
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.origins import Origin

_MANY = 50
"""Interventions that take too long to be compared again and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientPass:
    """One backward pass through a run's graph."""

    origin: Origin
    """The scalar to differentiate."""
    interventions: tuple[Intervention, ...] = ()
    """Interventions on its gradients, in order."""
    weight: float = 1.0
    """Weight of its gradients in the sum over the run's passes, which formulas read."""

    @property
    def key(self) -> Hashable:
        """Equal for equal ones, and hashable: tensors are represented by their identity."""
        return self.origin, tuple(one.key for one in self.interventions), self.weight


@dataclass(frozen=True, kw_only=True)
class Run:
    """One prompt's forward pass, and the gradient passes after it."""

    token_ids: tuple[int, ...]
    """The prompt; empty if the request had none."""
    interventions: tuple[Intervention, ...] = ()
    """Interventions on its values, in order; one that reads other runs is at a single layer, if its tap has layers."""
    origins: tuple[Origin, ...] = ()
    """Scalars to report."""
    passes: tuple[GradientPass, ...] = ()
    """Gradient passes, run if gradients are recorded."""
    sources: tuple[tuple[str, Run], ...] = ()
    """Runs of the same model, with the same spliced autoencoders, that interventions read, by name."""
    propagation: Propagation = PLAIN
    """The propagation rule of gradients."""

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    def __hash__(self) -> int:
        """Hash of all fields, computed once: runs read runs that read runs."""
        return self._hash

    @cached_property
    def key(self) -> Hashable:
        """Equal for equal ones, and hashable: tensors are represented by their identity, and many interventions by
        their digest."""
        interventions: Hashable = tuple(one.key for one in self.interventions)
        if len(self.interventions) > _MANY:
            interventions = hashlib.sha256(repr(interventions).encode()).digest()
        return (
            self.token_ids,
            interventions,
            self.origins,
            tuple(one.key for one in self.passes),
            tuple((name, source.key) for name, source in self.sources),
            self.propagation,
        )

    @cached_property
    def all_origins(self) -> tuple[Origin, ...]:
        """All scalars to compute, each once: those to report come first."""
        return tuple(dict.fromkeys((*self.origins, *(one.origin for one in self.passes))))

    @property
    def needs_logits(self) -> bool:
        """Whether an origin reads the logits at the last token."""
        return any(origin.needs_logits for origin in self.all_origins)

    @property
    def logit_positions(self) -> frozenset[int]:
        """Positions, from 0, that an origin reads logits at."""
        last = len(self.token_ids) - 1
        reading = [origin for origin in self.all_origins if origin.needs_logits]
        return frozenset(position for origin in reading for position in origin.positions or (last,))

    @property
    def references(self) -> frozenset[tuple[str, int]]:
        """Runs whose logits an origin reads, by name, and at which position."""
        return frozenset(origin.reference for origin in self.all_origins if origin.reference is not None)

    @property
    def values(self) -> frozenset[Site]:
        """Sites whose value an origin reads."""
        return frozenset().union(*(origin.values for origin in self.all_origins))

    @property
    def attached(self) -> frozenset[Site]:
        """Sites in the graph that the gradient of an origin flows through."""
        return frozenset().union(*(one.origin.attached for one in self.passes))

    @property
    def locations(self) -> frozenset[ActivationLocationType]:
        """Taps that its interventions, or those of a run that it reads, change."""
        own = [*self.interventions, *(change for one in self.passes for change in one.interventions)]
        return frozenset(one.at.activation_location_type for one in own).union(
            *(source.locations for _, source in self.sources)
        )

    def reads(self) -> Mapping[Run, frozenset[Site]]:
        """Other runs that have to be executed before it, or beside it, and the sites that its interventions read."""
        found: dict[Run, frozenset[Site]] = {}
        for one in self.interventions:
            for name in one.runs:
                source = self.source(name)
                found[source] = found.get(source, frozenset()) | {one.at.site}
        for name, _ in self.references:
            found.setdefault(self.source(name), frozenset())
        return found

    @property
    def all_read(self) -> Mapping[Run, frozenset[Site]]:
        """As `reads`, with those that the runs read in turn."""
        found: dict[Run, frozenset[Site]] = {}
        left = [self]
        while left:
            for source, sites in left.pop().reads().items():
                if source not in found:
                    left.append(source)
                found[source] = found.get(source, frozenset()) | sites
        return found

    @property
    def all_sources(self) -> Iterator[tuple[str, Run]]:
        """The runs that it may read, and those that these may, with their names; some more than once."""
        for name, source in self.sources:
            yield name, source
            yield from source.all_sources

    def source(self, name: str) -> Run:
        """The run that an intervention calls *name*."""
        return self.unchanged if name == UNCHANGED else self._by_name[name]

    @cached_property
    def unchanged(self) -> Run:
        """The same prompt without any intervention."""
        return Run(token_ids=self.token_ids)

    @cached_property
    def forward(self) -> Run:
        """What determines its values: all but what is computed of them."""
        read = {name for one in self.interventions for name in one.runs}
        sources = tuple((name, source) for name, source in self.sources if name in read)
        return replace(self, origins=(), passes=(), sources=sources, propagation=PLAIN)

    @cached_property
    def _by_name(self) -> Mapping[str, Run]:
        return dict(self.sources)

    def with_tensors(self, known: Mapping[RequestTensor, RequestTensor]) -> Run:
        """The same run with the tensors in *known* replaced."""

        def filled(interventions: tuple[Intervention, ...]) -> tuple[Intervention, ...]:
            return tuple(one.with_tensors(known) for one in interventions)

        passes = tuple(replace(one, interventions=filled(one.interventions)) for one in self.passes)
        sources = tuple((name, source.with_tensors(known)) for name, source in self.sources)
        return replace(self, interventions=filled(self.interventions), passes=passes, sources=sources)
