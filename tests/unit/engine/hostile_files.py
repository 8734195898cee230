"""Opens files with absurd numbers, types and depth, of every format, and prints what is not refused as it should be.

A script, because what a file makes the process take is limited: `python hostile_files.py FOLDER`.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFWriter

from dst_grpc.contexts.gguf_folder import convert_gguf
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.files import File
from dst_grpc.engine.safetensors_file import SafetensorsFile
from dst_grpc.engine.tokenizer import Tokenizer
from dst_grpc.errors import DataLoss, InvalidRequest, PreconditionFailed
from dst_grpc.sources.registry_file import read_registry
from tests import checkpoints
from tests.unit.engine.formats import files

_MEMORY_BYTES = 2 << 30
_SECONDS_EACH = 5.0
_DEEP = 100_000
_PLACE = "\N{SNOWMAN}"
_JSON = (
    "1e400", "-1e400", "-1", "0", "0.5", "1e-400", "9223372036854775808", "-9223372036854775809", "1e308", "NaN",
    "-Infinity", "9" * 5000, '"text"', '""', '"\\ud800"', "null", "true", "[]", "{}", "[1, -1]", '{"a": 1}', "[null]",
    "[" * _DEEP + "]" * _DEEP, "[" + "7," * 10_000 + "7]", '{"type": "yarn", "factor": 1e400}',
)  # fmt: skip
_TOML = (
    "1e400", "-1", "0", "9223372036854775808", "nan", "-inf", "9" * 5000, '"text"', '""', "true", "[]", "{}", "[1, -1]",
    "[" * _DEEP + "]" * _DEEP, "[" + "7," * 10_000 + "7]", "1979-05-27", '{ a = "b" }',
)  # fmt: skip
_SIZES = {"vocab_size": 29, "hidden_size": 12, "num_hidden_layers": 3, "max_position_embeddings": 24}
_LLAMA: dict[str, Any] = _SIZES | {
    "intermediate_size": 22, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "rms_norm_eps": 1e-3,
    "rope_theta": 500.0, "rope_scaling": None, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False, "sliding_window": None, "layer_types": None, "torch_dtype": "float32",
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 3.0, "beta_fast": 2.0, "mscale": 0.7},
}  # fmt: skip
_TYPES = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_WINDOWS = {"use_sliding_window": True, "max_window_layers": 1, **_TYPES}
_GEMMA = {"query_pre_attn_scalar": 7, "final_logit_softcapping": 4.0, "hidden_activation": "gelu", **_TYPES}
_GPT_NEOX = _SIZES | {
    "intermediate_size": 22, "num_attention_heads": 3, "layer_norm_eps": 1e-3, "rotary_pct": 0.25,
    "rotary_emb_base": 500, "use_parallel_residual": True,
}  # fmt: skip
_CONFIGS: tuple[dict[str, Any], ...] = (
    checkpoints.CONFIG,
    {"model_type": "llama", **_LLAMA},
    {"model_type": "qwen3", **_LLAMA, **_WINDOWS},
    {"model_type": "gemma2", **{key: value for key, value in _LLAMA.items() if "rope_" not in key}, **_GEMMA},
    {"model_type": "gpt_neox", **_GPT_NEOX},
)
_SAELENS = {
    "architecture": "jumprelu", "d_in": files.N, "d_sae": files.Z, "hook_name": "blocks.1.hook_resid_post",
    "hook_layer": 1, "dtype": "float32", "apply_b_dec_to_input": True, "activation_fn_str": "relu",
    "normalize_activations": "none", "activation_fn_kwargs": {}, "hook_head_index": None, "metadata": {},
}  # fmt: skip
_SPARSIFY = {
    "d_in": files.N, "num_latents": files.Z, "k": 3, "normalize_decoder": True, "activation": "topk", "signed": False,
    "expansion_factor": 32, "multi_topk": False, "skip_connection": False, "transcode": False,
}  # fmt: skip
_CODER = {"encoder.weight": (files.Z, files.N), "encoder.bias": (files.Z,), "W_dec": (files.Z, files.N),
          "b_dec": (files.N,)}  # fmt: skip
_GEMMA_SCOPE = {
    "architecture": "jump_relu", "hf_hook_point_in": "model.layers.1.pre_feedforward_layernorm.output", "width": 9,
    "hf_hook_point_out": "model.layers.1.post_feedforward_layernorm.output", "type": "clt", "affine_connection": False,
}  # fmt: skip
_CROSS_LAYER = {"w_enc": (files.N, files.Z), "b_enc": (files.Z,), "threshold": (files.Z,),
                "w_dec": (files.Z, 3, files.M), "b_dec": (files.M,)}  # fmt: skip
_REGISTRY = {
    "source": "{ embedded = true }", "element_type": '"f32"', "device": '"cpu"', "digest": f'"{"0" * 64}"',
    "digests": f'{{ "model.safetensors" = "{"0" * 64}" }}', "default": "true", "preload": "true", "pin": "false",
}  # fmt: skip
_SET = {"source": '{ hub = "a/b", revision = "main" }', "pattern": '"{layer}.safetensors"', "layers": "[0, 1]",
        "dst": '"mlp_post_act"', "allow_failed_checks": "true", "in_files": "true"}  # fmt: skip


class Try(NamedTuple):
    """A file, and what opens it."""

    name: str
    make: Callable[[Path], None]
    open: Callable[[Path], object]


def tries() -> Iterator[Try]:
    """All of them."""
    for config in _CONFIGS:
        for key, text in _replaced(config):
            yield Try(f"{config.get('model_type')}: {key}", _writing("config.json", text), open_checkpoint)
    yield from _autoencoders()
    header = {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"dst": "x"}}
    for key, text in _replaced(header):
        data = struct.pack("<Q", len(text.encode())) + text.encode() + bytes(24)
        yield Try(
            f"safetensors: {key}", _writing("x", data), lambda folder: SafetensorsFile.open(File.at(folder / "x"))
        )
    for length in (0, 1, 2**63, 2**64 - 1, 2**40, 23):
        data = struct.pack("<Q", length) + json.dumps(header).encode()
        yield Try(f"safetensors: {length}", _writing("x", data), _open_safetensors)
    for key in (*_REGISTRY, *_SET):
        for value in _TOML:
            tables = ((("models.a", _REGISTRY)), ("models.a.autoencoders.b", _SET))
            text = "\n".join(_table(name, content, key, value) for name, content in tables)
            name = f"registry: {key} = {value[:20]}"
            yield Try(name, _writing("r.toml", text), lambda folder: read_registry(folder / "r.toml"))
    yield from _tokenizers()
    yield from _gguf()


def _open_safetensors(folder: Path) -> object:
    return SafetensorsFile.open(File.at(folder / "x"))


def _table(name: str, content: dict[str, str], key: str = "", value: str = "") -> str:
    lines = (f"{each} = {value if each == key else usual}\n" for each, usual in content.items())
    return f"[{name}]\n{''.join(lines)}"


def _autoencoders() -> Iterator[Try]:
    jump = files.sae(threshold=np.abs(files.normal(files.Z)))
    coder = {name: files.normal(*shape) for name, shape in _CODER.items()}
    cross_layer = {name: files.normal(*shape) for name, shape in _CROSS_LAYER.items()}
    formats = (
        ("sae_weights.safetensors", jump, files.CONFIG | _SAELENS, "cfg.json"),
        ("ae.pt", jump, files.trainer("JumpReluAutoEncoder"), "config.json"),
        ("layers.1.mlp/sae.safetensors", coder, _SPARSIFY, "layers.1.mlp/cfg.json"),
        ("layer_1.safetensors", files.transcoder(), files.set_config(activation="topk", k=3), "config.yaml"),
        ("params_layer_1.safetensors", cross_layer, _GEMMA_SCOPE, "config.json"),
    )
    for name, arrays, config, config_name in formats:
        path = files.write(Path(sys.argv[1]) / "whole" / name, arrays)
        weights = path.read_bytes()
        found = list(_replaced(config))
        for key, text in random.Random(1).sample(found, min(300, len(found))):
            make = _writing(config_name, text, name, weights)
            yield Try(f"{name}: {key}", make, partial(_read_header, name))


def _read_header(name: str, folder: Path) -> object:
    return checkpoints.read_header(folder / name)


def _tokenizers() -> Iterator[Try]:
    found = list(_replaced(json.loads(checkpoints.tokenizer_json())))
    for key, text in random.Random(1).sample(found, 100):
        yield Try(f"tokenizer: {key}", _writing("tokenizer.json", text), Tokenizer.from_folder)


def _gguf() -> Iterator[Try]:
    whole = _gguf_file()
    places = random.Random(1).sample(range(len(whole) - 8), 60)
    for place in (0, 4, 8, 16, 24, *places):
        for number in (2**64 - 1, 2**63, 2**40, 0):
            data = whole[:place] + struct.pack("<Q", number) + whole[place + 8 :]

            def convert(folder: Path) -> object:
                return convert_gguf(folder / "a.gguf", folder / "a")

            yield Try(f"GGUF: {number} at {place}", _writing("a.gguf", data), convert)


def _gguf_file() -> bytes:
    path = Path(sys.argv[1]) / "whole.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(16)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_types([1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_tensor("token_embd.weight", np.ones((3, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def _replaced(content: Any) -> Iterator[tuple[str, str]]:
    """The JSON of *content* with something absurd in the place of each value, and which."""
    for path, changed in _with_place(content, ""):
        text = json.dumps(changed, ensure_ascii=False)
        for value in _JSON:
            yield f"{path} = {value[:20]}", text.replace(f'"{_PLACE}"', value)


def _with_place(content: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, _PLACE
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        for below, changed in _with_place(content[key], f"{path}/{key}"):
            whole = dict(content) if isinstance(content, dict) else list(content)
            whole[key] = changed
            yield below, whole


def _writing(*names_and_contents: str | bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, content in zip(names_and_contents[::2], names_and_contents[1::2], strict=True):
            data = content.encode() if isinstance(content, str) else content
            path = folder / str(name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)

    return write


def main() -> None:
    """Try all; print those that fail otherwise than they should, or take too long."""
    root = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (_mapped_bytes() + _MEMORY_BYTES, resource.RLIM_INFINITY))
    count = 0
    for i, each in enumerate(tries()):
        folder = root / str(i)
        folder.mkdir()
        each.make(folder)
        start, problem = time.process_time(), ""
        try:
            each.open(folder)
        except (DataLoss, InvalidRequest, PreconditionFailed) as error:
            problem = "" if str(error) else "says nothing"
        except BaseException as error:  # noqa: BLE001  whatever it is, it is wrong
            problem = f"{type(error).__name__}: {error}"[:200]
        if time.process_time() - start > _SECONDS_EACH:
            problem = f"took {time.process_time() - start:.1f} s"
        if problem:
            sys.stdout.write(f"{each.name}: {problem}\n")
        count += 1
    sys.stdout.write(f"{count} files\n")


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
