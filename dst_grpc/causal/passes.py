"""One batch of runs for attribution: values, gradients at taps and at what MLPs read, and the metric of each row."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING

import torch

from dst_grpc.causal.writes import changed_rows, padded
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.propagation import PLAIN, Propagation
from dst_grpc.engine.taps import Site, Taps
from dst_grpc.errors import Internal, require
from dst_grpc.scalars.origins import LastLogits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice
    from dst_grpc.scalars.origins import Origin

_L = ActivationLocationType
_TOKENS_OF_A_PATH = 32
"""Tokens of the points of a path that run together on a CPU: products of matrices with fewer rows take almost as long,
those with more take more memory for no gain."""
_TOKENS_OF_A_PATH_ON_A_GPU = 4096


_TOKENS_OF_PAIRS = 512
"""Tokens of the runs of pairs that are compared together, pads included, unless a single pair has more."""


def pairs_at_once(n_tokens: int) -> int:
    """How many pairs of prompts of up to *n_tokens* run together."""
    return max(_TOKENS_OF_PAIRS // (2 * n_tokens), 1)


def points_at_once(device: torch.device, n_tokens: int) -> int:
    """How many points of a path of *n_tokens*, over all pairs, run together on a device."""
    most = _TOKENS_OF_A_PATH if device.type == "cpu" else _TOKENS_OF_A_PATH_ON_A_GPU
    return max(most // n_tokens, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Runs of one model, and what to record of them."""

    tokens: Sequence[tuple[int, ...]]
    """The prompt of each row."""
    metrics: Sequence[Origin]
    """The metric of each row."""
    differentiated: Sequence[bool]
    """Whether the gradient of a row's metric is wanted."""
    values: frozenset[Site] = frozenset()
    """Sites whose value to record."""
    gradients: frozenset[Site] = frozenset()
    """Sites whose gradient to record."""
    reads_mlps: bool = False
    """Whether to record the gradient at what each MLP alone reads of the residual."""
    shifts: Mapping[Site, torch.Tensor] = field(default_factory=dict)
    """What is added to the value at a site [b, ...]. Nothing before it is reached by gradients."""
    references: Sequence[torch.Tensor | int | None] = ()
    """For metrics that are divergences from another run: its logits [V] for each row, or the row that has them, before
    it or after."""
    changes: Sequence[Intervention] = ()
    """What is changed in every row, as of `writes.record`."""
    dropped_layers: Sequence[int | None] = (None,)
    """For each gradient pass, the layer whose attention and MLP write constants; None for none."""


