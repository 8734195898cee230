"""Sets without their dead latents: how many go, what the catalogue and the handle say of it, and that answers stay."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dst_grpc.contexts import AutoencoderContext, ContextCache, Registry
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.domain.config import AutoencoderConfig
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.errors import DataLoss, NotFound, Reason
from dst_grpc.rpc.parts import build_parts
from dst_grpc.rpc.settings import Settings
from tests import checkpoints
from tests.checkpoints import LATENTS, WIDTH

from .conftest import leased, whole

SET = "m/resid_delta_mlp"
TOP_K = {"activation": "TopK", "activation_state_dict": '{"k": 7}'}


def write(
    path: Path, *dead: int, tensors: dict[str, torch.Tensor] | None = None, metadata: dict[str, str] | None = None
) -> None:
    """An autoencoder whose *dead* latents are never active, and say so."""
    state = checkpoints.state_dict()
    state["latents_activation_frequency"] += 0.1
    state["latents_activation_frequency"][list(dead)] = 0
    state["latent_bias"][list(dead)] = -1e3
    checkpoints.write_autoencoder(path, state | (tensors or {}), metadata)


def frequencies(value: float) -> dict[str, torch.Tensor]:
    return {"latents_activation_frequency": torch.full((LATENTS,), value)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a set of which layer 0 has three dead latents, and layer 1 two."""
    folder = checkpoints.write_model(tmp_path / "m")
    write(layer_of(folder, 0), 2, 5, 9)
    write(layer_of(folder, 1), 0, 7)
    return folder


def layer_of(folder: Path, layer: int) -> Path:
    return folder / "autoencoders" / "resid_delta_mlp" / f"{layer}.safetensors"


def build(folder: Path, *, omit_dead_latents: bool = True, **settings: Any) -> Registry:
    return whole(
        Registry.build(
            models={"m": folder},
            device="cpu",
            include_embedded=False,
            omit_dead_latents=omit_dead_latents,
            **settings,
        )
    )


async def loaded(registry: Registry, name: str = SET, *, allow_failed_checks: bool = True) -> AutoencoderContext:
    cache = ContextCache(registry, release_seconds=0.1, loader=FileLoader(allow_failed_checks=allow_failed_checks))
    async with leased(cache, "m", [name]) as lease:
        (context,) = lease.autoencoders.values()
        return context


async def test_every_layer_loses_as_many_as_the_one_with_the_fewest(folder: Path) -> None:
    full, cut = await loaded(build(folder, omit_dead_latents=False)), await loaded(build(folder))
    kept = {0: [0, 1, 3, 4, 6, 7, 8, 9], 1: [1, 2, 3, 4, 5, 6, 8, 9]}
    x = torch.randn(20, WIDTH)
    for layer, latents in kept.items():
        before, after = full.by_layer[layer], cut.by_layer[layer]
        assert torch.equal(after.encoder, before.encoder[latents])
        assert torch.equal(after.decoder, before.decoder[:, latents])
        torch.testing.assert_close(after.encode(x), before.encode(x)[:, latents])
        torch.testing.assert_close(after.decode(after.encode(x), x), before.decode(before.encode(x), x))
    for was, check in zip(full.measured, cut.measured, strict=True):
        assert check.l0 == was.l0
        assert check.fraction_of_variance_unexplained == pytest.approx(was.fraction_of_variance_unexplained)


async def test_the_catalogue_tells_a_cut_set_from_the_full_one(folder: Path) -> None:
    full, registry = build(folder, omit_dead_latents=False).autoencoder_entry(SET, "m").info(), build(folder)
    info = registry.autoencoder_entry(SET, "m").info()
    assert (full.n_latents, info.n_latents) == (LATENTS, LATENTS - 2)
    assert full.parameter_bytes - info.parameter_bytes == 2 * 2 * 4 * (1 + 2 * WIDTH)
    assert info.digest == full.digest
    assert info.handle == full.handle.replace(":float32", "-live:float32")
    assert registry.autoencoder_entry(info.handle, "m").info() == info
    with pytest.raises(NotFound):
        registry.autoencoder_entry(full.handle, "m").info()
    context = await loaded(registry, info.handle)
    assert (context.handle, context.digest) == (info.handle, info.digest)
    assert context.parameter_bytes == info.parameter_bytes


