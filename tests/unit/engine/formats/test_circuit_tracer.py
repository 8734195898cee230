"""circuit-tracer and Gemma Scope 2's cross-layer transcoders: their files, against their formulas in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation, ModelNorm
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.transcoders import Transcoders
from dst_grpc.errors import DataLoss
from tests.checkpoints import load_autoencoder, opened_cross_layer, read_header
from tests.unit.engine.formats.files import (
    Array,
    K,
    M,
    N,
    X,
    Z,
    check,
    cross_layer,
    loaded,
    normal,
    relu,
    set_config,
    transcoder,
    write,
)

LAYERS = 3
CROSS = set_config("cross_layer_transcoder", feature_input_hook="hook_resid_mid")


def plt(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    return write(folder / "layer_4.safetensors", tensors, set_config(**config), "config.yaml")


def read(f: dict[str, Any]) -> Array:
    return np.asarray(X @ f["W_enc"].T + f["b_enc"])


def largest(h: Array, k: int) -> Array:
    """The k largest of each row, whatever their signs."""
    kept = np.zeros_like(h)
    for row, out in zip(h, kept, strict=True):
        chosen = np.argsort(-row)[:k]
        out[chosen] = row[chosen]
    return kept


def test_a_transcoder_that_skips(tmp_path: Path) -> None:
    f = transcoder(W_skip=normal(M, N))
    path = plt(tmp_path, f)
    h = relu(read(f))
    check(loaded(path), h, h @ f["W_dec"] + f["b_dec"] + X @ f["W_skip"].T)
    header = read_header(path)
    assert (header.format, header.dst, header.output) == ("circuit_tracer", T.RESID_POST_ATTN, T.RESID_DELTA_MLP)
    assert header.layer_index == 4
    assert header.interpretations[0].input_norm is ModelNorm.MLP_NORM


def test_latents_above_a_negative_threshold_are_kept_though_they_are_negative(tmp_path: Path) -> None:
    f = transcoder(**{"activation_function.threshold": normal(Z) - 0.5})
    h = read(f)
    h = np.where(h > f["activation_function.threshold"], h, 0)
    assert (h < 0).any()
    check(loaded(plt(tmp_path, f)), h, h @ f["W_dec"] + f["b_dec"])


@pytest.mark.parametrize("told", ["in the config", "as a tensor"])
def test_of_top_k_negative_ones_are_kept_too(tmp_path: Path, told: str) -> None:
    f = transcoder(b_enc=normal(Z) - 3)
    if told == "as a tensor":
        path = plt(tmp_path, f | {"k": torch.tensor(K)})
    else:
        path = plt(tmp_path, f, activation="topk", k=K)
    h = largest(read(f), K)
    assert (h < 0).any()
    check(loaded(path), h, h @ f["W_dec"] + f["b_dec"])
    assert read_header(path).declared_l0 == K


@pytest.mark.parametrize(
    ("hook", "norm"),
    [
        ("hook_resid_mid", ModelNorm.NONE),
        ("ln2.hook_normalized", ModelNorm.MLP_NORM_WITHOUT_GAIN),
        ("mlp.hook_in", ModelNorm.MLP_NORM),
    ],
)
def test_each_input_is_read_through_its_norm_and_leaves_nothing_open(
    tmp_path: Path, hook: str, norm: ModelNorm
) -> None:
    header = read_header(plt(tmp_path, transcoder(), feature_input_hook=hook))
    assert [(one.name, one.input_norm) for one in header.interpretations] == [("", norm)]


@pytest.mark.parametrize("name", ["wandb-config.yaml", "wanb-config.yaml"])
def test_with_only_the_config_of_its_training_it_reads_what_the_mlp_does(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "layer_0.safetensors", transcoder(), {"d_model": {"value": N}, "lr": {"value": 1}}, name)
    header = read_header(path)
    assert (header.layer_index, header.output) == (0, T.RESID_DELTA_MLP)
    assert header.interpretations[0].input_norm is ModelNorm.MLP_NORM


def test_the_output_of_the_module_is_not_what_is_added_where_a_norm_follows(tmp_path: Path) -> None:
    assert read_header(plt(tmp_path, transcoder(), feature_output_hook="mlp.hook_out")).is_before_post_norm
    assert not read_header(plt(tmp_path, transcoder())).is_before_post_norm


@pytest.mark.parametrize(
    ("config", "tensors", "problem"),
    [
        (
            {"model_kind": "cross_layer_transcoder"},
            {},
            "config.yaml: model_kind is 'cross_layer_transcoder', but layer_4",
        ),
        ({"model_kind": ...}, {}, "model_kind is missing"),
        ({"feature_input_hook": "hook_attn_out"}, {}, "only transcoders of an MLP are supported"),
        ({"feature_output_hook": "hook_resid_post"}, {}, "only transcoders of an MLP are supported"),
        ({"feature_input_hook": "hook_q_input"}, {}, "config.yaml: feature_input_hook 'blocks.4.hook_q_input' is not"),
        ({"feature_input_hook": 3}, {}, "feature_input_hook must be a text, not 3"),
        ({"activation": "gelu"}, {}, "activation is 'gelu', which is not supported"),
        ({"activation": "topk"}, {}, "TopK needs k between 1 and 9, not None"),
        ({"activation": "topk", "k": Z + 1}, {}, "TopK needs k between 1 and 9, not 10"),
        ({"activation": "jumprelu"}, {}, "lacks 'activation_function.threshold', although its config says jumprelu"),
        ({"activation": "relu"}, {"activation_function.threshold": normal(Z)}, "although its config says relu"),
        ({}, {"k": torch.tensor(0)}, "TopK needs k between 1 and 9, not 0"),
        ({}, {"W_dec": normal(M, Z)}, "'W_dec' has shape .*: is a weight transposed?"),
        ({}, {"W_skip": normal(N, M)}, "'W_skip' has shape .*: is a weight transposed?"),
        ({}, {"b_enc": normal(Z + 1)}, "'b_enc' has shape"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, config: dict[str, Any], tensors: dict[str, Any], problem: str) -> None:
    path = plt(tmp_path, transcoder(**tensors), **config)
    with pytest.raises(DataLoss, match=problem):
        read_header(path)


def test_without_any_config_nothing_says_what_it_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "layer_4.safetensors", transcoder())
    with pytest.raises(DataLoss, match=r"layer_4.safetensors: lacks config.yaml beside it"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("model_kind: [transcoder_set", "is no sound YAML"),
        ("- transcoder_set", "is no mapping of names to values"),
        ("1: transcoder_set", "is no mapping of names to values"),
        ("", "is no mapping of names to values"),
        ("a: &a [1, 1]\nb: [*a, *a]", r"is no sound YAML: it repeats \*a: write out what that stands for"),
        ("a: &a [*a]", r"is no sound YAML: it repeats \*a"),
        ("a: !!python/object/apply:os.system [ls]", "is no sound YAML"),
        ("a: " + "[" * 2000, "is no sound YAML: it is nested more than 16 deep"),
        ("a: " + "[" * 2000 + "]" * 2000, "is no sound YAML: it is nested more than 16 deep"),
        ("a: " + "9" * 5000, "is no sound YAML"),
        ("a: 2026-13-45", "is no sound YAML"),
        ("a: '" + "x" * (1 << 19) + "'", "has 524293 bytes; at most 32768 were expected"),
        ("a: \0", "is no sound YAML"),
        (b"a: \xff", "is no sound YAML"),
    ],
)
def test_a_config_that_is_hostile_is_refused(tmp_path: Path, content: str | bytes, problem: str) -> None:
    path = plt(tmp_path, transcoder())
    (tmp_path / "config.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataLoss, match=f"config.yaml: {problem}"):
        read_header(path)


# Across layers


def transcoders(folder: Path, name: str) -> Transcoders:
    """The cross-layer transcoder in *folder*, whose files are called *name* and a number."""
    layers = {layer: opened_cross_layer(folder / f"{name}{layer}.safetensors").load("cpu") for layer in range(LAYERS)}
    return Transcoders(LAYERS, layers)


def check_together(found: Transcoders, latents: list[Array], outputs: list[Array]) -> None:
    """The latents of X at every layer, and what they reconstruct together."""
    x = torch.tensor(X, dtype=torch.float32)
    active = {layer: found.active(layer, x) for layer in range(LAYERS)}
    for layer, expected in enumerate(latents):
        dense = found.activations(layer, x)
        np.testing.assert_allclose(dense.numpy(), expected, rtol=2e-4, atol=2e-5)
        one = active[layer]
        tokens, features = expected.nonzero()
        assert (one.tokens.tolist(), one.features.tolist()) == (tokens.tolist(), features.tolist())
        assert torch.equal(one.values, dense[one.tokens, one.features])
    for layer, output in enumerate(outputs):
        np.testing.assert_allclose(found.reconstruction(layer, active, x).numpy(), output, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("thresholds", [True, False])
def test_features_across_layers_write_to_their_own_and_every_later_layer(tmp_path: Path, thresholds: bool) -> None:
    files = cross_layer(tmp_path, CROSS, LAYERS, thresholds=thresholds)
    latents = []
    for layer, f in enumerate(files):
        h = X @ f[f"W_enc_{layer}"].T + f[f"b_enc_{layer}"]
        latents.append(np.where(h > f[f"threshold_{layer}"], h, 0) if thresholds else relu(h))
    outputs = [
        sum(latents[i] @ files[i][f"W_dec_{i}"][:, layer - i] for i in range(layer + 1)) + f[f"b_dec_{layer}"]
        for layer, f in enumerate(files)
    ]
    check_together(transcoders(tmp_path, "W_enc_"), latents, outputs)
    header = read_header(tmp_path / "W_enc_1.safetensors")
    assert (header.format, header.layer_index, header.written) == ("circuit_tracer_cross_layer", 1, range(1, LAYERS))
    assert header.activation is (AutoencoderActivation.JUMP_RELU if thresholds else AutoencoderActivation.RELU)
    assert header.file_bytes == 4 * (Z * N + Z * 2 * M)
    assert header.interpretations[0].input_norm is ModelNorm.NONE


def gemma_layer(layer: int) -> dict[str, Any]:
    return {
        "w_enc": normal(N, Z),
        "b_enc": normal(Z),
        "threshold": np.abs(normal(Z)),
        # What lies before its own layer is not read.
        "w_dec": np.concatenate([np.full((Z, layer, M), 1e9), normal(Z, LAYERS - layer, M)], axis=1),
        "b_dec": normal(M),
        "affine_skip_connection": normal(N, M),
    }


def test_gemma_scope_2_across_layers_with_every_layer_the_last_included(tmp_path: Path) -> None:
    folder = tmp_path / "clt" / "width_262k_l0_medium_affine"
    files = [gemma_layer(layer) for layer in range(LAYERS)]
    for layer, f in enumerate(files):
        write(folder / f"params_layer_{layer}.safetensors", f, {"architecture": "jump_relu"}, "config.json")
    latents = []
    for f in files:
        h = X @ f["w_enc"] + f["b_enc"]
        latents.append(np.where(h > f["threshold"], h, 0))
    outputs = [
        sum(latents[i] @ files[i]["w_dec"][:, layer] for i in range(layer + 1))
        + f["b_dec"]
        + X @ f["affine_skip_connection"]
        for layer, f in enumerate(files)
    ]
    check_together(transcoders(folder, "params_layer_"), latents, outputs)
    header = read_header(folder / "params_layer_2.safetensors")
    assert (header.format, header.layer_index, header.written) == ("gemma_scope_2_cross_layer", 2, range(2, 3))
    assert header.interpretations[0].input_norm is ModelNorm.MLP_NORM


def test_a_crosscoder_is_refused_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "crosscoder" / "layer_7_13_width_65k_l0_big" / "params_layer_0.safetensors"
    other = tmp_path / "params_layer_0.safetensors"
    for each in (write(path, gemma_layer(0)), write(other, gemma_layer(0), {"type": "crosscoder"}, "config.json")):
        with pytest.raises(DataLoss, match="is of a crosscoder, which reads several layers at once"):
            read_header(each)


def test_gemma_scope_2_across_layers_says_where_it_reads_and_writes_or_leaves_it_to_its_name(tmp_path: Path) -> None:
    path = tmp_path / "params_layer_2.safetensors"
    places = [f"model.layers.{layer}.pre_feedforward_layernorm.output" for layer in range(LAYERS)]
    for said in (places[0], places):
        assert read_header(write(path, gemma_layer(2), {"hf_hook_point_in": said}, "config.json")).layer_index == 2
    for key in ("hf_hook_point_in", "hf_hook_point_out"):
        write(path, gemma_layer(2), {key: "model.layers.0.output"}, "config.json")
        with pytest.raises(DataLoss, match=f"config.json: {key} is 'model.layers.0.output': only cross-layer"):
            read_header(path)
    without_skip = {name: tensor for name, tensor in gemma_layer(2).items() if name != "affine_skip_connection"}
    with pytest.raises(DataLoss, match="lacks 'affine_skip_connection', although its config has affine_connection"):
        read_header(write(path, without_skip, {"affine_connection": True}, "config.json"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"W_dec_1": normal(Z, 2, N)}, r"'W_dec_1' has shape \[9, 2, 6\], but its encoder needs \[9, layers, 5\]"),
        ({"W_dec_1": normal(Z - 1, 2, M)}, r"'W_dec_1' has shape \[8, 2, 5\]"),
        ({"W_dec_1": normal(Z, 2 * M)}, r"'W_dec_1' has shape \[9, 10\]"),
        ({"W_dec_1": normal(Z, 0, M)}, "'W_dec_1' has 0 layers, and so none that layer 1 writes to"),
        ({"W_dec_0": normal(Z, 2, M)}, "lacks the float tensor 'W_dec_1'"),
        ({"W_dec_1": normal(Z, 2, M), "W_dec_norm_1": normal(Z)}, "its tensor 'W_dec_norm_1' is not known here"),
        ({"W_dec_1": torch.ones(Z, 2, M, dtype=torch.int32)}, "lacks the float tensor 'W_dec_1'"),
    ],
)
def test_a_decoder_that_does_not_fit_its_encoder_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    cross_layer(tmp_path, CROSS, LAYERS)
    write(tmp_path / "W_dec_1.safetensors", change)
    with pytest.raises(DataLoss, match=f"W_dec_1.safetensors: {problem}"):
        read_header(tmp_path / "W_enc_1.safetensors")


def test_an_encoder_without_its_decoder_or_its_threshold_is_named(tmp_path: Path) -> None:
    cross_layer(tmp_path, CROSS | {"activation": "jumprelu"}, LAYERS, thresholds=False)
    with pytest.raises(DataLoss, match=r"W_enc_0.safetensors: lacks 'threshold_0', although its config says jumprelu"):
        read_header(tmp_path / "W_enc_0.safetensors")
    cross_layer(tmp_path, CROSS, LAYERS)
    (tmp_path / "W_dec_0.safetensors").unlink()
    with pytest.raises(DataLoss, match=r"W_enc_0.safetensors: lacks W_dec_0.safetensors beside it"):
        read_header(tmp_path / "W_enc_0.safetensors")


@pytest.mark.parametrize("name", ["b_enc_0", "b_dec_0", "threshold_0"])
def test_a_vector_that_is_not_finite_is_named_when_it_is_loaded(tmp_path: Path, name: str) -> None:
    (f, *_) = cross_layer(tmp_path, CROSS, LAYERS)
    f[name][1] = np.nan
    write(tmp_path / "W_enc_0.safetensors", {key: value for key, value in f.items() if key != "W_dec_0"})
    with pytest.raises(DataLoss, match=f"W_enc_0.safetensors: tensor '{name}' has values that are NaN"):
        opened_cross_layer(tmp_path / "W_enc_0.safetensors").load("cpu")


def test_a_transcoder_that_is_not_finite_is_named_when_it_is_loaded(tmp_path: Path) -> None:
    f = transcoder()
    f["W_dec"][3, 2] = np.inf
    with pytest.raises(DataLoss, match=r"layer_4.safetensors: tensor 'W_dec' has values that are NaN"):
        load_autoencoder(plt(tmp_path, f), "cpu", torch.float32)
