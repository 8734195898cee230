"""Which torch type stands for which element type of the wire, and the checks a tensor passes on its way in."""

from __future__ import annotations

import math

import torch

from dst_grpc.domain.components import TensorElementType

TORCH_TYPES = {
    TensorElementType.FLOAT32: torch.float32,
    TensorElementType.FLOAT16: torch.float16,
    TensorElementType.BFLOAT16: torch.bfloat16,
}
"""The types that weights may be loaded as."""


def moved(tensor: torch.Tensor, device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
    """A contiguous copy of *tensor* as *dtype* on *device*, which shares nothing with the file it was mapped from."""
    return tensor.detach().to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite. Looks at the extremes, which takes no memory; a NaN is both of them."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return math.isfinite(low.item()) and math.isfinite(high.item())
