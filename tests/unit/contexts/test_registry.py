"""The registry: names and handles, what the catalogue says before any load, and sets that clients name by path."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from dst_grpc.contexts import Registry
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.components import NodeType, TensorElementType
from dst_grpc.domain.config import AutoencoderConfig
from dst_grpc.domain.handles import ContextRef
from dst_grpc.domain.resolution import ContextState, LayerCheck
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import DataLoss, InvalidRequest, NotAllowed, NotFound, Reason
from tests import checkpoints

from .conftest import whole


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of its own, with autoencoders beside it, that a test may spoil."""
    folder = checkpoints.write_model(tmp_path / "model")
    checkpoints.write_autoencoders(folder / "autoencoders")
    return folder


def build(folder: Path, **settings: Any) -> Registry:
    fixed: dict[str, Any] = {"models": {"m": folder}, "device": "cpu", "include_embedded": False}
    return whole(Registry.build(**fixed | settings))


def test_models_are_listed_by_name_with_all_that_headers_tell(registry: Registry) -> None:
    models = registry.models()
    assert [model.name for model in models] == ["a", "b", "c"]
    first = models[0]
    assert first.autoencoders == ("a/mlp_post_act", "a/resid_delta_attn", "a/resid_delta_mlp")
    assert (first.family, first.source, first.device) == ("gpt2", "folder", "cpu")
    assert (first.dimensions.n_layers, first.dimensions.d_mlp) == (2, 12)
    assert first.state is ContextState.NOT_LOADED
    assert [model.default_model for model in models] == [True, False, False]


def test_a_handle_pins_the_digest_type_and_device(registry: Registry) -> None:
    info = registry.model("a")
    assert ContextRef.parse(info.handle) == ContextRef(
        name="a", revision=info.digest[:12], element_type=TensorElementType.FLOAT32, device="cpu"
    )
    assert registry.model(info.handle) == info
    assert len({model.digest for model in registry.models()}) == 3


def test_the_empty_name_means_the_default(registry: Registry) -> None:
    assert registry.model("").name == registry.default_model == "a"


@pytest.mark.parametrize("change", [("a@", "a@0"), ("float32", "float16"), (":cpu", ":cuda:0")])
def test_a_handle_of_something_else_is_not_found(registry: Registry, change: tuple[str, str]) -> None:
    handle = registry.model("a").handle
    with pytest.raises(NotFound) as caught:
        registry.model(handle.replace(*change))
    assert caught.value.nearest == (handle,)


def test_unknown_names_are_not_found_with_the_nearest(registry: Registry) -> None:
    with pytest.raises(NotFound) as caught:
        registry.autoencoder_entry("a/mlp_post_ack", "a").info()
    assert caught.value.reason is Reason.AUTOENCODER_NOT_FOUND
    assert caught.value.nearest[0] == "a/mlp_post_act"
    with pytest.raises(NotFound) as caught:
        registry.model("aa")
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    with pytest.raises(InvalidRequest):
        registry.model("no such name!")


def test_sets_are_described_by_kind(registry: Registry) -> None:
    sets = {info.dst: info for info in registry.autoencoders("a")}
    assert [info.name for info in registry.autoencoders()] == sorted(info.name for info in sets.values())
    assert registry.autoencoders("b") == []
    mlp, attention = sets[T.MLP_POST_ACT], sets[T.RESID_DELTA_ATTN]
    assert (mlp.model, mlp.node_type, mlp.layer_indices) == ("a", NodeType.MLP_AUTOENCODER_LATENT, (0, 1))
    assert attention.node_type is NodeType.ATTENTION_AUTOENCODER_LATENT
    assert (mlp.n_latents, mlp.activations, mlp.spliceable) == (10, (AutoencoderActivation.RELU,), True)
    assert mlp.parameter_bytes == 2 * 4 * (12 + 10 + 2 * 12 * 10)
    assert (mlp.declared, mlp.measured) == ((), ())


