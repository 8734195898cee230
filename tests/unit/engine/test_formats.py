"""Each format's files, written here as that format writes them, against its formulas written once more in numpy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.formats.detect import load_readings, read_frequencies, read_header
from dst_grpc.errors import DataLoss
from tests import checkpoints

N, M, Z, K = 6, 5, 9, 3
Array = NDArray[np.float64]
Files = dict[str, Any]
RNG = np.random.default_rng(7)
X: Array = RNG.normal(size=(40, N)) * 2 + 0.3


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32).astype(np.float64)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def jump(h: Array, threshold: Array | float) -> Array:
    return np.where(h > threshold, relu(h), 0)


def top_k(h: Array, k: int) -> Array:
    kept = np.zeros_like(h)
    for row, out in zip(h, kept, strict=True):
        chosen = np.argsort(-row)[:k]
        out[chosen] = relu(row[chosen])
    return kept


def tensors_of(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {
        name: array if isinstance(array, torch.Tensor) else torch.tensor(array, dtype=torch.float32)
        for name, array in arrays.items()
    }


def write(path: Path, arrays: Mapping[str, Any], config: Mapping[str, Any] | None = None, name: str = "") -> Path:
    """A file of weights, with a config called *name* beside it, or *name* from its folder on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        single: dict[str, Any] = {key: np.asarray(array, dtype=np.float32) for key, array in arrays.items()}
        np.savez(path, **single)
    elif path.suffix == ".pt":
        torch.save(tensors_of(arrays), path)
    else:
        save_file({key: tensor.contiguous() for key, tensor in tensors_of(arrays).items()}, path)
    if config is not None:
        (path.parent / name).write_text(json.dumps(config))
    return path


def loaded(path: Path) -> Autoencoder:
    """The autoencoder, its bytes as announced."""
    seen: list[int] = []
    autoencoder = checkpoints.load_autoencoder(path, "cpu", torch.float32, seen.append)
    header = read_header(path)
    assert autoencoder.parameter_bytes == header.bytes_as(torch.float32) == seen[-1]
    assert seen == sorted(seen)
    return autoencoder


