"""Interventions in a batch: how taps apply them, each to the row of its own prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, cast

import torch

from dst_grpc.domain.actions import Positions
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.selections import PositionList, PositionRange

if TYPE_CHECKING:
    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.request_tensors import RequestTensor
    from dst_grpc.domain.selections import TapSelection
    from dst_grpc.engine.taps import Site

Entries = tuple[int | slice | torch.Tensor, ...]
"""Indices of entries of a tensor, as torch takes them: one element per axis."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowIntervention:
    """An intervention in one prompt of a batch, and the context that its action may read."""

    row: int
    """Which prompt of the batch."""
    intervention: Intervention
    """The intervention; at one layer, if it reads other runs."""
    n_tokens: int | None = None
    """Length of the prompt in a padded batch: axes of tokens that are selected whole end there. None = no padding."""
    gradient_pass: int | None = None
    """Number of the gradient pass in which it changes the gradient; None = it changes the value."""
    tensors: Mapping[RequestTensor, torch.Tensor] = field(default_factory=dict)
    """The tensors of the request that it reads, on the device."""
    runs: Mapping[str, Mapping[Site, torch.Tensor]] = field(default_factory=dict)
    """What each run that it reads recorded at its site, [T, ...] without a batch axis."""

    @property
    def location(self) -> ActivationLocationType:
        """The tap that it changes."""
        return self.intervention.at.activation_location_type

    def is_at(self, layer: int | None) -> bool:
        """Whether it applies at *layer* of its tap."""
        own = self.intervention.at.layer_index
        return own is None or own == layer

    def change(self, x: torch.Tensor) -> None:
        """Change the selected entries of *x* [b, ...] in place."""
        selected = (self.row, *self._entries(x.shape[1:]))
        before = x[selected]
        if before.requires_grad:
            before = before.clone()  # a copy, as the action may keep its argument for the gradient
        after = self.intervention.action.apply(before, self)
        if isinstance(after, torch.Tensor):
            if self.location is ActivationLocationType.ATTN_QK_LOGITS:
                # The score of a masked key is -inf: it stays masked, unless it is set.
                after = torch.where(before.isneginf() & ~after.isfinite(), before, after)
            after = after.to(x.dtype)
        x[selected] = cast("torch.Tensor | float", after)

    def tensor(self, tensor: RequestTensor) -> torch.Tensor:
        """A tensor of the request (see `Context`)."""
        return self.tensors[tensor]

    def of_run(self, name: str, positions: Positions | int = Positions.SAME) -> torch.Tensor:
        """The same entries in another run (see `Context`)."""
        recorded = self.runs[name][self.location, self.intervention.at.layer_index]
        at = self.intervention.at if positions is Positions.SAME else _moved(self.intervention.at, positions)
        n_tokens = self.n_tokens if positions is Positions.SAME else None
        return recorded[entries(at, recorded.shape, n_tokens)]

    def _entries(self, shape: Sequence[int]) -> Entries:
        return entries(self.intervention.at, shape, self.n_tokens)


def _moved(at: TapSelection, positions: Positions | int) -> TapSelection:
    """*at* with all tokens, or a single one, along the tap's first axis, which is its only one of tokens."""
    return replace(at, axes=(positions if isinstance(positions, int) else None, *at.all_axes[1:]))


def entries(at: TapSelection, shape: Sequence[int], n_tokens: int | None = None) -> Entries:
    """The selected entries of one prompt's tap, as an index into its tensor.

    Args:
        at: the selection.
        shape: of the tap, pads included.
        n_tokens: length of the prompt; None = no pads.
    """
    found: list[int | slice | torch.Tensor] = []
    is_outer = False
    for axis, dimension in zip_longest(at.axes, at.activation_location_type.dimensions):
        match axis:
            case int():
                found.append(axis)
            case PositionRange():
                found.append(slice(axis.start, axis.stop))
            case PositionList():
                found.append(torch.tensor(axis.positions))
                is_outer = True
            case None:
                found.append(slice(n_tokens if dimension.is_sequence_token_dimension else None))
    return _outer(found, shape) if is_outer else tuple(found)


def _outer(selections: Sequence[int | slice | torch.Tensor], shape: Sequence[int]) -> Entries:
    """All combinations of the positions selected along each axis, as numpy's `ix_`; a single position drops its
    axis."""
    rank = sum(not isinstance(one, int) for one in selections)
    found: list[int | slice | torch.Tensor] = []
    axis = 0
    for one, size in zip(selections, shape, strict=True):
        if isinstance(one, int):
            found.append(torch.tensor(one))
            continue
        positions = torch.arange(size)[one]
        found.append(positions.reshape(*(-1 if i == axis else 1 for i in range(rank))))
        axis += 1
    return tuple(found)