def test_declared_figures_come_from_the_config(folder: Path) -> None:
    layers = {"1": {"l0": 3, "fvu": 0.25}, "0": {"l0": 2.5, "fvu": 0.1, "dead_latents": 4}}
    config = {"dst": "mlp_post_act", "activation": "ReLU", "n_latents": 10, "layers": layers}
    (folder / "autoencoders" / "mlp_post_act" / "config.json").write_text(json.dumps(config))
    assert build(folder).autoencoder_entry("m/mlp_post_act", "m").info().declared == (
        LayerCheck(layer_index=0, l0=2.5, fraction_of_variance_unexplained=0.1, dead_latents=4),
        LayerCheck(layer_index=1, l0=3.0, fraction_of_variance_unexplained=0.25),
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "no sound JSON"),
        ('{"layers": {"0": {"l0": 3}}}', "figures by layer are not sound"),
        ('{"dst": "mlp_post_act", "layers": [1]}', "figures by layer are not sound"),
        ('{"layers": {"0": {"l0": NaN, "fvu": 0}}}', "figures that are no numbers"),
        ('{"dst": "resid_delta_mlp"}', "disagree on what they read"),
    ],
)
def test_a_bad_config_of_a_set_is_named(folder: Path, content: str, problem: str) -> None:
    (folder / "autoencoders" / "mlp_post_act" / "config.json").write_text(content)
    with pytest.raises(DataLoss, match=f"mlp_post_act.*{problem}"):
        build(folder)


def test_a_set_that_does_not_fit_its_place_is_named(folder: Path) -> None:
    kinds = folder / "autoencoders"
    spoilt: list[tuple[Path, str]] = []

    def kind(name: str, layer: str, inputs: int, metadata: dict[str, str], problem: str) -> None:
        path = checkpoints.write_autoencoder(
            kinds / name / f"{layer}.safetensors", checkpoints.state_dict(inputs), metadata
        )
        spoilt.append((path, problem))

    kind("k1", "2", 8, {"dst": "resid_delta_mlp"}, "layer 2 does not exist: 'm' has 2 layers")
    kind("k2", "0", 9, {"dst": "resid_delta_mlp"}, "reads 9 inputs, but resid_delta_mlp of 'm' has 8")
    kind("k3", "0", 8, {"dst": "resid_delta_mlp", "layer_index": "1"}, "says that it belongs to layer 1")
    kind("k4", "0", 8, {}, "'k4' is no derived scalar type")
    kind("k5", "first", 8, {"dst": "resid_delta_mlp"}, "is named after no layer")
    kind("k6", "0", 8, {"dst": "attn_ln.scale"}, "is no derived scalar type")
    kind("k7", "0", 8, {"dst": "always_one"}, "always_one exists once per model")
    for path, problem in spoilt:
        with pytest.raises(DataLoss, match=problem):
            build(folder)
        path.unlink()
        with pytest.raises(DataLoss, match="holds no autoencoders"):
            build(folder)
        path.parent.rmdir()
    build(folder)


def test_layers_with_different_numbers_of_latents_are_refused(folder: Path) -> None:
    state = checkpoints.state_dict()
    cut = {name: t[:, :4].contiguous() if name == "decoder.weight" else t[:4].contiguous() for name, t in state.items()}
    cut["pre_bias"] = state["pre_bias"]
    checkpoints.write_autoencoder(folder / "autoencoders" / "resid_delta_mlp" / "1.safetensors", cut)
    with pytest.raises(DataLoss, match="differ in their number of latents"):
        build(folder)


def test_a_layer_may_not_come_twice(folder: Path) -> None:
    checkpoints.write_state_dict(folder / "autoencoders" / "resid_delta_mlp" / "1.pt")
    with pytest.raises(DataLoss, match="is the second autoencoder of its layer"):
        build(folder)


def test_listing_touches_no_weights(folder: Path) -> None:
    """Weights that are not finite are found by loading, so a registry that is built has not looked at them."""
    tensors = {name: torch.full_like(tensor, torch.nan) for name, tensor in checkpoints.weights().items()}
    checkpoints.write_model(folder, tensors=tensors)
    assert build(folder).models()[0].parameter_bytes


