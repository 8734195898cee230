"""Interventions in a batch: how taps apply them, each to the row of its own prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, cast

import torch

from dst_grpc.domain.actions import Positions
from dst_grpc.domain.directions import DifferenceOfMeans
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.selections import PositionList, PositionRange
from dst_grpc.engine.norm import wide
from dst_grpc.errors import FieldViolation, InvalidRequest

if TYPE_CHECKING:
    from dst_grpc.domain.directions import Direction
    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.selections import AxisSelection, TapSelection
    from dst_grpc.engine.taps import Site

Entries = tuple[int | slice | torch.Tensor, ...]
"""Indices of entries of a tensor, as torch takes them: one element per axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """A run that is another row of the same batch."""

    row: int
    """Which."""
    n_tokens: int
    """Length of its prompt."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowIntervention:
    """An intervention in one prompt of a batch, and what its action may read."""

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
    vectors: Mapping[Any, torch.Tensor] = field(default_factory=dict)
    """The vectors [n] of directions that are rows of weights, by row, on the device."""
    runs: Mapping[str, Mapping[Site, torch.Tensor] | Beside] = field(default_factory=dict)
    """The runs that it reads: what each recorded at its site, [T, ...] without a batch axis, or where in the batch
    it is. Interventions in a row that others read come before theirs."""
    first_layer: int = 0
    """The first layer that the row runs."""
    first_token: int = 0
    """The first token that the row runs. What is selected before it is left as it is."""

    @property
    def location(self) -> ActivationLocationType:
        """The tap that it changes."""
        return self.intervention.at.activation_location_type

    def is_at(self, layer: int | None) -> bool:
        """Whether it applies at *layer* of its tap."""
        own = self.intervention.at.layer_index
        if layer is None:
            return self.first_layer == 0 or self.location.facts.is_after_layers
        return layer >= self.first_layer and own in {None, layer}

    def change(self, x: torch.Tensor) -> None:
        """Change the selected entries of *x* [b, ...] in place."""
        selected = (self.row, *self.entries(x.shape[1:]))
        before = x[selected]
        if before.requires_grad:
            before = before.clone()  # a copy, as the action may keep its argument for the gradient
        after = self.intervention.action.apply(before, _Context(self, x))
        if isinstance(after, torch.Tensor):
            if self.location is ActivationLocationType.ATTN_QK_LOGITS:
                # The score of a masked key is -inf: it stays masked, unless it is set.
                after = torch.where(before.isneginf() & ~after.isfinite(), before, after)
            after = after.to(x.dtype)
        x[selected] = cast("torch.Tensor | float", after)

    def entries(self, shape: Sequence[int]) -> Entries:
        """The selected entries of a tap of one prompt, whose tensor begins at the row's first token."""
        return entries(self.intervention.at, shape, self.n_tokens, first_token=self.first_token)


class NoDirection(InvalidRequest):
    """A vector that a run has computed is 0, or not finite, and so no direction."""

    def __init__(self, site: tuple[ActivationLocationType, int | None], direction: Direction, path: str = "") -> None:
        """*direction* of an intervention at *site*; *path* is its own in the request, once it is known."""
        location, layer = site
        where = location.value if layer is None else f"{location} of layer {layer}"
        problem = f"is 0, or not finite, at {where}: it has no unit vector"
        super().__init__([FieldViolation(path or "interventions", problem)])
        self.site, self.direction = site, direction

    def at(self, path: str) -> NoDirection:
        """The same error with the path of the direction."""
        return NoDirection(self.site, self.direction, path)


