"""What the tests of sources share: a hub that holds a tiny model, and a cache folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dst_grpc.sources import AutoencoderSpec, HubCache, HubSource, ModelSpec
from tests import checkpoints
from tests.fake_hub import REPOSITORY, FakeHub, fake_hub, files_below


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model with autoencoders beside it, and what else a repository holds."""
    folder = checkpoints.write_model(tmp_path_factory.mktemp("repository") / "tiny")
    checkpoints.write_autoencoders(folder / "autoencoders")
    for name in ("README.md", "pytorch_model.bin", "tokenizer_config.json", "onnx/model.onnx"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    return files_below(folder)


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.push(files)
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> HubCache:
    return HubCache(tmp_path / "hub")


@pytest.fixture(autouse=True)
def _own_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token but one that a test gives."""
    monkeypatch.setenv("HF_TOKEN", "")


def model(revision: str = "main", *sets: AutoencoderSpec, **facts: object) -> ModelSpec:
    """The model of the hub, registered."""
    source = HubSource(repository=REPOSITORY, revision=revision)
    return ModelSpec(name="tiny", source=source, autoencoders=sets, **facts)  # type: ignore[arg-type]  # any facts
