"""Integrated gradients of token embeddings (Sundararajan et al., 2017, https://arxiv.org/abs/1703.01365).

    IG[t, d] = (e - b)[t, d] . integral over alpha from 0 to 1 of dM/de at b + alpha (e - b)

e are the embeddings of a prompt and b a baseline; positions are not interpolated. Completeness: their sum over t and d
is M(e) - M(b), up to the error of the rule by which the integral is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.causal.attribution import Pair, references_of
from dst_grpc.causal.passes import Batch, Ran, points_at_once, run
from dst_grpc.causal.paths import points
from dst_grpc.domain.attribute import Baseline, PathRule
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.norm import wide
from dst_grpc.engine.propagation import PLAIN, Propagation
from dst_grpc.engine.taps import site_entering

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Site

_EMBEDDING = site_entering(0)


@dataclass(frozen=True, slots=True)
class Completeness:
    """How well the attributions of one pair add up."""

    metric: float
    """M(e)."""
    at_baseline: float
    """M(b)."""
    residual: float
    """M(e) - M(b) minus the sum of attributions."""


class IntegratedGradients:
    """Attributions of token embeddings, summed up over pairs block by block."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        rule: PathRule = PathRule.GAUSS_LEGENDRE,
        steps: int = 20,
        baseline: Baseline = Baseline.CORRUPT,
        propagation: Propagation = PLAIN,
        splices: Mapping[Site, Splice] | None = None,
        check: Check = never_cancelled,
    ) -> None:
        """Begin without pairs.

        Args:
            decoder: the model.
            rule: at which points of the path gradients are taken.
            steps: how many steps the path has.
            baseline: where it begins; of a pair, the source prompt.
            propagation: the propagation rule of gradients.
            splices: autoencoders to splice in, by the site that each reconstructs.
            check: raises Cancelled to end a block.
        """
        self._decoder, self._points, self._baseline = decoder, points(rule, steps), baseline
        self._propagation, self._splices, self._check = propagation, splices or {}, check
        self.n_pairs = self.n_forward_passes = self.n_backward_passes = 0
        self._total: torch.Tensor | None = None

    @property
    def attributions(self) -> torch.Tensor:
        """Mean attributions over pairs [T, d]; of prompts shorter than the longest, 0 at the end."""
        if self._total is None:
            raise ValueError("there are no pairs yet")
        return self._total / self.n_pairs

    def add(self, pairs: Sequence[Pair]) -> tuple[Completeness, ...]:
        """Add the attributions of *pairs*, and return how well they add up."""
        change = self._from_baseline(pairs)
        n = len(pairs)
        rows = references_of(pairs)
        ends = self._run(pairs, torch.cat((torch.zeros_like(change), -change)), rows, differentiates=False)
        references = [ends.references[row] for row in rows]
        found = torch.zeros_like(change)
        step = points_at_once(change.device, change.shape[:2].numel())
        for start in range(0, len(self._points), step):
            block = self._points[start : start + step]
            shifts = torch.cat([(alpha - 1) * change for alpha, _ in block])
            ran = self._run(pairs, shifts, references, differentiates=True)
            gradients = wide(ran.passes[0].at_taps[_EMBEDDING]).unflatten(0, (len(block), len(pairs)))
            weights = torch.tensor([weight for _, weight in block], dtype=found.dtype, device=found.device)
            found += change * torch.tensordot(weights, gradients, dims=1)
        total = found.sum(dim=0)
        self._total = total if self._total is None else _sum_of_padded(self._total, total)
        self.n_pairs += n
        metrics = zip(ends.metrics[:n], ends.metrics[n:], found.sum(dim=(1, 2)).tolist(), strict=True)
        return tuple(Completeness(metric, start, metric - start - share) for metric, start, share in metrics)

    def _from_baseline(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """The differences e - b [n, T, d]; 0 at pads."""
        found = []
        for pair in pairs:
            own, other = (torch.tensor(ids, device=self._decoder.device) for ids in (pair.base, pair.source))
            if self._baseline is Baseline.CORRUPT:
                baseline = wide(self._decoder.embed(other))
            elif self._baseline is Baseline.MEAN:
                every = torch.arange(self._decoder.config.vocab_size, device=own.device)
                baseline = wide(self._decoder.embed(every)).mean(dim=0)
            else:
                baseline = torch.zeros((), device=own.device)
            found.append(wide(self._decoder.embed(own)) - baseline)
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)

    def _run(
        self,
        pairs: Sequence[Pair],
        shifts: torch.Tensor,
        references: Sequence[torch.Tensor | int | None],
        *,
        differentiates: bool,
    ) -> Ran:
        """Runs of all base prompts, once for each block of *shifts* [m n, T, d] of their embeddings.

        Divergences of each pair are from what *references* says, as of `Batch`.
        """
        m = len(shifts) // len(pairs)
        batch = Batch(
            tokens=[pair.base for pair in pairs] * m,
            metrics=[pair.metric for pair in pairs] * m,
            differentiated=[differentiates] * len(shifts),
            gradients=frozenset({_EMBEDDING}) if differentiates else frozenset(),
            references=[*references] * m,
            shifts={_EMBEDDING: shifts.to(self._decoder.dtype)},
        )
        ran = run(batch, self._decoder, splices=self._splices, propagation=self._propagation, check=self._check)
        self.n_forward_passes += 1
        self.n_backward_passes += len(ran.passes)
        return ran


def _sum_of_padded(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The sum of two tensors [T, d], the shorter of which has zeros at its end."""
    return torch.nn.utils.rnn.pad_sequence([one, other]).sum(dim=1)
