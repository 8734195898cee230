"""SAELens: its files, against its formulas in numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import DataLoss
from tests import checkpoints
from tests.checkpoints import opened, read_header
from tests.unit.engine.formats.files import (
    CONFIG,
    K,
    M,
    N,
    X,
    Z,
    check,
    jump,
    loaded,
    normal,
    relu,
    sae,
    saelens,
    top_k,
    write,
)


@pytest.mark.parametrize("subtracts", [True, False, ...])
def test_saelens_standard(tmp_path: Path, subtracts: Any) -> None:
    f = sae()
    path = saelens(tmp_path, f, apply_b_dec_to_input=subtracts)
    h = relu((X - f["b_dec"] * (subtracts is not False)) @ f["W_enc"] + f["b_enc"])
    check(loaded(path), h, h @ f["W_dec"] + f["b_dec"])
    header = read_header(path)
    assert (header.format, header.dst, header.layer_index) == ("saelens", T.RESID_POST_MLP, 3)
    assert (header.n_inputs, header.n_latents, header.n_outputs, header.declared_l0) == (N, Z, N, None)
    assert list(opened(path).files.beside) == ["cfg.json"]


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
    raw, centred = opened(path).load("cpu", torch.float32).values()
    check(raw, h, h @ f["W_dec"] + f["b_dec"])
    mean = X.mean(1, keepdims=True)
    h = top_k((X - mean - f["b_dec"]) @ f["W_enc"] + f["b_enc"], K)
    check(centred, h, h @ f["W_dec"] + f["b_dec"] + mean)
    assert centred.encoder.data_ptr() == raw.encoder.data_ptr(), "interpretations share their weights"


@pytest.mark.parametrize(("said", "expected"), [(True, InputNormalization.CENTRED), (False, InputNormalization.NONE)])
def test_centred_writing_weights_are_obeyed_where_they_are_told(
    tmp_path: Path, said: bool, expected: InputNormalization
) -> None:
    path = saelens(tmp_path, sae(), model_from_pretrained_kwargs={"center_writing_weights": said})
    assert [one.normalization for one in read_header(path).interpretations] == [expected]


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
    assert header.interpretations[0].input_norm is ModelNorm.MLP_NORM


def test_saelens_sparsity_is_a_logarithm(tmp_path: Path) -> None:
    f = sae()
    path = saelens(tmp_path, f)
    assert opened(path).frequencies() is None
    frequencies = torch.linspace(0, 1, Z)
    save_file({"sparsity": frequencies.log10()}, tmp_path / "sparsity.safetensors")
    found = opened(path).frequencies()
    assert found is not None
    torch.testing.assert_close(found, frequencies)
    assert list(opened(path).files.beside) == ["cfg.json", "sparsity.safetensors"]
    cut = checkpoints.load_autoencoder(path, "cpu", torch.float32, n_dropped=2)
    h = relu((X - f["b_dec"]) @ f["W_enc"] + f["b_enc"])[:, 2:]
    check(cut, h, h @ f["W_dec"][2:] + f["b_dec"])
    save_file({"sparsity": torch.full((Z,), 0.5)}, tmp_path / "sparsity.safetensors")
    with pytest.raises(DataLoss, match="no logarithms of frequencies"):
        opened(path).frequencies()


SAELENS_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": (
        {"architecture": "temporal"},
        "architecture is 'temporal', which is not supported; these are: standard",
    ),
    "architecture with another activation": (
        {"architecture": "temporal", "activation_fn": "topk"},
        "architecture is 'temporal', which is not supported",
    ),
    "activation": ({"activation_fn": "tanh-relu"}, "activation_fn is 'tanh-relu'"),
    "k": ({"architecture": "topk"}, "k is missing"),
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
    **{
        f"{key} of another type": ({key: ["none"]}, rf"{key} must be a text, not \['none'\]")
        for key in ("architecture", "activation_fn", "normalize_activations", "reshape_activations")
    },
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
