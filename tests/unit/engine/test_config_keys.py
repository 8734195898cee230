"""Keys of `config.json` mean what the reference's own config classes take them to mean: aliases, defaults, null.

The classes are walked, so that a key which a new version of the reference reads is tried too.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.families import FAMILIES, ConfigValues, family_of
from dst_grpc.engine.files import File

TOKENS = torch.tensor([[5, 0, 17, 3, 3, 11, 8, 28, 2]])
_MAX_PARAMETERS = 4_000_000
_SIZES = {"vocab_size": 29, "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 24}
_LLAMA = _SIZES | {
    "intermediate_size": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "hidden_act": "gelu",
    "rms_norm_eps": 1e-3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_UNSIZED_HEADS = {key: value for key, value in _LLAMA.items() if key != "head_dim"}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
_WINDOWS = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
_GEMMA = {key: value for key, value in _LLAMA.items() if key != "hidden_act"} | {
    "hidden_size": 32,
    "num_attention_heads": 16,
    "hidden_activation": "gelu",
    "query_pre_attn_scalar": 7,
    "sliding_window": 3,
    "final_logit_softcapping": 4.0,
}


@dataclass(frozen=True)
class Tiny:
    """A model for which any one of the reference's defaults leaves a model that can be made."""

    model: str
    config: str
    values: dict[str, Any]
    """What its config says; nothing that the arithmetic depends on is the default."""
    older: dict[str, Any] = field(default_factory=dict)
    """Keys of older versions, which no class has a field for."""


TINY: dict[str, Tiny] = {
    "gpt2": Tiny(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 29, "n_positions": 24, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 22}
        | {"activation_function": "relu", "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False},
    ),
    "gpt_neox": Tiny(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        _SIZES
        | {"hidden_size": 256, "num_attention_heads": 32, "intermediate_size": 22, "layer_norm_eps": 1e-3}
        | {"hidden_act": "relu", "use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
        {"rotary_emb_base": 700, "rotary_pct": 0.5},
    ),
    "llama": Tiny(
        "LlamaForCausalLM",
        "LlamaConfig",
        _LLAMA | _ROPE | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {"rope_theta": 700.0},
    ),
    "mistral": Tiny(
        "MistralForCausalLM",
        "MistralConfig",
        _LLAMA | _ROPE | {"sliding_window": 3, "tie_word_embeddings": True},
        {"rope_theta": 700.0},
    ),
    "smollm3": Tiny(
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        _UNSIZED_HEADS
        | _ROPE
        | {"num_hidden_layers": 5, "use_sliding_window": True, "sliding_window": 3, "no_rope_layer_interval": 2}
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        {"rope_theta": 700.0},
    ),
    "qwen2": Tiny("Qwen2ForCausalLM", "Qwen2Config", _UNSIZED_HEADS | _ROPE | _WINDOWS, {"rope_theta": 700.0}),
    "qwen3": Tiny(
        "Qwen3ForCausalLM", "Qwen3Config", _LLAMA | _ROPE | _WINDOWS | {"attention_bias": True}, {"rope_theta": 700.0}
    ),
    "gemma2": Tiny(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        _GEMMA
        | _ROPE
        | {"attn_logit_softcapping": 1.5, "attention_bias": True, "tie_word_embeddings": False}
        | {"layer_types": ["full_attention", "sliding_attention"]},
        {"rope_theta": 700.0},
    ),
    "gemma3_text": Tiny(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        _GEMMA
        | {"num_hidden_layers": 3, "attention_bias": True, "tie_word_embeddings": False}
        | {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500.0}}}
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        {"rope_theta": 700.0, "rope_local_base_freq": 90.0, "sliding_window_pattern": 2},
    ),
}


def _own_keys(config: str) -> list[str]:
    """Keys that a config class adds to those which all have."""
    common = {one.name for one in fields(transformers.PretrainedConfig)}
    return [one.name for one in fields(getattr(transformers, config)) if one.name not in common]


def _raw(name: str) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(TINY[name].values))  # configs change what they are given
    return copied


