"""Norms: layer norms and RMS norms, with the scale (the divisor) as a tensor where it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from dst_grpc.domain.architecture import NormKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dst_grpc.engine.decoder_config import DecoderConfig


class Norm:
    """A norm over the last axis."""

    def __init__(self, config: DecoderConfig, name: str, weights: Mapping[str, torch.Tensor]) -> None:
        """Take gain [n], and bias [n] if the norm's kind has one, from *weights* under *name*."""
        gain = weights[f"{name}.gain"]
        self._kind, self._epsilon = config.norm, config.norm_epsilon
        self._rounds_before_gain = config.norm is NormKind.RMS_NORM and not config.norm_gain_offset
        self.gain = wide(gain) + config.norm_gain_offset if config.norm_gain_offset else gain
        """The gain [n], with the config's offset added."""
        self.bias = weights.get(f"{name}.bias")
        """The bias [n]; None if there is none."""

    def __call__(self, x: torch.Tensor, *, detach_scale: bool = False) -> torch.Tensor:
        """Normalise *x* [..., n]; with *detach_scale* no gradient flows through the divisor."""
        if detach_scale:
            return self.apply(x, self.scale(x).detach())
        if self._kind is NormKind.LAYER_NORM:
            return functional.layer_norm(x, self.gain.shape, self.gain, self.bias, self._epsilon)
        if self._rounds_before_gain:
            return functional.rms_norm(x, self.gain.shape, eps=self._epsilon) * self.gain
        return functional.rms_norm(wide(x), self.gain.shape, self.gain, self._epsilon).to(x.dtype)

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """The divisor [..., 1]: root of variance or mean square, plus epsilon, in float32 at least."""
        x = wide(x)
        if self._kind is NormKind.LAYER_NORM:
            square = x.var(dim=-1, keepdim=True, correction=0)
        else:
            square = x.square().mean(dim=-1, keepdim=True)
        return (square + self._epsilon).sqrt()

    def apply(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Normalise *x* [..., n] by a given *scale* [..., 1]."""
        normed = self._divided(x, scale)
        if self._rounds_before_gain:
            return normed.to(x.dtype) * self.gain
        normed = normed * self.gain
        return (normed if self.bias is None else normed + self.bias).to(x.dtype)

    def without_gain(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """*x* [..., n] divided by its scale, or by a given *scale* [..., 1], before gain and bias; centred first in a
        layer norm."""
        return self._divided(x, self.scale(x) if scale is None else scale).to(x.dtype)

    def centred(self, x: torch.Tensor) -> torch.Tensor:
        """*x* [..., n] less its mean in a layer norm: `without_gain` at scale 1, and the transpose of that."""
        return _centred(x) if self._kind is NormKind.LAYER_NORM else x

    def _divided(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.centred(wide(x)) / scale

    def pushed(self, x: torch.Tensor, change: torch.Tensor, *, detach_scale: bool = False) -> torch.Tensor:
        """The first-order change of the norm of *x* [..., n] if *x* changes by *change* [..., n]: J change.

        With the gain g, the scale s and x^ = `without_gain`, J = diag(g) (C - x^ x^T / n) / s, where C centres in a
        layer norm; with *detach_scale* the scale is constant, and J = diag(g) C / s.
        """
        return self._inner(x, change, detach_scale=detach_scale) * self.gain.to(change.dtype)

    def pulled_back(self, x: torch.Tensor, gradient: torch.Tensor, *, detach_scale: bool = False) -> torch.Tensor:
        """The gradient at *x* [..., n], from the *gradient* [..., n] at the norm of *x*: J^T gradient, J as above."""
        return self._inner(x, gradient * self.gain.to(gradient.dtype), detach_scale=detach_scale)

    def _inner(self, x: torch.Tensor, v: torch.Tensor, *, detach_scale: bool) -> torch.Tensor:
        """(C - x^ x^T / n) v / s, which is symmetric."""
        scale = self.scale(x)
        v = v / scale
        if not detach_scale:
            normed = self._divided(x, scale)
            v = v - normed * ((v * normed).mean(dim=-1, keepdim=True))
        return self.centred(v)

    def unit(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of *x* [..., n] at scale 1 and without bias: linear in *x*."""
        return self.centred(x) * self.gain.to(x.dtype)

    def unit_transposed(self, direction: torch.Tensor) -> torch.Tensor:
        """The transpose of `unit`, applied to *direction* g [..., n]: unit(x) . g = x . result."""
        return self.centred(direction * self.gain.to(direction.dtype))


def _centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(dim=-1, keepdim=True)


def wide(x: torch.Tensor) -> torch.Tensor:
    """*x* in float32, or unchanged if it is wider."""
    return x.to(wide_type(x))


def wide_type(x: torch.Tensor) -> torch.dtype:
    """float32, or the type of *x* if that is wider: derivatives are checked numerically on float64 models."""
    return torch.promote_types(x.dtype, torch.float32)
