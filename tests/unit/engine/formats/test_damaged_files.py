"""Files that are damaged, of every container."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dst_grpc.engine.formats.detect import FORMATS
from dst_grpc.engine.formats.layouts import LAYOUTS
from dst_grpc.errors import DataLoss
from tests import checkpoints
from tests.checkpoints import read_header
from tests.unit.engine.formats.files import CONFIG, N, Z, normal, sae, saelens, trainer, write


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
    del f["b_enc"]
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
    with pytest.raises(DataLoss, match=r"sae_weights.safetensors: lacks cfg.json beside it"):
        read_header(path)


def test_every_layout_has_a_format() -> None:
    assert tuple(one.layout for one in FORMATS) == LAYOUTS
