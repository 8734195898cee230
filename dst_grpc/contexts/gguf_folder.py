"""From a GGUF file of the Llama architecture to a folder as Hugging Face writes it. Needs the package `gguf`.

Undoes GGUF's changes to a checkpoint: names, quantisation, and the order of the query and key rows. Rotary embeddings
rotate pairs of channels; GGUF stores the two channels of a pair side by side (x0 y0 x1 y1 ...), Hugging Face all first
ones and then all second ones (x0 x1 ... y0 y1 ...).
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, TokenType, dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dst_grpc.engine.checkpoint import Checkpoint, open_checkpoint
from dst_grpc.engine.files import CorruptFile, corrupt
from dst_grpc.engine.tokenizer_library import open_library
from dst_grpc.errors import InvalidRequest

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
_WIDTHS: Final = frozenset({"attention.key_length", "attention.value_length", "rope.dimension_count"})
_READ: Final = _WIDTHS | {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.freq_base",
    "rope.scaling.type",
    "vocab_size",
}
"""Metadata keys of a Llama that are read, without their prefix; any other might change what is computed."""


class GgufFacts:
    """The metadata of a GGUF file of a Llama."""

    def __init__(self, source: Path, facts: dict[str, Any]) -> None:
        """Take *facts*, by their names in *source*.

        Raises:
            DataLoss: for another architecture, a split model, or an unknown fact.
        """
        self.source, self.facts = source, facts
        architecture = facts.get("general.architecture")
        if architecture != "llama":
            raise self.refusal("general.architecture", f"is {architecture!r}: only 'llama' is converted here")
        if facts.get("split.count", 1) > 1:
            raise self.refusal(
                "split.count", f"is {facts['split.count']}: join the parts (llama-gguf-split --merge), and convert that"
            )
        for name in sorted(facts):
            if name.startswith("llama.") and name.removeprefix("llama.") not in _READ:
                raise self.refusal(name, "is not known here, and might change what is computed")
        scaling = facts.get("llama.rope.scaling.type", "none")
        if scaling != "none":
            raise self.refusal("llama.rope.scaling.type", f"is {scaling!r}: only 'none' is converted here")

    def refusal(self, name: str, problem: str) -> CorruptFile:
        """The error for the fact *name*."""
        return corrupt(self.source, f"{name} {problem}")

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer of the architecture."""
        value = self.facts.get(f"llama.{name}", default)
        if not isinstance(value, int) or value < 1:
            raise self.refusal(f"llama.{name}", f"must be a positive integer, not {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number of the architecture, rounded to seven digits, the precision of GGUF's float32."""
        value = self.facts.get(f"llama.{name}", default)
        if not isinstance(value, float | int):
            raise self.refusal(f"llama.{name}", f"must be a number, not {value!r}")
        return float(f"{value:.7g}")

    def values(self, name: str) -> list[Any]:
        """A list of the tokenizer."""
        value = self.facts.get(f"tokenizer.ggml.{name}")
        if not isinstance(value, list):
            raise self.refusal(f"tokenizer.ggml.{name}", "must be a list")
        return value

    def config(self) -> dict[str, Any]:
        """The `config.json` of the model."""
        n_heads, d_model = self.size("attention.head_count"), self.size("embedding_length")
        d_head = self.size("attention.key_length", d_model // n_heads)
        for name in sorted(_WIDTHS):
            if self.size(name, d_head) != d_head:
                raise self.refusal(f"llama.{name}", f"is {self.size(name)}: only heads of {d_head} are converted here")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": d_model,
            "intermediate_size": self.size("feed_forward_length"),
            "num_hidden_layers": self.size("block_count"),
            "num_attention_heads": n_heads,
            "num_key_value_heads": self.size("attention.head_count_kv", n_heads),
            "head_dim": d_head,
            "max_position_embeddings": self.size("context_length"),
            "rms_norm_eps": self.number("attention.layer_norm_rms_epsilon"),
            "rope_theta": self.number("rope.freq_base", 10000.0),
            "rope_scaling": None,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "vocab_size": len(self.values("tokens")),
            "bos_token_id": self.facts.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.facts.get("tokenizer.ggml.eos_token_id"),
            "torch_dtype": "float32",
        }

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer; raises DataLoss unless it is SmolLM's kind of byte-level BPE."""
        kind = (self.facts.get("tokenizer.ggml.model"), self.facts.get("tokenizer.ggml.pre"))
        if kind != ("gpt2", "smollm"):
            raise self.refusal(
                "tokenizer.ggml",
                f"is of the kind {kind}, which is not converted here: give the tokenizer.json of the model that the "
                "file was made of (--tokenizer)",
            )
        lists = [self.values(name) for name in ("tokens", "token_type", "merges")]
        try:
            return _byte_level_bpe(*lists)
        except Exception as error:  # the library raises bare Exception
            raise self.refusal("tokenizer.ggml", f"is not sound: {error}") from error

    def check_tokens(self, path: Path) -> None:
        """Raise DataLoss unless every token of the tokenizer at *path* has the text that the file gives it."""
        tokenizer = open_library(path, path.read_bytes())
        for i, token in enumerate(self.values("tokens")):
            found = tokenizer.id_to_token(i)
            if found not in {None, token}:
                raise corrupt(
                    path, f"is of another model: its token {i} is {found!r}, that of {self.source.name} {token!r}"
                )


def convert_gguf(source: Path, folder: Path, tokenizer: Path | None = None) -> Checkpoint:
    """Write the model in *source* to *folder*: config.json, model.safetensors in float32, tokenizer.json.

    The folder is created at the end, complete; until then all weights are in memory.

    Args:
        source: the GGUF file.
        folder: the folder to write; must not exist.
        tokenizer: the `tokenizer.json` of the model that *source* was made from; None = made from the metadata of
        *source*.

    Returns:
        The written checkpoint, opened as the server opens it.

    Raises:
        InvalidRequest: if *folder* exists, or its parent does not.
        DataLoss: if *source* is corrupt, or its architecture, its tokenizer or a tensor is not supported.
    """
    if folder.exists():
        raise InvalidRequest.of("OUT", f"{folder} exists already")
    if not folder.parent.is_dir():
        raise InvalidRequest.of("OUT", f"there is no folder {folder.parent}")
    try:
        reader = GGUFReader(source)
        facts = GgufFacts(source, {name: field.contents() for name, field in reader.fields.items()})
    except CorruptFile:
        raise
    except Exception as error:  # the library raises all kinds of errors for corrupt files
        raise corrupt(source, f"is no sound GGUF file: {error}") from error
    config = facts.config()
    if tokenizer is None:
        tokenizer_json = facts.tokenizer().to_str()
    else:
        facts.check_tokens(tokenizer)
        tokenizer_json = tokenizer.read_text(encoding="utf-8")
    weights = {}
    for tensor in reader.tensors:
        name = hugging_face_name(source, tensor.name)
        weights[name] = _reordered(tensor.name, _floats(source, tensor), config)
    config["tie_word_embeddings"] = _ONCE["output.weight"] not in weights
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as place:
        written = Path(place) / folder.name
        written.mkdir()
        (written / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (written / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        save_file(weights, written / "model.safetensors", metadata={"format": "pt"})
        open_checkpoint(written)  # raises if the file is incomplete, before the folder gets its name
        written.rename(folder)
    return open_checkpoint(folder)


def hugging_face_name(source: Path, name: str) -> str:
    """The checkpoint's name of the tensor *name* in *source*; raises DataLoss for one that is not a Llama's."""
    if name in _ONCE:
        return _ONCE[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _PER_LAYER:
        raise corrupt(source, f"tensor {name!r} is no weight of a Llama")
    return f"model.layers.{match[1]}.{_PER_LAYER[match[2]]}.weight"


def _byte_level_bpe(tokens: list[str], kinds: list[int], merges: list[str]) -> Tokenizer:
    """SmolLM's tokenizer, from its *tokens*, the kind of each, and its *merges*."""
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _floats(source: Path, tensor: Any) -> Weights:
    """The dequantised values of a tensor of GGUF's reader."""
    try:
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    except NotImplementedError as error:
        kind = tensor.tensor_type.name
        raise corrupt(source, f"tensor {tensor.name!r} is quantised as {kind}, which is not converted here") from error


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
