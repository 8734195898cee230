"""Llama and models like it: Mistral, SmolLM2, SmolLM3; Qwen and Gemma use the same table and config.

RMS norms, rotary positions, keys and values shared by groups of heads, gated MLPs; matrices are stored [n_out, n_in].
The table also has names that only some of the families use (norms of queries and keys, biases): weights that a config
does not have are not looked for, and are unknown weights if a file holds them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dst_grpc.domain.architecture import NormKind
from dst_grpc.engine.decoder_config import DecoderConfig
from dst_grpc.engine.families.family import MAX_LAYERS, MAX_WIDTH, Family, Source, plain, query_key_value, transposed
from dst_grpc.engine.families.rope import context_window, read_rotary, rope_object

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.engine.families.config_values import ConfigValues

    ReadConfig = Callable[[ConfigValues], DecoderConfig]

ONCE: dict[str, Source] = {
    "embedding": plain("embed_tokens.weight"),
    "final_norm.gain": plain("norm.weight"),
}
PER_LAYER: dict[str, Source] = {
    "attn_norm.gain": plain("layers.{i}.input_layernorm.weight"),
    "attn.qkv.weight": query_key_value(*(f"layers.{{i}}.self_attn.{part}_proj.weight" for part in "qkv")),
    "attn.qkv.bias": query_key_value(*(f"layers.{{i}}.self_attn.{part}_proj.bias" for part in "qkv")),
    "attn.query_norm.gain": plain("layers.{i}.self_attn.q_norm.weight"),
    "attn.key_norm.gain": plain("layers.{i}.self_attn.k_norm.weight"),
    "attn.out.weight": transposed("layers.{i}.self_attn.o_proj.weight"),
    "attn.out.bias": plain("layers.{i}.self_attn.o_proj.bias"),
    # Despite its name, this is the norm before the MLP.
    "mlp_norm.gain": plain("layers.{i}.post_attention_layernorm.weight"),
    "mlp.in.weight": transposed("layers.{i}.mlp.gate_proj.weight"),
    "mlp.in.bias": plain("layers.{i}.mlp.gate_proj.bias"),
    "mlp.up.weight": transposed("layers.{i}.mlp.up_proj.weight"),
    "mlp.up.bias": plain("layers.{i}.mlp.up_proj.bias"),
    "mlp.out.weight": transposed("layers.{i}.mlp.down_proj.weight"),
    "mlp.out.bias": plain("layers.{i}.mlp.down_proj.bias"),
}
PREFIXES = ("model.", "")
UNEMBEDDINGS = ("lm_head.weight",)
SKIPPED = re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

FULL, SLIDING = "full_attention", "sliding_attention"
_KINDS_OF_LAYERS = {FULL: FULL, SLIDING: SLIDING, "attention": FULL}
"""Kinds of layers by their names in configs, including an older name of the first."""
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
"""Llama's values of absent keys. Families like it override some of them."""


def read_common(values: ConfigValues) -> DecoderConfig:
    """The config that all these families share; every layer has the same rotation and attends to all tokens."""
    d_model, n_heads = values.size("hidden_size", at_most=MAX_WIDTH), values.size("num_attention_heads")
    n_key_value_heads = values.size("num_key_value_heads", default=n_heads)
    if n_heads % n_key_value_heads:
        problem = f"is {n_key_value_heads}, which does not divide num_attention_heads, {n_heads}"
        raise values.refusal("num_key_value_heads", problem)
    if values.values.get("head_dim") is None and d_model % n_heads:
        raise values.refusal("num_attention_heads", f"is {n_heads}, which does not divide hidden_size, {d_model}")
    n_layers = values.size("num_hidden_layers", at_most=MAX_LAYERS)
    has_bias = values.flag("attention_bias")
    return DecoderConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_key_value_heads,
        d_head=values.size("head_dim", default=d_model // n_heads, at_most=MAX_WIDTH),
        d_mlp=values.size("intermediate_size"),
        vocab_size=values.size("vocab_size"),
        context_window=values.size("max_position_embeddings"),
        norm=NormKind.RMS_NORM,
        norm_epsilon=values.positive("rms_norm_eps"),
        has_qkv_bias=has_bias,
        has_attn_out_bias=has_bias,
        has_mlp_bias=values.flag("mlp_bias"),
        gated=True,
    )


