"""Absurd numbers, types and depth in files of every format are refused when the file is opened, with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.errors import DataLoss
from dst_grpc.sources.registry_file import read_registry
from tests.unit.engine import hostile_files

ROOT = Path(__file__).parents[3]


def test_absurd_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    """In a process of its own, whose memory is limited; tests that are killed tell nothing."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.unit.engine.hostile_files", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=110, check=True)
    *wrong, summary = done.stdout.decode().splitlines()
    assert wrong == []
    assert int(summary.split()[0]) > 4000


def test_the_files_that_are_made_absurd_are_sound_themselves(tmp_path: Path) -> None:
    for i, config in enumerate(hostile_files._CONFIGS):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(DataLoss, match=r"model\.safetensors: is missing"):
            open_checkpoint(folder)
    registry = tmp_path / "r.toml"
    tables = [("models.a", hostile_files._REGISTRY), ("models.a.autoencoders.b", hostile_files._SET)]
    registry.write_text("\n".join(hostile_files._table(*each) for each in tables))
    assert read_registry(registry)
