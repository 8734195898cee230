"""Large products in blocks of rows, forward and backward, so that what is cancelled does not finish one first."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dst_grpc.engine.cancellation import Check


def blockwise_product(x: torch.Tensor, weight: torch.Tensor, n_rows: int, check: Check) -> torch.Tensor:
    """*x* [..., n] times the constant *weight* [n, m], *n_rows* rows of *x* at a time: [..., m].

    *check* is made before each block, and in a backward pass before each block of the gradient.
    """
    result: torch.Tensor = _BlockwiseProduct.apply(x, weight, n_rows, check)
    return result


class _BlockwiseProduct(torch.autograd.Function):
    """The product as one node of the graph: blocks of a graph of their own would have to be copied together."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, n_rows: int, check: Check) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.n_rows, ctx.check = n_rows, check
        return _product(x, weight, n_rows, check)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(gradient, weight.t(), ctx.n_rows, ctx.check), None, None, None


def _product(x: torch.Tensor, weight: torch.Tensor, n_rows: int, check: Check) -> torch.Tensor:
    rows = x.flatten(0, -2)
    result = x.new_empty(len(rows), weight.shape[1])
    for start in range(0, len(rows), n_rows):
        check()
        torch.mm(rows[start : start + n_rows], weight, out=result[start : start + n_rows])
    return result.unflatten(0, x.shape[:-1])
