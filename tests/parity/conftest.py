"""Counts rows over all cases, and says at the end how many equal the reference's."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from dst_grpc.contexts.loading import FileLoader
from dst_grpc.contexts.registry import Registry
from tests.parity.cases import GOLDEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.scalars.explained_model import AutoencoderSet

TOTAL_ROWS = 1319
TOTAL_PARTS = 108
"""Of ten debugging requests with twelve runs, nine parts each."""
_counts: Counter[str] = Counter()


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """The reference's model and autoencoders, laid out as an operator would."""
    folder = tmp_path_factory.mktemp("golden")
    shutil.copytree(GOLDEN / "model", folder, dirs_exist_ok=True)
    shutil.copytree(GOLDEN / "autoencoders", folder / "autoencoders")
    return Registry.build(models={"golden": folder}, device="cpu", include_embedded=False)


@pytest.fixture(scope="session")
def model(registry: Registry) -> ModelContext:
    """The reference's model."""
    return FileLoader().load_model(registry.model_entry("golden"), lambda _: None)


@pytest.fixture(scope="session")
def sets(registry: Registry, model: ModelContext) -> dict[str, AutoencoderSet]:
    """Its autoencoders, which are random and reconstruct nothing."""
    loader = FileLoader(allow_failed_checks=True)
    entries = [registry.autoencoder_entry(info.name, "golden") for info in registry.autoencoders()]
    return {entry.name: loader.load_autoencoders(entry, model, lambda _: None) for entry in entries}


@pytest.fixture
def count_row() -> Callable[[str, str], None]:
    """Count one row, or part, of one way of running (in process, over the wire): equal, on purpose, or different."""

    def count(way: str, verdict: str) -> None:
        _counts[f"{way}/{verdict}"] += 1

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line per way of running."""
    for way in sorted({key.split("/")[0] for key in _counts}):
        equal, purpose, bad = (_counts[f"{way}/{verdict}"] for verdict in ("equal", "on purpose", "different"))
        what, total = ("parts", TOTAL_PARTS) if way.startswith("explain") else ("rows", TOTAL_ROWS)
        terminalreporter.write_line(
            f"parity {way}: {equal} {what} equal the reference, {purpose} differ on purpose, {bad} are wrong,"
            f" {equal + purpose + bad} of {total} were run"
        )
