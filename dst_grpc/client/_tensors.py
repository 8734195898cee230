"""Derived scalars as arrays: one tensor, the tensors of one derived scalar by layer, and the largest entries of them.

Plain values over numpy, with the names of the axes kept beside the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np

from dst_grpc.client._given import how_many
from dst_grpc.domain.components import Dimension, NodeType, PassType
from dst_grpc.domain.results import Axis, DenseTensor, SparseTensor
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS

Array: TypeAlias = np.ndarray[Any, Any]


class TopBy(StrEnum):
    """How entries are ranked."""

    MAGNITUDE = "magnitude"
    """Distance from zero: a strong negative effect counts like a strong positive one."""
    VALUE = "value"
    """The value itself."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Entry:
    """One entry of a derived scalar."""

    dst: DerivedScalarType
    """The derived scalar."""
    pass_type: PassType
    """The pass."""
    layer_index: int | None
    """The layer; None for a type that exists once per model."""
    indices: tuple[int, ...]
    """Position along each axis."""
    dimensions: tuple[Dimension, ...]
    """What each axis runs over."""
    value: float
    """The number."""

    @property
    def token(self) -> int | None:
        """Position of the node's token; for attention, of the query. None if no axis runs over tokens."""
        if Dimension.SEQUENCE_TOKENS not in self.dimensions:
            return None
        position = self.indices[self.dimensions.index(Dimension.SEQUENCE_TOKENS)]
        return token_pair(position)[0] if FACTS[self.dst].is_flattened else position

    @property
    def attended_token(self) -> int | None:
        """Position of the token that attention reads. None if the entry is not at a pair of tokens."""
        if FACTS[self.dst].is_flattened:
            return token_pair(self.indices[0])[1]
        if Dimension.ATTENDED_TO_SEQUENCE_TOKENS not in self.dimensions:
            return None
        return self.indices[self.dimensions.index(Dimension.ATTENDED_TO_SEQUENCE_TOKENS)]

    @property
    def node(self) -> int | None:
        """Number of the neuron, head, latent, ... None if the last axis has size 1."""
        last = self.dimensions[-1] if self.dimensions else Dimension.SINGLETON
        return None if last is Dimension.SINGLETON or last.node_type is None else self.indices[-1]

    @property
    def node_type(self) -> NodeType:
        """Type of the node."""
        return FACTS[self.dst].node_type

    def __repr__(self) -> str:
        parts = [f"{self.value:+z.4g}"]
        parts += [f"layer {self.layer_index}"] if self.layer_index is not None else []
        parts += [f"{self.node_type} {self.node}"] if self.node is not None else []
        tokens = [str(token) for token in (self.token, self.attended_token) if token is not None]
        parts += [f"token {' <- '.join(tokens)}"] if tokens else []
        return f"<{', '.join(parts)}>"


