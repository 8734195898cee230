"""`dst-grpc pull`, `reload` and `models --registry`: a registry file from the first pull to a server that offers it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dst_grpc.cli._app import app
from dst_grpc.domain.resolution import RegistryChange
from dst_grpc.errors import InvalidRequest
from dst_grpc.rpc.registering import build_registry
from dst_grpc.rpc.settings import Settings
from tests import checkpoints
from tests.fake_hub import REPOSITORY, FakeHub, fake_hub, files_below
from tests.fake_service import FakeService
from tests.unit.cli.conftest import Run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(name="hub")
def _hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        folder = checkpoints.write_model(tmp_path / "repository")
        checkpoints.write_autoencoders(folder / "autoencoders")
        hub.push(files_below(folder))
        yield hub


@pytest.fixture(name="registry")
def _registry(tmp_path: Path) -> Path:
    """Two models of the hub and one of this machine."""
    file = tmp_path / "registry.toml"
    file.write_text(
        f"""
        [models.near]
        source = {{ folder = "repository" }}
        [models.far]
        source = {{ hub = "{REPOSITORY}", revision = "main" }}
        [models.far.autoencoders.mlp_post_act]
        [models.other]
        source = {{ hub = "{REPOSITORY}", revision = "main" }}
        """
    )
    return file


def cli(*arguments: str, hub: FakeHub | None = None, registry: Path | None = None) -> Result:
    """Run `dst-grpc ARGUMENTS` with an environment that knows the hub and the registry."""
    environment = {
        "COLUMNS": None,
        "DST_HUB_ENDPOINT": hub.address if hub is not None else None,
        "DST_HUB_CACHE": str(registry.parent / "hub") if registry is not None else None,
        "DST_REGISTRY": str(registry) if registry is not None else None,
        "HF_TOKEN": "",
    }
    return CliRunner().invoke(app, arguments, env=environment, prog_name="dst-grpc")


def rows(result: Result) -> dict[str, list[str]]:
    """A table's rows by their first word."""
    assert result.exit_code == 0, result.output
    return {line.split()[0]: line.split() for line in result.stdout.splitlines()}


def test_pull_fetches_all_that_is_on_the_hub(hub: FakeHub, registry: Path) -> None:
    found = rows(cli("pull", hub=hub, registry=registry))
    commit = hub.refs[REPOSITORY, "main"][:12]
    assert found["far"][1:5] == [REPOSITORY, commit, "3", "files"]
    assert found["far/mlp_post_act"][1:5] == [f"{REPOSITORY}/autoencoders/mlp_post_act", commit, "2", "files"]
    assert found["other"][-2:] == ["0", "B"]
    assert "near" not in found


def test_pull_may_be_of_some(hub: FakeHub, registry: Path) -> None:
    listed = json.loads(cli("pull", "other", "--json", hub=hub, registry=registry).stdout)
    assert [(one["name"], one["commit"]) for one in listed] == [("other", hub.refs[REPOSITORY, "main"])]
    assert Path(listed[0]["folder"]).is_relative_to(registry.parent / "hub")
    assert "nothing to pull" in cli("pull", "near", hub=hub, registry=registry).stdout
    result = cli("pull", "fra", hub=hub, registry=registry)
    assert result.exit_code == 1
    assert "unknown model 'fra'; the nearest are 'far'" in result.stderr


def test_models_may_be_looked_up_without_a_server(hub: FakeHub, registry: Path) -> None:
    def shown(*, exit_code: int = 0) -> dict[str, list[str]]:
        result = cli("models", "--registry", str(registry), registry=registry)
        assert result.exit_code == exit_code, result.output
        return {line.split()[0]: line.split() for line in result.stdout.splitlines()}

    assert shown(exit_code=1)["far"][1:] == [f"hub:{REPOSITORY}", "main", "no"]
    assert shown(exit_code=1)["near"][1:] == ["folder"]
    cli("pull", "far", hub=hub, registry=registry)
    assert shown()["far"][1:] == [f"hub:{REPOSITORY}", "main", f"({hub.refs[REPOSITORY, 'main'][:12]})", "yes"]
    listed = json.loads(cli("models", "--registry", str(registry), "--json", registry=registry).stdout)
    assert [(row["name"], row["pulled"]) for row in listed] == [
        ("near", None), ("far", True), ("far/mlp_post_act", True), ("other", True),
    ]  # fmt: skip


