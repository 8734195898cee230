"""Sets of transcoders beside a model: found, described, loaded, and checked to explain what the MLPs write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from dst_grpc.contexts import AutoencoderContext, ContextCache, Registry
from dst_grpc.contexts.loading import FileLoader, record
from dst_grpc.contexts.model import ModelContext
from dst_grpc.contexts.self_check import SENTENCES
from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.domain.config import AutoencoderConfig
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.resolution import AutoencoderInfo, ContextState
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.autoencoder_input import input_site
from dst_grpc.errors import DataLoss, Reason
from dst_grpc.sources import AutoencoderSpec, FolderSource, ModelSpec
from tests import checkpoints
from tests.checkpoints import LAYERS, WIDTH
from tests.graph_goldens import NAMES, golden_graph, golden_model, golden_transcoders

from .conftest import leased, whole

PAIRS = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
"""[F, d]: features that come in pairs and read plus and minus one channel, so that any linear map can be written."""
FEATURES = 2 * WIDTH
Tensors = dict[str, torch.Tensor]
_HOOKS = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
PER_LAYER = {"model_name": "m", "model_kind": "transcoder_set", "scan": "s"} | _HOOKS
CROSS_LAYER = PER_LAYER | {"model_kind": "cross_layer_transcoder"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.write_model(tmp_path / "m")


def build(folder: Path, **settings: Any) -> Registry:
    return Registry.build(models={"m": folder}, device="cpu", include_embedded=False, **settings)


def problem(folder: Path) -> str:
    """Why the only set of the model cannot be served."""
    (failed,) = build(folder).failed
    return str(failed)


def model_of(folder: Path) -> ModelContext:
    return FileLoader().load_model(build(folder).model_entry("m"), lambda _: None)


def loaded(folder: Path, name: str, *, allow_failed_checks: bool = False) -> AutoencoderContext:
    registry = whole(build(folder))
    loader = FileLoader(allow_failed_checks=allow_failed_checks)
    return loader.load_autoencoders(registry.autoencoder_entry(name, "m"), model_of(folder), lambda _: None)


def info_of(folder: Path, name: str) -> AutoencoderInfo:
    return next(info for info in whole(build(folder)).autoencoders("m") if info.name == name)


def samples(folder: Path) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """At each layer the residuals before the MLP, and what it writes, on the sentences of the self-check."""
    model = model_of(folder)
    found = []
    for location in (L.RESID_POST_ATTN, L.RESID_DELTA_MLP):
        sites: list[Any] = [(location, layer) for layer in range(LAYERS)]
        runs = [record(model.decoder, sites, model.tokenizer.encode(sentence)[:16]) for sentence in SENTENCES]
        found.append([torch.cat([run[site][1:] for run in runs]) for site in sites])
    return found[0], found[1]


def fitted(inputs: list[torch.Tensor], target: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, float]:
    """The linear maps of *inputs* that explain *target* best together, the constant, and what is left unexplained."""
    ones = torch.cat([*inputs, torch.ones(len(target), 1)], dim=1).double()
    solution = torch.linalg.lstsq(ones, target.double()).solution
    left = (ones @ solution - target).square().sum() / (target - target.mean(0)).square().sum()
    *maps, constant = solution.float().split([*(WIDTH for _ in inputs), 1])
    return maps, constant[0], float(left)


def write_set(place: Path, files: dict[str, Tensors], settings: dict[str, Any]) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, place / f"{name}.safetensors")
    (place / "config.yaml").write_text(yaml.safe_dump(settings))
    return place


def per_layer_files(folder: Path) -> tuple[dict[str, Tensors], list[float]]:
    """Transcoders of every layer, and what each leaves unexplained."""
    inputs, targets = samples(folder)
    files, unexplained = {}, []
    for layer in range(LAYERS):
        (own,), constant, left = fitted([inputs[layer]], targets[layer])
        files[f"layer_{layer}"] = {
            "W_enc": PAIRS,
            "b_enc": torch.zeros(FEATURES),
            "W_dec": PAIRS @ own,
            "b_dec": constant,
        }
        unexplained.append(left)
    return files, unexplained


def cross_layer_files(folder: Path) -> tuple[dict[str, Tensors], list[float]]:
    """A cross-layer transcoder, whose layers explain together what is left unexplained."""
    inputs, targets = samples(folder)
    writes: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
    files: dict[str, Tensors] = {}
    unexplained = []
    for layer in range(LAYERS):
        maps, constant, left = fitted(inputs[: layer + 1], targets[layer])
        for source, each in enumerate(maps):
            writes[source].append(PAIRS @ each)
        files[f"W_enc_{layer}"] = {
            f"W_enc_{layer}": PAIRS,
            f"b_enc_{layer}": torch.zeros(FEATURES),
            f"b_dec_{layer}": constant,
        }
        unexplained.append(left)
    for layer, rows in enumerate(writes):
        files[f"W_dec_{layer}"] = {f"W_dec_{layer}": torch.stack(rows, dim=1)}
    return files, unexplained


def write_cross_layer(folder: Path) -> Path:
    return write_set(folder / "transcoders" / "clt", cross_layer_files(folder)[0], CROSS_LAYER)


def test_transcoders_per_layer_are_found_and_explain_what_their_mlp_writes(folder: Path) -> None:
    files, unexplained = per_layer_files(folder)
    write_set(folder / "transcoders" / "plt", files, PER_LAYER)
    info = info_of(folder, "m/plt")
    assert (info.dst, info.output, info.input_norms) == (T.RESID_POST_ATTN, T.RESID_DELTA_MLP, (ModelNorm.NONE,))
    assert (info.formats, info.layer_indices, info.n_latents) == (("circuit_tracer",), (0, 1), FEATURES)
    assert (info.makes_graphs, info.cross_layer, info.file_bytes, info.spliceable) == (True, False, 0, True)
    context = loaded(folder, "m/plt")
    found = [check.fraction_of_variance_unexplained for check in context.measured]
    assert found == pytest.approx(unexplained, rel=1e-3)
    assert [check.l0 for check in context.measured] == [WIDTH] * LAYERS
    assert (
        context.parameter_bytes == info.parameter_bytes == sum(one.parameter_bytes for one in context.by_layer.values())
    )
    assert context.transcoders is not None
    assert (context.transcoders.is_cross_layer, context.transcoders.parameter_bytes) == (False, info.parameter_bytes)


def test_a_cross_layer_transcoder_is_found_and_explains_with_all_layers_together(folder: Path) -> None:
    files, unexplained = cross_layer_files(folder)
    write_set(folder / "autoencoders" / "clt", files, CROSS_LAYER)
    info = info_of(folder, "m/clt")
    assert (info.formats, info.layer_indices, info.n_latents) == (("circuit_tracer_cross_layer",), (0, 1), FEATURES)
    assert (info.makes_graphs, info.cross_layer, info.spliceable) == (True, True, True)
    # Encoders, and decoders for two layers and for one, are not in memory.
    assert info.file_bytes == 4 * FEATURES * WIDTH * (2 + 2 + 1)
    assert info.parameter_bytes == 4 * LAYERS * (FEATURES + WIDTH)
    context = loaded(folder, "m/clt")
    found = [check.fraction_of_variance_unexplained for check in context.measured]
    assert found == pytest.approx(unexplained, rel=1e-3)
    assert unexplained[1] < 0.9 * fitted([samples(folder)[0][1]], samples(folder)[1][1])[2]
    assert (dict(context.by_layer), context.parameter_bytes) == ({}, info.parameter_bytes)
    transcoders = context.transcoders
    assert transcoders is not None
    assert (transcoders.parameter_bytes, transcoders.file_bytes) == (info.parameter_bytes, info.file_bytes)
    assert [transcoders.written_layers(layer) for layer in (0, 1)] == [range(2), range(1, 2)]


def test_features_that_write_what_others_should_fail_the_self_check(folder: Path) -> None:
    files, _ = cross_layer_files(folder)
    wrong = 9 * files["W_dec_0"]["W_dec_0"].roll(1, dims=2)
    write_set(folder / "transcoders" / "clt", files | {"W_dec_0": {"W_dec_0": wrong}}, CROSS_LAYER)
    with pytest.raises(DataLoss, match=r"m/clt: the autoencoder of layer 0 fails its self-check: it leaves") as caught:
        loaded(folder, "m/clt")
    assert caught.value.reason is Reason.SELF_CHECK_FAILED
    assert loaded(folder, "m/clt", allow_failed_checks=True).measured[0].l0 == WIDTH


def test_far_too_many_active_features_are_told_without_being_decoded(folder: Path) -> None:
    n = 100 * WIDTH + 1
    files: dict[str, Tensors] = {}
    for layer in range(LAYERS):
        vectors = {f"b_enc_{layer}": torch.ones(n), f"b_dec_{layer}": torch.zeros(WIDTH)}
        files[f"W_enc_{layer}"] = vectors | {f"W_enc_{layer}": torch.zeros(n, WIDTH)}
        # What is not finite would be told if it were read.
        files[f"W_dec_{layer}"] = {f"W_dec_{layer}": torch.full((n, LAYERS - layer, WIDTH), torch.nan)}
    write_set(folder / "transcoders" / "clt", files, CROSS_LAYER)
    with pytest.raises(DataLoss, match="its fraction of variance unexplained is inf"):
        loaded(folder, "m/clt")
    assert [check.l0 for check in loaded(folder, "m/clt", allow_failed_checks=True).measured] == [n] * LAYERS


@pytest.mark.parametrize("name", ["W_enc_1", "W_dec_0"])
def test_weights_that_are_not_finite_are_named_when_the_check_reads_them(folder: Path, name: str) -> None:
    files, _ = cross_layer_files(folder)
    broken = files[name][name].clone()
    broken.view(-1)[17] = torch.nan
    write_set(folder / "transcoders" / "clt", files | {name: files[name] | {name: broken}}, CROSS_LAYER)
    with pytest.raises(DataLoss, match=f"{name}.safetensors: tensor '{name}' has values that are NaN"):
        loaded(folder, "m/clt", allow_failed_checks=True)


def test_a_cross_layer_transcoder_needs_every_layer_of_its_model(folder: Path) -> None:
    place = write_cross_layer(folder)
    (place / "W_enc_0.safetensors").unlink()
    assert "m/clt: clt: lacks layer 0: every layer of a cross-layer transcoder writes to later ones" in problem(folder)
    files, _ = cross_layer_files(folder)
    deeper = torch.zeros(FEATURES, LAYERS, WIDTH)
    write_set(place, files | {"W_dec_1": {"W_dec_1": deeper}}, CROSS_LAYER)
    assert f"W_enc_1.safetensors: writes to {LAYERS + 1} layers, but 'm' has {LAYERS}" in problem(folder)


def test_a_set_is_per_layer_or_across_layers(folder: Path) -> None:
    place = write_cross_layer(folder)
    for name in ("W_enc_1", "W_dec_1"):
        (place / f"{name}.safetensors").unlink()
    files, _ = per_layer_files(folder)
    (place / "other").mkdir()
    write_set(place / "other", {"layer_1": files["layer_1"]}, PER_LAYER)
    assert "clt: holds files of a cross-layer transcoder and of others: a set is of one kind" in problem(folder)


def test_two_sets_of_one_name_are_told_and_the_first_is_served(folder: Path) -> None:
    files, _ = per_layer_files(folder)
    for beside in ("autoencoders", "transcoders"):
        write_set(folder / beside / "one", files, PER_LAYER)
    registry = build(folder)
    assert "m/one: one: has the name of autoencoders/one: rename one of them" in [str(one) for one in registry.failed]
    assert registry.autoencoder_entry("m/one", "m").is_of_transcoders


def test_a_registered_set_is_found_among_the_transcoders_too(folder: Path) -> None:
    write_cross_layer(folder)
    spec = ModelSpec(
        name="m",
        source=FolderSource(folder=folder),
        autoencoders=(AutoencoderSpec(name="clt", allow_failed_checks=True),),
    )
    registry = whole(Registry.build(specs=[spec], device="cpu", include_embedded=False))
    entry = registry.autoencoder_entry("m/clt", "m")
    assert (entry.is_cross_layer, entry.registered.allows_failed_checks) == (True, True)
    assert len(registry.autoencoders("m")) == 1


def test_transcoders_that_a_client_names_by_path_are_read_with_the_config_beside_them(folder: Path) -> None:
    files, _ = per_layer_files(folder)
    place = write_set(folder / "elsewhere", files, PER_LAYER)
    paths = tuple((layer, str(place / f"layer_{layer}.safetensors")) for layer in range(LAYERS))
    config = AutoencoderConfig(dst=T.RESID_POST_ATTN, autoencoder_path_by_layer_index=paths)
    registry = build(folder, autoencoder_roots=[folder / "elsewhere"])
    entry = registry.autoencoder_by_config(config, "m")
    assert (entry.is_of_transcoders, set(entry.files.names)) == (
        True,
        {f"{layer}/{name}" for layer in range(LAYERS) for name in ("config.yaml", f"layer_{layer}.safetensors")},
    )
    context = FileLoader().load_autoencoders(entry, model_of(folder), lambda _: None)
    assert context.transcoders is not None
    (place / "config.yaml").unlink()
    with pytest.raises(DataLoss, match=r"layer_0.safetensors: lacks config.yaml beside it"):
        build(folder, autoencoder_roots=[folder / "elsewhere"]).autoencoder_by_config(config, "m")


def test_a_load_ends_between_the_layers_that_its_check_reads(folder: Path) -> None:
    write_cross_layer(folder)
    entry = whole(build(folder)).autoencoder_entry("m/clt", "m")
    seen: list[int] = []

    def on_progress(done: int) -> None:
        seen.append(done)
        if seen.count(entry.parameter_bytes) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        FileLoader().load_autoencoders(entry, model_of(folder), on_progress)
    assert seen == [entry.parameter_bytes // 2, *([entry.parameter_bytes] * 3)]


async def test_only_what_is_in_memory_counts(folder: Path) -> None:
    write_cross_layer(folder)
    registry = whole(build(folder))
    model, clt = registry.model_entry("m"), registry.autoencoder_entry("m/clt", "m")
    budget = model.parameter_bytes + clt.parameter_bytes
    assert clt.info().file_bytes > clt.parameter_bytes
    cache = ContextCache(registry, budget_bytes=budget)
    async with leased(cache, "m", ["m/clt"]) as lease:
        (context,) = lease.autoencoders.values()
        assert context.transcoders is not None
        assert context.transcoders.encoder_rows(1, torch.tensor([3])).tolist() == [PAIRS[3].tolist()]
    del context
    status = await cache.unload("m/clt")
    assert status.state is ContextState.NOT_LOADED
    await cache.close()


# Against circuit-tracer


@pytest.mark.parametrize("name", NAMES)
def test_active_features_are_those_of_circuit_tracer(name: str) -> None:
    golden = golden_graph(name)
    decoder = golden_model(golden.facts["model"]).decoder
    transcoders = golden_transcoders(golden.facts["model"], golden.facts["transcoders"])
    layers = range(transcoders.n_layers)
    sites = [input_site(T.RESID_POST_ATTN, layer, decoder.config.architecture) for layer in layers]
    values = record(decoder, sites, golden.tensors["tokens"].tolist())
    indices, activations = [], []
    for layer in layers:
        x = transcoders.input(layer, values[sites[layer]], decoder.layers[layer])
        active = transcoders.active(layer, x, first=len(golden.facts["zero_positions"]))
        indices.append(torch.stack([torch.full_like(active.tokens, layer), active.tokens, active.features], dim=1))
        activations.append(active.values)
    expected = torch.from_numpy(golden.tensors["activation_values"])
    assert torch.cat(indices).tolist() == golden.tensors["active_features"].tolist()
    torch.testing.assert_close(torch.cat(activations), expected, rtol=0, atol=1e-6 + 1e-4 * float(expected.abs().max()))
