"""What is in `deploy/` agrees with itself and with the server: files that are named exist, settings are settings, and
whoever stops a server waits for longer than it takes. What checkers judge is `make deploy-check`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dst_grpc.rpc.settings import Settings
from dst_grpc.rpc.settings_sources import load_settings
from scripts.prometheus_rule import MANIFEST, manifest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUSTOMIZATIONS = sorted(KUBERNETES.glob("*/kustomization.yaml"))
LABELS = {"app.kubernetes.io/name": "dst-grpc"}
KILL_MARGIN_SECONDS = 15.0
NOT_OF_THE_SERVER = {"DST_CONFIG"}


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def resolved(kustomization: Path) -> list[Path]:
    """The files that a kustomization names, those of others that it names included; all must exist."""
    found: list[Path] = []
    content = loaded(kustomization)
    patches = [patch["path"] for patch in content.get("patches", ()) if "path" in patch]
    generated = [name for each in content.get("configMapGenerator", ()) for name in each["files"]]
    for name in (*content.get("resources", ()), *content.get("components", ()), *patches, *generated):
        path = (kustomization.parent / name).resolve()
        assert path.exists(), f"{kustomization}: {name}"
        found += resolved(path / "kustomization.yaml") if path.is_dir() else [path]
    return found


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_a_kustomization_names_all_files_beside_it(kustomization: Path) -> None:
    beside = {path for path in kustomization.parent.iterdir() if path != kustomization}
    assert beside <= {*resolved(kustomization)}


def settings_of(texts: dict[str, str]) -> Settings:
    """The settings that variables give, with those alone that name no file."""
    unknown = {name for name in texts if name.removeprefix("DST_").lower() not in Settings.model_fields}
    assert not unknown
    files = ("_FILE", "_CERTIFICATE", "_KEY", "REGISTRY", "HUB_CACHE")
    plain = {name.removeprefix("DST_").lower(): text for name, text in texts.items() if not name.endswith(files)}
    return load_settings(plain)


def container(path: Path) -> Any:
    (found,) = loaded(path)["spec"]["template"]["spec"]["containers"]
    return found


def env_of(path: Path) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(path)["env"] if each["name"].startswith("DST_")}


def dockerfile_env() -> dict[str, str]:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    return dict(re.findall(r"(DST_[A-Z_]+)=(\S+)", text))


def of_unit(name: str) -> list[str]:
    text = (DEPLOY / "systemd" / "dst-grpc.service").read_text(encoding="utf-8")
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"DST_{name.upper()}", raising=False)


def test_pods_are_killed_later_than_they_need_to_stop() -> None:
    base = KUBERNETES / "base" / "deployment.yaml"
    settings = settings_of(dockerfile_env() | env_of(base))
    assert settings.drain_notice_seconds > 0
    grace = loaded(base)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > settings.drain_notice_seconds + settings.grace_seconds + KILL_MARGIN_SECONDS
    settings_of(dockerfile_env() | env_of(base) | env_of(KUBERNETES / "gpu" / "deployment.yaml"))


def test_a_container_is_killed_later_than_it_needs_to_stop() -> None:
    server = loaded(DEPLOY / "compose.yaml")["services"]["server"]
    own = {name: "" if "${" in value else value for name, value in server["environment"].items()}
    settings = settings_of(dockerfile_env() | own)
    settings_of(loaded(DEPLOY / "compose.gpu.yaml")["services"]["server"]["environment"])
    stop = float(server["stop_grace_period"].removesuffix("s"))
    assert stop > settings.drain_notice_seconds + settings.grace_seconds + KILL_MARGIN_SECONDS


def test_compose_mounts_what_there_is_and_scrapes_the_server() -> None:
    compose = loaded(DEPLOY / "compose.yaml")["services"]
    for service in ("prometheus", "grafana"):
        files = [volume.split(":")[0] for volume in compose[service]["volumes"] if volume.startswith("./")]
        assert files
        assert all((DEPLOY / file).exists() for file in files)
    (scrape,) = loaded(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert scrape["static_configs"][0]["targets"] == [f"127.0.0.1:{settings_of(dockerfile_env()).metrics_port}"]
    assert compose["prometheus"]["network_mode"] == "service:server"


def test_a_unit_is_killed_later_than_it_needs_to_stop() -> None:
    (start,), (stop,) = of_unit("ExecStart"), of_unit("TimeoutStopSec")
    flags = dict(re.findall(r"--(\S+) (\S+)", start))
    assert flags.keys() - {"config"} <= {name.replace("_", "-") for name in Settings.model_fields}
    assert float(stop) > float(flags["drain-notice-seconds"]) + float(flags["grace-seconds"]) + KILL_MARGIN_SECONDS
    assert of_unit("Type") == ["notify"]
    assert of_unit("KillMode") == ["mixed"]


def test_a_unit_with_wrong_settings_is_not_started_again() -> None:
    """Only the status of ExecStart is compared with those that prevent a restart."""
    assert (of_unit("Restart"), of_unit("RestartPreventExitStatus")) == (["on-failure"], ["2"])
    assert of_unit("ExecStartPre") == []


def test_probes_ask_the_plain_port_and_only_the_loop_decides_a_restart() -> None:
    server = container(KUBERNETES / "base" / "deployment.yaml")
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    settings = settings_of(dockerfile_env())
    assert ports == {"grpc": settings.port, "health": settings.health_port, "metrics": settings.metrics_port}
    probes = {name: server[f"{name}Probe"]["grpc"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {settings.health_port}
    assert probes["liveness"]["service"] == "live"
    assert "service" not in probes["startup"]


def test_selectors_are_of_the_pods() -> None:
    base = KUBERNETES / "base"
    deployment = loaded(base / "deployment.yaml")["spec"]
    assert deployment["template"]["metadata"]["labels"] == LABELS
    assert deployment["selector"]["matchLabels"] == LABELS
    assert loaded(base / "service.yaml")["spec"]["selector"] == LABELS
    assert loaded(base / "disruption-budget.yaml")["spec"]["selector"]["matchLabels"] == LABELS
    assert loaded(base / "network-policy.yaml")["spec"]["podSelector"]["matchLabels"] == LABELS
    assert loaded(KUBERNETES / "monitoring" / "pod-monitor.yaml")["spec"]["selector"]["matchLabels"] == LABELS


def test_secrets_are_folders_that_settings_name_files_of() -> None:
    base = KUBERNETES / "base" / "deployment.yaml"
    mounts = container(base)["volumeMounts"]
    assert all("subPath" not in mount for mount in mounts), "what is replaced would not be seen"
    folders = {mount["mountPath"] for mount in mounts}
    files = [Path(value) for value in env_of(base).values() if value.startswith("/")]
    assert len(files) == 4
    assert {str(file.parent) for file in files} <= folders


def test_alerts_know_the_pods_by_the_job_of_their_monitor() -> None:
    monitor = loaded(KUBERNETES / "monitoring" / "pod-monitor.yaml")["spec"]
    (scrape,) = loaded(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert LABELS[monitor["jobLabel"]] == scrape["job_name"]
    jobs = re.findall(r'job="([^"]*)"', (DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    assert {*jobs} == {scrape["job_name"]}


def test_the_operator_is_given_the_alerts_that_there_are() -> None:
    written = MANIFEST.read_text(encoding="utf-8")
    assert written == manifest(), "python -m scripts.prometheus_rule makes it again"
    assert loaded(MANIFEST)["spec"] == loaded(DEPLOY / "prometheus" / "alerts.yml")


def test_what_is_of_the_namespace_says_so() -> None:
    """In an overlay that sets none, the namespace of base is not given to what components bring."""
    manifests = {path for file in KUSTOMIZATIONS for path in resolved(file) if path.suffix == ".yaml"}
    found = {path: loaded(path) for path in sorted(manifests)}
    assert len(found) > 9
    for path, content in found.items():
        of_none = content["kind"] == "Namespace"
        assert content["metadata"].get("namespace") == (None if of_none else "dst-grpc"), path


def test_what_scales_pods_alone_says_how_many() -> None:
    (patch,) = loaded(KUBERNETES / "autoscaling" / "kustomization.yaml")["patches"]
    assert patch["target"] == {"kind": "Deployment", "name": "dst-grpc"}
    assert yaml.safe_load(patch["patch"]) == [{"op": "remove", "path": "/spec/replicas"}]
    assert "replicas" in loaded(KUBERNETES / "base" / "deployment.yaml")["spec"]


def test_pods_are_scaled_by_a_metric_that_there_is() -> None:
    (trigger,) = loaded(KUBERNETES / "autoscaling" / "scaled-object.yaml")["spec"]["triggers"]
    (metric,) = re.findall(r"dst_\w+", trigger["metadata"]["query"])
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "dst_grpc" / "observability").glob("*.py"))
    assert f'"{metric}"' in source
