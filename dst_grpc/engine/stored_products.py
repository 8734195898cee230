"""Products with encoders and decoders that stay in their files, for autograd: rows are read again, not kept.

Autograd would keep every block that was read for the gradient, and so all of the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.engine.stored_transcoder import StoredTranscoder


def encoded(transcoder: StoredTranscoder, x: torch.Tensor) -> torch.Tensor:
    """Features [..., F] of inputs *x* [..., d]. Gradients read the encoder's rows of active features."""
    found: torch.Tensor = _Encoded.apply(x, transcoder)
    return found


def projected(transcoder: StoredTranscoder, x: torch.Tensor) -> torch.Tensor:
    """Pre-activations [..., F] of inputs *x* [..., d]. Gradients read the encoder's rows where they are not 0, and are
    not to be differentiated again."""
    found: torch.Tensor = _Projected.apply(x, transcoder)
    return found


def written(
    transcoder: StoredTranscoder, layer: int, *features: torch.Tensor, everywhere: bool = False
) -> tuple[torch.Tensor, ...]:
    """What each of several *features* [..., F] writes to *layer*, [..., d], in their element type.

    Args:
        transcoder: what the features are of.
        layer: one of the layers that it writes to.
        features: activations. Rows of features that are not 0 in all of them are read, once.
        everywhere: whether gradients are wanted at all features, so that the whole decoder is read for them, in parts;
            else they are 0 at those that are not active.
    """
    return _Written.apply(transcoder, layer, everywhere, *features)


def active_columns(*features: torch.Tensor) -> torch.Tensor:
    """The features [n] that are active in some row of one of *features* [..., F]."""
    active = [one.detach().flatten(0, -2).any(dim=0) for one in features]
    return torch.stack(active).any(dim=0).nonzero().squeeze(1)


def _product(
    values: torch.Tensor, rows_of: Iterator[tuple[torch.Tensor, torch.Tensor]], like: torch.Tensor
) -> torch.Tensor:
    """The sum of *values* [..., F] times the rows [n, d] of features [n], some at a time; in the shape of *like*."""
    total = torch.zeros_like(like)
    for features, rows in rows_of:
        total = total + values.index_select(-1, features) @ rows.to(values.dtype)
    return total


class _Encoded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, transcoder: StoredTranscoder) -> torch.Tensor:
        found = transcoder.activations(x.flatten(0, -2)).to(x.dtype).unflatten(0, x.shape[:-1])
        ctx.transcoder = transcoder
        ctx.save_for_backward(x, found)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, found = ctx.saved_tensors
        # Where a feature is active its derivative is 1, and elsewhere 0, with every nonlinearity that there is.
        rows = ctx.transcoder.rows_of_encoder(active_columns(found))
        return _product(gradient * (found.detach() != 0), rows, x.detach()), None


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, transcoder: StoredTranscoder) -> torch.Tensor:
        ctx.transcoder = transcoder
        ctx.save_for_backward(x)
        return transcoder.pre_activations(x.flatten(0, -2)).to(x.dtype).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        return _product(gradient, ctx.transcoder.rows_of_encoder(active_columns(gradient)), x.detach()), None


class _Written(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, transcoder: StoredTranscoder, layer: int, everywhere: bool, *features: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.transcoder, ctx.layer, ctx.everywhere, ctx.shape = transcoder, layer, everywhere, features[0].shape
        ctx.active = active_columns(*features)
        width = len(transcoder.decoder_bias)
        totals = [one.new_zeros(*one.shape[:-1], width) for one in features]
        for some, rows in transcoder.rows_of_decoder(ctx.active, layer):
            for total, one in zip(totals, features, strict=True):
                total.add_(one.index_select(-1, some) @ rows.to(one.dtype))
        return tuple(totals)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found = [one.new_zeros(ctx.shape) for one in gradients]
        which = torch.arange(ctx.shape[-1], device=gradients[0].device) if ctx.everywhere else ctx.active
        for features, rows in ctx.transcoder.rows_of_decoder(which, ctx.layer):
            for total, gradient in zip(found, gradients, strict=True):
                total[..., features] = gradient @ rows.to(gradient.dtype).t()
        return None, None, None, *found
