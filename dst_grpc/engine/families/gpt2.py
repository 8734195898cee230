"""GPT-2: learned positions, pre-norm layers, weights stored [in, out], with queries, keys and values side by side.

The layout is ours already: `c_attn.weight` [d, 3d] is q | k | v with head-major columns, so every row is a plain name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dst_grpc.engine.decoder import DecoderConfig
from dst_grpc.engine.families.family import MAX_LAYERS, Family, plain

if TYPE_CHECKING:
    from dst_grpc.engine.families.config_values import ConfigValues


def _read_config(values: ConfigValues) -> DecoderConfig:
    values.require("scale_attn_weights", (True,))
    values.require("scale_attn_by_inverse_layer_idx", (False,))
    values.require("add_cross_attention", (False,))
    d_model, n_heads = values.size("n_embd"), values.size("n_head")
    if d_model % n_heads:
        raise values.refusal("n_head", f"is {n_heads}, which does not divide n_embd, {d_model}")
    return DecoderConfig(
        n_layers=values.size("n_layer", at_most=MAX_LAYERS),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=values.size("n_inner", default=4 * d_model),
        vocab_size=values.size("vocab_size"),
        context_window=values.size("n_positions"),
        norm_epsilon=values.positive("layer_norm_epsilon"),
        activation=values.activation("activation_function"),
    )


FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    defaults={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    read_config=_read_config,
    prefixes=("transformer.", ""),
    once={
        "embedding": plain("wte.weight"),
        "position_embedding": plain("wpe.weight"),
        "final_norm.gain": plain("ln_f.weight"),
        "final_norm.bias": plain("ln_f.bias"),
    },
    per_layer={
        "attn_norm.gain": plain("h.{i}.ln_1.weight"),
        "attn_norm.bias": plain("h.{i}.ln_1.bias"),
        "attn.qkv.weight": plain("h.{i}.attn.c_attn.weight"),
        "attn.qkv.bias": plain("h.{i}.attn.c_attn.bias"),
        "attn.out.weight": plain("h.{i}.attn.c_proj.weight"),
        "attn.out.bias": plain("h.{i}.attn.c_proj.bias"),
        "mlp_norm.gain": plain("h.{i}.ln_2.weight"),
        "mlp_norm.bias": plain("h.{i}.ln_2.bias"),
        "mlp.in.weight": plain("h.{i}.mlp.c_fc.weight"),
        "mlp.in.bias": plain("h.{i}.mlp.c_fc.bias"),
        "mlp.out.weight": plain("h.{i}.mlp.c_proj.weight"),
        "mlp.out.bias": plain("h.{i}.mlp.c_proj.bias"),
    },
    unembeddings=("lm_head.weight",),
    skipped=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"),
)
