"""Every family: what the reference implementation saved has its numbers here, and what differs from it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from benchmarks.measure import peak_bytes
from dst_grpc.domain.architecture import ActivationFunction, NormKind
from dst_grpc.engine.checkpoint import Checkpoint, open_checkpoint
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.families import FAMILIES
from dst_grpc.engine.norm import Norm
from dst_grpc.engine.taps import Taps
from dst_grpc.errors import DataLoss
from tests import families, models

TOKENS = torch.tensor([families.PROMPT])


def saved(name: str, folder: Path) -> Checkpoint:
    return open_checkpoint(families.save(families.make(name), folder))


@pytest.mark.parametrize("name", families.CASES)
def test_logits_and_gradients_at_every_residual_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    model = families.make(name)
    decoder = open_checkpoint(families.save(model, tmp_path)).load("cpu", torch.float32)
    families.assert_like(model, decoder, TOKENS)


def test_the_cases_cover_every_family() -> None:
    known = {model_type for family in FAMILIES for model_type in family.model_types}
    assert {getattr(transformers, case.config).model_type for case in families.CASES.values()} == known


CHANGES: dict[str, Any] = {
    "norm_epsilon": 1e-5,
    "norm_gain_offset": 0.0,
    "query_scale": 0.1,
    "attn_softcap": None,
    "final_softcap": None,
    "sliding_windows": (),
    "activation": ActivationFunction.SILU,
    "parallel": True,
    "embedding_scale": 1.0,
}


@pytest.mark.parametrize("name", families.CASES)
def test_nothing_that_a_case_sets_is_too_weak_to_show(name: str, tmp_path: Path) -> None:
    """Any one field at another value gives other logits, by more than the comparison allows."""
    checkpoint = saved(name, tmp_path)
    config = checkpoint.config
    others = [replace(config, **{field: value}) for field, value in CHANGES.items() if getattr(config, field) != value]
    for layer, one in enumerate(config.rotary or ()):
        without = list(config.rotary or ())
        without[layer] = None if one is not None else next(other for other in without if other is not None)
        others.append(replace(config, rotary=tuple(without)))
    assert len(others) >= 3
    logits = logits_of(checkpoint)
    for other in others:
        assert (logits_of(replace(checkpoint, config=other)) - logits).abs().max() > 1e-3, other


def logits_of(checkpoint: Checkpoint, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    logits = checkpoint.load("cpu", torch.float32).forward(tokens)
    assert logits is not None
    return logits


@pytest.mark.parametrize("name", families.CASES)
def test_prompts_of_different_lengths_have_the_reference_s_logits_in_one_batch(name: str, tmp_path: Path) -> None:
    model = families.make(name)
    decoder = open_checkpoint(families.save(model, tmp_path)).load("cpu", torch.float32)
    prompts = [[3, 1, 4], list(families.PROMPT), [8]]
    width = max(map(len, prompts))
    batch = torch.tensor([prompt + [9] * (width - len(prompt)) for prompt in prompts])
    together = decoder.forward(batch)
    assert together is not None
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            alone = model(torch.tensor([prompt])).logits[0]
            torch.testing.assert_close(together[row, : len(prompt)], alone, rtol=0, atol=5e-5)


# Checkpoints as others write them


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    model = families.make("qwen3")
    whole = open_checkpoint(families.save(model, tmp_path / "whole"))
    shards = families.save(model, tmp_path / "shards", max_shard_size="4KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits_of(open_checkpoint(shards)), logits_of(whole))


@pytest.mark.parametrize("name", ["gpt_neox no bias", "llama biased", "gemma2", "smollm3"])
def test_a_tied_model_may_be_saved_without_its_head_and_prefix(name: str, tmp_path: Path) -> None:
    model = families.make(name)
    whole = open_checkpoint(families.save(model, tmp_path / "whole"))
    assert torch.equal(logits_of(open_checkpoint(families.save(model.base_model, tmp_path / "bare"))), logits_of(whole))


def test_masks_and_frequencies_of_old_checkpoints_are_skipped(tmp_path: Path) -> None:
    for name, prefix in (("gpt_neox", "gpt_neox.layers.1.attention."), ("llama", "model.layers.1.self_attn.")):
        folder = families.save(families.make(name), tmp_path / name)
        old = {f"{prefix}rotary_emb.inv_freq": torch.ones(5)}
        if name == "gpt_neox":
            old |= {f"{prefix}bias": torch.ones(1, 1, 4, 4), f"{prefix}masked_bias": torch.tensor(-1e9)}
        add_tensors(folder, old)
        open_checkpoint(folder)


def add_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors")


def test_a_vision_tower_is_skipped_and_nothing_else(tmp_path: Path) -> None:
    folder = families.save(families.make("gemma3 nested"), tmp_path)
    held = load_file(folder / "model.safetensors")
    assert any(name.startswith("vision_tower.") for name in held)
    newer = {
        f"model.{name}".replace("model.language_model.model.", "model.language_model."): held[name] for name in held
    }
    before = logits_of(open_checkpoint(folder))
    save_file(newer, folder / "model.safetensors")
    assert torch.equal(logits_of(open_checkpoint(folder)), before)
    add_tensors(folder, {"model.audio_tower.weight": torch.ones(3)})
    with pytest.raises(DataLoss, match=r"'model.audio_tower.weight' is no weight of a gemma3 checkpoint"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("llama", "model.layers.1.self_attn.q_proj.bias"),
        ("llama", "model.layers.0.mlp.up_proj.bias"),
        ("qwen2", "model.layers.0.self_attn.o_proj.bias"),
        ("qwen2", "model.layers.0.self_attn.q_norm.weight"),
        ("gpt_neox no bias", "gpt_neox.layers.0.attention.query_key_value.bias"),
        ("gemma2", "model.layers.2.self_attn.k_norm.weight"),
    ],
)
def test_a_weight_that_the_config_does_not_speak_of_is_unknown(name: str, tensor: str, tmp_path: Path) -> None:
    folder = families.save(families.make(name), tmp_path)
    add_tensors(folder, {tensor: torch.zeros(4)})
    with pytest.raises(DataLoss, match=f"'{tensor}' is no weight") as caught:
        open_checkpoint(folder)
    assert caught.value.metadata["tensor"] == tensor


@pytest.mark.parametrize("name", families.CASES)
def test_every_weight_that_is_missing_or_misshapen_is_named(name: str, tmp_path: Path) -> None:
    folder = families.save(families.make(name), tmp_path)
    held = load_file(folder / "model.safetensors")
    skipped = ("vision_tower.", "multi_modal_projector.")
    for tensor in [key for key in held if ".0." in key or ".layers." not in key]:
        if tensor.startswith(skipped):
            continue
        save_file({key: held[key] for key in held if key != tensor}, folder / "model.safetensors")
        with pytest.raises(DataLoss, match="is needed") as caught:
            open_checkpoint(folder)
        assert caught.value.metadata["tensor"] == tensor
        save_file(held | {tensor: torch.zeros(*held[tensor].shape[:-1], 9)}, folder / "model.safetensors")
        with pytest.raises(DataLoss, match=r"has shape \[.*9\]; config.json needs") as caught:
            open_checkpoint(folder)
        assert caught.value.metadata["tensor"] == tensor


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3"])
def test_weights_that_are_not_finite_are_named(name: str, tmp_path: Path) -> None:
    folder = families.save(families.make(name), tmp_path)
    held = load_file(folder / "model.safetensors")
    for tensor in [key for key in held if ".1.self_attn." in key or ".1.attention." in key]:
        broken = held[tensor].clone()
        broken.view(-1)[-1] = torch.nan
        save_file(held | {tensor: broken}, folder / "model.safetensors")
        with pytest.raises(DataLoss, match=f"tensor '{tensor}' has values that are NaN or infinite"):
            open_checkpoint(folder).load("cpu", torch.float32)


# Rounding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("theirs", "offset"), [(LlamaRMSNorm, 0.0), (Gemma2RMSNorm, 1.0)])
@pytest.mark.parametrize("in_steps", [False, True])
def test_norms_round_where_the_reference_does(dtype: torch.dtype, theirs: Any, offset: float, in_steps: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 48, generator=generator).to(dtype)
    weight = (1 - offset + torch.randn(48, generator=generator)).to(dtype)
    reference = theirs(48, eps=1e-6).to(dtype)
    reference.weight.data = weight
    config = replace(models.CONFIG, norm=NormKind.RMS_NORM, norm_epsilon=1e-6, norm_gain_offset=offset)
    norm = Norm(config, "norm", {"norm.gain": weight})
    ours = norm.apply(x, norm.scale(x)) if in_steps else norm(x)
    assert ours.dtype is dtype
    # Division by a root and multiplication by its reciprocal may fall on either side of a tie.
    assert (ours == reference(x)).float().mean() > 0.999
    torch.testing.assert_close(ours, reference(x), rtol=torch.finfo(dtype).eps, atol=0)


def test_the_scale_of_embeddings_is_rounded_with_the_weights(tmp_path: Path) -> None:
    model = families.make("gemma2").to(torch.bfloat16)
    decoder = open_checkpoint(families.save(model, tmp_path)).load("cpu", torch.bfloat16)
    taps = Taps(values=[families.EMBEDDED])
    decoder.forward(TOKENS, taps)
    assert torch.equal(taps.values[families.EMBEDDED], model.get_input_embeddings()(TOKENS))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt_neox", "qwen3"])
def test_logits_in_half_precision_are_the_reference_s_but_for_rounding(name: str, tmp_path: Path) -> None:
    model = families.make(name).to(torch.bfloat16)
    decoder = open_checkpoint(families.save(model, tmp_path)).load("cpu", torch.bfloat16)
    assert decoder.dtype is torch.bfloat16
    with torch.no_grad():
        expected = model(TOKENS).logits.float()
    found = decoder.forward(TOKENS)
    assert found is not None
    assert (found.float() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_takes_no_more_memory_than_the_weights_and_a_little(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    checkpoint = saved(name, tmp_path)
    loaded: list[Decoder] = []
    # Tensors pass through a block of a few MiB, which holds any of these whole.
    block = max(header.n_bytes for file in checkpoint.tensors.values() for header in file.tensors.values())
    peak = peak_bytes(lambda: loaded.append(checkpoint.load("cpu", dtype)))
    assert loaded[0].parameter_bytes == checkpoint.bytes_as(dtype)
    assert checkpoint.bytes_as(dtype) <= peak <= 1.05 * checkpoint.bytes_as(dtype) + block