@dataclass(frozen=True, eq=False)
class Ran:
    """What a batch recorded."""

    metrics: tuple[float, ...]
    """The metric of each row."""
    references: tuple[torch.Tensor | None, ...]
    """For metrics that are divergences: the logits [V] of each row where another may diverge from it."""
    values: Mapping[Site, torch.Tensor]
    """Values [b, ...]."""
    passes: tuple[Gradients, ...]
    """The results of each gradient pass."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """The result of one gradient pass."""

    at_taps: Mapping[Site, torch.Tensor]
    """Gradients at sites, of the rows whose metric is differentiated; zeros where it does not depend on one."""
    at_mlps: Mapping[int, torch.Tensor]
    """Gradients [..., T, d] at what the MLP of a layer reads, of the same rows."""


class AttributionTaps(Taps):
    """Taps that also shift values, stop gradients at a layer's writes, and record what MLPs read."""

    def __init__(
        self,
        batch: Batch,
        *,
        splices: Mapping[Site, Splice] | None,
        propagation: Propagation,
        check: Check,
    ) -> None:
        """Plan the pass of *batch*."""
        super().__init__(
            values=batch.values,
            gradients=batch.gradients,
            interventions=changed_rows(batch.changes, map(len, batch.tokens)),
            splices=splices,
            propagation=propagation,
            check=check,
        )
        self._shifts = batch.shifts
        self._reads_mlps = batch.reads_mlps
        self._rows = list(compress(range(len(batch.tokens)), batch.differentiated))
        self._drops = any(layer is not None for layer in batch.dropped_layers)
        self._dropped: list[int | None] = [None]
        self.mlp_inputs: dict[int, torch.Tensor] = {}
        """What the MLP of each layer reads [b, T, d], in the graph, apart from all else that reads it."""

    def touches(self, location: ActivationLocationType, layer: int | None) -> bool:
        """As of any taps."""
        return (location, layer) in self._shifts or super().touches(location, layer)

    def visit(self, location: ActivationLocationType, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        """As of any taps."""
        shift = self._shifts.get((location, layer))
        if shift is not None:
            x = (x.detach() + shift).requires_grad_(torch.is_grad_enabled())
        x = super().visit(location, layer, x)
        if self._drops and location in {_L.RESID_DELTA_ATTN, _L.RESID_DELTA_MLP} and x.requires_grad:
            x = x.view_as(x)  # so that the gradient recorded at the write is the one that the hook leaves
            x.register_hook(_drops(self._dropped, layer))
        return x

    def mlp_input(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """As of any taps."""
        if not self._reads_mlps:
            return x
        self.mlp_inputs[index] = x.view_as(x)
        return self.mlp_inputs[index]

    def differentiated(self, metric: torch.Tensor, *, dropped: int | None, keeps_graph: bool) -> Gradients:
        """The gradients of the scalar *metric*, with the writes of one layer as constants."""
        self._dropped[0] = dropped
        inputs = [*self.attached.values(), *self.mlp_inputs.values()]
        reached = [x for x in inputs if x.requires_grad]
        found = torch.autograd.grad(metric, reached, allow_unused=True, retain_graph=keeps_graph)
        by_input = {id(x): gradient for x, gradient in zip(reached, found, strict=True)}
        del found

        def gradient(x: torch.Tensor) -> torch.Tensor:
            of_input = by_input.get(id(x))
            if of_input is None:
                return x.new_zeros((len(self._rows), *x.shape[1:]))
            return of_input if len(of_input) == len(self._rows) else of_input[self._rows]

        return Gradients(
            {site: gradient(x) for site, x in self.attached.items()},
            {layer: gradient(x) for layer, x in self.mlp_inputs.items()},
        )


def _drops(dropped: list[int | None], layer: int | None) -> Callable[[torch.Tensor], torch.Tensor | None]:
    """A hook that stops the gradient while *layer* is dropped. It refers to no tensor, and so keeps no graph alive."""

    def hook(gradient: torch.Tensor) -> torch.Tensor | None:
        return torch.zeros_like(gradient) if dropped[0] == layer else None

    return hook


@dataclass(frozen=True, slots=True, eq=False)
class _Forward(LastLogits):
    """The logits that a metric reads, and those of the run that it is a divergence from."""

    reference: torch.Tensor | None = None

    def logits(self, positions: Sequence[int] = ()) -> torch.Tensor:
        """Logits [n, V] at *positions*, which are all that were computed; [V] at the last token without."""
        return self.last[: len(positions)] if positions else self.last[0]

    def logits_of(self, run: str, position: int) -> torch.Tensor:
        """Logits [V] of the run that it is a divergence from."""
        if self.reference is None:
            raise Internal(f"no logits of {run!r} at {position} were given")
        return self.reference


def _read(metric: Origin, length: int) -> tuple[int, ...]:
    """The positions whose logits *metric* reads, of a prompt of *length* tokens; last that which its divergence is
    from, if it is from a run of that prompt."""
    of_reference = () if metric.reference is None else (metric.reference[1],)
    return (*(metric.positions or (length - 1,)), *of_reference)


def _reference(batch: Batch, row: int, logits: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The logits [V] of the run that the metric of *row* is a divergence from, constants."""
    reference = batch.references[row] if batch.references else None
    return logits[reference][-1].detach() if isinstance(reference, int) else reference


def run(
    batch: Batch,
    decoder: Decoder,
    *,
    splices: Mapping[Site, Splice] | None = None,
    propagation: Propagation = PLAIN,
    check: Check = never_cancelled,
) -> Ran:
    """Run *batch*, prompts padded on the right; gradients at pads are 0.

    Args:
        batch: the runs.
        decoder: the model.
        splices: the autoencoders to splice in, by the site that each reconstructs.
        propagation: the propagation rule of gradients.
        check: raises Cancelled to end the batch.

    Raises:
        Cancelled: what *check* raises.
    """
    taps = AttributionTaps(batch, splices=splices, propagation=propagation, check=check)
    lengths = [len(row) for row in batch.tokens]
    tokens, _ = padded(batch.tokens, decoder)
    read = [_read(metric, length) for metric, length in zip(batch.metrics, lengths, strict=True)]
    at = [(row, position) for row, positions in enumerate(read) for position in positions]
    try:
        found = decoder.forward(tokens, taps, logits_at=torch.tensor(at, device=decoder.device).t())
        logits = require(found)[:, 0].split(list(map(len, read)))
        with torch.set_grad_enabled(any(batch.differentiated)):
            scalars = [
                metric.scalar(_Forward(logits[row], _reference(batch, row, logits)))
                for row, metric in enumerate(batch.metrics)
            ]
        metrics = tuple(torch.stack([scalar.detach() for scalar in scalars]).tolist())
        started = [scalar for scalar, is_wanted in zip(scalars, batch.differentiated, strict=True) if is_wanted]
        passes = tuple(_passes(taps, torch.stack(started).sum(), batch.dropped_layers)) if started else ()
    finally:
        taps.attached.clear()
        taps.mlp_inputs.clear()
    references = tuple(
        None if metric.reference is None else own[-1].detach()
        for metric, own in zip(batch.metrics, logits, strict=True)
    )
    return Ran(metrics, references, taps.values, passes)


def _passes(taps: AttributionTaps, metric: torch.Tensor, dropped: Sequence[int | None]) -> Iterator[Gradients]:
    for i, layer in enumerate(dropped):
        yield taps.differentiated(metric, dropped=layer, keeps_graph=i + 1 < len(dropped))
