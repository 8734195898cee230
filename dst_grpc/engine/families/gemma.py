"""Gemma 2 and the language model of Gemma 3: as Llama, with norms before and after attention and MLP, gains of 1 + w,
soft caps (2) or norms of queries and keys (3), and layers with sliding windows.

Gemma 3 from 4B on nests the language model's config and weights beside those of a vision tower, which is skipped. Such
a nested config omits values that equal the reference's defaults, so these are listed here.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from dst_grpc.engine.families.family import plain
from dst_grpc.engine.families.llama import (
    DEFAULTS,
    FULL,
    PER_LAYER,
    SLIDING,
    family,
    read_common,
    rotated,
    with_windows,
)
from dst_grpc.engine.families.rope import read_rotary

if TYPE_CHECKING:
    from dst_grpc.engine.decoder_config import DecoderConfig, Rotary
    from dst_grpc.engine.families.config_values import ConfigValues

_GEMMA2 = DEFAULTS | {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "tie_word_embeddings": True,
}
_GEMMA3 = _GEMMA2 | {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
}
_PER_LAYER = PER_LAYER | {
    "attn_post_norm.gain": plain("layers.{i}.post_attention_layernorm.weight"),
    "mlp_norm.gain": plain("layers.{i}.pre_feedforward_layernorm.weight"),
    "mlp_post_norm.gain": plain("layers.{i}.post_feedforward_layernorm.weight"),
}


def _read_gemma(values: ConfigValues) -> DecoderConfig:
    values.require("mlp_bias", (False,))
    values.require("use_bidirectional_attention", (None, False))
    config = read_common(values)
    return replace(
        config,
        norm_gain_offset=1.0,
        query_scale=values.positive("query_pre_attn_scalar") ** -0.5,
        attn_softcap=values.positive_or_none("attn_logit_softcapping"),
        final_softcap=values.positive_or_none("final_logit_softcapping"),
        post_norms=True,
        activation=values.activation("hidden_activation"),
        embedding_scale=config.d_model**0.5,
    )


def _read_gemma2(values: ConfigValues) -> DecoderConfig:
    config = _read_gemma(values)
    usual = [FULL if layer % 2 else SLIDING for layer in range(config.n_layers)]
    return rotated(values, with_windows(values, config, usual))


def _read_gemma3_text(values: ConfigValues) -> DecoderConfig:
    # The reference reads this key and caps no score.
    values.require("attn_logit_softcapping", (None,))
    config = replace(_read_gemma(values), qk_norm=True)
    pattern = values.size("sliding_window_pattern")
    usual = [SLIDING if (layer + 1) % pattern else FULL for layer in range(config.n_layers)]
    config = with_windows(values, config, usual)
    full, sliding = _rotaries(values, config.d_head)
    windows = config.sliding_windows or (None,) * config.n_layers
    return replace(config, rotary=tuple(full if window is None else sliding for window in windows))


def _rotaries(values: ConfigValues, d_head: int) -> tuple[Rotary, Rotary]:
    """The rotations of layers that attend to all tokens, and of layers with a sliding window."""
    both = values.nested("rope_parameters") or replace(values, values={})
    both.refuse_others((FULL, SLIDING))
    found = []
    for kind, key in ((FULL, "rope_theta"), (SLIDING, "rope_local_base_freq")):
        rope = both.nested(kind) or replace(both, values={})
        scaling = values.nested("rope_scaling") if kind == FULL else None
        if scaling is not None:
            rope = replace(scaling, values={**rope.values, **scaling.values})
        # A variant whose frequencies depend on the prompt's length, or that reads the object around this one.
        rope.require("rope_type", ("default", "linear", "llama3"))
        rope.require("partial_rotary_factor", (None, 1.0))
        found.append(read_rotary(rope.over({"rope_theta": values.positive(key)}), values, d_head))
    full, sliding = found
    return full, sliding


def _read_gemma3(values: ConfigValues) -> DecoderConfig:
    text = values.nested("text_config") or replace(values, values={}, within="text_config.")
    text.require("tie_word_embeddings", (values.flag("tie_word_embeddings"),))
    # The reference caps logits of its text-only model alone.
    text.require("final_logit_softcapping", (None,))
    return _read_gemma3_text(GEMMA3_TEXT.complete(text))


GEMMA2 = family("gemma2", ("gemma2",), _read_gemma2, per_layer=_PER_LAYER, defaults=_GEMMA2)
GEMMA3_TEXT = family("gemma3", ("gemma3_text",), _read_gemma3_text, per_layer=_PER_LAYER, defaults=_GEMMA3)
GEMMA3 = family(
    "gemma3",
    ("gemma3",),
    _read_gemma3,
    defaults={"tie_word_embeddings": True},
    prefixes=("language_model.model.", "model.language_model."),
    per_layer=_PER_LAYER,
    unembeddings=("lm_head.weight", "language_model.lm_head.weight"),
    skipped=re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\..+"),
)
