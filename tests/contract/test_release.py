"""What `make release` builds: each archive holds what it should, and the protos are enough to build a client."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

import dst_grpc
from scripts import release
from scripts.bill_of_materials import bill_of_materials


@pytest.fixture(name="built", scope="module")
def _built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of a release, by name."""
    return {path.name: path for path in release.release(tmp_path_factory.mktemp("release"))}


@pytest.fixture(name="protos", scope="module")
def _protos(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tarball of the protos, unpacked."""
    folder = tmp_path_factory.mktemp("protos")
    name = f"dst-protos-{dst_grpc.__version__}"
    with tarfile.open(built[f"{name}.tar.gz"]) as tar:
        tar.extractall(folder, filter="data")
    return folder / name


def test_a_release_is_an_sdist_a_wheel_the_protos_a_bill_of_materials_and_checksums(built: dict[str, Path]) -> None:
    version = dst_grpc.__version__
    archives = {f"dst_grpc-{version}-py3-none-any.whl", f"dst_grpc-{version}.tar.gz", f"dst-protos-{version}.tar.gz"}
    archives.add(f"dst-grpc-{version}.cdx.json")
    assert set(built) == {*archives, "SHA256SUMS"}
    sums = {tuple(line.split("  ")) for line in built["SHA256SUMS"].read_text().splitlines()}
    assert sums == {(hashlib.sha256(built[name].read_bytes()).hexdigest(), name) for name in archives}


def test_the_bill_of_materials_has_all_that_is_needed(built: dict[str, Path]) -> None:
    bill = json.loads(built[f"dst-grpc-{dst_grpc.__version__}.cdx.json"].read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["metadata"]["component"]["version"]) == ("CycloneDX", dst_grpc.__version__)
    parts = {part["name"]: part["version"] for part in bill["components"]}
    assert parts.keys() >= {"torch", "grpcio", "protobuf", "numpy", "pydantic-core", "opentelemetry-sdk", "typer"}
    assert all(parts[name] == distribution(name).version for name in parts)
    assert not {"pytest", "mypy", "ruff"} & parts.keys()
    (own,) = [entry for entry in bill["dependencies"] if entry["ref"].startswith("dst-grpc@")]
    assert f"torch@{parts['torch']}" in own["dependsOn"]
    assert f"pydantic-core@{parts['pydantic-core']}" not in own["dependsOn"]


def test_the_same_tree_gives_the_same_bill_of_materials(built: dict[str, Path]) -> None:
    assert built[f"dst-grpc-{dst_grpc.__version__}.cdx.json"].read_text(encoding="utf-8") == bill_of_materials(
        release.MADE_AT
    )


def test_the_same_tree_gives_the_same_protos(built: dict[str, Path], tmp_path: Path) -> None:
    again = release.write_protos(tmp_path)
    assert again.read_bytes() == built[again.name].read_bytes()


def test_the_protos_compile_with_nothing_else(protos: Path, tmp_path: Path) -> None:
    assert (protos / "LICENSE").is_file()
    files = sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))
    assert {"dst/v1/derived_scalar_service.proto", "google/rpc/status.proto", "grpc/health/v1/health.proto"} < {*files}
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", f"--descriptor_set_out={tmp_path / 'set'}"]
    subprocess.run([*command, *files], check=True)


def test_the_wheel_brings_the_same_protos(built: dict[str, Path], protos: Path) -> None:
    prefix = "dst_grpc/protos/"
    with zipfile.ZipFile(built[f"dst_grpc-{dst_grpc.__version__}-py3-none-any.whl"]) as wheel:
        inside = {name.removeprefix(prefix): wheel.read(name) for name in wheel.namelist() if name.startswith(prefix)}
    assert inside == {path.relative_to(protos).as_posix(): path.read_bytes() for path in protos.rglob("*.proto")}


def test_the_same_wheel_is_built_from_the_sdist(built: dict[str, Path], tmp_path: Path) -> None:
    name = f"dst_grpc-{dst_grpc.__version__}"
    with tarfile.open(built[f"{name}.tar.gz"]) as tar:
        tar.extractall(tmp_path, filter="data")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path / name, check=True)
    with (
        zipfile.ZipFile(next((tmp_path / name / "dist").iterdir())) as ours,
        zipfile.ZipFile(built[f"{name}-py3-none-any.whl"]) as wheel,
    ):
        assert ours.namelist() == wheel.namelist()