def token_pair(position: int) -> tuple[int, int]:
    """The (query, key) tokens at *position* of a flattened axis: (0,0), (1,0), (1,1), (2,0), ..."""
    query = (math.isqrt(8 * position + 1) - 1) // 2
    return query, position - query * (query + 1) // 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DerivedScalarTensor:
    """One tensor of an answer. `numpy.asarray` gives the whole of it, and so does indexing, sparse or not."""

    dst: DerivedScalarType
    """The derived scalar it holds."""
    pass_type: PassType
    """Which pass of it."""
    layer_index: int | None
    """Which layer of it; None for a type that exists once per model."""
    axes: tuple[Axis, ...]
    """What each axis of the whole tensor runs over, and how long it is."""
    values: Array = field(repr=False)
    """The elements, shaped like `axes`; for a sparse tensor only its nonzero entries [nnz]."""
    coordinates: Array | None = field(default=None, repr=False)
    """Positions of the entries of a sparse tensor [nnz, axes], ascending; None if dense."""
    spec_index: int = 0
    """Position, in the request, of the derived scalar that asked for it."""
    zero_by_definition: bool = False
    """Whether it projects a residual that does not lie strictly before where the gradient is read, and so is 0."""

    @classmethod
    def from_domain(cls, tensor: DenseTensor | SparseTensor) -> DerivedScalarTensor:
        """From an answer's tensor: float32 or float16, bfloat16 widened."""
        return cls(
            dst=tensor.info.dst,
            pass_type=tensor.info.pass_type,
            layer_index=tensor.info.layer_index,
            axes=tensor.info.axes,
            values=tensor.values,
            coordinates=tensor.coordinates if isinstance(tensor, SparseTensor) else None,
            spec_index=tensor.info.spec_index,
            zero_by_definition=tensor.info.zero_by_definition,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(axis.size for axis in self.axes)

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """What the axes run over."""
        return tuple(axis.dimension for axis in self.axes)

    @property
    def is_sparse(self) -> bool:
        """Whether it arrived as its nonzero entries."""
        return self.coordinates is not None

    def to_dense(self) -> DerivedScalarTensor:
        """The same tensor with every element in `values`; itself if it is dense."""
        if self.coordinates is None:
            return self
        whole = np.zeros(self.shape, dtype=self.values.dtype)
        whole[tuple(self.coordinates.T)] = self.values
        return replace(self, values=whole, coordinates=None)

    @property
    def not_finite_count(self) -> int:
        """How many values are NaN or infinite, but for the scores of pairs of tokens that are masked."""
        return int(self.values.size - np.isfinite(self.values).sum() - self._is_hidden.sum())

    @property
    def _is_hidden(self) -> Array:
        """Which of the values [n] are scores of pairs that are masked, -inf."""
        flat = self.values.ravel()
        has_hidden = FACTS[self.dst].has_hidden_entries and self.pass_type is PassType.FORWARD
        return np.isneginf(flat) if has_hidden else np.zeros(flat.shape, np.bool_)

    def top(self, count: int = 10, *, by: TopBy = TopBy.MAGNITUDE, at: int | None = None) -> list[Entry]:
        """The largest entries, largest first; NaN counts as the largest of all, and scores that are masked as none.

        Args:
            count: How many at most.
            by: Whether strongly negative entries count as large.
            at: Only nodes at this token (of a pair: the query's); None = at all of them.

        Raises:
            InvalidRequest: If *count* is negative.
        """
        most, flat = how_many("count", count), self.values.ravel()
        among = self._elements_at(at)
        if FACTS[self.dst].has_hidden_entries:
            among = among[~self._is_hidden[among]]
        return [
            Entry(
                dst=self.dst,
                pass_type=self.pass_type,
                layer_index=self.layer_index,
                indices=self._position(element),
                dimensions=self.dimensions,
                value=float(flat[element]),
            )
            for element in _largest(flat, most, by, among)
        ]

    def _position(self, element: int) -> tuple[int, ...]:
        """Position along each axis of element *element* of the values."""
        where = np.unravel_index(element, self.shape) if self.coordinates is None else self.coordinates[element]
        return tuple(int(i) for i in where)

    def _elements_at(self, token: int | None) -> Array:
        """Indices of the values at *token*; the first axis runs over tokens, or over pairs of them."""
        if token is None:
            return np.arange(self.values.size)
        pairs = FACTS[self.dst].is_flattened
        start, stop = (token * (token + 1) // 2, (token + 1) * (token + 2) // 2) if pairs else (token, token + 1)
        if self.coordinates is not None:
            return np.flatnonzero((self.coordinates[:, 0] >= start) & (self.coordinates[:, 0] < stop))
        row = self.values[:1].size
        return np.arange(start * row, min(stop * row, self.values.size))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        whole = self.to_dense().values
        return np.array(whole, dtype=dtype, copy=copy)

    def __getitem__(self, key: Any) -> Any:
        return self.to_dense().values[key]

    def __len__(self) -> int:
        if not self.axes:
            raise TypeError("a tensor without axes has no length")
        return self.axes[0].size

    def __repr__(self) -> str:
        axes = ", ".join(f"{axis.dimension}: {axis.size}" for axis in self.axes)
        layer = "" if self.layer_index is None else f" layer {self.layer_index}"
        backward = " backward" if self.pass_type is PassType.BACKWARD else ""
        sparse = f", {len(self.values)} nonzero" if self.is_sparse else ""
        broken = f", {self.not_finite_count} not finite" if self.not_finite_count else ""
        zero = ", 0 by definition" if self.zero_by_definition else ""
        return f"<{self.dst}{layer}{backward} [{axes}] {self.values.dtype}{sparse}{broken}{zero}>"


class DerivedScalar(Mapping[int | None, DerivedScalarTensor]):
    """All tensors of one derived scalar and one pass, by layer; the key is None for a type that exists once per
    model."""

    def __init__(
        self, dst: DerivedScalarType, tensors: Iterable[DerivedScalarTensor], pass_type: PassType = PassType.FORWARD
    ) -> None:
        everything = tuple(tensors)
        self.dst = dst
        self.pass_type = pass_type
        self._all = everything
        self._by_layer = {t.layer_index: t for t in everything if t.pass_type is pass_type}

    def __getitem__(self, layer_index: int | None) -> DerivedScalarTensor:
        try:
            return self._by_layer[layer_index]
        except KeyError:
            known = ", ".join(map(str, self._by_layer)) or "none"
            raise KeyError(f"{self.dst} {self.pass_type} has no layer {layer_index}; it has {known}") from None

    def __iter__(self) -> Iterator[int | None]:
        return iter(self._by_layer)

    def __len__(self) -> int:
        return len(self._by_layer)

    @property
    def backward(self) -> DerivedScalar:
        """The gradients, if `derive_gradients` asked for them; otherwise empty."""
        return DerivedScalar(self.dst, self._all, PassType.BACKWARD)

    def stack(self) -> Array:
        """All layers in one array, with the layer as first axis; a type that exists once per model has one layer.

        A layer that is 0 by definition is NaN here, so that what is plotted of it does not end in a false 0.

        Raises:
            ValueError: If there is no tensor.
        """
        layers = [np.asarray(tensor) for tensor in self.values()]
        undefined = [tensor.zero_by_definition for tensor in self.values()]
        return np.stack([np.full_like(x, np.nan) if no else x for x, no in zip(layers, undefined, strict=True)])

    def top(self, count: int = 10, *, by: TopBy = TopBy.MAGNITUDE, at: int | None = None) -> list[Entry]:
        """The largest entries of all layers, largest first; see `DerivedScalarTensor.top`."""
        most = how_many("count", count)
        entries = [entry for tensor in self.values() for entry in tensor.top(most, by=by, at=at)]
        keys = _keys(np.array([entry.value for entry in entries]), by)
        return [entries[i] for i in np.argsort(-keys, kind="stable")[:most]]

    def __repr__(self) -> str:
        backward = " backward" if self.pass_type is PassType.BACKWARD else ""
        layers = f"{len(self)} layers" if None not in self._by_layer else "one per model"
        shapes = {tensor.shape for tensor in self.values()}
        shape = f" of {list(shapes.pop())}" if len(shapes) == 1 else ""
        return f"<{self.dst}{backward}: {layers}{shape}>"


def _largest(flat: Array, count: int, by: TopBy, among: Array) -> list[int]:
    """Positions of the *count* largest of the entries *among*, largest first."""
    keys = _keys(flat[among], by)
    if 0 < count < len(keys):
        chosen = np.argpartition(-keys, count - 1)[:count]
        keys, among = keys[chosen], among[chosen]
    return [int(i) for i in among[np.argsort(-keys, kind="stable")]][:count]


def _keys(values: Array, by: TopBy) -> Array:
    """What to order *values* by."""
    keys = np.abs(values) if by is TopBy.MAGNITUDE else values
    return np.where(np.isnan(keys), np.inf, keys)
