"""Recordings of a run's taps, without pads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from dst_grpc.scalars.recorded_taps import RecordedTaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from dst_grpc.domain.results import NotFinite
    from dst_grpc.engine.taps import Site

    Tensors = Mapping[Site, torch.Tensor]

K = TypeVar("K")


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """The recording of one run."""

    taps: RecordedTaps
    """Values, and the gradients that formulas read: the weighted sum over all gradient passes."""
    passes: tuple[Tensors, ...]
    """Gradients of each gradient pass; empty if none was recorded. Sites that the origin does not depend on are
    absent."""
    gradient_sites: frozenset[Site]
    """Sites whose gradients were recorded."""
    scalars: tuple[float, ...]
    """Values of the run's origins that are reported, in order."""
    not_finite: NotFinite | None = None
    """Where the run first has values that are not finite; None if it is finite."""
    logits: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """Logits [V] at positions where runs of later batches, or the answer, read them."""

    @classmethod
    def of(
        cls,
        values: Tensors,
        passes: Sequence[Tensors],
        weights: Sequence[float],
        *,
        n_tokens: int,
        gradient_sites: frozenset[Site],
        scalars: Sequence[float],
        not_finite: NotFinite | None = None,
        logits: Mapping[int, torch.Tensor] | None = None,
    ) -> Recording:
        """The recording of *values*, and of the gradients of each pass, which have *weights* in the sum."""
        taps = RecordedTaps(values, weighted_sum(passes, weights), n_tokens)
        return cls(taps, tuple(passes), gradient_sites, tuple(scalars), not_finite, logits or {})

    def alone(self) -> Recording:
        """A copy that does not keep the tensors of its batch alive."""
        copies = {id(x): x.clone() for x in self._tensors()}

        def copied(tensors: Mapping[K, torch.Tensor]) -> dict[K, torch.Tensor]:
            return {key: copies[id(x)] for key, x in tensors.items()}

        taps = RecordedTaps(copied(self.taps.values), copied(self.taps.gradients), self.taps.n_tokens)
        return replace(self, taps=taps, passes=tuple(map(copied, self.passes)), logits=copied(self.logits))

    def merged(self, older: Recording) -> Recording:
        """This recording, extended by the sites that only *older*, of the same run, has."""
        passes = self.passes or ({},) * len(older.passes)
        before = older.passes or ({},) * len(passes)
        return Recording(
            RecordedTaps(
                {**older.taps.values, **self.taps.values},
                {**older.taps.gradients, **self.taps.gradients},
                self.taps.n_tokens,
            ),
            tuple({**old, **new} for old, new in zip(before, passes, strict=True)),
            self.gradient_sites | older.gradient_sites,
            self.scalars,
            self.not_finite or older.not_finite,
            {**older.logits, **self.logits},
        )

    @property
    def byte_count(self) -> int:
        """Bytes of its tensors; those that share memory count once."""
        storages = (x.untyped_storage() for x in self._tensors())
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def _tensors(self) -> Iterable[torch.Tensor]:
        """All, each once: the gradients of a single pass are those that formulas read."""
        of_sites = (self.taps.values, self.taps.gradients, *self.passes)
        found = chain(self.logits.values(), *(tensors.values() for tensors in of_sites))
        return {id(x): x for x in found}.values()


def weighted_sum(passes: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """Weighted sum of the gradients of several passes or runs; a site that is absent counts as zeros."""
    if len(passes) == 1 and weights[0] == 1:
        return passes[0]
    total: dict[Site, torch.Tensor] = {}
    for gradients, weight in zip(passes, weights, strict=True):
        for site, gradient in gradients.items():
            total[site] = weight * gradient + total[site] if site in total else weight * gradient
    return total
