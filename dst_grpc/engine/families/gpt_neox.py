"""GPT-NeoX and Pythia: rotary positions on some channels of each head, parallel attention and MLP, layer norms.

Queries, keys and values are packed head by head, [H, 3, c], in one matrix stored [n_out, n_in].
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dst_grpc.engine.decoder_config import DecoderConfig
from dst_grpc.engine.families.family import MAX_LAYERS, MAX_WIDTH, Family, Source, plain, transposed
from dst_grpc.engine.families.rope import context_window, read_rotary, rope_object

if TYPE_CHECKING:
    import torch

    from dst_grpc.engine.families.config_values import ConfigValues


def _packed(name: str) -> Source:
    return Source((name,), is_transposed=True, in_file_order=_head_by_head)


def _head_by_head(weight: torch.Tensor, config: DecoderConfig) -> torch.Tensor:
    """*weight* [3 H c, ...] as [H, 3, c, ...]."""
    return weight.unflatten(0, (3, config.n_heads, config.d_head)).transpose(0, 1)


def _rope(values: ConfigValues) -> ConfigValues:
    theta, fraction = values.positive("rotary_emb_base"), values.positive("rotary_pct")
    rope = rope_object(values).over({"rope_theta": theta, "partial_rotary_factor": fraction})
    # Newer names of the two beside the object; the reference reads them within it only.
    values.require("rope_theta", (rope.values["rope_theta"], None))
    values.require("partial_rotary_factor", (rope.values["partial_rotary_factor"], None))
    return rope


def _read_config(values: ConfigValues) -> DecoderConfig:
    d_model, n_heads = values.size("hidden_size", at_most=MAX_WIDTH), values.size("num_attention_heads")
    if d_model % n_heads:
        raise values.refusal("num_attention_heads", f"is {n_heads}, which does not divide hidden_size, {d_model}")
    n_layers, d_head = values.size("num_hidden_layers", at_most=MAX_LAYERS), d_model // n_heads
    values.require("head_dim", (None, d_head))
    has_bias, rope = values.flag("attention_bias"), _rope(values)
    return DecoderConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=d_head,
        d_mlp=values.size("intermediate_size"),
        vocab_size=values.size("vocab_size"),
        context_window=context_window(rope, values),
        norm_epsilon=values.positive("layer_norm_eps"),
        rotary=(read_rotary(rope, values, d_head),) * n_layers,
        has_qkv_bias=has_bias,
        has_attn_out_bias=has_bias,
        activation=values.activation("hidden_act"),
        parallel=values.flag("use_parallel_residual"),
    )


FAMILY = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    defaults={
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000.0,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "attention_bias": True,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
    },
    read_config=_read_config,
    prefixes=("gpt_neox.", ""),
    once={
        "embedding": plain("embed_in.weight"),
        "final_norm.gain": plain("final_layer_norm.weight"),
        "final_norm.bias": plain("final_layer_norm.bias"),
    },
    per_layer={
        "attn_norm.gain": plain("layers.{i}.input_layernorm.weight"),
        "attn_norm.bias": plain("layers.{i}.input_layernorm.bias"),
        "attn.qkv.weight": _packed("layers.{i}.attention.query_key_value.weight"),
        "attn.qkv.bias": _packed("layers.{i}.attention.query_key_value.bias"),
        "attn.out.weight": transposed("layers.{i}.attention.dense.weight"),
        "attn.out.bias": plain("layers.{i}.attention.dense.bias"),
        # Despite its name, this is the norm before the MLP.
        "mlp_norm.gain": plain("layers.{i}.post_attention_layernorm.weight"),
        "mlp_norm.bias": plain("layers.{i}.post_attention_layernorm.bias"),
        "mlp.in.weight": transposed("layers.{i}.mlp.dense_h_to_4h.weight"),
        "mlp.in.bias": plain("layers.{i}.mlp.dense_h_to_4h.bias"),
        "mlp.out.weight": transposed("layers.{i}.mlp.dense_4h_to_h.weight"),
        "mlp.out.bias": plain("layers.{i}.mlp.dense_4h_to_h.bias"),
    },
    unembeddings=("embed_out.weight", "lm_head.weight"),
    skipped=re.compile(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"),
)
