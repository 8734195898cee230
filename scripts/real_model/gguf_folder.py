"""From a GGUF file of the Llama architecture to a folder as Hugging Face writes it.

What GGUF changes of a checkpoint is undone: names, quantisation, and the order of the query and key rows. Rotary
embeddings turn pairs of channels; GGUF stores the two channels of a pair side by side (x0 y0 x1 y1 ...), Hugging Face
stores all first ones and then all second ones (x0 x1 ... y0 y1 ...).
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, TokenType, dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Weights = npt.NDArray[np.float32]

_ONCE: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PER_LAYER: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME: Final = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


class GgufError(Exception):
    """The file is no model that can be turned into a folder; the text says why."""


def write_folder(source: Path, folder: Path) -> None:
    """Write the model in *source* to *folder*: config.json, model.safetensors in float32, tokenizer.json.

    The folder appears at once, when all is written.

    Raises:
        GgufError: if the architecture, the tokenizer or a tensor is one that this does not know.
    """
    reader = GGUFReader(source)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    config = config_of(facts)
    tokenizer = tokenizer_of(facts)
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weights[hugging_face_name(tensor.name)] = _reordered(tensor.name, values, config)
    config["tie_word_embeddings"] = _ONCE["output.weight"] not in weights
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    (unfinished / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(unfinished / "tokenizer.json"))
    save_file(weights, unfinished / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def config_of(facts: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a GGUF file's metadata; raises GgufError for another architecture than Llama's."""
    architecture = facts.get("general.architecture")
    if architecture != "llama":
        raise GgufError(f"the architecture is {architecture!r}; only 'llama' is known here")
    n_heads = facts["llama.attention.head_count"]
    d_model = facts["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": d_model,
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": n_heads,
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": facts.get("llama.rope.dimension_count", d_model // n_heads),
        "max_position_embeddings": facts["llama.context_length"],
        # GGUF holds these as float32, whose digits beyond the seventh mean nothing.
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.7g}"),
        "rope_theta": float(f"{facts['llama.rope.freq_base']:.7g}"),
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "bos_token_id": facts.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": facts.get("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float32",
    }


def tokenizer_of(facts: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file's metadata; raises GgufError unless it is SmolLM's kind of byte-level BPE."""
    kind = (facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise GgufError(f"the tokenizer is of the kind {kind}; only ('gpt2', 'smollm') is known here")
    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = facts["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def hugging_face_name(name: str) -> str:
    """The checkpoint's name of the GGUF tensor *name*; raises GgufError for one that no Llama has."""
    if name in _ONCE:
        return _ONCE[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _PER_LAYER:
        raise GgufError(f"no weight of a Llama is called {name!r}")
    return f"model.layers.{match[1]}.{_PER_LAYER[match[2]]}.weight"


def _reordered(name: str, values: Weights, config: dict[str, Any]) -> Weights:
    if ".attn_q." in name:
        return halves_apart(values, config["num_attention_heads"])
    if ".attn_k." in name:
        return halves_apart(values, config["num_key_value_heads"])
    return values


def halves_apart(rows: Weights, n_heads: int) -> Weights:
    """*rows* [n_heads * c, d] whose rotary pairs lie side by side in each head, with their halves apart."""
    heads = rows.reshape(n_heads, -1, 2, rows.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)