def test_wrong_settings_are_all_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Registry.build(
            models={"a/b": folder, "embedded": folder, "ok": folder, "?": folder},
            element_type=TensorElementType.INT32,
            default_model="none",
        )
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["models[a/b]", "models[embedded]", "models[?]", "default_model", "element_type"]
    with pytest.raises(InvalidRequest, match="must name a model"):
        Registry.build(models={}, include_embedded=False)
    for device in ("tpu", "cuda:99"):
        with pytest.raises(InvalidRequest, match="device"):
            build(folder, device=device)
    with pytest.raises(InvalidRequest, match="autoencoder_roots"):
        build(folder, autoencoder_roots=[tmp_path / "nothing"])


def test_the_tokenizer_needs_no_load_and_is_read_once(registry: Registry) -> None:
    assert registry.tokenizer("a") is registry.tokenizer("a")
    assert registry.tokenizer("").encode(" Mary")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    tensors = checkpoints.weights() | {"transformer.wte.weight": torch.zeros(250, 8)}
    folder = checkpoints.write_model(tmp_path, tensors=tensors, config={"vocab_size": 250})
    with pytest.raises(DataLoss, match=r"has \d+ tokens, but the model embeds only 250"):
        build(folder).tokenizer("m")


def config_of(dst: T, *paths: str | Path, layers: tuple[int | None, ...] | None = None) -> AutoencoderConfig:
    pairs = tuple(zip(layers or tuple(range(len(paths))), map(str, paths), strict=True))
    return AutoencoderConfig(dst=dst, autoencoder_path_by_layer_index=pairs)


@pytest.fixture
def rooted(folder: Path, tmp_path: Path) -> Registry:
    checkpoints.write_state_dict(tmp_path / "files" / "0.pt")
    checkpoints.write_autoencoder(tmp_path / "files" / "1.safetensors")
    return build(folder, autoencoder_roots=[tmp_path / "files"])


def test_a_set_named_by_path_gets_a_name_of_its_own(rooted: Registry) -> None:
    config = config_of(T.RESID_DELTA_MLP, "0.pt", "1.safetensors")
    entry = rooted.autoencoder_by_config(config, "m")
    assert entry.name.startswith("path/")
    assert (entry.model.name, entry.layer_indices, entry.n_latents) == ("m", (0, 1), 10)
    assert rooted.autoencoder_by_config(config, "m") is entry
    assert rooted.autoencoder_entry(entry.name, "m") is entry
    assert rooted.autoencoder_entry(entry.handle, "m") is entry
    assert entry.name not in {one.name for one in rooted.autoencoders()}
    other = rooted.autoencoder_by_config(config_of(T.RESID_DELTA_ATTN, "0.pt", "1.safetensors"), "m")
    assert other.name != entry.name


def test_another_file_in_the_same_place_is_another_set(rooted: Registry, tmp_path: Path) -> None:
    config = config_of(T.RESID_DELTA_MLP, "0.pt")
    before = rooted.autoencoder_by_config(config, "m")
    checkpoints.write_state_dict(tmp_path / "files" / "0.pt", {"activation": "Identity"})
    after = rooted.autoencoder_by_config(config, "m")
    assert after.name != before.name
    assert after.info().activations == (AutoencoderActivation.IDENTITY,)


def test_kinds_that_can_only_be_read_offline_say_so(rooted: Registry) -> None:
    entry = rooted.autoencoder_by_config(config_of(T.ATTN_WRITE, "0.pt"), "m")
    assert not entry.spliceable
    assert entry.node_type is NodeType.ATTENTION_AUTOENCODER_LATENT
    entry = rooted.autoencoder_by_config(config_of(T.RESID_POST_EMBEDDING, "0.pt", layers=(None,)), "m")
    assert (entry.node_type, entry.layer_indices) == (NodeType.AUTOENCODER_LATENT, ())


