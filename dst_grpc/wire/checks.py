"""Checks of an answer beyond the rules of its values, before anything of the declared size is allocated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dst_grpc.domain.components import TensorEncoding
from dst_grpc.wire.tensors import is_beyond_any

if TYPE_CHECKING:
    from dst_grpc._gen.dst.v1 import inference_pb2
    from dst_grpc.domain.results import AnswerHeader, TensorInfo
    from dst_grpc.errors import Violations


def check_tensor_info(message: inference_pb2.TensorInfo, info: TensorInfo, problems: Violations) -> None:
    """Note sizes that contradict one another, and a missing number of nonzero entries."""
    for field in ("element_type", "encoding"):
        problems.check(getattr(message, field) != 0, field, "is required in an answer")
    is_sparse = info.encoding is TensorEncoding.SPARSE_LATENTS
    if is_sparse != (info.nonzero_count is not None):
        problems.add("nonzero_count", f"must be {'present' if is_sparse else 'absent'} for {info.encoding}")
        return
    shape = info.shape
    if is_beyond_any(shape):
        problems.add("axes", f"describe {len(shape)} axes of more elements than any tensor has")
        return
    count = math.prod(shape)
    if info.nonzero_count is not None and info.nonzero_count > count:
        problems.add("nonzero_count", f"is {info.nonzero_count} of only {count} elements")
    if message.byte_length != info.byte_length:
        problems.add("byte_length", f"is {message.byte_length}, but the axes make it {info.byte_length}")


def check_header(message: inference_pb2.Header, header: AnswerHeader, problems: Violations) -> None:
    """Note tensors whose number is not their position."""
    del message
    for i, info in enumerate(header.tensors):
        if info.tensor_id != i:
            problems.add(f"tensors[{i}].tensor_id", f"must be {i}, its position, not {info.tensor_id}")
