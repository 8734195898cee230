"""Closeness of tensors."""

from __future__ import annotations

import torch


def assert_close(found: torch.Tensor, expected: torch.Tensor, *, rtol: float, atol: float, msg: str = "") -> None:
    """As `torch.testing.assert_close`, which takes longer to find nothing than a tiny model does to run."""
    is_alike = (found.dtype, found.device, found.shape) == (expected.dtype, expected.device, expected.shape)
    if not (is_alike and torch.allclose(found, expected, rtol=rtol, atol=atol)):
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, msg=lambda said: f"{msg}: {said}")
