"""Transcoders in every format that is published: each makes attribution graphs, and computes the same."""

from __future__ import annotations

import json
import shutil
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
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.transcoders import Transcoders
from dst_grpc.errors import DataLoss
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.sources import AutoencoderSpec, FolderSource, ModelSpec
from tests import checkpoints, models
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


def build(folder: Path, *, in_files: bool = False) -> Registry:
    """A registry of the model, in which the set "set" is named if it stays *in_files*."""
    sets = (AutoencoderSpec(name="set", in_files=True),) if in_files else ()
    spec = ModelSpec(name="m", source=FolderSource(folder=folder), autoencoders=sets)
    return whole(Registry.build(specs=[spec], device="cpu", include_embedded=False))


def loaded(registry: Registry, name: str) -> Transcoders:
    loader = FileLoader(allow_failed_checks=True)
    model = loader.load_model(registry.model_entry("m"), lambda _: None)
    entry = registry.autoencoder_entry(name, "m")
    context = loader.load_autoencoders(entry, model, lambda _: None)
    assert context.parameter_bytes == entry.parameter_bytes
    assert context.transcoders is not None
    return context.transcoders


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
    registry = build(folder)
    info = registry.autoencoder_entry(f"m/{name}", "m").info()
    assert (info.makes_graphs, info.cross_layer, info.layer_indices) == (True, False, (0, 1))
    found = loaded(registry, f"m/{name}")
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


# Left in their files


def write_circuit_tracer(place: Path, layer: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    tensors = {name: RANDOM[name] for name in ("b_enc", "W_dec", "b_dec")}
    tensors |= {"W_enc": RANDOM["W_enc"].t(), "W_skip": RANDOM["skip"].t()}
    tensors |= {"activation_function.threshold": RANDOM["threshold"] - 0.5}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, place / f"layer_{layer}.safetensors")
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    (place / "config.yaml").write_text(json.dumps({"model_kind": "transcoder_set"} | hooks))


@pytest.mark.parametrize("write", [write_circuit_tracer, write_saelens, write_sparsify, write_gemma_scope_2])
def test_transcoders_that_stay_in_their_files_compute_what_those_in_memory_do(
    folder: Path, write: Callable[[Path, int], None]
) -> None:
    for layer in range(LAYERS):
        write(folder / "autoencoders" / "set", layer)
    registry, in_files = build(folder), build(folder, in_files=True)
    infos = [one.autoencoder_entry("m/set", "m").info() for one in (registry, in_files)]
    kept = 4 * LAYERS * 2 * WIDTH * FEATURES
    assert [(info.makes_graphs, info.cross_layer, info.file_bytes) for info in infos] == [
        (True, False, 0),
        (True, False, kept),
    ]
    assert infos[0].parameter_bytes - infos[1].parameter_bytes >= kept
    memory, files = loaded(registry, "m/set"), loaded(in_files, "m/set")
    x = torch.randn(5, WIDTH, generator=_GENERATOR)
    features = torch.tensor([FEATURES - 1, 0, 3])
    for layer in range(LAYERS):
        active = memory.active(layer, x)
        assert len(active)
        for name in ("tokens", "features", "values"):
            torch.testing.assert_close(getattr(files.active(layer, x), name), getattr(active, name))
        assert torch.equal(files.encoder_rows(layer, features), memory.encoder_rows(layer, features))
        assert torch.equal(files.decoder_rows(layer, features, layer), memory.decoder_rows(layer, features, layer))
        expected = memory.reconstruction(layer, {layer: active}, x)
        torch.testing.assert_close(files.reconstruction(layer, {layer: active}, x), expected)
        assert files.input_norm(layer) is memory.input_norm(layer)
        assert files.written_layers(layer) == range(layer, layer + 1)


def test_what_cannot_stay_in_its_files_is_told(folder: Path) -> None:
    place = folder / "autoencoders" / "set"
    write_gemma_scope(place / "gemma-scope-2b-pt-transcoders", 0)
    with pytest.raises(DataLoss, match=r"cannot stay in its files, .*: rows can be read of .safetensors, not of .npz"):
        build(folder, in_files=True)
    shutil.rmtree(place)
    checkpoints.write_autoencoder(place / "0.safetensors")
    (place / "config.json").write_text('{"dst": "resid_post_mlp"}')
    with pytest.raises(DataLoss, match="cannot stay in its files, as is registered: only transcoders of MLPs do"):
        build(folder, in_files=True)
    shutil.rmtree(place)
    write_saelens(place, 0)
    config = json.loads((place / "0" / "cfg.json").read_text())
    config["metadata"]["hook_name"] = "blocks.0.ln2.hook_normalized"
    (place / "0" / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(DataLoss, match="it leaves open how it is meant, which loading decides"):
        build(folder, in_files=True)


def test_derived_scalars_may_be_about_what_stays_in_its_files(folder: Path) -> None:
    write_circuit_tracer(folder / "autoencoders" / "set", 0)
    config = DstConfig(autoencoder_context="m/set")
    request = models.request(DerivedScalarType.AUTOENCODER_LATENT, config=config, model="m")
    for in_files in (False, True):
        (entry,) = make_plan(request, build(folder, in_files=in_files)).autoencoders
        assert (entry.spliceable, entry.stays_in_files) == (True, in_files)
