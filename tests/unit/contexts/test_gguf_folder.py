"""GGUF files of Llamas made folders: the weights that went in come out, and what is not known is refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, dequantize, quantize
from tokenizers import Tokenizer

from dst_grpc.contexts.gguf_folder import convert_gguf, halves_apart
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.errors import DataLoss, InvalidRequest
from tests import checkpoints, families

TOKENS = torch.tensor([[5, 0, 17, 3, 3, 11]])
N_TOKENS = Tokenizer.from_str(checkpoints.tokenizer_json()).get_vocab_size()
N_HEADS, N_KV_HEADS, D_HEAD = 4, 2, 8
_NOTHING: Mapping[str, Any] = {}
_CONFIG: dict[str, Any] = {"vocab_size": N_TOKENS, "hidden_size": 32, "intermediate_size": 64, "head_dim": D_HEAD}
_FACTS: dict[str, Any] = {
    "context_length": 24,
    "embedding_length": 32,
    "block_count": 3,
    "feed_forward_length": 64,
    "attention.head_count": N_HEADS,
    "attention.head_count_kv": N_KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-3,
    "rope.dimension_count": D_HEAD,
    "rope.freq_base": 500.0,
    "vocab_size": N_TOKENS,
}
# Names as llama.cpp's converter gives them.
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Tensors = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


@pytest.fixture(scope="module")
def model() -> Any:
    return families.make("llama", 3, **_CONFIG, rope_parameters=_rope(500.0))


def tensors_of(model: Any, n_kv_heads: int = N_KV_HEADS) -> Tensors:
    """Weights of *model* as llama.cpp's converter writes them, the rows of queries and keys permuted."""
    found = {}
    for name, tensor in model.state_dict().items():
        base, values = name.removesuffix(".weight"), tensor.numpy()
        place = ""
        if base.startswith("model.layers."):
            _, _, layer, base = base.split(".", 3)
            place = f"blk.{layer}."
        n_heads = {"self_attn.q_proj": N_HEADS, "self_attn.k_proj": n_kv_heads}.get(base)
        if n_heads is not None:
            values = values.reshape(n_heads, 2, D_HEAD // 2, -1).swapaxes(1, 2).reshape(values.shape)
        found[f"{place}{_NAMES[base]}.weight"] = np.ascontiguousarray(values)
    return found


def write(
    path: Path, tensors: Tensors, more: Mapping[str, Any] = _NOTHING, kind: GGMLQuantizationType | None = None
) -> Path:
    """A GGUF file of *tensors*, matrices as *kind*, with *more* facts laid over those of the model; None = left out."""
    writer = GGUFWriter(path, more.get("general.architecture", "llama"))
    vocabulary = json.loads(checkpoints.tokenizer_json())["model"]
    facts = {f"llama.{name}": value for name, value in _FACTS.items()} | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": sorted(vocabulary["vocab"], key=vocabulary["vocab"].get),
        "tokenizer.ggml.token_type": [int(TokenType.CONTROL), *[int(TokenType.NORMAL)] * (N_TOKENS - 1)],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in vocabulary["merges"]],
    }
    for name, value in {**facts, **more}.items():
        match value:
            case _ if name == "general.architecture":
                pass  # the writer has it
            case bool():
                writer.add_bool(name, value)
            case int():
                writer.add_uint32(name, value)
            case float():
                writer.add_float32(name, value)
            case str():
                writer.add_string(name, value)
            case list():
                writer.add_array(name, value)
    for name, values in tensors.items():
        if kind is not None and values.ndim == 2:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits_of(folder: Path) -> torch.Tensor:
    logits = open_checkpoint(folder).load("cpu", torch.float32).forward(TOKENS)
    assert logits is not None
    return logits


def expected(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(TOKENS).logits
    return logits


def test_a_folder_computes_what_the_model_does_that_the_file_was_made_of(model: Any, tmp_path: Path) -> None:
    tensors = tensors_of(model)
    written = convert_gguf(write(tmp_path / "a.gguf", tensors), tmp_path / "a")
    assert written.parameter_count == sum(parameter.numel() for parameter in model.parameters())
    torch.testing.assert_close(logits_of(tmp_path / "a"), expected(model), rtol=0, atol=5e-5)
    tokenizer = Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    text = " Mary gave the key."
    assert tokenizer.encode(text).ids == Tokenizer.from_str(checkpoints.tokenizer_json()).encode(text).ids
    assert tokenizer.encode("Mary<|endoftext|>").ids[-1] == 0
    with pytest.raises(InvalidRequest, match="exists already"):
        convert_gguf(tmp_path / "a.gguf", tmp_path / "a")


def test_what_a_file_leaves_out_is_what_llama_cpp_takes_it_for(tmp_path: Path) -> None:
    more = {"rope_parameters": _rope(10000.0), "num_key_value_heads": N_HEADS, "tie_word_embeddings": True}
    model = families.make("llama", 4, **(_CONFIG | more))
    tensors = tensors_of(model, N_HEADS)
    del tensors["output.weight"]
    lacking = ("attention.head_count_kv", "rope.freq_base", "rope.dimension_count", "vocab_size")
    write(tmp_path / "a.gguf", tensors, {f"llama.{name}": None for name in lacking})
    convert_gguf(tmp_path / "a.gguf", tmp_path / "a")
    torch.testing.assert_close(logits_of(tmp_path / "a"), expected(model), rtol=0, atol=5e-5)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.BF16, GGMLQuantizationType.F16])
