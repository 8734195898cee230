"""Configs of every family: older keys say the same, and what the decoder does not implement is refused by key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.families import ConfigValues, family_of
from dst_grpc.engine.files import File
from dst_grpc.errors import DataLoss
from tests import families

# Configs as older versions wrote them


def _old_rope(values: dict[str, Any]) -> None:
    rope = values.pop("rope_parameters")
    values["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    values["rope_scaling"] = None if rope["type"] == "default" else rope


def _old_neox(values: dict[str, Any]) -> None:
    rope = values.pop("rope_parameters")
    values["rotary_emb_base"], values["rotary_pct"] = rope["rope_theta"], rope["partial_rotary_factor"]
    values["rope_theta"] = rope["rope_theta"]
    values["rope_scaling"] = {"rope_type": rope["rope_type"], "factor": 2.5} if "factor" in rope else None


def _old_gemma3(values: dict[str, Any]) -> None:
    rope = values.pop("rope_parameters")
    values["rope_theta"] = rope["full_attention"].pop("rope_theta")
    values["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    values["rope_scaling"] = None if rope["full_attention"]["rope_type"] == "default" else rope["full_attention"]


def _old_gemma3_scaled(values: dict[str, Any]) -> None:
    _old_gemma3(values)
    del values["layer_types"]
    del values["_sliding_window_pattern"]
    values["sliding_window_pattern"] = 2


def _old_gemma2(values: dict[str, Any]) -> None:
    _old_rope(values)
    del values["layer_types"]
    values["hidden_act"] = "silu"


def _old_windows(values: dict[str, Any]) -> None:
    _old_rope(values)
    del values["layer_types"]


def _old_smollm3(values: dict[str, Any]) -> None:
    _old_windows(values)
    del values["no_rope_layers"]


OLD: dict[str, Callable[[dict[str, Any]], None]] = {
    "gpt_neox": _old_neox,
    "gpt_neox linear": _old_neox,
    "llama": _old_rope,
    "llama linear": _old_rope,
    "llama dynamic": _old_rope,
    "llama llama3": _old_rope,
    "llama yarn": _old_rope,
    "llama longrope": _old_rope,
    "mistral": _old_rope,
    "qwen2": _old_windows,
    "qwen2 sliding": _old_windows,
    "qwen3": _old_windows,
    "smollm3 sliding": _old_smollm3,
    "gemma2": _old_gemma2,
    "gemma3": _old_gemma3,
    "gemma3 scaled": _old_gemma3_scaled,
}


@pytest.mark.parametrize("name", OLD)
def test_the_keys_of_older_configs_say_the_same(name: str, tmp_path: Path) -> None:
    folder = families.save(families.make(name), tmp_path)
    config = open_checkpoint(folder).config
    assert open_checkpoint(families.rewrite(folder, OLD[name])).config == config


def test_a_nested_config_may_leave_out_what_is_usual(tmp_path: Path) -> None:
    """As the published checkpoints of Gemma 3 do; the reference then writes out what it takes for granted."""
    values: dict[str, Any] = {
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 16,
            "intermediate_size": 22,
            "model_type": "gemma3_text",
            "num_hidden_layers": 7,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    family, usual = family_of(ConfigValues.read(File.at(tmp_path / "config.json")))
    config = family.read_config(usual)
    transformers.Gemma3Config(**values).save_pretrained(tmp_path)
    assert config == family.read_config(family_of(ConfigValues.read(File.at(tmp_path / "config.json")))[1])
    assert (config.n_heads, config.n_key_value_heads, config.d_head, config.context_window) == (8, 4, 256, 131072)
    assert (config.score_scale, config.sliding_windows) == (256**-0.5, (1024,) * 5 + (None, 1024))


def test_the_window_of_longrope_ends_where_other_frequencies_begin(tmp_path: Path) -> None:
    assert open_checkpoint(families.save(families.make("llama longrope"), tmp_path)).config.context_window == 12


# Configs that mean something else


def _in_rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 500.0, **values}}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gpt_neox", {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
    ("gpt_neox", {"num_attention_heads": 5}, "num_attention_heads is 5, which does not divide hidden_size, 24"),
    ("gpt_neox", {"rope_theta": 7.0}, "rope_theta is 7.0"),
    ("gpt_neox", {"partial_rotary_factor": 0.75}, "partial_rotary_factor is 0.75"),
    ("gpt_neox", {"head_dim": 4}, "head_dim is 4"),
    (
        "gpt_neox",
        _in_rope(partial_rotary_factor=0.1),
        "rope_parameters.partial_rotary_factor is 0.1, which rotates no whole pairs of 8 channels",
    ),
    (
        "gpt_neox",
        _in_rope(partial_rotary_factor=1.5),
        "rope_parameters.partial_rotary_factor is 1.5, which rotates no whole pairs of 8 channels",
    ),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config says that the weights are quantised (4 bits)"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads is 3, which does not divide num_attention_heads, 4"),
    ("llama", {"num_attention_heads": 8, "head_dim": None}, "num_attention_heads is 8, which does not divide"),
    ("llama", {"sliding_window": 4}, "sliding_window is 4"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved is True"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("llama", {"rope_parameters": 3}, "rope_parameters must be an object, not 3"),
    ("llama", {"head_dim": 2**30}, "head_dim must be an integer between 1 and 1048576"),
    ("llama", {"rope_parameters": {"rope_theta": 0.5}}, "rope_parameters.rope_theta must be above 1, not 0.5"),
    ("llama", {"rope_parameters": {"rope_theta": None}}, "rope_parameters.rope_theta must be a positive number"),
    (
        "llama",
        _in_rope(rope_type="yarn", factor=2.0, original_max_position_embeddings=1),
        "rope_parameters.original_max_position_embeddings is 1, which leaves nothing to stretch",
    ),
    ("llama", {"rms_norm_eps": None}, "rms_norm_eps must be a positive number"),
    (
        "llama",
        _in_rope(rope_type="su"),
        "rope_parameters.rope_type is 'su', which is not supported; these are: default",
    ),
    ("llama", {"rope_scaling": {"type": "mrope"}}, "rope_scaling.type is 'mrope'"),
    ("llama", {"per_layer_config": {"1": {"hidden_act": "relu"}}}, "per_layer_config is {"),
    ("llama", _in_rope(partial_rotary_factor=0.5), "rope_parameters.partial_rotary_factor is 0.5"),
    ("llama", _in_rope(rope_type="linear"), "rope_parameters.factor is missing"),
    ("llama", _in_rope(rope_type="linear", factor="2"), "rope_parameters.factor must be a positive number, not '2'"),
    ("llama", _in_rope(rope_type="dynamic", factor=True), "rope_parameters.factor must be a positive number"),
    (
        "llama",
        _in_rope(rope_type="llama3", factor=2.0, low_freq_factor=4.0, high_freq_factor=4.0),
        "rope_parameters.high_freq_factor is 4.0, which must be above low_freq_factor, 4.0",
    ),
    (
        "llama",
        _in_rope(rope_type="longrope", factor=2.0, short_factor=[1.0], long_factor=[1.0]),
        "rope_parameters.short_factor must be a list of 5 positive numbers",
    ),
    ("mistral", {"attention_bias": True}, "attention_bias is True"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types is ["),
    ("smollm3", {"no_rope_layers": [1, 1]}, "no_rope_layers must be a list of 3 values"),
    ("smollm3", {"no_rope_layers": [1, 1, 2]}, "no_rope_layers holds 2"),
    (
        "smollm3",
        {"layer_types": ["sliding_attention"] * 3, "sliding_window": 3},
        "layer_types holds 'sliding_attention', though use_sliding_window is false",
    ),
    ("qwen2", {"attention_bias": False}, "attention_bias is False"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types holds 'chunked_attention'"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types must be a list of 3 values"),
    ("qwen3", {"mlp_bias": True}, "mlp_bias is True"),
    ("qwen3", {"max_window_layers": "all"}, "max_window_layers must be an integer, 0 or more"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping must be a positive number"),
    ("gemma2", {"hidden_activation": None}, "hidden_activation is missing"),
    ("gemma2", {"sliding_window": None}, "sliding_window is missing"),
    ("gemma3", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping is 30.0"),
    ("gemma3", {"rope_parameters": {"rope_theta": 7.0}}, "rope_parameters.rope_theta is not known here"),
    (
        "gemma3",
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}},
        "rope_parameters.full_attention.rope_type is 'yarn'",
    ),
    ("gemma3 nested", {"tie_word_embeddings": False}, "text_config.tie_word_embeddings is True"),
]


@pytest.mark.parametrize(("name", "change", "problem"), REFUSED, ids=lambda value: str(value)[:50])
def test_a_value_that_is_not_implemented_is_refused_by_key(
    name: str, change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    folder = families.save(families.make(name), tmp_path)
    families.rewrite(folder, lambda values: values.update(change))
    with pytest.raises(DataLoss) as caught:
        open_checkpoint(folder)
    assert f"config.json: {problem}" in caught.value.message
    assert caught.value.metadata["key"] == problem.split(" ", maxsplit=1)[0]


def test_a_nested_head_that_caps_its_logits_is_refused_as_the_reference_caps_none(tmp_path: Path) -> None:
    folder = families.save(families.make("gemma3 nested"), tmp_path)
    families.rewrite(folder, lambda values: values["text_config"].update(final_logit_softcapping=3.0))
    with pytest.raises(DataLoss, match=r"text_config.final_logit_softcapping is 3.0"):
        open_checkpoint(folder)
