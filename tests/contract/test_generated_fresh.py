"""The committed generated code is what the committed protos generate."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_generated_code_is_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_generated_code_imports_without_a_warning() -> None:
    """A protobuf runtime that dislikes the generated code's version says so when it is imported."""
    code = (
        "import importlib, pkgutil, dst_grpc._gen as root\n"
        "names = [m.name for m in pkgutil.walk_packages(root.__path__, 'dst_grpc._gen.')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(sum(name.endswith('_pb2') for name in names))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(list((ROOT / "protos" / "dst").rglob("*.proto")))


def test_the_floor_of_grpcio_is_the_compiler_s_version() -> None:
    """The generated stubs refuse a grpcio older than the grpcio-tools that made them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = dict(line.split("==") for line in project["dependency-groups"]["protos"])
    assert f"grpcio>={pins['grpcio-tools']}" in project["project"]["dependencies"]
    assert importlib.metadata.version("grpcio-tools") == pins["grpcio-tools"]
