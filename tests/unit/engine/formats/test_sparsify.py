"""sparsify: its files, against its formulas in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import DataLoss
from tests.checkpoints import read_header
from tests.unit.engine.formats.files import Files, K, N, X, Z, check, loaded, normal, relu, top_k, write


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
    assert header.interpretations[0].input_norm is ModelNorm.MLP_NORM


@pytest.mark.parametrize(
    ("folder", "changes", "problem"),
    [
        ("layers.5", {"activation": "groupmax"}, "activation is 'groupmax', which is not supported"),
        ("layers.5", {"signed": True}, "signed is True"),
        ("layers.5", {"skip_connection": True}, "lies in a folder that must be named after a module.*layers.5.input"),
        ("layers.5", {"gram_lookup": True}, "cfg.json: gram_lookup is True, which is not supported: it must be false"),
        (
            "layers.5",
            {"gram_lookup": True, "embed_skip": True, "k_of_tomorrow": 3},
            "gram_lookup is True.*; embed_skip is True.*; k_of_tomorrow is not known here",
        ),
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