def _write_config(folder: Path, name: str, values: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model_type = getattr(transformers, TINY[name].config).model_type
    (folder / "config.json").write_text(json.dumps({"model_type": model_type} | values))


def _reference_config(name: str, values: dict[str, Any]) -> Any:
    return getattr(transformers, TINY[name].config)(**json.loads(json.dumps(values)), attn_implementation="eager")


def _is_large(name: str, config: Any) -> bool:
    with torch.device("meta"):
        model = getattr(transformers, TINY[name].model)(config)
    return sum(int(parameter.numel()) for parameter in model.parameters()) > _MAX_PARAMETERS


@dataclass(frozen=True)
class Reference:
    """What the reference makes of the values of a config."""

    config: Any
    model: Any
    """None if it would be large."""
    logits: torch.Tensor | None

    @classmethod
    def of(cls, name: str, values: dict[str, Any]) -> Reference:
        config = _reference_config(name, values)
        if _is_large(name, config):
            return cls(config, None, None)
        torch.manual_seed(0)
        model = getattr(transformers, TINY[name].model)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(parameter + 0.3 * noise if parameter.ndim == 1 else noise / parameter.shape[-1] ** 0.5)
            return cls(config, model, model(TOKENS).logits)


def check(folder: Path, name: str, values: dict[str, Any], reference: Reference | None = None) -> None:
    """What is read here of *values* is the *reference*'s config, as it writes it out, and has its logits."""
    theirs = reference or Reference.of(name, values)
    _write_config(folder / "raw", name, values)
    theirs.config.save_pretrained(folder / "explicit")
    family, complete = family_of(ConfigValues.read(File.at(folder / "raw" / "config.json")))
    assert family.read_config(complete) == family.read_config(
        family_of(ConfigValues.read(File.at(folder / "explicit" / "config.json")))[1]
    )
    if theirs.model is None:
        return
    theirs.model.save_pretrained(folder / "raw")
    _write_config(folder / "raw", name, values)
    (folder / "raw" / "tokenizer.json").write_text('{"model": {}}')  # nothing asks it
    found = open_checkpoint(folder / "raw").load("cpu", torch.float32).forward(TOKENS)
    assert found is not None
    torch.testing.assert_close(found, theirs.logits, rtol=0, atol=5e-5)


def test_every_family_is_walked() -> None:
    known = {model_type for family in FAMILIES for model_type in family.model_types}
    assert known == {*TINY, "gemma3"}  # whose text_config is that of gemma3_text


_GOES_WITH = {"num_hidden_layers": ("layer_types",), "pad_token_id": ("vocab_size",)}
"""Keys whose values the reference accepts only together with the given value of another key."""


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in {key, *_GOES_WITH.get(key, ())}}


@pytest.mark.parametrize("name", TINY)
def test_keys_that_no_case_sets_are_the_reference_s_defaults(name: str, tmp_path: Path) -> None:
    check(tmp_path, name, _raw(name))


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, tiny in TINY.items() for key in tiny.values])
def test_a_key_that_is_left_out_is_the_reference_s_default(name: str, key: str, tmp_path: Path) -> None:
    check(tmp_path, name, _without(_raw(name), key))


def test_only_sizes_of_matrices_make_models_whose_logits_are_not_compared() -> None:
    large = {
        key
        for name, tiny in TINY.items()
        for key in tiny.values
        if _is_large(name, _reference_config(name, _without(_raw(name), key)))
    }
    assert large <= {"vocab_size", "pad_token_id", "hidden_size", "n_embd", "intermediate_size", "num_hidden_layers"}


@pytest.mark.parametrize("name", TINY)
def test_null_is_what_the_reference_takes_it_for(name: str, tmp_path: Path) -> None:
    """For the keys that it accepts null for; with others it makes no model, or none that runs."""
    accepted = []
    for key in _own_keys(TINY[name].config):
        values = _raw(name) | {key: None}
        try:
            reference = Reference.of(name, values)
        except (StrictDataclassError, TypeError, ValueError):
            continue
        accepted.append(key)
        check(tmp_path / key, name, values, reference)
    assert accepted


def test_a_nested_config_may_be_left_out_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    family, complete = family_of(ConfigValues.read(File.at(tmp_path / "config.json")))
    transformers.Gemma3Config().save_pretrained(tmp_path)
    assert family.read_config(complete) == family.read_config(
        family_of(ConfigValues.read(File.at(tmp_path / "config.json")))[1]
    )


