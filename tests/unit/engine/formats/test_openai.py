"""OpenAI's files, against their formulas in numpy; how one may say that it normalises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dst_grpc.domain.autoencoders import InputNormalization
from dst_grpc.errors import DataLoss
from tests.checkpoints import opened, read_header
from tests.unit.engine.formats.files import K, N, X, Z, check, normal, tensors_of, top_k


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
    interpretations = {one.normalization: one for reading, one in opened(path).load("cpu", torch.float32).items()}
    assert (
        list(interpretations) == [InputNormalization.LAYER_NORM]
        if "v5" in folder
        else [InputNormalization.NONE, InputNormalization.LAYER_NORM]
    )
    mean, std = X.mean(1, keepdims=True), X.std(1, ddof=1, keepdims=True)
    h = top_k(((X - mean) / (std + 1e-5) - f["pre_bias"]) @ f["encoder.weight"].T + f["latent_bias"], K)
    check(interpretations[InputNormalization.LAYER_NORM], h, (h @ f["decoder.weight"].T + f["pre_bias"]) * std + mean)


def test_a_native_file_may_say_how_it_normalises(tmp_path: Path) -> None:
    f = {
        "pre_bias": normal(N),
        "encoder.weight": normal(Z, N),
        "latent_bias": normal(Z),
        "decoder.weight": normal(N, Z),
    }
    path = tmp_path / "0.safetensors"
    save_file(tensors_of(f), path, metadata={"normalization": "centred"})
    assert read_header(path).interpretations[0].normalization is InputNormalization.CENTRED
    save_file(tensors_of(f), path, metadata={"normalization": "batch"})
    with pytest.raises(DataLoss, match="unknown normalization 'batch'; these are known: none, centred"):
        read_header(path)
