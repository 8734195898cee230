"""What guards the frozen wire: it fails where it has nothing to compare with, rather than pass."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "breaking.sh"
BUF = shutil.which("buf", path=str(ROOT / ".venv" / "bin")) or shutil.which("buf")


def breaking(folder: Path) -> subprocess.CompletedProcess[str]:
    assert BUF is not None, "buf is a tool of `make setup`"
    command = ["sh", str(SCRIPT)]
    return subprocess.run(
        command,
        cwd=folder,
        env={"BUF": BUF, "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(name="copy")
def _copy(tmp_path: Path) -> Path:
    """The protos beside their frozen image, to be changed."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    return tmp_path


def test_the_protos_are_compatible_with_the_frozen_image(copy: Path) -> None:
    assert breaking(copy).returncode == 0


def test_a_missing_image_is_an_error(copy: Path) -> None:
    (copy / "protos" / "dst-v1-0.1.0.binpb").unlink()
    result = breaking(copy)
    assert result.returncode == 1
    assert "is missing" in result.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("uint32 n_layers = 1;", "uint32 n_layerz = 1;"),
        ("uint32 n_layers = 1;", "uint64 n_layers = 1;"),
        ("uint32 d_model = 2;", ""),
    ],
)
def test_a_renamed_retyped_or_removed_field_is_found(copy: Path, before: str, after: str) -> None:
    file = copy / "protos" / "dst" / "v1" / "catalog.proto"
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))
    result = breaking(copy)
    assert result.returncode != 0
    assert "catalog.proto" in result.stdout


def test_a_field_may_be_added(copy: Path) -> None:
    file = copy / "protos" / "dst" / "v1" / "catalog.proto"
    file.write_text(file.read_text().replace("uint32 d_model = 2;", "uint32 d_model = 2;\n  uint32 n_more = 99;"))
    assert breaking(copy).returncode == 0
