"""Qwen2 and Qwen3: as Llama, with biases that no key of the config mentions (2), or norms of queries and keys (3)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dst_grpc.engine.families.llama import DEFAULTS, FULL, SLIDING, family, read_common, rotated, with_windows

if TYPE_CHECKING:
    from dst_grpc.engine.decoder_config import DecoderConfig
    from dst_grpc.engine.families.config_values import ConfigValues

_DEFAULTS = DEFAULTS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def _read_qwen(values: ConfigValues) -> DecoderConfig:
    values.require("mlp_bias", (False,))
    config = replace(read_common(values), activation=values.activation("hidden_act"))
    is_used = values.flag("use_sliding_window")
    slides = is_used and values.values["sliding_window"] is not None
    first = values.values["max_window_layers"]
    if type(first) is not int or first < 0:
        raise values.refusal("max_window_layers", f"must be an integer, 0 or more, not {first!r}")
    usual = [SLIDING if slides and layer >= first else FULL for layer in range(config.n_layers)]
    return rotated(values, with_windows(values, config, usual, is_used=is_used))


def _read_qwen2(values: ConfigValues) -> DecoderConfig:
    # The reference always has biases of queries, keys and values, and none of the output, whatever this key says.
    values.require("attention_bias", (True, None))
    return replace(_read_qwen(replace(values, values={**values.values, "attention_bias": False})), has_qkv_bias=True)


def _read_qwen3(values: ConfigValues) -> DecoderConfig:
    return replace(_read_qwen(values), qk_norm=True)


QWEN2 = family("qwen2", ("qwen2",), _read_qwen2, defaults=_DEFAULTS | {"attention_bias": None})
QWEN3 = family("qwen3", ("qwen3",), _read_qwen3, defaults=_DEFAULTS | {"head_dim": 128})