def test_looking_up_models_fails_for_what_serve_could_not_serve(hub: FakeHub, registry: Path) -> None:
    near = registry.parent / "repository"
    (near / "autoencoders" / "resid_delta_mlp" / "0.safetensors").write_bytes(b"cut short")
    result = cli("models", "--registry", str(registry), registry=registry)
    assert result.exit_code == 1
    command = f"run: dst-grpc pull --registry {registry} --hub-cache {registry.parent / 'hub'} far"
    assert f"far: models.far.source: org/tiny at main is not pulled; {command}" in result.stderr
    assert "near/resid_delta_mlp: 0.safetensors: claims a header of" in result.stderr
    as_json = cli("models", "--registry", str(registry), "--json", registry=registry)
    assert as_json.exit_code == 1
    failures = {row["name"]: row["failure"] for row in json.loads(as_json.stdout)}
    assert failures["near"] == ""
    assert failures["near/resid_delta_mlp"].startswith("0.safetensors: claims a header of")
    assert failures["far"].startswith("models.far.source: org/tiny at main is not pulled")
    assert failures["far/mlp_post_act"].startswith("models.far.autoencoders.mlp_post_act.source: org/tiny at main is")


def test_what_serve_wants_pulled_is_what_pull_pulls(hub: FakeHub, registry: Path) -> None:
    settings = Settings(registry=registry, hub_cache=registry.parent / "hub", device="cpu")
    with pytest.raises(InvalidRequest) as caught:
        build_registry(settings).check_served()
    fields = {violation.field: violation.description for violation in caught.value.violations}
    assert fields.keys() == {
        "models.far.source", "models.far.autoencoders.mlp_post_act.source", "models.other.source",
    }  # fmt: skip
    for description in fields.values():
        command = description.partition("run: dst-grpc ")[2].split()
        assert cli(*command, hub=hub).exit_code == 0
    built = build_registry(settings)
    built.check_served()
    assert [model.name for model in built.models()] == ["far", "near", "other"]
    assert built.model("far").digest == built.model("near").digest == built.model("other").digest


def test_the_example_can_be_served() -> None:
    built = build_registry(Settings(registry=ROOT / "examples" / "registry.toml", device="cpu"))
    assert built.preload == ("embedded",)
    assert built.autoencoder_entry("local/neurons", "local").layer_indices == (0, 1)
    assert built.model("").name == "embedded"


def test_what_goes_wrong_is_told_in_lines(hub: FakeHub, registry: Path) -> None:
    hub.wrong["model.safetensors"] = b"x"
    result = cli("pull", hub=hub, registry=registry)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: far, from {REPOSITORY} at main: model.safetensors: has 1 bytes, not ")
    hub.wrong.clear()
    hub.statuses["/api"] = 500
    result = cli("pull", hub=hub, registry=registry)
    assert "HTTP 500; run the same command again" in result.stderr
    (registry.parent / "hub").rename(registry.parent / "moved")
    (registry.parent / "hub").write_text("a file where the folder should be")
    hub.statuses.clear()
    result = cli("pull", hub=hub, registry=registry)
    assert result.exit_code == 1
    assert "hub" in result.stderr
    registry.write_text("[models.a]\ncolour = 1\n")
    result = cli("pull", hub=hub, registry=registry)
    assert "models.a.colour: there is no such key" in result.stderr
    assert "models.a.source: is required" in result.stderr
    for failed in (cli("pull"), cli("pull", "--registry", "/none.toml")):
        assert failed.exit_code == 2
        assert "registry" in failed.stderr
    assert "Traceback" not in result.output


def test_without_the_extra_it_says_how_to_install_it(registry: Path) -> None:
    code = "import sys; sys.modules['huggingface_hub'] = None; from dst_grpc.cli import main; main()"
    command = [sys.executable, "-c", code, "pull", "--registry", str(registry)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'dst-grpc[server,hub]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_pulling_imports_no_torch(registry: Path) -> None:
    code = (
        "import sys; from dst_grpc.cli._app import app; import dst_grpc.sources.pull, dst_grpc.rpc.settings_sources;"
        " sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_reload_tells_what_it_changed(run: Run, service: FakeService) -> None:
    assert rows(run("reload")) == {
        "context": ["context", "is"],
        "new": ["new", "added"],
        "old": ["old", "removed"],
        "old/mlp": ["old/mlp", "removed"],
        "tiny": ["tiny", "changed"],
    }
    assert json.loads(run("reload", "--json").stdout) == {
        "added": ["new"], "removed": ["old", "old/mlp"], "changed": ["tiny"],
    }  # fmt: skip
    service.reloaded = [RegistryChange()]
    assert run("reload").stdout.strip() == "reloaded; the registry offers what it did"  # tokens may have changed
    service.error = InvalidRequest.of("models.a.source", "is required")
    result = run("reload")
    assert result.exit_code == 1
    assert "models.a.source: is required" in result.stderr