@pytest.mark.parametrize("statistic", [None, 1e-7])
def test_a_set_without_known_dead_latents_is_the_full_one(folder: Path, statistic: float | None) -> None:
    state = checkpoints.state_dict()
    del state["latents_activation_frequency"]
    if statistic is not None:
        state |= frequencies(statistic)
    checkpoints.write_autoencoder(layer_of(folder, 1), state)
    assert (
        build(folder).autoencoder_entry(SET, "m").info()
        == build(folder, omit_dead_latents=False).autoencoder_entry(SET, "m").info()
    )


def test_frequencies_that_are_all_zero_are_refused_if_they_are_looked_at(folder: Path) -> None:
    write(layer_of(folder, 1), *range(LATENTS))
    build(folder, omit_dead_latents=False)
    with pytest.raises(DataLoss, match=r"resid_delta_mlp.* 1.safetensors: says that no latent is ever active"):
        build(folder)


async def test_topk_keeps_its_k_and_as_many_latents(folder: Path) -> None:
    write(layer_of(folder, 0), 2, 5, metadata=TOP_K)
    write(layer_of(folder, 1), 0, 7, 8, metadata=TOP_K)
    context = await loaded(build(folder))
    assert [(one.k, one.n_latents) for one in context.by_layer.values()] == [(7, 8), (7, 8)]
    for layer in (0, 1):
        write(layer_of(folder, layer), 0, 2, 5, 7, 8, metadata=TOP_K)
    context = await loaded(build(folder))
    assert [(one.k, one.n_latents) for one in context.by_layer.values()] == [(7, 7), (7, 7)]


def test_a_latent_is_left_even_if_all_are_dead(folder: Path) -> None:
    for layer in (0, 1):
        write(layer_of(folder, layer), tensors=frequencies(1e-9))
    assert build(folder).autoencoder_entry(SET, "m").info().n_latents == 1


def test_building_a_registry_reads_frequencies_but_no_weights(folder: Path) -> None:
    """Weights that are not finite are found by loading, so a registry that is built has not looked at them."""
    broken = {"encoder.weight": torch.full((LATENTS, WIDTH), torch.nan)}
    write(layer_of(folder, 0), 1, 2, tensors=broken)
    write(layer_of(folder, 1), 3, tensors=broken)
    assert build(folder).autoencoder_entry(SET, "m").info().n_latents == LATENTS - 1
    write(layer_of(folder, 0), tensors=frequencies(math.nan))
    assert build(folder, omit_dead_latents=False).autoencoder_entry(SET, "m").info().n_latents == LATENTS
    with pytest.raises(DataLoss, match="negative, NaN or infinite"):
        build(folder)


async def test_sets_named_by_path_follow_the_same_rule(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "files" / "0.safetensors", 1, 2, 3)
    config = AutoencoderConfig(
        dst=DerivedScalarType.RESID_DELTA_MLP, autoencoder_path_by_layer_index=((0, "0.safetensors"),)
    )
    registry = build(folder, autoencoder_roots=[tmp_path / "files"])
    entry = registry.autoencoder_by_config(config, "m")
    assert entry.n_latents == LATENTS - 3
    assert "-live:" in entry.handle
    assert registry.autoencoder_by_config(config, "m") is entry
    context = await loaded(registry, entry.name)
    assert (context.handle, context.by_layer[0].n_latents) == (entry.handle, entry.n_latents)
    write(tmp_path / "files" / "0.safetensors", *range(LATENTS))
    with pytest.raises(DataLoss, match="no latent is ever active"):
        registry.autoencoder_by_config(config, "m")


async def test_the_self_check_still_holds_a_cut_set_to_what_is_declared(folder: Path) -> None:
    config = {"layers": {str(layer): {"l0": 900.0, "fvu": 0.1} for layer in (0, 1)}}
    (layer_of(folder, 0).parent / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataLoss) as caught:
        await loaded(build(folder), allow_failed_checks=False)
    assert caught.value.reason is Reason.SELF_CHECK_FAILED


def test_the_setting_reaches_the_registry(folder: Path) -> None:
    for omit_dead_latents, n_latents in ((False, LATENTS), (True, LATENTS - 2)):
        parts = build_parts(Settings(omit_dead_latents=omit_dead_latents, models={"m": folder}, device="cpu"))
        assert [info.n_latents for info in parts.cache.registry.autoencoders("m")] == [n_latents]