def rotated(values: ConfigValues, config: DecoderConfig) -> DecoderConfig:
    """*config* with the same rotation in every layer."""
    rope = rope_object(values)
    rope = rope.over({"rope_theta": values.positive("rope_theta")})
    for one in (values, rope):
        one.require("partial_rotary_factor", (None, 1.0))
    rotary = read_rotary(rope, values, config.d_head)
    return replace(config, rotary=(rotary,) * config.n_layers, context_window=context_window(rope, values))


def with_windows(
    values: ConfigValues, config: DecoderConfig, usual: list[str], *, is_used: bool = True
) -> DecoderConfig:
    """*config* with the sliding windows of `layer_types`, or, if that is absent, the *usual* ones.

    Raises:
        DataLoss: if there are sliding windows although they are not used.
    """
    said = values.list_of("layer_types", config.n_layers, _KINDS_OF_LAYERS)
    kinds = usual if said is None else [_KINDS_OF_LAYERS[kind] for kind in said]
    if SLIDING not in kinds:
        return config
    if not is_used:
        raise values.refusal("layer_types", f"holds {SLIDING!r}, though use_sliding_window is false")
    window = values.size("sliding_window")
    return replace(config, sliding_windows=tuple(window if kind == SLIDING else None for kind in kinds))


def family(name: str, model_types: tuple[str, ...], read_config: ReadConfig, **fields: Any) -> Family:
    """A row with the shared table, but for *fields*."""
    shared: dict[str, Any] = {
        "prefixes": PREFIXES,
        "once": ONCE,
        "per_layer": PER_LAYER,
        "unembeddings": UNEMBEDDINGS,
        "defaults": DEFAULTS,
        "skipped": SKIPPED,
    }
    return Family(name=name, model_types=model_types, read_config=read_config, **(shared | fields))


def _read_llama(values: ConfigValues) -> DecoderConfig:
    values.require("sliding_window", (None,))
    values.require("layer_types", (None,))
    values.require("rope_interleaved", (None, False))
    config = replace(read_common(values), activation=values.activation("hidden_act"))
    return rotated(values, config)


def _read_mistral(values: ConfigValues) -> DecoderConfig:
    # Neither biases nor layers of different kinds exist in this family; the reference ignores the keys.
    for key in ("attention_bias", "mlp_bias"):
        values.require(key, (False,))
    values.require("layer_types", (None,))
    config = replace(read_common(values), activation=values.activation("hidden_act"))
    if values.values.get("sliding_window") is not None:
        config = with_windows(values, config, [SLIDING] * config.n_layers)
    return rotated(values, config)


def _read_smollm3(values: ConfigValues) -> DecoderConfig:
    config = replace(read_common(values), activation=values.activation("hidden_act"))
    every = values.size("no_rope_layer_interval")
    has_rope = values.list_of("no_rope_layers", config.n_layers, (0, 1), or_longer=True)
    if has_rope is None:
        has_rope = [int((layer + 1) % every != 0) for layer in range(config.n_layers)]
    is_used = values.flag("use_sliding_window")
    slides = is_used and values.values.get("sliding_window") is not None
    usual = [SLIDING if slides and not rotates else FULL for rotates in has_rope]
    config = rotated(values, with_windows(values, config, usual, is_used=is_used))
    rotary = tuple(one if rotates else None for one, rotates in zip(config.rotary or (), has_rope, strict=True))
    return replace(config, rotary=rotary)


LLAMA = family("llama", ("llama",), _read_llama)
MISTRAL = family(
    "mistral",
    ("mistral",),
    _read_mistral,
    defaults=DEFAULTS
    | {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
)
SMOLLM3 = family(
    "smollm3",
    ("smollm3",),
    _read_smollm3,
    defaults=DEFAULTS
    | {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2000000.0,
        "use_sliding_window": False,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
    },
)