def _aliases() -> list[tuple[str, str, str]]:
    classes = {name: getattr(transformers, tiny.config) for name, tiny in TINY.items()}
    return [(name, alias, key) for name, one in classes.items() for alias, key in one.attribute_map.items()]


@pytest.mark.parametrize(("name", "alias", "key"), _aliases())
def test_an_alias_is_the_key_that_it_means_and_wins_over_it(name: str, alias: str, key: str, tmp_path: Path) -> None:
    values = _raw(name)
    check(tmp_path / "alone", name, _without(values, key) | {alias: values[key]})
    check(tmp_path / "both", name, values | {key: 5 * values[key], alias: values[key]})


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, tiny in TINY.items() for key in tiny.older])
def test_a_key_of_older_versions_is_read_as_the_reference_reads_it(name: str, key: str, tmp_path: Path) -> None:
    values = _without(_without(_raw(name), "rope_parameters"), "layer_types")
    check(tmp_path, name, values | {key: TINY[name].older[key]})


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text"])
def test_the_older_name_of_a_kind_of_layer_is_known(name: str, tmp_path: Path) -> None:
    values = _raw(name) | {"num_hidden_layers": 3}
    check(tmp_path, name, values | {"layer_types": ["attention", "sliding_attention", "attention"]})


# Rotary positions

_ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 3.0},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 20},
    "yarn": {"factor": 3.0, "original_max_position_embeddings": 8},
    "longrope": {
        "factor": 2.0,
        "short_factor": [1.3, 2.0],
        "long_factor": [3.0, 3.0],
        "original_max_position_embeddings": 12,
    },
}
_OTHER_KEYS = {
    "factor": 5.0,
    "original_max_position_embeddings": 10,
    "attention_factor": 1.4,
    "beta_fast": 2.0,
    "beta_slow": 0.2,
    "short_factor": [1.1, 1.7],
    "long_factor": [1.9, 2.7],
    "low_freq_factor": 0.5,
    "high_freq_factor": 5.0,
    "mscale": 0.7,
    "mscale_all_dim": 1.4,
    "truncate": False,
    "mrope_section": [1, 1],
    # Of no version of the reference, but in published configs.
    "finetuned": True,
    "attn_factor": 1.2,
    "alpha": 3.0,
}


def test_every_key_of_rotary_positions_is_tried() -> None:
    assert {*RopeParameters.__annotations__} - {"rope_type", "rope_theta", "partial_rotary_factor"} <= {*_OTHER_KEYS}
    assert {*ROPE_INIT_FUNCTIONS, "default"} - {"proportional"} == {*_ROPES}


@pytest.mark.parametrize("rope_type", _ROPES)
def test_exactly_the_rope_keys_that_the_reference_warns_of_are_ignored_with_a_warning(
    rope_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.logging.get_logger("transformers"), "propagate", True)
    rope = {"rope_type": rope_type, "rope_theta": 500.0, **_OTHER_KEYS, **_ROPES[rope_type]}
    values = _raw("llama") | {"rope_parameters": rope}
    with caplog.at_level(logging.WARNING):
        transformers.LlamaConfig(**json.loads(json.dumps(values)))
    (warned,) = {message for message in caplog.messages if "Unrecognized keys" in message}
    named = [key for key in _OTHER_KEYS if repr(key) in warned]
    caplog.clear()
    check(tmp_path, "llama", values)
    ours = {record.getMessage() for record in caplog.records if record.name.startswith("dst_grpc")}
    problem = f"has no meaning where rope_type is {rope_type!r}, and is ignored"
    files = ("raw/config.json", "explicit/config.json")
    assert ours == {f"{file}: rope_parameters.{key} {problem}" for file in files for key in named}


def test_a_published_model_whose_rope_says_how_it_was_made_is_served(caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(__file__).parents[2] / "folders" / "yarn_finetuned"
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    caplog.clear()
    logits = open_checkpoint(folder).load("cpu", torch.float32).forward(TOKENS)
    assert logits is not None
    with torch.no_grad():
        torch.testing.assert_close(logits, model.eval()(TOKENS).logits, rtol=0, atol=5e-5)
    (warning,) = (record.getMessage() for record in caplog.records if record.name.startswith("dst_grpc"))
    assert warning.startswith("yarn_finetuned/config.json: rope_scaling.finetuned has no meaning")