def test_what_a_config_gets_wrong_is_named_by_field(rooted: Registry, tmp_path: Path) -> None:
    (tmp_path / "files" / "notes.txt").write_text("")
    config = config_of(T.MLP_POST_ACT, "0.pt", "1.safetensors", "notes.txt", layers=(0, 7, 1))
    with pytest.raises(InvalidRequest) as caught:
        rooted.autoencoder_by_config(config, "m")
    assert {v.field: v.description for v in caught.value.violations} == {
        "autoencoder_path_by_layer_index[0].path": "reads 8 inputs, but mlp_post_act of 'm' has 12",
        "autoencoder_path_by_layer_index[2].layer_index": "layer 7 does not exist: 'm' has 2 layers",
        "autoencoder_path_by_layer_index[2].path": "reads 8 inputs, but mlp_post_act of 'm' has 12",
        "autoencoder_path_by_layer_index[1].path": "must end in .safetensors, .pt, .npz",
    }
    for dst, layers, problem in (
        (T.ALWAYS_ONE, (0,), "dst: always_one cannot be read"),
        (T.ATTN_QK_PROBS, (0,), "has 2"),
        (T.RESID_DELTA_MLP, (None,), "is required: resid_delta_mlp exists at every layer"),
        (T.RESID_POST_EMBEDDING, (0,), "must be absent: resid_post_embedding exists once"),
    ):
        with pytest.raises(InvalidRequest, match=problem):
            rooted.autoencoder_by_config(config_of(dst, "0.pt", layers=layers), "m")


def test_paths_of_a_config_obey_the_policy(rooted: Registry, folder: Path) -> None:
    inside_the_model = folder / "autoencoders" / "resid_delta_mlp" / "0.safetensors"
    with pytest.raises(NotAllowed):
        rooted.autoencoder_by_config(config_of(T.RESID_DELTA_MLP, inside_the_model), "m")
    with pytest.raises(NotFound):
        rooted.autoencoder_by_config(config_of(T.RESID_DELTA_MLP, "none.pt"), "m")
    with pytest.raises(NotFound):
        rooted.autoencoder_by_config(config_of(T.RESID_DELTA_MLP, "0.pt"), "unknown")


def test_sets_named_by_path_are_forgotten_when_there_are_too_many(rooted: Registry, tmp_path: Path) -> None:
    path = tmp_path / "files" / "0.pt"
    first = rooted.autoencoder_by_config(config_of(T.RESID_DELTA_MLP, path), "m")
    source = path.read_bytes()
    for i in range(256):
        (tmp_path / "files" / f"copy{i}.pt").write_bytes(source)
        rooted.autoencoder_by_config(config_of(T.RESID_DELTA_MLP, f"copy{i}.pt"), "m")
    with pytest.raises(NotFound):
        rooted.autoencoder_entry(first.name, "m").info()


def held(folder: Path) -> list[str]:
    """Names of the files below *folder* that this process holds open."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            links.append(descriptor.readlink())
    return sorted(link.name for link in links if link.is_relative_to(folder))


def test_files_named_by_path_are_held_open_until_they_are_loaded(rooted: Registry, tmp_path: Path) -> None:
    config = config_of(T.RESID_DELTA_MLP, "0.pt", "1.safetensors")
    name = rooted.autoencoder_by_config(config, "m").name
    assert held(tmp_path / "files") == ["0.pt", "1.safetensors"]
    rooted.autoencoder_by_config(config, "m")
    assert held(tmp_path / "files") == ["0.pt", "1.safetensors"]
    loader = FileLoader(allow_failed_checks=True)
    model = loader.load_model(rooted.model_entry("m"), lambda _: None)
    for _ in range(2):
        context = loader.load_autoencoders(rooted.autoencoder_entry(name, "m"), model, lambda _: None)
        assert len(context.by_layer) == 2
        assert held(tmp_path / "files") == []


def test_only_so_many_files_are_held_open(rooted: Registry, tmp_path: Path) -> None:
    source = (tmp_path / "files" / "0.pt").read_bytes()
    for i in range(300):
        path = tmp_path / "files" / f"copy{i:03}.pt"
        path.write_bytes(source)
        rooted.autoencoder_by_config(config_of(T.RESID_DELTA_MLP, path, path, layers=(0, 1)), "m")
    found = held(tmp_path / "files")
    assert len(found) == 256
    assert {"copy172.pt", "copy299.pt"} == {found[0], found[-1]}
