"""What the example clients, their documentation and CI say of one another."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from dst_grpc.client._channel import SERVICE_CONFIG
from tests.polyglot.toolchains import CLIENTS, NEEDS
from tests.processes import group
from tests.services import SERVICES

ROOT = CLIENTS.parents[1]


def installed(text: str) -> set[str]:
    """The packages that the `apt-get install` lines of a page name."""
    lines = re.findall(r"`(?:\w+ )*?apt-get install ([^`&]+)", text)
    return {package for line in lines for package in line.split()}


def ci_packages() -> set[str]:
    """The packages that CI installs for the clients."""
    return set(re.findall(r"^[^#\s].*$", (ROOT / ".ci" / "clients.apt").read_text(), re.MULTILINE))


@pytest.mark.parametrize("language", [language for language in NEEDS if language != "node"])
def test_ci_installs_what_a_client_says_that_it_needs(language: str) -> None:
    named = installed((CLIENTS / language / "README.md").read_text())
    assert named
    assert named <= ci_packages()


def test_the_readmes_name_all_that_ci_installs() -> None:
    named = set[str]().union(*(installed((CLIENTS / language / "README.md").read_text()) for language in NEEDS))
    assert named == ci_packages()
    assert installed((ROOT / "docs" / "clients.md").read_text()) == ci_packages()


def test_every_example_client_is_built_and_documented() -> None:
    folders = {path.parent.name for path in CLIENTS.glob("*/Makefile")}
    assert folders == set(NEEDS)
    page = (ROOT / "docs" / "clients.md").read_text()
    for language in folders:
        assert f"../examples/clients/{language}" in page


def test_the_service_config_retries_every_service() -> None:
    (method_config,) = json.loads(SERVICE_CONFIG)["methodConfig"]
    assert {name["service"] for name in method_config["name"]} == {
        "grpc.health.v1.Health",
        *(one.full_name for one in SERVICES),
    }
    assert method_config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert "maxRequestMessageBytes" not in method_config  # that is for the server to say


def test_the_examples_and_the_python_client_share_a_service_config() -> None:
    assert (CLIENTS / "service_config.json").read_text() == SERVICE_CONFIG


def test_paths_in_the_pages_exist() -> None:
    for page in (ROOT / "docs" / "clients.md", CLIENTS / "README.md", *CLIENTS.glob("*/README.md")):
        for link in re.findall(r"\]\(([^)#:]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"


def test_a_client_that_takes_too_long_ends_with_its_make() -> None:
    def take_too_long(stdout: list[int]) -> None:
        with group(["sh", "-c", "sleep infinity & echo started; wait"]) as process:
            assert process.stdout is not None
            stdout.append(os.dup(process.stdout.fileno()))
            assert process.stdout.readline() == "started\n"
            process.wait(timeout=0)

    kept: list[int] = []
    with pytest.raises(subprocess.TimeoutExpired):
        take_too_long(kept)
    with os.fdopen(kept[0]) as rest:
        assert rest.read() == ""  # it ends, as nobody holds the other end any longer
