"""The bytes of tensors.

Little-endian and row-major on every host. A sparse tensor is its values followed by its coordinates. `frames` splits
them into chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from dst_grpc.domain.components import TensorElementType
from dst_grpc.domain.put_tensors import MAX_AXES
from dst_grpc.domain.results import DenseTensor, SparseTensor, TensorInfo, TensorRows
from dst_grpc.errors import DataLoss, Internal, Reason

Array: TypeAlias = np.ndarray[Any, Any]

_STORED_AS: dict[TensorElementType, np.dtype[Any]] = {
    TensorElementType.FLOAT32: np.dtype("<f4"),
    TensorElementType.FLOAT16: np.dtype("<f2"),
    TensorElementType.BFLOAT16: np.dtype("<u2"),
    TensorElementType.INT32: np.dtype("<i4"),
    TensorElementType.UINT32: np.dtype("<u4"),
    TensorElementType.INT64: np.dtype("<i8"),
    TensorElementType.BOOL: np.dtype("?"),
}
_COORDINATES = np.dtype("<u4")
_MAX_ELEMENTS = 2**59
"""More elements than any tensor has, dense or sparse, so that arithmetic on positions and bytes cannot overflow."""


def is_beyond_any(shape: Sequence[int]) -> bool:
    """Whether no tensor has as many axes as *shape*, or as many elements.

    A size of 0 makes a tensor empty however large its other axes are; numpy bounds those too, and so does this.
    """
    return len(shape) > MAX_AXES or math.prod(size or 1 for size in shape) > _MAX_ELEMENTS


def stored_as(element_type: TensorElementType) -> np.dtype[Any]:
    """The numpy type of stored elements; bfloat16, which numpy lacks, as its bits."""
    return _STORED_AS[element_type]


def tensor_buffers(tensor: DenseTensor | TensorRows | SparseTensor) -> tuple[memoryview, ...]:
    """The tensor's bytes, or those of its rows, in order, as views of its memory where that has the layout of messages.

    Raises:
        Internal: if the values are not of the type and shape that the tensor's info declares.
    """
    info = tensor.info
    stored = _STORED_AS[info.element_type]
    if isinstance(tensor, DenseTensor):
        return (_view(tensor.values, stored, info.shape, info),)
    if isinstance(tensor, TensorRows):
        return (_view(tensor.values, stored, (len(tensor.values), *info.shape[1:]), info),)
    count = info.nonzero_count
    if count is None:
        raise Internal(f"tensor {info.tensor_id} is sparse, but its info has no nonzero_count")
    return (
        _view(tensor.values, stored, (count,), info),
        _view(tensor.coordinates, _COORDINATES, (count, len(info.axes)), info),
    )


def _view(values: Array, stored: np.dtype[Any], shape: tuple[int, ...], info: TensorInfo) -> memoryview:
    if values.shape != shape or values.dtype.newbyteorder("<") != stored:
        raise Internal(
            f"tensor {info.tensor_id} ({info.dst}) is {values.dtype}{list(values.shape)}, "
            f"but was announced as {stored}{list(shape)}"
        )
    flat = np.ascontiguousarray(values, dtype=stored).reshape(-1)
    return flat.view(np.uint8).data


def tensor_of(info: TensorInfo, data: Array) -> DenseTensor | SparseTensor:
    """The tensor whose bytes are *data* [byte_length], uint8, as a view of them.

    float32 and float16 keep their type; bfloat16, which numpy lacks, is widened to float32, exactly.

    Raises:
        DataLoss: if the coordinates of a sparse tensor are outside it or do not ascend.
    """
    stored = _STORED_AS[info.element_type]
    if info.nonzero_count is None:
        return DenseTensor(info, widened(data.view(stored), info.element_type).reshape(info.shape))
    split = info.nonzero_count * stored.itemsize
    values = widened(data[:split].view(stored), info.element_type)
    # After values of two bytes the coordinates may be unaligned; only then are they copied.
    aligned = np.require(data[split:].view(_COORDINATES), requirements="A")
    coordinates = aligned.reshape(info.nonzero_count, len(info.axes))
    _check_coordinates(info, coordinates)
    return SparseTensor(info, values, coordinates)


def widened(values: Array, element_type: TensorElementType) -> Array:
    """Stored *values* in a type that numpy has: bfloat16 as float32, exactly."""
    if element_type is not TensorElementType.BFLOAT16:
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)


def _check_coordinates(info: TensorInfo, coordinates: Array) -> None:
    if not coordinates.size:
        return
    if (coordinates.max(axis=0) >= info.shape).any():
        raise _damaged(info, "has coordinates outside its axes")
    # One number per entry, in the order of the coordinates; the product of the sizes was checked not to overflow.
    places = np.ravel_multi_index(tuple(coordinates.T.astype(np.int64)), info.shape)
    if (np.diff(places) <= 0).any():
        raise _damaged(info, "has coordinates that do not ascend")


def _damaged(info: TensorInfo, what: str) -> DataLoss:
    return DataLoss(f"tensor {info.tensor_id} ({info.dst}) {what}", reason=Reason.ANSWER_CORRUPT)
