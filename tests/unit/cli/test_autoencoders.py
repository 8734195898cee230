"""What commands say of autoencoder sets, and the conversion of their files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dst_grpc.cli._catalog import _format, _reads
from dst_grpc.cli._tables import human_check
from dst_grpc.client import AutoencoderInfo, ContextState, DerivedScalarType, NodeType
from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.domain.resolution import LayerCheck
from dst_grpc.errors import DataLoss
from tests import checkpoints
from tests.fake_service import FakeService
from tests.unit.cli.conftest import Run

INFO = AutoencoderInfo(
    name="m/a",
    handle="",
    model="m",
    dst=DerivedScalarType.RESID_POST_ATTN,
    node_type=NodeType.AUTOENCODER_LATENT,
    layer_indices=(0, 1),
    n_latents=8,
    activations=(AutoencoderActivation.TOP_K,),
    spliceable=False,
    parameter_bytes=0,
    digest="",
    state=ContextState.AVAILABLE,
)


def check(layer: int, l0: float, fvu: float | None, orientation: float | None = None, reading: str = "") -> LayerCheck:
    return LayerCheck(
        layer_index=layer, l0=l0, fraction_of_variance_unexplained=fvu, orientation=orientation, reading=reading
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "none"),
        ({"state": ContextState.NOT_LOADED}, "not loaded"),
        (
            {"measured": (check(0, 12, 0.25, 0.5), check(1, 30, 0.5, 0.625)), "declared": (check(0, 20, None),)},
            "L0 12.0 to 30.0 (20.0), unexplained 0.25 to 0.50, cosine 0.50 to 0.62",
        ),
        (
            {"measured": (check(0, 12, 0.25, None, "this way"),), "declared": (check(0, 12, 0.2),)},
            "L0 12.0 (12.0), unexplained 0.25 (0.20), this way",
        ),
    ],
)
def test_a_self_check_in_one_line(changes: dict[str, object], expected: str) -> None:
    assert human_check(replace(INFO, **changes)) == expected  # type: ignore[arg-type]


def test_what_a_set_reads_in_one_line() -> None:
    assert _reads(INFO) == "resid_post_attn"
    transcoder = replace(INFO, output=DerivedScalarType.RESID_DELTA_MLP, input_norms=(ModelNorm.MLP_NORM,))
    assert _reads(transcoder) == "resid_post_attn (mlp_norm) -> resid_delta_mlp"
    assert _reads(replace(INFO, normalizations=(InputNormalization.LAYER_NORM,))) == "resid_post_attn (layer_norm)"
    across = replace(transcoder, cross_layer=True)
    assert _reads(across) == "resid_post_attn (mlp_norm) -> resid_delta_mlp of it and all later layers"


def test_how_much_of_a_set_stays_in_its_files_is_said_with_its_format() -> None:
    assert _format(replace(INFO, formats=("saelens",))) == "saelens"
    across = replace(INFO, formats=("circuit_tracer_cross_layer",), file_bytes=3 << 30)
    assert _format(across) == "circuit_tracer_cross_layer, 3.0 GiB in files"


def test_models_shows_formats_and_checks(run: Run) -> None:
    shown = run("models").stdout
    assert "self-check" in shown
    assert "format" in shown


def test_models_tell_what_cannot_be_loaded_and_why(run: Run, service: FakeService) -> None:
    assert "why" not in run("models").stdout
    assert json.loads(run("models", "--json").stdout)["autoencoders"][0]["error"] is None
    problem = "'tiny/bad' cannot be served: h.0/cfg.json: gram_lookup is True"
    service.autoencoders.append(
        replace(
            INFO, name="tiny/bad", dst=None, node_type=None, layer_indices=(), n_latents=0, activations=(),
            state=ContextState.FAILED, error=DataLoss(problem),
        )
    )  # fmt: skip
    shown = run("models", columns=300).stdout
    row, why = (line.split() for line in shown.splitlines() if line.startswith("tiny/bad"))
    assert row == ["tiny/bad", "failed", "not", "loaded"]
    assert " ".join(why) == f"tiny/bad {problem}"
    failed = json.loads(run("models", "--json").stdout)["autoencoders"][1]
    assert (failed["state"], failed["dst"], failed["error"]["message"]) == ("failed", None, problem)


def test_convert(run: Run, tmp_path: Path) -> None:
    source = checkpoints.write_state_dict(tmp_path / "0.pt", {"activation": "ReLU"})
    target = tmp_path / "0.safetensors"
    result = run("convert", str(source), str(target))
    assert result.exit_code == 0
    assert "5 tensors" in result.stdout
    assert "1 text (activation)" in result.stdout
    assert target.is_file()
    again = run("convert", str(source), str(target))
    assert again.exit_code == 1
    assert "exists already" in again.stderr


def test_convert_of_gguf_says_which_package_it_needs_and_what_is_wrong_with_a_file(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.write_bytes(b"GGUF and no more")
    result = run("convert", str(source), str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "model: is no sound GGUF file" in result.stderr
    code = "import sys; sys.modules['gguf'] = None; from dst_grpc.cli import main; main()"
    command = [sys.executable, "-c", code, "convert", str(source), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'dst-grpc[server,gguf]'" in done.stderr
    assert "Traceback" not in done.stderr
