"""What a user gets from `pip install`: the wheel built from this tree holds everything and nothing else."""

from __future__ import annotations

import configparser
import email
import re
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest

import dst_grpc

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="wheel", scope="module")
def _wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "--quiet",
                "--no-index",
                "--no-deps",
                "--no-build-isolation",
            ),
            *("--wheel-dir", folder, ROOT),
        ],
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.Path(path)


@pytest.fixture(name="names", scope="module")
def _names(wheel: zipfile.Path) -> set[str]:
    return set(wheel.root.namelist())


@pytest.fixture(name="metadata", scope="module")
def _metadata(wheel: zipfile.Path) -> Message:
    (text,) = (entry.joinpath("METADATA").read_text() for entry in wheel.iterdir() if entry.name.endswith(".dist-info"))
    return email.message_from_string(text)


def test_the_wheel_holds_every_file_of_the_package(names: set[str]) -> None:
    """Code, generated code, the embedded model and autoencoders, py.typed: whatever is in the folder."""
    package = ROOT / "dst_grpc"
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names


@pytest.mark.parametrize("suffix", [".safetensors", ".json", ".md", ".yaml"])
def test_the_embedded_default_is_in_the_wheel(names: set[str], suffix: str) -> None:
    assert any(name.startswith("dst_grpc/embedded/") and name.endswith(suffix) for name in names)


def test_the_generated_code_and_the_type_marker_are_in_the_wheel(names: set[str]) -> None:
    assert "dst_grpc/py.typed" in names
    modules = {name for name in names if name.startswith("dst_grpc/_gen/dst/v1/")}
    assert any(name.endswith("_pb2.py") for name in modules)
    assert any(name.endswith("_pb2_grpc.pyi") for name in modules)


def test_nothing_else_is_in_the_wheel(names: set[str]) -> None:
    assert {name.partition("/")[0] for name in names} == {
        "dst_grpc",
        f"dst_grpc-{dst_grpc.__version__}.dist-info",
    }


def test_the_command_is_an_entry_point(wheel: zipfile.Path) -> None:
    parser = configparser.ConfigParser()
    parser.read_string((wheel / f"dst_grpc-{dst_grpc.__version__}.dist-info" / "entry_points.txt").read_text())
    assert parser["console_scripts"]["dst-grpc"] == "dst_grpc.cli:main"


def test_the_version_is_the_package_s(metadata: Message) -> None:
    assert metadata["Name"] == "dst-grpc"
    assert metadata["Version"] == dst_grpc.__version__


def test_a_bare_install_asks_for_the_client_s_packages_only(metadata: Message) -> None:
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    names = {line.partition(">")[0].partition("<")[0].strip() for line in required}
    assert names == {"googleapis-common-protos", "grpcio", "numpy", "protobuf"}


def test_the_licence_is_in_the_wheel(names: set[str]) -> None:
    assert f"dst_grpc-{dst_grpc.__version__}.dist-info/licenses/LICENSE" in names


def name_of(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;@(]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_no_package_that_is_asked_for_overwrites_the_modules_of_another() -> None:
    """As xds-protos would, which brings older copies of opentelemetry-proto: which of them counts is then chance."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"]]
    for group in (*project["project"]["optional-dependencies"].values(), *project["dependency-groups"].values()):
        wanted += [one for one in group if isinstance(one, str)]
    todo, owners = [*map(name_of, wanted)], dict[str, set[str]]()
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of another platform, or of an extra that is not installed
            continue
        todo += [name_of(one) for one in package.requires or () if "extra ==" not in one]
        for file in package.files or ():
            if file.suffix == ".py" and file.name != "__init__.py":
                owners.setdefault(str(file), set()).add(name)
    assert len(seen) > 50
    assert {file: names for file, names in owners.items() if len(names) > 1} == {}
