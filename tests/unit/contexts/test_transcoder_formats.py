"""Transcoders in every format that is published: each makes attribution graphs, and computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dst_grpc.contexts import Registry
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.domain.autoencoders import ModelNorm
from tests import checkpoints
from tests.checkpoints import LAYERS, WIDTH

from .conftest import whole

FEATURES = 2 * WIDTH
_GENERATOR = torch.Generator().manual_seed(8)
RANDOM = {
    "W_enc": torch.randn(WIDTH, FEATURES, generator=_GENERATOR),
    "b_enc": torch.randn(FEATURES, generator=_GENERATOR),
    "W_dec": torch.randn(FEATURES, WIDTH, generator=_GENERATOR),
    "b_dec": torch.randn(WIDTH, generator=_GENERATOR),
    "threshold": torch.rand(FEATURES, generator=_GENERATOR),
    "skip": torch.randn(WIDTH, WIDTH, generator=_GENERATOR),
}
"""A transcoder: encoder [d, F], decoder [F, d], biases, thresholds, and a skip connection x S."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.write_model(tmp_path / "m")


def build(folder: Path) -> Registry:
    return whole(Registry.build(models={"m": folder}, device="cpu", include_embedded=False))


def write_saelens(place: Path, layer: int) -> None:
    tensors = {name: RANDOM[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    settings = {
        "architecture": "jumprelu_skip_transcoder",
        "metadata": {
            "hook_name": f"blocks.{layer}.mlp.hook_in",
            "hook_name_out": f"blocks.{layer}.hook_mlp_out",
            "sae_lens_version": "6.30.0",
        },
    }
    write_one(place / str(layer) / "sae_weights.safetensors", tensors | {"W_skip": RANDOM["skip"].t()}, settings, "cfg")


def write_sparsify(place: Path, layer: int) -> None:
    tensors = {"encoder.weight": RANDOM["W_enc"].t(), "encoder.bias": RANDOM["b_enc"], "W_dec": RANDOM["W_dec"]}
    tensors |= {"b_dec": RANDOM["b_dec"], "W_skip": RANDOM["skip"].t()}
    settings = {"d_in": WIDTH, "num_latents": FEATURES, "k": FEATURES, "transcode": True, "skip_connection": True}
    write_one(place / f"h.{layer}.mlp" / "sae.safetensors", tensors, settings, "cfg")


def write_gemma_scope(place: Path, layer: int) -> None:
    path = place / f"layer_{layer}" / "width_16k" / "average_l0_9" / "params.npz"
    path.parent.mkdir(parents=True)
    stored: dict[str, Any] = {name: tensor.numpy() for name, tensor in RANDOM.items() if name != "skip"}
    np.savez(path, **stored)


def write_gemma_scope_2(place: Path, layer: int) -> None:
    tensors = {name.replace("W", "w"): tensor for name, tensor in RANDOM.items() if name != "skip"}
    settings = {
        "hf_hook_point_in": f"model.layers.{layer}.pre_feedforward_layernorm.output",
        "hf_hook_point_out": f"model.layers.{layer}.post_feedforward_layernorm.output",
        "type": "transcoder",
    }
    path = place / f"layer_{layer}_width_16k_l0_small_affine" / "params.safetensors"
    write_one(path, tensors | {"affine_skip_connection": RANDOM["skip"]}, settings, "config")


def write_one(path: Path, tensors: dict[str, torch.Tensor], settings: dict[str, Any], name: str) -> None:
    path.parent.mkdir(parents=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    (path.parent / f"{name}.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("name", "write", "jumps", "skips"),
    [
        ("saelens", write_saelens, True, True),
        ("sparsify", write_sparsify, False, True),
        ("gemma-scope-2b-pt-transcoders", write_gemma_scope, True, False),
        ("transcoder_all", write_gemma_scope_2, True, True),
    ],
)
def test_transcoders_in_any_format_make_graphs(
    folder: Path, name: str, write: Callable[[Path, int], None], jumps: bool, skips: bool
) -> None:
    for layer in range(LAYERS):
        write(folder / "autoencoders" / name, layer)
    registry, loader = build(folder), FileLoader(allow_failed_checks=True)
    entry = registry.autoencoder_entry(f"m/{name}", "m")
    info = entry.info()
    assert (info.makes_graphs, info.cross_layer, info.layer_indices) == (True, False, (0, 1))
    model = loader.load_model(registry.model_entry("m"), lambda _: None)
    found = loader.load_autoencoders(entry, model, lambda _: None).transcoders
    assert found is not None
    x = torch.randn(5, WIDTH, generator=_GENERATOR)
    h = (x @ RANDOM["W_enc"] + RANDOM["b_enc"]).relu()
    h = h * (h > RANDOM["threshold"]) if jumps else h
    expected = h @ RANDOM["W_dec"] + RANDOM["b_dec"] + (x @ RANDOM["skip"] if skips else 0)
    for layer in range(LAYERS):
        active = found.active(layer, x)
        torch.testing.assert_close(found.activations(layer, x), h)
        torch.testing.assert_close(found.reconstruction(layer, {layer: active}, x), expected, rtol=1e-4, atol=1e-4)
        assert found.input_norm(layer) is not ModelNorm.NONE


def test_an_autoencoder_of_what_the_mlp_writes_makes_no_graph(folder: Path) -> None:
    checkpoints.write_autoencoders(folder / "autoencoders")
    assert not any(info.makes_graphs for info in build(folder).autoencoders("m"))