def check(autoencoder: Autoencoder, latents: Array, output: Array, x: Array = X) -> None:
    """The latents of *x*, and what they are decoded to; no row all alike, or a mistake could not show."""
    given = torch.tensor(x, dtype=torch.float32)
    found = autoencoder.encode(given)
    assert (latents != 0).any(axis=0).sum() > 2
    np.testing.assert_allclose(found.numpy(), latents, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(autoencoder.decode(found, given).numpy(), output, rtol=2e-4, atol=2e-5)


# SAELens


def sae(**more: Any) -> Files:
    return {"W_enc": normal(N, Z), "b_enc": normal(Z), "W_dec": normal(Z, N), "b_dec": normal(N)} | more


CONFIG: dict[str, Any] = {
    "architecture": "standard",
    "d_in": N,
    "d_sae": Z,
    "dtype": "float32",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.30.0", "hook_name": "blocks.3.hook_resid_post", "prepend_bos": True},
}


def saelens(folder: Path, files: Mapping[str, Any], **changes: Any) -> Path:
    config = {key: value for key, value in (CONFIG | changes).items() if value is not ...}
    return write(folder / "sae_weights.safetensors", files, config, "cfg.json")


@pytest.mark.parametrize("subtracts", [True, False, ...])
def test_saelens_standard(tmp_path: Path, subtracts: Any) -> None:
    f = sae()
    path = saelens(tmp_path, f, apply_b_dec_to_input=subtracts)
    h = relu((X - f["b_dec"] * (subtracts is not False)) @ f["W_enc"] + f["b_enc"])
    check(loaded(path), h, h @ f["W_dec"] + f["b_dec"])
    header = read_header(path)
    assert (header.format, header.dst, header.layer_index) == ("saelens", T.RESID_POST_MLP, 3)
    assert (header.n_inputs, header.n_latents, header.n_outputs, header.declared_l0) == (N, Z, N, None)
    assert [path.name for path in header.other_files] == ["cfg.json"]


def test_saelens_gated_is_a_jumprelu_with_the_same_numbers(tmp_path: Path) -> None:
    f = sae(b_gate=normal(Z), b_mag=normal(Z), r_mag=normal(Z) / 2)
    del f["b_enc"]
    path = saelens(tmp_path, f, architecture="gated")
    x = X - f["b_dec"]
    gate = (x @ f["W_enc"] + f["b_gate"] > 0).astype(float)
    h = gate * relu(x @ (f["W_enc"] * np.exp(f["r_mag"])) + f["b_mag"])
    assert ((gate == 0) & (x @ (f["W_enc"] * np.exp(f["r_mag"])) + f["b_mag"] > 0)).any(), "the gate matters"
    autoencoder = loaded(path)
    assert autoencoder.activation is AutoencoderActivation.JUMP_RELU
    check(autoencoder, h, h @ f["W_dec"] + f["b_dec"])
    assert read_header(path).folded == ("its gate is folded into a threshold",)


def test_saelens_jumprelu(tmp_path: Path) -> None:
    f = sae(threshold=normal(Z))
    h = jump((X - f["b_dec"]) @ f["W_enc"] + f["b_enc"], f["threshold"])
    check(loaded(saelens(tmp_path, f, architecture="jumprelu")), h, h @ f["W_dec"] + f["b_dec"])


def test_saelens_topk(tmp_path: Path) -> None:
    f = sae()
    h = top_k((X - f["b_dec"]) @ f["W_enc"] + f["b_enc"], K)
    path = saelens(tmp_path, f, architecture="topk", k=K)
    check(loaded(path), h, h @ f["W_dec"] + f["b_dec"])
    assert read_header(path).declared_l0 == K


def test_saelens_topk_rescaled_by_decoder_norms(tmp_path: Path) -> None:
    f = sae()
    norms = np.linalg.norm(f["W_dec"], axis=1)
    h = top_k(((X - f["b_dec"]) @ f["W_enc"] + f["b_enc"]) * norms, K)
    assert ((h > 0) != (top_k((X - f["b_dec"]) @ f["W_enc"] + f["b_enc"], K) > 0)).any(), "it changes who is kept"
    path = saelens(tmp_path, f, architecture="topk", k=K, rescale_acts_by_decoder_norm=True)
    check(loaded(path), h, (h / norms) @ f["W_dec"] + f["b_dec"])


@pytest.mark.parametrize("where", ["cfg.json", "metadata", "activation_scaler.json"])
def test_saelens_folds_a_scale_of_its_inputs(tmp_path: Path, where: str) -> None:
    f, s = sae(), 0.37
    changes: dict[str, Any] = {"normalize_activations": "expected_average_only_in"}
    if where == "cfg.json":
        changes["norm_scaling_factor"] = s
    elif where == "metadata":
        changes["metadata"] = CONFIG["metadata"] | {"norm_scaling_factor": s}
    else:
        (tmp_path / where).write_text(json.dumps({"scaling_factor": s}))
    h = relu((s * X - f["b_dec"]) @ f["W_enc"] + f["b_enc"])
    check(loaded(saelens(tmp_path, f, **changes)), h, (h @ f["W_dec"] + f["b_dec"]) / s)


def test_saelens_without_the_factor_is_refused_by_key(tmp_path: Path) -> None:
    path = saelens(tmp_path, sae(), normalize_activations="expected_average_only_in")
    with pytest.raises(
        DataLoss, match=r"normalize_activations is 'expected_average_only_in'.*nowhere.*norm_scaling_factor"
    ):
        read_header(path)


def test_saelens_layer_norm(tmp_path: Path) -> None:
    f = sae()
    mean, std = X.mean(1, keepdims=True), X.std(1, ddof=1, keepdims=True)
    h = relu(((X - mean) / (std + 1e-5) - f["b_dec"]) @ f["W_enc"] + f["b_enc"])
    check(
        loaded(saelens(tmp_path, f, normalize_activations="layer_norm")), h, (h @ f["W_dec"] + f["b_dec"]) * std + mean
    )


def test_saelens_constant_norm(tmp_path: Path) -> None:
    f = sae()
    coefficient = np.sqrt(N) / np.linalg.norm(X, axis=1, keepdims=True)
    h = relu((X * coefficient - f["b_dec"]) @ f["W_enc"] + f["b_enc"])
    path = saelens(tmp_path, f, normalize_activations="constant_norm_rescale")
    check(loaded(path), h, (h @ f["W_dec"] + f["b_dec"]) / coefficient)


def test_saelens_finetuned_scales_are_folded_unless_they_are_one(tmp_path: Path) -> None:
    f = sae()
    h = relu((X - f["b_dec"]) @ f["W_enc"] + f["b_enc"])
    for name, factor in (("ones", np.ones(Z)), ("others", normal(Z))):
        path = saelens(tmp_path / name, f | {"scaling_factor": factor})
        check(loaded(path), h, (h * factor) @ f["W_dec"] + f["b_dec"])
        assert bool(read_header(path).folded) is (name == "others")


def test_saelens_before_version_6(tmp_path: Path) -> None:
    f = sae()
    old = {
        "model_name": "gpt2-small",
        "hook_point": "blocks.4.hook_resid_pre",
        "hook_point_head_index": None,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "normalize_activations": False,
        "d_in": N,
        "d_sae": Z,
    }
    path = write(tmp_path / "sae_weights.safetensors", f, old, "cfg.json")
    header = read_header(path)
    assert (header.dst, header.layer_index, header.k) == (T.RESID_POST_MLP, 3, K)
    h = top_k((X - f["b_dec"]) @ f["W_enc"] + f["b_enc"], K)
    raw, centred = load_readings(path, "cpu", torch.float32).values()
    check(raw, h, h @ f["W_dec"] + f["b_dec"])
    mean = X.mean(1, keepdims=True)
    h = top_k((X - mean - f["b_dec"]) @ f["W_enc"] + f["b_enc"], K)
    check(centred, h, h @ f["W_dec"] + f["b_dec"] + mean)
    assert centred.encoder.data_ptr() == raw.encoder.data_ptr(), "readings share their weights"


@pytest.mark.parametrize(("said", "expected"), [(True, InputNormalization.CENTRED), (False, InputNormalization.NONE)])
def test_centred_writing_weights_are_obeyed_where_they_are_told(
    tmp_path: Path, said: bool, expected: InputNormalization
) -> None:
    path = saelens(tmp_path, sae(), model_from_pretrained_kwargs={"center_writing_weights": said})
    assert [reading.normalization for reading in read_header(path).readings] == [expected]


TRANSCODER = {"metadata": {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"}, "d_out": M}


@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_saelens_transcoders(tmp_path: Path, architecture: str) -> None:
    f = sae(W_dec=normal(Z, M), b_dec=normal(M))
    f |= {"W_skip": normal(M, N)} if "skip" in architecture else {}
    f |= {"threshold": normal(Z)} if "jumprelu" in architecture else {}
    h = X @ f["W_enc"] + f["b_enc"]
    h = jump(h, f["threshold"]) if "jumprelu" in architecture else relu(h)
    path = saelens(tmp_path, f, architecture=architecture, apply_b_dec_to_input=False, **TRANSCODER)
    check(loaded(path), h, h @ f["W_dec"] + f["b_dec"] + (X @ f["W_skip"].T if "skip" in architecture else 0))
    header = read_header(path)
    assert (header.dst, header.layer_index, header.output) == (T.RESID_POST_ATTN, 3, T.RESID_DELTA_MLP)
    assert header.readings[0].input_norm is ModelNorm.MLP_NORM


def test_saelens_sparsity_is_a_logarithm(tmp_path: Path) -> None:
    f = sae()
    path = saelens(tmp_path, f)
    assert read_frequencies(path) is None
    frequencies = torch.linspace(0, 1, Z)
    save_file({"sparsity": frequencies.log10()}, tmp_path / "sparsity.safetensors")
    found = read_frequencies(path)
    assert found is not None
    torch.testing.assert_close(found, frequencies)
    assert [p.name for p in read_header(path).other_files] == ["cfg.json", "sparsity.safetensors"]
    cut = checkpoints.load_autoencoder(path, "cpu", torch.float32, n_dropped=2)
    h = relu((X - f["b_dec"]) @ f["W_enc"] + f["b_enc"])[:, 2:]
    check(cut, h, h @ f["W_dec"][2:] + f["b_dec"])
    save_file({"sparsity": torch.full((Z,), 0.5)}, tmp_path / "sparsity.safetensors")
    with pytest.raises(DataLoss, match="no logarithms of frequencies"):
        read_frequencies(path)


SAELENS_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": (
        {"architecture": "temporal"},
        "architecture is 'temporal', which is not supported; these are: standard",
    ),
    "activation": ({"activation_fn": "tanh-relu"}, "activation_fn is 'tanh-relu'"),
    "k": ({"architecture": "topk"}, "k must be a number of latents, not None"),
    "too large a k": ({"architecture": "topk", "k": Z + 1}, f"TopK needs k between 1 and {Z}, not {Z + 1}"),
    "normalisation": (
        {"normalize_activations": "covariance_whitening"},
        "normalize_activations is 'covariance_whitening'",
    ),
    "hook": (
        {"hook_name": "blocks.3.attn.hook_q"},
        "hook_name 'blocks.3.attn.hook_q' is not recorded; these are: hook_resid_mid",
    ),
    "no layer": ({"hook_name": "hook_embed"}, "'hook_embed' is no place of a layer"),
    "no hook": ({"metadata": {}}, "hook_name is missing"),
    "one head": ({"hook_head_index": 3}, "hook_head_index is set"),
    "norm": ({"hook_name": "blocks.3.mlp.hook_in"}, "only a transcoder may read there"),
    "shape": ({"reshape_activations": "hook_q"}, "reshape_activations is 'hook_q'"),
    "sizes": ({"d_sae": Z + 1}, f"has {Z} latents, but its config says {Z + 1}"),
    "metadata": ({"metadata": 3}, "metadata must be an object"),
}


@pytest.mark.parametrize("case", SAELENS_REFUSALS)
def test_what_saelens_can_do_and_we_cannot_is_refused_by_key(tmp_path: Path, case: str) -> None:
    changes, problem = SAELENS_REFUSALS[case]
    with pytest.raises(DataLoss, match=problem):
        read_header(saelens(tmp_path, sae(), **changes))


def test_transcoders_of_other_places_are_refused(tmp_path: Path) -> None:
    files = sae(W_dec=normal(Z, M), b_dec=normal(M))
    for metadata, problem in (
        ({"hook_name": "blocks.3.mlp.hook_in"}, "hook_name_out is missing"),
        ({"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.4.hook_mlp_out"}, "only transcoders of an MLP"),
        (
            {"hook_name": "blocks.3.hook_resid_post", "hook_name_out": "blocks.3.hook_mlp_out"},
            "only transcoders of an MLP",
        ),
    ):
        path = saelens(tmp_path, files, architecture="transcoder", metadata=metadata, d_out=M)
        with pytest.raises(DataLoss, match=problem):
            read_header(path)


@pytest.mark.parametrize(
    ("hook", "dst", "layer"),
    [
        ("blocks.0.hook_resid_pre", T.RESID_POST_EMBEDDING, None),
        ("blocks.7.hook_resid_pre", T.RESID_POST_MLP, 6),
        ("blocks.7.hook_resid_mid", T.RESID_POST_ATTN, 7),
        ("blocks.7.hook_attn_out", T.RESID_DELTA_ATTN, 7),
        ("blocks.7.hook_mlp_out", T.RESID_DELTA_MLP, 7),
        ("blocks.7.mlp.hook_post", T.MLP_POST_ACT, 7),
        ("blocks.7.attn.hook_z", T.ATTN_WEIGHTED_SUM_OF_VALUES, 7),
        ("model.layers.7", T.RESID_POST_MLP, 7),
        ("transformer.h.7.attn", T.RESID_DELTA_ATTN, 7),
        ("gpt_neox.layers.7.mlp", T.RESID_DELTA_MLP, 7),
        ("model.layers.7.self_attn.o_proj.input", T.ATTN_WEIGHTED_SUM_OF_VALUES, 7),
        ("model.layers.7.output", T.RESID_POST_MLP, 7),
    ],
)
def test_hooks_are_places_of_ours(tmp_path: Path, hook: str, dst: T, layer: int | None) -> None:
    header = read_header(saelens(tmp_path, sae(), hook_name=hook))
    assert (header.dst, header.layer_index, header.output) == (dst, layer, None)


# OpenAI


@pytest.mark.parametrize("folder", ["resid_delta_mlp_v5_32k", "elsewhere"])
def test_openai_v5_normalises_its_input(tmp_path: Path, folder: str) -> None:
    f = {
        "pre_bias": normal(N),
        "encoder.weight": normal(Z, N),
        "latent_bias": normal(Z),
        "decoder.weight": normal(N, Z),
    }
    path = tmp_path / folder / "autoencoders" / "3.pt"
    path.parent.mkdir(parents=True)
    state = {"k": K, "postact_fn": "ReLU"}
    torch.save(tensors_of(f) | {"activation": "TopK", "activation_state_dict": state, "activation.k": K}, path)
    readings = {reading.normalization: one for reading, one in load_readings(path, "cpu", torch.float32).items()}
    assert (
        list(readings) == [InputNormalization.LAYER_NORM]
        if "v5" in folder
        else [InputNormalization.NONE, InputNormalization.LAYER_NORM]
    )
    mean, std = X.mean(1, keepdims=True), X.std(1, ddof=1, keepdims=True)
    h = top_k(((X - mean) / (std + 1e-5) - f["pre_bias"]) @ f["encoder.weight"].T + f["latent_bias"], K)
    check(readings[InputNormalization.LAYER_NORM], h, (h @ f["decoder.weight"].T + f["pre_bias"]) * std + mean)


def test_a_native_file_may_say_how_it_normalises(tmp_path: Path) -> None:
    f = {
        "pre_bias": normal(N),
        "encoder.weight": normal(Z, N),
        "latent_bias": normal(Z),
        "decoder.weight": normal(N, Z),
    }
    path = tmp_path / "0.safetensors"
    save_file(tensors_of(f), path, metadata={"normalization": "centred"})
    assert read_header(path).readings[0].normalization is InputNormalization.CENTRED
    save_file(tensors_of(f), path, metadata={"normalization": "batch"})
    with pytest.raises(DataLoss, match="unknown normalization 'batch'; these are known: none, centred"):
        read_header(path)


# Gemma Scope


@pytest.mark.parametrize(
    ("repository", "dst", "input_norm", "output"),
    [
        ("gemma-scope-2b-pt-res", T.RESID_POST_MLP, ModelNorm.NONE, None),
        ("gemma-scope-9b-pt-mlp", T.RESID_DELTA_MLP, ModelNorm.NONE, None),
        ("gemma-scope-9b-pt-att", T.ATTN_WEIGHTED_SUM_OF_VALUES, ModelNorm.NONE, None),
        ("gemma-scope-2b-pt-transcoders", T.RESID_POST_ATTN, ModelNorm.MLP_NORM_WITHOUT_GAIN, T.RESID_DELTA_MLP),
    ],
)
def test_gemma_scope(tmp_path: Path, repository: str, dst: T, input_norm: ModelNorm, output: T | None) -> None:
    f = sae(threshold=np.abs(normal(Z)))
    path = write(tmp_path / repository / "layer_12" / "width_16k" / "average_l0_105" / "params.npz", f)
    header = read_header(path)
    assert (header.format, header.dst, header.layer_index, header.output) == ("gemma_scope", dst, 12, output)
    assert (header.declared_l0, header.readings[0].input_norm) == (105.0, input_norm)
    h = jump(X @ f["W_enc"] + f["b_enc"], f["threshold"])
    check(loaded(path), h, h @ f["W_dec"] + f["b_dec"])


def test_gemma_scope_spells_some_weights_in_lower_case_and_column_major(tmp_path: Path) -> None:
    f = sae(threshold=np.abs(normal(Z)))
    path = tmp_path / "params.npz"
    stored: dict[str, Any] = {
        key[0].lower() + key[1:]: np.asfortranarray(array.astype(np.float32)) for key, array in f.items()
    }
    np.savez(path, **stored)
    h = jump(X @ f["W_enc"] + f["b_enc"], f["threshold"])
    check(loaded(path), h, h @ f["W_dec"] + f["b_dec"])
    assert (read_header(path).dst, read_header(path).layer_index) == (None, None)


@pytest.mark.parametrize("affine", [True, False])
def test_gemma_scope_2_transcoders_multiply_by_the_skip_as_it_is_stored(tmp_path: Path, affine: bool) -> None:
    f = {
        "w_enc": normal(N, Z),
        "b_enc": normal(Z),
        "w_dec": normal(Z, M),
        "b_dec": normal(M),
        "threshold": np.abs(normal(Z)),
    }
    f |= {"affine_skip_connection": normal(N, M)} if affine else {}
    config = {
        "hf_hook_point_in": "model.layers.12.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.12.post_feedforward_layernorm.output",
        "width": Z,
        "architecture": "jump_relu",
        "l0": 52,
        "affine_connection": affine,
        "type": "transcoder",
    }
    path = write(tmp_path / "layer_12_width_16k_l0_medium" / "params.safetensors", f, config, "config.json")
    h = jump(X @ f["w_enc"] + f["b_enc"], f["threshold"])
    check(loaded(path), h, h @ f["w_dec"] + f["b_dec"] + (X @ f["affine_skip_connection"] if affine else 0))
    header = read_header(path)
    assert (header.format, header.dst, header.layer_index) == ("gemma_scope_2", T.RESID_POST_ATTN, 12)
    assert (header.output, header.readings[0].input_norm, header.declared_l0) == (
        T.RESID_DELTA_MLP,
        ModelNorm.MLP_NORM,
        52.0,
    )


def test_gemma_scope_2_without_a_config_is_read_from_its_path(tmp_path: Path) -> None:
    f = {
        "w_enc": normal(N, Z),
        "b_enc": normal(Z),
        "w_dec": normal(Z, N),
        "b_dec": normal(N),
        "threshold": np.abs(normal(Z)),
    }
    for folder, dst in (("resid_post", T.RESID_POST_MLP), ("attn_out_all", T.ATTN_WEIGHTED_SUM_OF_VALUES)):
        header = read_header(write(tmp_path / folder / "layer_7_width_16k_l0_small" / "params.safetensors", f))
        assert (header.dst, header.layer_index) == (dst, 7)


# dictionary_learning


def trainer(name: str, **more: Any) -> dict[str, Any]:
    of = {"dict_class": name, "activation_dim": N, "dict_size": Z, "layer": 8, "submodule_name": "resid_post_layer_8"}
    return {"trainer": of | more, "buffer": {"ctx_len": 128}}


def linear(**more: Any) -> Files:
    return {"encoder.weight": normal(Z, N), "encoder.bias": normal(Z), "decoder.weight": normal(N, Z)} | more


def _plain(f: Files) -> Array:
    return relu((X - f["bias"]) @ f["encoder.weight"].T + f["encoder.bias"])


def _gated(f: Files) -> Array:
    x: Array = (X - f["decoder_bias"]) @ f["encoder.weight"].T
    magnitude: Array = np.exp(f["r_mag"]) * x + f["mag_bias"]
    return np.where(x + f["gate_bias"] > 0, relu(magnitude), 0)


DICTIONARIES: dict[str, tuple[Callable[[], Files], Callable[[Files], Array], str, str]] = {
    "AutoEncoder": (lambda: linear(bias=normal(N)), _plain, "decoder.weight", "bias"),
    "AutoEncoderNew": (
        lambda: linear(**{"decoder.bias": normal(N)}),
        lambda f: relu(X @ f["encoder.weight"].T + f["encoder.bias"]),
        "decoder.weight",
        "decoder.bias",
    ),
    "GatedAutoEncoder": (
        lambda: {
            "decoder_bias": normal(N), "encoder.weight": normal(Z, N), "r_mag": normal(Z) / 2, "gate_bias": normal(Z),
            "mag_bias": normal(Z), "decoder.weight": normal(N, Z),
        },
        _gated,
        "decoder.weight",
        "decoder_bias",
    ),
    "JumpReluAutoEncoder": (
        lambda: sae(threshold=np.abs(normal(Z))),
        lambda f: jump(X @ f["W_enc"] + f["b_enc"], f["threshold"]),
        "W_dec",
        "b_dec",
    ),
    "AutoEncoderTopK": (
        lambda: linear(b_dec=normal(N), threshold=np.array(-1.0)),
        lambda f: top_k(relu((X - f["b_dec"]) @ f["encoder.weight"].T + f["encoder.bias"]), K),
        "decoder.weight",
        "b_dec",
    ),
    "BatchTopKSAE": (
        lambda: linear(b_dec=normal(N), threshold=np.array(1.5)),
        lambda f: jump((X - f["b_dec"]) @ f["encoder.weight"].T + f["encoder.bias"], 1.5),
        "decoder.weight",
        "b_dec",
    ),
    "MatryoshkaBatchTopKSAE": (
        lambda: sae(threshold=np.array(1.5)),
        lambda f: jump((X - f["b_dec"]) @ f["W_enc"] + f["b_enc"], 1.5),
        "W_dec",
        "b_dec",
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionary_learning(tmp_path: Path, name: str, suffix: str) -> None:
    make, encode, decoder, bias = DICTIONARIES[name]
    f = make()
    whole: Files = {"k": torch.tensor(K, dtype=torch.int32)} if "TopK" in name else {}
    path = write(tmp_path / f"ae.{suffix}", f | whole, trainer(name, k=K), "config.json")
    h = encode(f)
    rows = f[decoder].T if decoder == "decoder.weight" else f[decoder]
    check(loaded(path), h, h @ rows + f[bias])
    header = read_header(path)
    assert (header.format, header.dst, header.layer_index) == ("dictionary_learning", T.RESID_POST_MLP, 8)
    assert header.declared_l0 == K


def test_dictionary_learning_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    files = DICTIONARIES["BatchTopKSAE"][0]()
    cases: list[tuple[dict[str, Any], Files, str]] = [
        (trainer("CrossCoder"), files, "dict_class is 'CrossCoder', which is not supported; these are: AutoEncoder"),
        (trainer("BatchTopKSAE"), files | {"threshold": np.array(-1.0)}, "'threshold' is negative: it was never set"),
        (
            trainer("BatchTopKSAE"),
            {k: v for k, v in files.items() if k != "threshold"},
            "lacks the float tensor 'threshold'",
        ),
        (trainer("AutoEncoderTopK"), files, "k is missing"),
        (trainer("BatchTopKSAE", submodule_name="embed"), files, "submodule_name 'embed' is no place of a layer"),
        (trainer("BatchTopKSAE", layer=None), files, "layer must be a layer, not None"),
        (trainer("BatchTopKSAE", activation_dim=N + 1), files, f"has {N} inputs, but its config says {N + 1}"),
        ({"buffer": {}}, files, "trainer is missing"),
    ]
    for i, (config, weights, problem) in enumerate(cases):
        path = write(tmp_path / str(i) / "ae.pt", weights, config, "config.json")
        with pytest.raises(DataLoss, match=problem):
            read_header(path)
    path = tmp_path / "disagreeing" / "ae.pt"
    write(path, files | {"k": torch.tensor(K + 1)}, trainer("AutoEncoderTopK", k=K), "config.json")
    with pytest.raises(DataLoss, match=f"k is {K}, but the weights say {K + 1}"):
        read_header(path)


# sparsify


def sparse_coder() -> Files:
    return {"encoder.weight": normal(Z, N), "encoder.bias": normal(Z), "W_dec": normal(Z, N), "b_dec": normal(N)}


@pytest.mark.parametrize("num_latents", [Z, 0])
def test_sparsify(tmp_path: Path, num_latents: int) -> None:
    f = sparse_coder()
    config = {
        "d_in": N,
        "num_latents": num_latents,
        "k": K,
        "normalize_decoder": True,
        "activation": "topk",
        "signed": False,
    }
    path = write(tmp_path / "layers.5" / "sae.safetensors", f, config, "cfg.json")
    if not num_latents:
        with pytest.raises(DataLoss, match=f"has {Z} latents, but its config says {32 * N}"):
            read_header(path)
        return
    h = top_k(relu((X - f["b_dec"]) @ f["encoder.weight"].T + f["encoder.bias"]), K)
    check(loaded(path), h, h @ f["W_dec"] + f["b_dec"])
    header = read_header(path)
    assert (header.format, header.dst, header.layer_index) == ("sparsify", T.RESID_POST_MLP, 5)
    assert header.declared_l0 == K


def test_sparsify_transcoders_take_nothing_off_and_may_skip(tmp_path: Path) -> None:
    f = sparse_coder() | {"W_skip": normal(N, N)}
    config = {"d_in": N, "num_latents": Z, "k": K, "transcode": True, "skip_connection": True}
    path = write(tmp_path / "layers.5.mlp" / "sae.safetensors", f, config, "cfg.json")
    h = top_k(relu(X @ f["encoder.weight"].T + f["encoder.bias"]), K)
    check(loaded(path), h, h @ f["W_dec"] + f["b_dec"] + X @ f["W_skip"].T)
    header = read_header(path)
    assert (header.dst, header.output) == (T.RESID_POST_ATTN, T.RESID_DELTA_MLP)
    assert header.readings[0].input_norm is ModelNorm.MLP_NORM


@pytest.mark.parametrize(
    ("folder", "changes", "problem"),
    [
        ("layers.5", {"activation": "groupmax"}, "activation is 'groupmax', which is not supported"),
        ("layers.5", {"signed": True}, "signed is True"),
        ("layers.5", {"skip_connection": True}, "skip_connection is true without transcode"),
        ("embed_tokens", {}, "'embed_tokens' is no place of a layer"),
        ("layers.5", {"transcode": True}, "lies in a folder that must be named after a module.*layers.5.input"),
        ("layers.5", {"d_in": None}, "d_in is missing"),
    ],
)
def test_sparsify_refuses_by_key(tmp_path: Path, folder: str, changes: dict[str, Any], problem: str) -> None:
    config = {"d_in": N, "num_latents": Z, "k": K} | changes
    path = write(tmp_path / folder / "sae.safetensors", sparse_coder(), config, "cfg.json")
    with pytest.raises(DataLoss, match=problem):
        read_header(path)


# Llama Scope


def llama(folder: Path, f: Files, **changes: Any) -> Path:
    config = {
        "d_model": N,
        "d_sae": Z,
        "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post",
        "jump_relu_threshold": 0.8,
        "dataset_average_activation_norm": {"in": 5.0, "out": 5.0},
        "norm_activation": "dataset-wise",
        "top_k": 50,
    }
    path = write(folder / "checkpoints" / "final.safetensors", f)
    (folder / "hyperparams.json").write_text(json.dumps(config | changes))
    return path


def test_llama_scope_is_read_in_both_ways(tmp_path: Path) -> None:
    f = {
        "encoder.weight": normal(Z, N),
        "encoder.bias": normal(Z),
        "decoder.weight": normal(N, Z),
        "decoder.bias": normal(N),
    }
    path = llama(tmp_path, f)
    s = np.sqrt(N) / 5.0
    readings = load_readings(path, "cpu", torch.float32)
    assert [reading.name for reading in readings] == ["threshold as published", "threshold times the scale"]
    for autoencoder, threshold in zip(readings.values(), (0.8, 0.8 * s), strict=True):
        h = jump(s * X @ f["encoder.weight"].T + f["encoder.bias"], threshold)
        check(autoencoder, h, (h @ f["decoder.weight"].T + f["decoder.bias"]) / s)
    header = read_header(path)
    assert (header.format, header.dst, header.layer_index, header.declared_l0) == (
        "llama_scope",
        T.RESID_POST_MLP,
        15,
        50.0,
    )
    for changes, problem in (
        ({"norm_activation": "token-wise"}, "norm_activation is 'token-wise'"),
        ({"dataset_average_activation_norm": None}, "dataset_average_activation_norm is missing"),
        ({"dataset_average_activation_norm": {}}, "dataset_average_activation_norm.in is missing"),
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "hook_point_out differs"),
        ({"jump_relu_threshold": None}, "jump_relu_threshold must be a positive number"),
    ):
        with pytest.raises(DataLoss, match=problem):
            read_header(llama(tmp_path, f, **changes))


# Hostile files, of every container


@pytest.mark.parametrize("key", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
def test_nothing_that_is_missing_misshapen_or_no_number_is_overlooked(tmp_path: Path, key: str) -> None:
    f = sae(threshold=np.abs(normal(Z)))
    written = {"npz": "params.npz", "safetensors": "sae_weights.safetensors"}
    for kind, name in written.items():
        for what, changed, problem in (
            ("missing", {k: v for k, v in f.items() if k != key}, f"lacks the float tensor '{key}'"),
            ("transposed", f | {key: f[key].T if f[key].ndim == 2 else normal(4)}, "is a weight transposed"),
            ("NaN", f | {key: f[key] * np.nan}, f"'{key}' has values that are NaN or infinite"),
            ("infinite", f | {key: f[key] * np.inf}, f"'{key}' has values that are NaN or infinite"),
        ):
            path = write(tmp_path / kind / what / name, changed, CONFIG | {"architecture": "jumprelu"}, "cfg.json")
            with pytest.raises(DataLoss, match=problem):
                checkpoints.load_autoencoder(path, "cpu", torch.float32)


def test_a_square_weight_that_is_transposed_is_told_by_its_config_or_not_at_all(tmp_path: Path) -> None:
    """Shapes cannot tell it; what latents read and write can, which the self-check looks at."""
    f = {"W_enc": normal(N, N), "b_enc": normal(N), "W_dec": normal(N, N), "b_dec": normal(N)}
    read_header(saelens(tmp_path, f, d_sae=N))


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    f = sae(threshold=np.abs(normal(Z)))
    for name, config, config_name in (
        ("params.npz", None, ""),
        ("sae_weights.safetensors", CONFIG | {"architecture": "jumprelu"}, "cfg.json"),
        ("ae.pt", trainer("JumpReluAutoEncoder"), "config.json"),
    ):
        path = write(tmp_path / name, f, config, config_name)
        whole = path.read_bytes()
        for length in (0, 10, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(DataLoss, match=name):
                checkpoints.load_autoencoder(path, "cpu", torch.float32)


def test_folding_that_overflows_is_named(tmp_path: Path) -> None:
    f = sae(b_gate=normal(Z), b_mag=normal(Z), r_mag=np.full(Z, 200.0))
    path = saelens(tmp_path, f, architecture="gated")
    with pytest.raises(DataLoss, match="is NaN or infinite once its gate is folded"):
        checkpoints.load_autoencoder(path, "cpu", torch.float32)


def test_configs_that_are_none_are_named(tmp_path: Path) -> None:
    path = saelens(tmp_path, sae())
    for content, problem in (("{", "no sound JSON"), ("[]", "no JSON object"), ("[" * 100_000, "no sound JSON")):
        (tmp_path / "cfg.json").write_text(content)
        with pytest.raises(DataLoss, match=f"cfg.json: .*{problem}"):
            read_header(path)
    (tmp_path / "cfg.json").unlink()
    with pytest.raises(DataLoss, match="lacks the float tensor 'pre_bias'"):
        read_header(path)
