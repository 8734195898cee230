"""The torch type of each element type, and checks of tensors that are loaded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import TensorElementType
from dst_grpc.errors import OutOfRange

if TYPE_CHECKING:
    from collections.abc import Mapping

TORCH_TYPES = {
    TensorElementType.FLOAT32: torch.float32,
    TensorElementType.FLOAT16: torch.float16,
    TensorElementType.BFLOAT16: torch.bfloat16,
}
"""The types that weights may be loaded as."""


def moved(tensor: torch.Tensor, device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
    """*tensor* as *dtype* on *device*, contiguous, in memory of its own.

    A tensor that is so already is returned as it is: a copy would double the memory of loading.
    """
    found = tensor.detach().to(device=device, dtype=dtype).contiguous()
    return found if found.untyped_storage().nbytes() == found.nbytes else found.clone()


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite. Looks at the extremes, which takes no memory; a NaN is both of them."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return math.isfinite(low.item()) and math.isfinite(high.item())


def why_out_of_range(dtype: torch.dtype) -> str:
    """Why values of a model that is loaded as *dtype* are not finite."""
    name = str(dtype).removeprefix("torch.")
    if dtype is torch.float16:
        return f"{name}, which the model is loaded as, holds nothing beyond 65504; load it as float32 or bfloat16"
    return f"they are beyond what {name}, which the model is loaded as, holds"


def out_of_range(problem: str, dtype: torch.dtype, metadata: Mapping[str, object] | None = None) -> OutOfRange:
    """The error of a *problem* with values of a model that is loaded as *dtype*."""
    known = {"element_type": str(dtype).removeprefix("torch.").upper(), **(metadata or {})}
    return OutOfRange(problem, metadata={name: str(value) for name, value in known.items() if value is not None})
