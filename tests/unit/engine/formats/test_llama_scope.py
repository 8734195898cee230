"""Llama Scope: its files, against its formulas in numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import DataLoss
from tests.checkpoints import opened, read_header
from tests.unit.engine.formats.files import Files, N, X, Z, check, jump, normal, write


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
    interpretations = opened(path).load("cpu", torch.float32)
    assert [one.name for one in interpretations] == ["threshold as published", "threshold times the scale"]
    for autoencoder, threshold in zip(interpretations.values(), (0.8, 0.8 * s), strict=True):
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