def test_quantised_weights_become_the_floats_that_they_stand_for(
    kind: GGMLQuantizationType, model: Any, tmp_path: Path
) -> None:
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim == 2:
                parameter.copy_(
                    torch.from_numpy(dequantize(quantize(parameter.numpy(), kind), kind).astype(np.float32))
                )
    convert_gguf(write(tmp_path / "a.gguf", tensors_of(model), kind=kind), tmp_path / "a")
    torch.testing.assert_close(logits_of(tmp_path / "a"), expected(rounded), rtol=0, atol=5e-5)


def test_a_tokenizer_of_another_kind_is_given_and_held_to_the_file_s_tokens(model: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "a.gguf", tensors_of(model), {"tokenizer.ggml.pre": "llama-bpe"})
    with pytest.raises(DataLoss, match=r"kind \('gpt2', 'llama-bpe'\), .* give the tokenizer.json .*--tokenizer"):
        convert_gguf(source, tmp_path / "a")
    given = tmp_path / "tokenizer.json"
    given.write_text(checkpoints.tokenizer_json())
    convert_gguf(source, tmp_path / "a", given)
    assert (tmp_path / "a" / "tokenizer.json").read_text() == given.read_text()
    other = json.loads(checkpoints.tokenizer_json())
    vocabulary = other["model"]["vocab"]
    vocabulary["!"], vocabulary["#"] = vocabulary["#"], vocabulary["!"]
    given.write_text(json.dumps(other))
    with pytest.raises(DataLoss, match=r"is of another model: its token 1 is '#', that of a\.gguf '!'"):
        convert_gguf(source, tmp_path / "b", given)
    given.write_text("{}")
    with pytest.raises(DataLoss, match=r"tokenizer\.json: is no tokenizer"):
        convert_gguf(source, tmp_path / "b", given)


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"general.architecture": "qwen2"}, "general.architecture is 'qwen2': only 'llama' is converted"),
        ({"split.count": 3}, "split.count is 3: join the parts"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn': only 'none'"),
        ({"llama.rope.scaling.factor": 2.0}, "llama.rope.scaling.factor is not known here"),
        ({"llama.expert_count": 8}, "llama.expert_count is not known here"),
        ({"llama.attention.key_length": 16}, "llama.rope.dimension_count is 8: only heads of 16"),
        ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count is 4: only heads of 8"),
        ({"llama.block_count": None}, "llama.block_count must be a positive integer, not None"),
        ({"llama.block_count": 4}, "config.json: tensor 'model.layers.3.input_layernorm.weight' is needed"),
        ({"llama.attention.layer_norm_rms_epsilon": "x"}, "layer_norm_rms_epsilon must be a number, not 'x'"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens must be a list"),
        ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml is not sound"),
        ({"tokenizer.ggml.merges": ["ab"]}, "tokenizer.ggml is not sound"),
    ],
)
def test_what_a_file_says_that_is_not_known_is_refused_by_name(
    facts: dict[str, Any], problem: str, model: Any, tmp_path: Path
) -> None:
    source = write(tmp_path / "a.gguf", tensors_of(model), facts)
    with pytest.raises(DataLoss, match=problem):
        convert_gguf(source, tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight"])
def test_a_tensor_that_is_not_known_is_refused_by_name(name: str, model: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "a.gguf", tensors_of(model) | {name: np.ones(4, np.float32)})
    with pytest.raises(DataLoss, match=f"tensor '{name}' is no weight of a Llama"):
        convert_gguf(source, tmp_path / "a")


def test_a_file_that_is_cut_or_no_gguf_is_refused(model: Any, tmp_path: Path) -> None:
    whole = write(tmp_path / "a.gguf", tensors_of(model)).read_bytes()
    for i, content in enumerate((b"", b"GGUF", b"x" * 100, whole[:200], whole[:-100], whole[:4] + b"\xff" * 60)):
        source = tmp_path / f"{i}.gguf"
        source.write_bytes(content)
        with pytest.raises(DataLoss, match=f"{i}.gguf: is no sound GGUF file"):
            convert_gguf(source, tmp_path / "out")
    with pytest.raises(InvalidRequest, match="there is no folder"):
        convert_gguf(tmp_path / "a.gguf", tmp_path / "gone" / "out")


def test_rotary_pairs_are_moved_apart_head_by_head() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)
    assert halves_apart(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
