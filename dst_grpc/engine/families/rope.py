"""Rotary positions of a checkpoint: from the keys of its config to the frequencies that the decoder rotates by.

Frequencies are computed in float32 and in the reference implementation's order of operations, so that they are its
frequencies to the bit. Variants whose frequencies depend on the length of the prompt are supported as far as they do
not change within the context window: `dynamic` begins to stretch only beyond it, and for `longrope` the window ends
where the long factors would begin.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from dst_grpc.engine.decoder_config import Rotary
from dst_grpc.engine.files import label

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.engine.families.config_values import ConfigValues

_EVERYWHERE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_KEYS = {
    "default": _EVERYWHERE,
    "linear": _EVERYWHERE | {"factor"},
    "dynamic": _EVERYWHERE | {"factor"},
    "llama3": _EVERYWHERE | {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": _EVERYWHERE
    | {"factor", "attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate"}
    | {"original_max_position_embeddings"},
    "longrope": _EVERYWHERE
    | {"factor", "attention_factor", "short_factor", "long_factor", "original_max_position_embeddings"},
}
"""Keys that each variant uses. Others are ignored with a warning, as in the reference."""
_log = logging.getLogger(__name__)


def rope_object(values: ConfigValues) -> ConfigValues:
    """The object that describes rotary positions in *values*: `rope_scaling` unless it is empty, or
    `rope_parameters`."""
    old = values.nested("rope_scaling")
    if old is not None and old.values:
        return old
    return values.nested("rope_parameters") or replace(values, values={})


def read_rotary(rope: ConfigValues, values: ConfigValues, d_head: int) -> Rotary:
    """The rotation that an object describes.

    Args:
        rope: the object, with `rope_theta` in it.
        values: the config around it.
        d_head: channels of a head.

    Raises:
        DataLoss: for a variant that is not known, or a value that it cannot have.
    """
    rope_type = _type(rope)
    for key in sorted(rope.values.keys() - _KEYS[rope_type]):
        problem = f"has no meaning where rope_type is {rope_type!r}, and is ignored"
        _log.warning("%s: %s%s %s", label(rope.path), rope.within, key, problem)
    fraction = rope.positive("partial_rotary_factor", 1.0)
    n_rotated = int(d_head * fraction)
    n_rotated += n_rotated % 2
    if not 0 < n_rotated <= d_head:
        raise rope.refusal("partial_rotary_factor", f"is {fraction}, which rotates no whole pairs of {d_head} channels")
    if rope.positive("rope_theta") <= 1:
        raise rope.refusal("rope_theta", f"must be above 1, not {rope.values['rope_theta']!r}")
    frequencies, scale = _VARIANTS[rope_type](rope, values, int(d_head * fraction))
    return Rotary(frequencies=tuple(frequencies.tolist()), scale=scale)


def context_window(rope: ConfigValues, values: ConfigValues) -> int:
    """Longest prompt for which the frequencies hold: the config's context window; for `longrope`, the window of its
    short factors."""
    window = values.size("max_position_embeddings")
    return min(window, _original_window(rope, values)) if _type(rope) == "longrope" else window


def _type(rope: ConfigValues) -> str:
    key = "type" if rope.values.get("rope_type") is None else "rope_type"
    rope_type = rope.over({key: "default"}).text(key)
    if rope_type not in _KEYS:
        raise rope.refusal(key, f"is {rope_type!r}, which is not supported; these are: {', '.join(_KEYS)}")
    return rope_type


def _original_window(rope: ConfigValues, values: ConfigValues) -> int:
    """Context window of the model before it was stretched."""
    key = "original_max_position_embeddings"
    window = values.size(key, default=rope.size(key, default=values.size("max_position_embeddings")))
    if window == 1:
        raise rope.refusal(key, "is 1, which leaves nothing to stretch")
    return window


def _factor(rope: ConfigValues, values: ConfigValues) -> float:
    given = rope.positive_or_none("factor")
    return values.size("max_position_embeddings") / _original_window(rope, values) if given is None else given


def _wavelengths(rope: ConfigValues, n: int) -> torch.Tensor:
    """Positions per radian of each pair of channels."""
    return rope.positive("rope_theta") ** (torch.arange(0, n, 2, dtype=torch.float32) / n)


def _default(rope: ConfigValues, _values: ConfigValues, n: int) -> tuple[torch.Tensor, float]:
    return 1.0 / _wavelengths(rope, n), 1.0


def _linear(rope: ConfigValues, _values: ConfigValues, n: int) -> tuple[torch.Tensor, float]:
    return 1.0 / _wavelengths(rope, n) / rope.positive("factor"), 1.0


def _dynamic(rope: ConfigValues, _values: ConfigValues, n: int) -> tuple[torch.Tensor, float]:
    rope.positive("factor")
    return 1.0 / _wavelengths(rope, n), 1.0


def _llama3(rope: ConfigValues, values: ConfigValues, n: int) -> tuple[torch.Tensor, float]:
    """Low frequencies are divided by a factor, high ones are left, and those between are interpolated."""
    factor, window = rope.positive("factor"), _original_window(rope, values)
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if low >= high:
        raise rope.refusal("high_freq_factor", f"is {high}, which must be above low_freq_factor, {low}")
    frequencies = 1.0 / _wavelengths(rope, n)
    period = 2 * math.pi / frequencies
    slowed = torch.where(period > window / low, frequencies / factor, frequencies)
    share = (window / period - low) / (high - low)
    mixed = (1 - share) * slowed / factor + share * slowed
    is_between = (period >= window / high) & (period <= window / low)
    return torch.where(is_between, mixed, slowed), 1.0


def _yarn(rope: ConfigValues, values: ConfigValues, n: int) -> tuple[torch.Tensor, float]:
    """Channels of few turns within the original window are slowed, those of many are not; a ramp between."""
    factor, theta = _factor(rope, values), rope.positive("rope_theta")

    def channel(turns: float) -> float:
        """The pair of channels that makes *turns* turns within the original window."""
        return n * math.log(_original_window(rope, values) / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = channel(rope.positive_or_none("beta_fast") or 32.0)
    last = channel(rope.positive_or_none("beta_slow") or 1.0)
    if rope.flag("truncate", default=True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, n - 1)
    if first == last:
        last += 0.001
    wavelengths = _wavelengths(rope, n)
    kept = 1 - torch.clamp((torch.arange(n // 2, dtype=torch.float32) - first) / (last - first), 0, 1)
    frequencies = 1.0 / (factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
    return frequencies, _yarn_scale(rope, factor)


def _yarn_scale(rope: ConfigValues, factor: float) -> float:
    given = rope.positive_or_none("attention_factor")
    if given is not None:
        return given

    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    one, all_dimensions = rope.positive_or_none("mscale"), rope.positive_or_none("mscale_all_dim")
    return grown(1.0) if one is None or all_dimensions is None else grown(one) / grown(all_dimensions)


def _longrope(rope: ConfigValues, values: ConfigValues, n: int) -> tuple[torch.Tensor, float]:
    """A factor of its own for every pair of channels; the short ones, as prompts end where the long ones begin."""
    factors = rope.values.get("short_factor")
    n_pairs = (n + 1) // 2
    if not isinstance(factors, list) or len(factors) != n_pairs or not all(_is_positive(one) for one in factors):
        raise rope.refusal("short_factor", f"must be a list of {n_pairs} positive numbers, not {factors!r}")
    frequencies = 1.0 / (torch.tensor(factors, dtype=torch.float32) * _wavelengths(rope, n))
    scale = rope.positive_or_none("attention_factor")
    if scale is None:
        factor = _factor(rope, values)
        scale = math.sqrt(1 + math.log(factor) / math.log(_original_window(rope, values))) if factor > 1 else 1.0
    return frequencies, scale


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


_VARIANTS: dict[str, Callable[[ConfigValues, ConfigValues, int], tuple[torch.Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
"""By name of the variant: the frequencies of n channels, and the factor of the rotated channels."""
