"""`make deploy-check`: what is in `deploy/`, judged by the checkers that run without a network.

hadolint reads the Dockerfile; kubernetes-validate the manifests, by the schemas of Kubernetes; checkov both, by its
rules; systemd-analyze the unit; Docker and kubectl the compose files and overlays, where they are there. The first
three lie in an environment of their own: argument 1 is its folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUBERNETES_VERSIONS = ("1.30", "1.36")
"""The oldest and the newest that the manifests are for."""
OVERLAYS = ("base", "gpu")
COMPONENTS = ("monitoring", "autoscaling")
NOT_FOLLOWED = {
    "CKV_K8S_15": "an image of a fixed tag need not be pulled again",
    "CKV_K8S_43": "a digest is what who builds the image knows",
}
"""Rules of checkov that are passed over, and why."""


def plain_manifests() -> list[Path]:
    """The manifests that are whole by themselves, and that Kubernetes itself knows."""
    return [path for path in sorted((KUBERNETES / "base").glob("*.yaml")) if path.name != "kustomization.yaml"]


def commands(tools: Path, folder: Path) -> Iterator[tuple[str, Sequence[str | Path]]]:
    """What to run: a name, and the command. *folder* is for what is made on the way."""
    yield "hadolint", [tools / "hadolint", DEPLOY / "Dockerfile"]
    manifests = plain_manifests()
    if kubectl := shutil.which("kubectl"):
        for overlay in OVERLAYS:
            built = folder / f"{overlay}.yaml"
            done = subprocess.run([kubectl, "kustomize", KUBERNETES / overlay], capture_output=True, check=True)
            built.write_bytes(done.stdout)
            manifests.append(built)
        # What their components bring is of kinds that Kubernetes itself does not know.
        yield "kubectl kustomize (components)", [kubectl, "kustomize", _with_components(folder)]
    for version in KUBERNETES_VERSIONS:
        yield f"kubernetes-validate {version}", [tools / "kubernetes-validate", "--strict", "-k", version, *manifests]
    checkov: list[str | Path] = [
        tools / "checkov",
        "--skip-download",
        "--quiet",
        "--compact",
        "--skip-check",
        ",".join(NOT_FOLLOWED),
    ]
    yield "checkov (Dockerfile)", [*checkov, "--framework", "dockerfile", "--file", DEPLOY / "Dockerfile"]
    yield "checkov (Kubernetes)", [*checkov, "--framework", "kubernetes", *(f"--file={path}" for path in manifests)]
    if analyze := shutil.which("systemd-analyze"):
        yield "systemd-analyze", [analyze, "verify", "--man=no", _unit(folder)]
    if docker := _compose():
        for files in (["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]):
            given = [f"--file={DEPLOY / file}" for file in files]
            yield f"docker compose ({', '.join(files)})", [docker, "compose", *given, "config", "--quiet"]


def _with_components(folder: Path) -> Path:
    """A kustomization of the base with all components."""
    overlay = folder / "components"
    overlay.mkdir()
    places = {name: os.path.relpath(KUBERNETES / name, overlay) for name in ("base", *COMPONENTS)}
    text = f"resources: [{places['base']}]\ncomponents: [{', '.join(places[name] for name in COMPONENTS)}]\n"
    (overlay / "kustomization.yaml").write_text(text, encoding="utf-8")
    return overlay


def _unit(folder: Path) -> Path:
    """The unit, with its drop-in, for a machine on which there is some program where the server would be."""
    unit = folder / "dst-grpc.service"
    text = (DEPLOY / "systemd" / unit.name).read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/dst-grpc/bin/dst-grpc", sys.executable), encoding="utf-8")
    drop_ins = folder / f"{unit.name}.d"
    drop_ins.mkdir()
    shutil.copy(DEPLOY / "systemd" / "credentials.conf", drop_ins)
    return unit


def _compose() -> str | None:
    """Docker, if it has the command `compose`."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        return None
    return docker


def main() -> None:
    """Run all, and fail if any does."""
    tools, failed = Path(sys.argv[1]), []
    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands(tools, Path(folder)):
            done = subprocess.run(
                [str(part) for part in command], capture_output=True, text=True, check=False, cwd=ROOT
            )
            # systemd-analyze tells of some mistakes with a status of 0.
            is_right = done.returncode == 0 and not (name == "systemd-analyze" and done.stderr)
            print(f"{name}: {'right' if is_right else 'WRONG'}")
            if not is_right:
                failed.append(name)
                print(done.stdout, done.stderr, sep="\n")
    if failed:
        sys.exit(f"deploy-check: {', '.join(failed)}")


if __name__ == "__main__":
    main()
