"""Folders of links: a Hugging Face cache, whose snapshots link to blobs that have no names, and linked layers."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dst_grpc.contexts import Registry
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.domain.config import AutoencoderConfig
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.errors import NotAllowed
from dst_grpc.sources import AutoencoderSpec, FolderSource, ModelSpec
from tests import checkpoints

from .conftest import whole

FOLDERS = Path(__file__).parents[2] / "folders"
T = DerivedScalarType


def snapshot_of(folder: Path, cache: Path) -> Path:
    """What `huggingface_hub` makes of a repository that holds the files of *folder*, below *cache*."""
    repository = cache / f"models--them--{folder.name}"
    snapshot = repository / "snapshots" / hashlib.sha1(folder.name.encode(), usedforsecurity=False).hexdigest()
    (repository / "blobs").mkdir(parents=True)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copy(path, blob)
            link = snapshot / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            up = "../" * (len(link.relative_to(repository).parts) - 1)
            link.symlink_to(f"{up}blobs/{blob.name}")
    return snapshot


def measured(registry: Registry, name: str) -> list[float | None]:
    loader = FileLoader(allow_failed_checks=True)
    model = loader.load_model(registry.model_entry("m"), lambda _: None)
    context = loader.load_autoencoders(registry.autoencoder_entry(name, "m"), model, lambda _: None)
    return [check.l0 for check in context.measured]


def build(model: Path, *roots: Path) -> Registry:
    return whole(Registry.build(models={"m": model}, device="cpu", include_embedded=False, autoencoder_roots=roots))


def test_snapshots_are_a_model_and_its_sets_as_the_folders_themselves_are(tmp_path: Path) -> None:
    model, source = (snapshot_of(FOLDERS / name, tmp_path) for name in ("tied_alias", "sparsify_run"))
    one = AutoencoderSpec(name="s", source=FolderSource(folder=source))
    spec = ModelSpec(name="m", source=FolderSource(folder=model), autoencoders=(one,))
    registry = whole(Registry.build(specs=[spec], device="cpu", include_embedded=False))
    assert registry.autoencoder_entry("m/s", "m").layer_indices == (0, 1)
    assert measured(registry, "m/s") == [16.0, 16.0]


@pytest.mark.parametrize(
    ("name", "path", "dst"),
    [
        ("sparsify_run", "h.1/sae.safetensors", T.RESID_POST_MLP),
        ("saelens_5_topk", "blocks.1.hook_resid_post/sae_weights.safetensors", T.RESID_POST_MLP),
        ("native", "1.safetensors", T.RESID_POST_MLP),
    ],
)
@pytest.mark.parametrize("is_absolute", [False, True])
def test_a_client_names_files_of_a_cache_as_they_are_called_there(
    name: str, path: str, dst: T, is_absolute: bool, tmp_path: Path
) -> None:
    folder = FOLDERS / name
    if name == "native":
        folder = tmp_path / "native"
        checkpoints.write_autoencoder(folder / path, checkpoints.state_dict(16))
    cache = tmp_path / "hub"
    file = snapshot_of(folder, cache) / path
    registry = build(snapshot_of(FOLDERS / "tied_alias", cache), cache)
    text = str(file if is_absolute else file.relative_to(cache))
    config = AutoencoderConfig(dst=dst, autoencoder_path_by_layer_index=((1, text),))
    entry = registry.autoencoder_by_config(config, "m")
    assert {*entry.files.names} == {f"1/{one.name}" for one in file.parent.iterdir()}
    assert len(measured(registry, entry.name)) == 1


def test_what_lies_a_folder_above_a_client_s_file_is_found_by_the_path_that_was_given(tmp_path: Path) -> None:
    """The config of a Llama Scope file, whose weights are linked from elsewhere."""
    root = tmp_path / "root"
    weights = {"encoder.weight": torch.eye(16), "encoder.bias": torch.zeros(16)}
    weights |= {"decoder.weight": torch.eye(16), "decoder.bias": torch.zeros(16)}
    (root / "weights").mkdir(parents=True)
    save_file(weights, root / "weights" / "final.safetensors")
    (root / "scope").mkdir()
    (root / "scope" / "checkpoints").symlink_to(root / "weights")
    (root / "scope" / "hyperparams.json").write_text(
        '{"d_model": 16, "hook_point_in": "blocks.1.hook_resid_post", "jump_relu_threshold": 0.8,'
        ' "dataset_average_activation_norm": {"in": 5.0, "out": 5.0}}'
    )
    paths = ((1, "scope/checkpoints/final.safetensors"),)
    registry = build(FOLDERS / "tied_alias", root)
    config = AutoencoderConfig(dst=T.RESID_POST_MLP, autoencoder_path_by_layer_index=paths)
    assert registry.autoencoder_by_config(config, "m").info().formats == ("llama_scope",)


def test_layers_may_be_links_to_folders_but_no_circle_is_followed(tmp_path: Path) -> None:
    model = shutil.copytree(FOLDERS / "tied_alias", tmp_path / "m")
    places = model / "autoencoders" / "s"
    places.mkdir(parents=True)
    for layer in (0, 1):
        (places / f"h.{layer}").symlink_to(FOLDERS / "sparsify_run" / f"h.{layer}")
    (places / "around").symlink_to(model / "autoencoders")
    assert build(model).autoencoder_entry("m/s", "m").layer_indices == (0, 1)


def test_a_link_out_of_the_roots_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    snapshot = snapshot_of(FOLDERS / "sparsify_run", cache)
    registry = build(FOLDERS / "tied_alias", snapshot)
    config = AutoencoderConfig(dst=T.RESID_POST_MLP, autoencoder_path_by_layer_index=((1, "h.1/sae.safetensors"),))
    with pytest.raises(NotAllowed, match="leads out of them"):
        registry.autoencoder_by_config(config, "m")
