"""Gemma Scope: its files, against its formulas in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from tests.checkpoints import read_header
from tests.unit.engine.formats.files import M, N, X, Z, check, jump, loaded, normal, sae, write


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
    assert (header.declared_l0, header.interpretations[0].input_norm) == (105.0, input_norm)
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
    assert (header.output, header.interpretations[0].input_norm, header.declared_l0) == (
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