@dataclass(frozen=True, slots=True, eq=False)
class _Context:
    """What an action may read (see `Context`)."""

    change: RowIntervention
    batch: torch.Tensor
    """The tap that is changed, [b, ...]; the rows that are read are changed already."""

    def tensor(self, tensor: RequestTensor) -> torch.Tensor:
        return self.change.tensors[tensor]

    def of_run(self, name: str, positions: Positions | int = Positions.SAME) -> torch.Tensor:
        """A copy if it is of this batch, which is changed in place, and if the gradient may need it."""
        at, run = self.change.intervention.at, self.change.runs[name]
        if isinstance(run, Beside):
            found, n_tokens = self.batch[run.row], run.n_tokens
        else:
            found = run[self.change.location, at.layer_index]
            n_tokens = len(found)
            if positions is Positions.SAME:
                found = found[self.change.first_token :]
        if positions is Positions.SAME:
            read = found[self.change.entries(found.shape)]
        else:
            read = found[entries(_moved(at, positions, n_tokens), found.shape, n_tokens)]
        return read.detach().clone() if self.batch.requires_grad else read.detach()

    def vector(self, direction: Direction) -> torch.Tensor:
        return self.unit(direction) if direction.normalize else self._vector(direction)

    def unit(self, direction: Direction) -> torch.Tensor:
        vector = self._vector(direction)
        length = self.norm(vector)
        if not bool((length > 0).all()):
            raise NoDirection(self.change.intervention.at.site, direction)
        return vector / length

    def dot(self, x: Any, y: Any) -> torch.Tensor:
        product: torch.Tensor = wide(x) * y
        return product.sum(dim=-1, keepdim=True)

    def projected(self, x: Any, subspace: RequestTensor) -> torch.Tensor:
        rows = self.tensor(subspace)
        # The rows need be neither orthogonal nor independent, which float32 numbers are only so exactly.
        exact = max(rows.shape) * torch.finfo(torch.float32).eps
        found: torch.Tensor = wide(x) @ torch.linalg.pinv(rows, rtol=exact) @ rows
        return found

    def norm(self, x: Any) -> torch.Tensor:
        found: torch.Tensor = torch.linalg.vector_norm(wide(x), dim=-1, keepdim=True)
        return found

    def limited(self, x: Any, minimum: float | None, maximum: float | None) -> torch.Tensor:
        found: torch.Tensor = x.clamp(minimum, maximum)
        return found

    def _vector(self, direction: Direction) -> torch.Tensor:
        match direction.direction:
            case RequestTensor() as tensor:
                return self.change.tensors[tensor]
            case DifferenceOfMeans() as means:
                return self._mean(means.runs, means.token_index) - self._mean(means.minus_runs, means.token_index)
        return self.change.vectors[direction.direction]

    def _mean(self, names: Sequence[str], token_index: int | None) -> torch.Tensor:
        """The mean over runs, at one token or over all tokens of them, [..., n] without an axis of tokens."""
        if token_index is not None:
            return torch.stack([wide(self.of_run(name, token_index)) for name in names]).mean(dim=0)
        return torch.cat([wide(self.of_run(name, Positions.ALL)) for name in names]).mean(dim=0)


def _moved(at: TapSelection, positions: Positions | int, n_tokens: int) -> TapSelection:
    """*at* with all of *n_tokens*, or a single one, along the tap's first axis, which is its only one of tokens."""
    first = None if isinstance(positions, Positions) else positions % n_tokens
    return replace(at, axes=(first, *at.all_axes[1:]))


def entries(at: TapSelection, shape: Sequence[int], n_tokens: int | None = None, *, first_token: int = 0) -> Entries:
    """The selected entries of one prompt's tap, as an index into its tensor.

    Args:
        at: the selection.
        shape: of the tap, pads included.
        n_tokens: length of the prompt; None = no pads.
        first_token: the token that the tensor begins with, along the first axis of a tap with tokens.
    """
    if first_token:
        at = replace(at, axes=(_from(at.all_axes[0], first_token, n_tokens), *at.all_axes[1:]))
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


def _from(axis: AxisSelection, first: int, n_tokens: int | None) -> AxisSelection:
    """The positions selected along an axis from *first* on, of which there is one, counted from there."""
    match axis:
        case int():
            return axis - first
        case PositionRange():
            return PositionRange(start=max(axis.start - first, 0), stop=axis.stop - first)
        case PositionList():
            return PositionList(positions=tuple(one - first for one in axis.positions if one >= first))
    return None if n_tokens is None else PositionRange(start=0, stop=n_tokens - first)


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
