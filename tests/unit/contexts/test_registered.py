"""What a registry file names becomes entries: sources, element types, digests, layers, and what a reload takes over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch

from dst_grpc.contexts import ContextCache, Registry
from dst_grpc.contexts.entries import ModelEntry, Registered
from dst_grpc.contexts.paths import AllowedRoots
from dst_grpc.domain.components import TensorElementType
from dst_grpc.domain.config import AutoencoderConfig
from dst_grpc.domain.resolution import RegistryChange
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.errors import DataLoss, DstError, InvalidRequest, NotFound, Reason
from dst_grpc.sources import AutoencoderSpec, EmbeddedSource, FolderSource, HubCache, HubSource, ModelSpec
from dst_grpc.sources.pull import Puller
from tests import checkpoints
from tests.fake_hub import REPOSITORY, FakeHub, fake_hub, files_below

from .conftest import leased, whole


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = checkpoints.write_model(tmp_path / "model")
    checkpoints.write_autoencoders(folder / "autoencoders")
    return folder


@pytest.fixture
def hub(folder: Path) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.push(files_below(folder))
        yield hub


def local(folder: Path, *sets: AutoencoderSpec, **facts: Any) -> ModelSpec:
    return ModelSpec(name="m", source=FolderSource(folder=folder), autoencoders=sets, **facts)


def build(*specs: ModelSpec, **settings: Any) -> Registry:
    usual: dict[str, Any] = {"device": "cpu", "include_embedded": False}
    return whole(Registry.build(specs=specs, **usual | settings))


def problems(*specs: ModelSpec, **settings: Any) -> dict[str, str]:
    """What is wrong with the registry file, by field: with all of it, or with single models and sets."""
    usual: dict[str, Any] = {"device": "cpu", "include_embedded": False}
    try:
        errors: list[DstError] = [one.error for one in Registry.build(specs=specs, **usual | settings).failed]
    except InvalidRequest as error:
        errors = [error]
    invalid = [error for error in errors if isinstance(error, InvalidRequest)]
    assert invalid == errors
    return {violation.field: violation.description for error in invalid for violation in error.violations}


def test_a_model_is_loaded_as_it_is_registered(folder: Path) -> None:
    registry = build(local(folder, element_type=TensorElementType.BFLOAT16, device="cpu"))
    info = registry.model("m")
    assert (info.element_type, info.device, info.source) == (TensorElementType.BFLOAT16, "cpu", "folder")
    assert info.handle.endswith(":bfloat16:cpu")
    assert registry.autoencoder_entry("m/mlp_post_act", "m").info().source == "folder"
    assert build(local(folder)).model("m").parameter_bytes == 2 * info.parameter_bytes


def test_the_embedded_model_may_have_another_name(folder: Path) -> None:
    registry = build(ModelSpec(name="shipped", source=EmbeddedSource()), local(folder))
    assert registry.default_model == "shipped"
    assert registry.model("").source == "embedded"
    assert {info.name for info in registry.autoencoders("shipped")} >= {"shipped/mlp_post_act"}


def test_the_default_is_the_one_that_is_said(folder: Path) -> None:
    shipped = ModelSpec(name="shipped", source=EmbeddedSource())
    assert build(shipped, local(folder, is_default=True)).default_model == "m"
    assert build(shipped, local(folder, is_default=True), default_model="shipped").default_model == "shipped"
    assert build(local(folder)).default_model == "m"


def test_what_is_to_be_preloaded_is_listed(folder: Path) -> None:
    spec = local(folder, AutoencoderSpec(name="mlp_post_act", preload=True), preload=True)
    assert build(spec).preload == ("m", "m/mlp_post_act")


def test_flags_and_file_are_one_registry(folder: Path) -> None:
    registry = build(local(folder), models={"flag": folder})
    assert [model.name for model in registry.models()] == ["flag", "m"]
    assert problems(local(folder), models={"m": folder}) == {"models.m": "is the name of a model in the settings too"}
    assert "models.embedded" in problems(
        ModelSpec(name="embedded", source=FolderSource(folder=folder)), include_embedded=True
    )


def test_a_set_beside_its_model_may_be_registered(folder: Path) -> None:
    spec = AutoencoderSpec(name="mlp_post_act", layers=(1,), allow_failed_checks=True, pin=True)
    registry = build(local(folder, spec))
    assert {info.name for info in registry.autoencoders()} == {
        "m/mlp_post_act", "m/resid_delta_attn", "m/resid_delta_mlp",
    }  # fmt: skip
    entry = registry.autoencoder_entry("m/mlp_post_act", "m")
    assert entry.info().layer_indices == (1,)
    assert (entry.registered.allows_failed_checks, entry.registered.is_pinned) == (True, True)


def test_a_set_may_be_found_by_its_pattern(folder: Path, tmp_path: Path) -> None:
    for layer in (0, 1):
        checkpoints.write_autoencoder(tmp_path / "sets" / f"L{layer}" / "w.safetensors")
    source = FolderSource(folder=tmp_path / "sets")
    spec = AutoencoderSpec(name="s", source=source, pattern="L{layer}/w.safetensors", dst=T.RESID_DELTA_MLP)
    info = build(local(folder, spec)).autoencoder_entry("m/s", "m")
    assert (info.dst, info.layer_indices) == (T.RESID_DELTA_MLP, (0, 1))


def test_what_is_not_there_is_reported_together(folder: Path, tmp_path: Path) -> None:
    nowhere = FolderSource(folder=tmp_path / "none")
    far = HubSource(repository=REPOSITORY, revision="main")
    found = problems(
        ModelSpec(name="gone", source=nowhere),
        ModelSpec(name="elsewhere", source=FolderSource(folder=folder), device="cuda:99"),
        local(folder, AutoencoderSpec(name="s", source=nowhere), AutoencoderSpec(name="t", source=far)),
        ModelSpec(name="far", source=far),
        hub=HubCache(tmp_path / "hub"),
        pull_command="dst-grpc pull --registry r.toml",
    )
    assert found.pop("models.gone.source") == f"there is no folder {str(tmp_path / 'none')!r}"
    assert "no 'cuda:99'" in found.pop("models.elsewhere.device")
    assert found.pop("models.m.autoencoders.s.source").startswith("there is no folder")
    problem = "org/tiny at main is not pulled; run: dst-grpc pull --registry r.toml"
    assert found.pop("models.m.autoencoders.t.source") == f"{problem} m"
    assert found.pop("models.far.source") == f"{problem} far"
    assert found == {}


def test_layers_and_patterns_that_fit_nothing_are_named(folder: Path) -> None:
    absent = AutoencoderSpec(name="mlp_post_act", layers=(0, 7))
    assert problems(local(folder, absent)) == {
        "models.m.autoencoders.mlp_post_act.layers": "there is no file for layer 7"
    }
    wrong = AutoencoderSpec(name="mlp_post_act", pattern="x{layer}.pt")
    assert problems(local(folder, wrong)) == {
        "models.m.autoencoders.mlp_post_act.pattern": "no file fits 'x{layer}.pt'"
    }


def test_digests_are_held_to(folder: Path) -> None:
    digest = build(local(folder)).model("m").digest
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert build(local(folder, digest=digest, digests={"model.safetensors": weights})).model("m").digest == digest
    with pytest.raises(DataLoss, match=r"m: model\.safetensors: its SHA-256 is [0-9a-f]+, but 000") as caught:
        build(local(folder, digests={"model.safetensors": "0" * 64}))
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    with pytest.raises(DataLoss, match=r"m: .*model\.safetensors, .*: their digest is [0-9a-f]+, but 000"):
        build(local(folder, digest="0" * 64))
    with pytest.raises(DataLoss, match=r"m/mlp_post_act: 0\.safetensors"):
        build(local(folder, AutoencoderSpec(name="mlp_post_act", digests={"0.safetensors": "0" * 64})))
    assert "none of its files" in problems(local(folder, digests={"x": "0" * 64}))["models.m.digests.x"]


@pytest.mark.parametrize("registered", [Registered(digest="0" * 64), Registered(digests={"config.json": "0" * 64})])
async def test_digests_of_large_files_are_held_to_when_they_are_loaded(folder: Path, registered: Registered) -> None:
    """Only small files are digested at the start; here none is, as if all were large."""
    checkpoint = open_checkpoint(folder)
    entry = ModelEntry(
        name="m",
        element_type=TensorElementType.FLOAT32,
        device="cpu",
        files=checkpoint.files,
        registered=registered,
        checkpoint=checkpoint,
    )
    cache = ContextCache(Registry([entry], [], roots=AllowedRoots([]), default_model="m"))
    for _ in range(2):
        with pytest.raises(DataLoss) as caught:
            async with leased(cache, "m"):
                pass
        assert caught.value.reason is Reason.DIGEST_MISMATCH
        assert "config.json" in caught.value.message
    await cache.close()


def test_what_was_pulled_is_served(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    cache = HubCache(tmp_path / "hub")
    one = AutoencoderSpec(name="mlp_post_act")
    spec = ModelSpec(name="far", source=HubSource(repository=REPOSITORY, revision="main"), autoencoders=(one,))
    (model, _) = Puller(cache, endpoint=hub.address).pull(spec, lambda *_: None)
    registry = build(spec, local(folder), hub=cache)
    info = registry.model("far")
    assert (info.source, info.revision) == (f"hub:{REPOSITORY}", model.commit)
    assert info.digest == registry.model("m").digest
    assert info.autoencoders == ("far/mlp_post_act",)
    sets = registry.autoencoder_entry("far/mlp_post_act", "far").info()
    assert (sets.source, sets.revision) == (f"hub:{REPOSITORY}/autoencoders/mlp_post_act", model.commit)
    more = ModelSpec(name="far", source=spec.source, autoencoders=(one, AutoencoderSpec(name="resid_delta_mlp")))
    assert list(problems(more, hub=cache)) == ["models.far.autoencoders.resid_delta_mlp.source"]


def test_a_reload_takes_over_what_did_not_change(folder: Path, tmp_path: Path) -> None:
    other = checkpoints.write_model(tmp_path / "other", tensors=checkpoints.weights(seed=1))
    third = ModelSpec(name="third", source=FolderSource(folder=other))
    before = build(local(folder), third, autoencoder_roots=[folder])
    path = before.autoencoder_by_config(
        AutoencoderConfig(
            dst=T.MLP_POST_ACT,
            autoencoder_path_by_layer_index=((0, "autoencoders/mlp_post_act/0.safetensors"),),
        ),
        "m",
    )
    after = build(
        local(folder), ModelSpec(name="new", source=third.source), autoencoder_roots=[folder], previous=before
    )
    assert after.model_entry("m") is before.model_entry("m")
    assert after.autoencoder_entry(path.name, "m") is path
    assert after.change_from(before) == RegistryChange(added=("new",), removed=("third",))
    with pytest.raises(NotFound):
        after.model("third")
    assert before.model("third").name == "third"


@pytest.mark.parametrize(
    "facts",
    [
        {"element_type": TensorElementType.FLOAT16},
        {"pin": True},
        {"digests": {"config.json": hashlib.sha256(b"").hexdigest()}},
    ],
)
def test_what_is_loaded_otherwise_is_another_entry(folder: Path, facts: dict[str, Any]) -> None:
    before = build(local(folder))
    if "digests" in facts:
        facts = {"digests": {"config.json": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()}}
    after = build(local(folder, **facts), previous=before)
    names = tuple(sorted(before.registered()))
    assert after.change_from(before) == RegistryChange(changed=names)
    assert not after.holds(before.model_entry("m"))


def test_another_file_in_the_same_place_is_another_entry(folder: Path) -> None:
    before = build(local(folder))
    checkpoints.write_autoencoder(
        folder / "autoencoders" / "resid_delta_mlp" / "0.safetensors",
        checkpoints.state_dict(seed=9),
        {"activation": "ReLU", "dst": "resid_delta_mlp"},
    )
    after = build(local(folder), previous=before)
    assert after.change_from(before) == RegistryChange(changed=("m/resid_delta_mlp",))
    assert after.model_entry("m") is before.model_entry("m")


async def test_a_removed_model_goes_when_nobody_uses_it(folder: Path, tmp_path: Path) -> None:
    other = checkpoints.write_model(tmp_path / "other", tensors=checkpoints.weights(seed=1))
    before = build(local(folder))
    cache = ContextCache(before)
    tokens = torch.tensor([[1, 2, 3]])
    async with leased(cache, "m") as lease:
        expected = lease.model.decoder.forward(tokens)
        assert expected is not None
        after = build(ModelSpec(name="m", source=FolderSource(folder=other)), previous=before)
        assert cache.adopt(after).changed == ("m",)
        async with leased(cache, "m") as changed:
            assert changed.model.digest == after.model("m").digest
            assert changed.model.digest != lease.model.digest
        torch.testing.assert_close(lease.model.decoder.forward(tokens), expected, rtol=0, atol=0)
        assert len(cache.statuses()) == 2
    handle = before.model("m").handle
    async with aclosing(cache.watch()) as changes:
        while handle in {status.handle for status in cache.statuses()}:
            await anext(changes)
    assert [status.handle for status in cache.statuses()] == [after.model("m").handle]
    await cache.close()
