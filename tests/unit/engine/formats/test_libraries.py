"""SAELens's and sparsify's files, old and new: the numbers that these libraries themselves read out of them.

`scripts/library_values.py` wrote the numbers, with the versions that `libraries/cases.json` names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dst_grpc.errors import DataLoss
from tests import checkpoints
from tests.unit.engine.formats.files import write

_FOLDER = Path(__file__).parent / "libraries"
CASES: dict[str, dict[str, Any]] = {
    f"{case['library']} {case['name']}": case
    for case in json.loads((_FOLDER / "cases.json").read_text(encoding="utf-8"))["cases"]
}
_NAMES = {"saelens": "sae_weights.safetensors", "sparsify": "sae.safetensors"}


@pytest.fixture(scope="module")
def values() -> dict[str, torch.Tensor]:
    return load_file(_FOLDER / "values.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_what_a_library_reads_is_read_alike_and_what_it_refuses_is_refused(
    name: str, values: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    case = CASES[name]
    prefix = f"weights/{case['weights']}/"
    weights = {key.removeprefix(prefix): tensor for key, tensor in values.items() if key.startswith(prefix)}
    path = write(tmp_path / case["folder"] / _NAMES[case["library"]], weights, case["config"], "cfg.json")
    if "refused" in case:
        with pytest.raises(DataLoss):
            checkpoints.load_autoencoder(path, "cpu", torch.float32)
        return
    autoencoder = checkpoints.load_autoencoder(path, "cpu", torch.float32)
    expected = f"{case['library']}/{case['name']}"
    latents = autoencoder.encode(values["x"])
    assert (latents != 0).any(0).sum() > 2
    torch.testing.assert_close(latents, values[f"{expected}/latents"], rtol=1e-4, atol=1e-5)
    output = autoencoder.decode(latents, values["x"])
    torch.testing.assert_close(output, values[f"{expected}/output"], rtol=1e-4, atol=1e-5)
