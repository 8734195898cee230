"""Who may import whom, and that the client needs the bare install only."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SERVER_ONLY = (
    "torch",
    "safetensors",
    "tokenizers",
    "transformers",
    "grpc_health",
    "grpc_reflection",
    "grpc_status",
    "huggingface_hub",
    "opentelemetry",
    "prometheus_client",
    "pydantic",
    "pydantic_settings",
    "rich",
    "typer",
)

BLOCKER = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_blocked(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter in which the server's packages cannot be imported."""
    program = BLOCKER.format(blocked=frozenset(SERVER_ONLY)) + code
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_import_contracts_hold() -> None:
    lint_imports = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", SERVER_ONLY)
def test_the_blocker_blocks(package: str) -> None:
    done = run_blocked(f"import {package}")
    assert f"blocked: {package}" in done.stderr


@pytest.mark.parametrize("package", ["dst_grpc.client", "dst_grpc.wire", "dst_grpc.domain", "dst_grpc.errors"])
def test_a_bare_install_is_enough(package: str) -> None:
    """Every module below the package imports, not just its `__init__`."""
    done = run_blocked(
        "import pkgutil\n"
        f"root = importlib.import_module({package!r})\n"
        f"for module in pkgutil.walk_packages(getattr(root, '__path__', ()), {package + '.'!r}):\n"
        "    importlib.import_module(module.name)\n"
    )
    assert done.returncode == 0, done.stderr


def test_every_library_that_the_package_imports_is_declared() -> None:
    """Tests run with more than a user installs: what only a test asks for would be missed there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    declared = {normalised(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in required}
    distributions = importlib.metadata.packages_distributions()
    imported = {
        name.partition(".")[0]
        for path in (ROOT / "dst_grpc").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in names_of(node)
    }
    libraries = imported - sys.stdlib_module_names - {"dst_grpc", "__future__", "google"}
    missing = {name for name in libraries if declared.isdisjoint(map(normalised, distributions.get(name, ())))}
    # pydantic comes with pydantic-settings, which is made for it.
    assert missing <= {"pydantic"}


def normalised(distribution: str) -> str:
    """Its name as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def names_of(node: ast.AST) -> list[str]:
    """The modules that an import names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
