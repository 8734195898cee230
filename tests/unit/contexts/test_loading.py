"""From files through the cache to numbers: what is loaded, what it is measured to be, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dst_grpc.contexts import ContextCache, Registry
from dst_grpc.contexts.device import CountedMemory, memory_of, pick_device
from dst_grpc.contexts.entries import ModelEntry
from dst_grpc.contexts.loading import FileLoader, record
from dst_grpc.contexts.paths import AllowedRoots
from dst_grpc.contexts.self_check import SENTENCES
from dst_grpc.domain.components import TensorElementType
from dst_grpc.domain.config import AutoencoderConfig
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.resolution import ContextState
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.errors import DataLoss, NotFound, Reason
from tests import checkpoints

from .conftest import leased

UNCHECKED = FileLoader(allow_failed_checks=True)
"""Random autoencoders explain nothing, which is no matter for most of what is tested here."""
SETS = ("a/mlp_post_act", "a/resid_delta_mlp", "a/resid_delta_attn")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = checkpoints.write_model(tmp_path / "a")
    checkpoints.write_autoencoders(folder / "autoencoders")
    return folder


def build(folder: Path, element_type: TensorElementType = TensorElementType.FLOAT32) -> Registry:
    return Registry.build(models={"a": folder}, device="cpu", element_type=element_type, include_embedded=False)


@pytest.mark.parametrize("element_type", [TensorElementType.FLOAT32, TensorElementType.BFLOAT16])
async def test_a_model_and_its_sets_are_loaded_as_described(folder: Path, element_type: TensorElementType) -> None:
    registry = build(folder, element_type)
    cache = ContextCache(registry, loader=UNCHECKED)
    async with leased(cache, "", SETS) as lease:
        model = lease.model
        info = registry.model("a")
        assert (model.handle, model.digest, model.parameter_bytes) == (info.handle, info.digest, info.parameter_bytes)
        assert model.decoder.dtype is getattr(torch, element_type)
        assert model.tokenizer is registry.tokenizer("a")
        for name, context in lease.autoencoders.items():
            described = cache.describe(registry.autoencoder_entry(name, "a").info())
            assert context.handle == described.handle
            assert context.parameter_bytes == described.parameter_bytes
            assert context.measured == described.measured
            assert tuple(context.by_layer) == described.layer_indices
            assert [check.layer_index for check in context.measured] == [0, 1]
            assert all(0 < check.l0 <= checkpoints.LATENTS for check in context.measured)
        del model, context
    for name in (*SETS, "a"):
        assert (await cache.unload(name)).state is ContextState.NOT_LOADED
    await cache.close()


async def test_the_set_of_mlp_writes_is_measured_with_the_bias_in_the_write(folder: Path) -> None:
    cache = ContextCache(build(folder), loader=UNCHECKED)
    async with leased(cache, "a", ["a/resid_delta_mlp"]) as lease:
        decoder, context = lease.model.decoder, lease.autoencoders["a/resid_delta_mlp"]
        site = (ActivationLocationType.MLP_POST_ACT, 1)
        prompts = [lease.model.tokenizer.encode(sentence)[:16] for sentence in SENTENCES]
        neurons = torch.cat([record(decoder, [site], prompt)[site][1:] for prompt in prompts])
        x = decoder.layers[1].mlp_project(neurons)
        autoencoder = context.by_layer[1]
        error = (autoencoder.decode(autoencoder.encode(x), x) - x).square().sum() / (x - x.mean(0)).square().sum()
        assert context.measured[1].fraction_of_variance_unexplained == pytest.approx(error.item(), rel=1e-4)
    await cache.close()


def declare(folder: Path, l0: float, fvu: float) -> None:
    config = {"dst": "resid_delta_mlp", "layers": {str(i): {"l0": l0, "fvu": fvu} for i in range(2)}}
    (folder / "autoencoders" / "resid_delta_mlp" / "config.json").write_text(json.dumps(config))


async def test_a_set_that_is_not_what_it_claims_is_not_served_unless_allowed(folder: Path) -> None:
    declare(folder, 900.0, 0.1)
    cache = ContextCache(build(folder))
    with pytest.raises(DataLoss, match="fails its self-check") as caught:
        async with leased(cache, "a", ["a/resid_delta_mlp"]):
            pass
    assert caught.value.reason is Reason.SELF_CHECK_FAILED
    assert cache.status("a").state is ContextState.AVAILABLE
    await cache.close()
    allowed = ContextCache(build(folder), loader=UNCHECKED)
    async with leased(allowed, "a", ["a/resid_delta_mlp"]) as lease:
        assert lease.autoencoders["a/resid_delta_mlp"].measured
    await allowed.close()


async def test_a_kind_that_is_only_read_offline_is_not_measured(folder: Path, tmp_path: Path) -> None:
    checkpoints.write_state_dict(tmp_path / "files" / "0.pt")
    registry = Registry.build(
        models={"a": folder}, autoencoder_roots=[tmp_path / "files"], device="cpu", include_embedded=False
    )
    config = AutoencoderConfig(dst=DerivedScalarType.ATTN_WRITE, autoencoder_path_by_layer_index=((0, "0.pt"),))
    name = registry.autoencoder_by_config(config, "a").name
    cache = ContextCache(registry)
    async with leased(cache, "a", [name]) as lease:
        assert lease.autoencoders[name].measured == ()
    await cache.close()


async def test_a_corrupt_model_is_data_loss_for_whoever_wants_it(folder: Path) -> None:
    tensors = checkpoints.weights()
    tensors["transformer.ln_f.bias"][0] = float("nan")
    checkpoints.write_model(folder, tensors=tensors)
    cache = ContextCache(build(folder))
    with pytest.raises(DataLoss, match=r"a/model.safetensors: tensor 'transformer.ln_f.bias' has values that are NaN"):
        async with leased(cache, "a"):
            pass
    await cache.close()


async def test_files_that_changed_since_the_start_are_not_served_under_the_old_handle(folder: Path) -> None:
    cache = ContextCache(build(folder))
    checkpoints.write_model(folder, tensors=checkpoints.weights(seed=1))
    with pytest.raises(DataLoss) as caught:
        async with leased(cache, "a"):
            pass
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    await cache.close()


def test_auto_picks_a_device_that_is_there() -> None:
    assert pick_device(pick_device("auto")) == pick_device("auto")
    assert isinstance(memory_of("cpu"), CountedMemory)


async def test_a_large_model_gets_its_handle_when_it_is_loaded(folder: Path) -> None:
    """Only small files are digested at the start; here none is, as if all were large."""
    checkpoint = open_checkpoint(folder)
    entry = ModelEntry(
        name="a",
        element_type=TensorElementType.FLOAT32,
        device="cpu",
        files=checkpoint.files,
        checkpoint=checkpoint,
    )
    registry = Registry([entry], [], roots=AllowedRoots([]), default_model="a")
    cache = ContextCache(registry)
    assert (registry.model("a").handle, cache.status("a").handle) == ("", "a")
    with pytest.raises(NotFound, match="the nearest are 'a@"):
        async with leased(cache, "a@000000000000:float32:cpu"):
            pass
    assert cache.status("a").pins == 0
    assert registry.model("a").handle == cache.status("a").handle
    async with leased(cache, registry.model("a").handle) as lease:
        assert lease.model.handle == registry.model("a").handle
    await cache.close()
