"""Tiny random checkpoints of every family, made and saved by the reference implementation, whose numbers are compared.

Sizes are such that nothing is equal by accident; biases and gains are random, windows shorter than the prompts, and
caps low enough to bend.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.taps import Site, Taps

EMBEDDED: Site = (L.RESID_POST_EMBEDDING, None)
PROMPT = (5, 0, 17, 3, 3, 11, 8, 28, 2, 19, 6)
"""Longer than every window."""
_SIZES = {"vocab_size": 29, "hidden_size": 12, "num_hidden_layers": 3, "max_position_embeddings": 24}
_LLAMA = _SIZES | {
    "intermediate_size": 22,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "rms_norm_eps": 1e-3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_UNSIZED_HEADS = {key: value for key, value in _LLAMA.items() if key != "head_dim"} | {"hidden_size": 24}
_NEOX = _SIZES | {"hidden_size": 24, "intermediate_size": 22, "num_attention_heads": 3, "layer_norm_eps": 1e-3}
_GEMMA = _LLAMA | {"query_pre_attn_scalar": 7, "sliding_window": 3, "final_logit_softcapping": 4.0}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **values}}


_LLAMA3 = _rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_position_embeddings=20)
_YARN = {"factor": 3.0, "original_max_position_embeddings": 8}
_SHORT = [1.0, 1.3, 1.1, 2.0, 1.7]


@dataclass(frozen=True)
class Case:
    """A model to be made: its class, and what its config says."""

    model: str
    config: str
    values: Mapping[str, Any] = field(default_factory=dict)
    text: bool = False
    """Whether the values are those of a `text_config`."""


def _llama(**values: Any) -> Case:
    return Case("LlamaForCausalLM", "LlamaConfig", _LLAMA | values)


def _neox(**values: Any) -> Case:
    return Case("GPTNeoXForCausalLM", "GPTNeoXConfig", _NEOX | values)


def _gemma3(**values: Any) -> Case:
    return Case("Gemma3ForCausalLM", "Gemma3TextConfig", _GEMMA | values)


CASES: dict[str, Case] = {
    "gpt2": Case(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_layer": 3, "n_head": 3, "n_embd": 12, "n_inner": 22, "n_positions": 24, "vocab_size": 29},
    ),
    "gpt2 one of each": Case(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_layer": 1, "n_head": 1, "n_embd": 7, "n_inner": 10, "n_positions": 11, "vocab_size": 29},
    ),
    "gpt2 relu": Case(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_layer": 2, "n_head": 3, "n_embd": 12, "n_positions": 24, "vocab_size": 29, "activation_function": "relu"},
    ),
    "gpt_neox": _neox(),
    "gpt_neox sequential": _neox(use_parallel_residual=False, hidden_act="gelu_fast"),
    "gpt_neox no bias": _neox(attention_bias=False, tie_word_embeddings=True),
    "gpt_neox linear": _neox(**_rope("linear", factor=2.5, partial_rotary_factor=0.5)),
    "gpt_neox odd": _neox(**_rope("default", partial_rotary_factor=0.4)),
    "llama": _llama(),
    "llama heads": Case("LlamaForCausalLM", "LlamaConfig", _UNSIZED_HEADS),
    "llama biased": _llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, hidden_act="gelu"),
    "llama linear": _llama(**_rope("linear", factor=3.0)),
    "llama dynamic": _llama(**_rope("dynamic", factor=3.0)),
    "llama llama3": _llama(**_LLAMA3),
    "llama yarn": _llama(**_rope("yarn", **_YARN)),
    "llama yarn ramp": _llama(**_rope("yarn", **_YARN, beta_fast=2.0, beta_slow=0.2, truncate=False)),
    "llama yarn mscale": _llama(**_rope("yarn", **_YARN, mscale=0.7, mscale_all_dim=1.4)),
    "llama yarn scale": _llama(**_rope("yarn", **_YARN, attention_factor=1.4)),
    "llama longrope": _llama(
        **_rope(
            "longrope",
            factor=2.0,
            short_factor=_SHORT,
            long_factor=[3.0] * 5,
            original_max_position_embeddings=12,
        )
    ),
    "mistral": Case("MistralForCausalLM", "MistralConfig", _LLAMA | {"sliding_window": 4}),
    "mistral full": Case("MistralForCausalLM", "MistralConfig", _LLAMA | {"sliding_window": None}),
    "smollm3": Case("SmolLM3ForCausalLM", "SmolLM3Config", _UNSIZED_HEADS | {"no_rope_layers": [1, 0, 1]}),
    "smollm3 sliding": Case(
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        _UNSIZED_HEADS | {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 3},
    ),
    "qwen2": Case("Qwen2ForCausalLM", "Qwen2Config", _UNSIZED_HEADS),
    "qwen2 sliding": Case(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        _UNSIZED_HEADS
        | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": Case("Qwen3ForCausalLM", "Qwen3Config", _LLAMA),
    "qwen3 sliding": Case(
        "Qwen3ForCausalLM",
        "Qwen3Config",
        _LLAMA | {"attention_bias": True, "use_sliding_window": True, "sliding_window": 3, "layer_types": _MIXED},
    ),
    "gemma2": Case("Gemma2ForCausalLM", "Gemma2Config", _GEMMA | {"attn_logit_softcapping": 1.5}),
    "gemma2 uncapped": Case(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        _GEMMA
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True}
        | {"layer_types": _MIXED, "tie_word_embeddings": False},
    ),
    "gemma3": _gemma3(layer_types=_MIXED),
    "gemma3 scaled": _gemma3(
        sliding_window_pattern=2,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 700.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
        },
    ),
    "gemma3 nested": Case(
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        _GEMMA | {"layer_types": _MIXED, "final_logit_softcapping": None},
        text=True,
    ),
}
"""By name, models that together use every field of a `DecoderConfig`."""

_VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
_IMAGES = {"mm_tokens_per_image": 4, "image_token_index": 26, "boi_token_index": 25, "eoi_token_index": 24}


def make(name: str, seed: int = 0, **changes: Any) -> Any:
    """The reference's model of a case, with *changes* to its values; in float32, its attention in the plain form."""
    case = CASES[name]
    values: dict[str, Any] = json.loads(json.dumps(dict(case.values) | changes))  # configs change what they are given
    if case.text:
        vision = _VISION | {"image_size": 8, "patch_size": 4}
        values = {"text_config": values, "vision_config": vision, **_IMAGES}
    config = getattr(transformers, case.config)(**values, attn_implementation="eager")
    torch.manual_seed(seed)
    model = getattr(transformers, case.model)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            # Gains and biases start as 0 and 1, which hides mistakes.
            parameter.copy_(parameter + 0.3 * noise if parameter.ndim == 1 else 0.4 * noise)
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Write *model* as the reference does, and a tokenizer that nobody asks, into *folder*; *options* of
    `save_pretrained`."""
    model.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Let *change* edit the `config.json` in *folder*."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return folder


def residuals(model: Any) -> dict[Site, Any]:
    """The reference's modules whose first input is a residual, by what that residual is here."""
    found: dict[Site, Any] = {}
    body = model
    while not (hasattr(body, "layers") or hasattr(body, "h")):
        body = next(
            getattr(body, name)
            for name in ("language_model", "model", "gpt_neox", "transformer")
            if hasattr(body, name)
        )
    blocks = body.layers if hasattr(body, "layers") else body.h
    for i, block in enumerate(blocks):
        found[(L.RESID_POST_MLP, i - 1) if i else EMBEDDED] = block
        if not getattr(block, "use_parallel_residual", False):
            names = ("pre_feedforward_layernorm", "ln_2", "post_attention_layernorm")
            found[L.RESID_POST_ATTN, i] = next(getattr(block, name) for name in names if hasattr(block, name))
    last = next(getattr(body, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(body, name))
    return found | {(L.RESID_POST_MLP, len(blocks) - 1): last}


def expected(
    model: Any, tokens: torch.Tensor, origin: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, dict[Site, torch.Tensor]]:
    """The reference's logits of *tokens* [b, T], and the gradient of *origin*, of logits, at every residual."""
    met: dict[Site, torch.Tensor] = {}
    handles = []
    for site, module in residuals(model).items():

        def watch(_module: Any, inputs: tuple[torch.Tensor, ...], site: Site = site) -> None:
            met[site] = inputs[0]

        handles.append(module.register_forward_pre_hook(watch))
    logits = model(tokens).logits
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(origin(logits), list(met.values()))
    return logits.detach(), dict(zip(met, gradients, strict=True))


def assert_like(model: Any, decoder: Decoder, tokens: torch.Tensor) -> None:
    """Logits of *tokens* [1, T], and gradients of a difference of two at every residual, are the reference's."""

    def origin(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, 3] - logits[0, -1, 4]

    logits, gradients = expected(model, tokens, origin)
    torch.testing.assert_close(decoder.forward(tokens), logits, rtol=0, atol=5e-5)
    taps = Taps(gradients=gradients)
    ours = decoder.forward(tokens, taps)
    assert ours is not None
    found = taps.gradients(origin(ours))
    assert len(gradients) == 1 + decoder.config.n_layers * (1 if decoder.config.parallel else 2)
    for site, gradient in gradients.items():
        assert gradient.norm() > 1e-4, site
        error = (found[site] - gradient).norm() / gradient.norm()
        assert error < 1e-4, (site, error)
