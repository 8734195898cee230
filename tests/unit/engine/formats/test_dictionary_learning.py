"""dictionary_learning: its files, against its formulas in numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import DataLoss
from tests.checkpoints import read_header
from tests.unit.engine.formats.files import (
    Array,
    Files,
    K,
    N,
    X,
    Z,
    check,
    jump,
    loaded,
    normal,
    relu,
    sae,
    top_k,
    trainer,
    write,
)


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
