"""Seed each fault of `faults.toml` in a copy of the package, and see that the tests catch it.

    python -m tests.faults [NAME ...]

A fault whose text is not in the code any more is reported like one that no test catches: adapt it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAULTS = tomllib.loads((Path(__file__).parent / "faults.toml").read_text(encoding="utf-8"))["fault"]
EVERYTHING = ("tests/unit/scalars", "tests/unit/engine", "tests/unit/pipeline", "tests/parity")


def copy_of_repository(folder: Path) -> Path:
    """What the tests need, without what they make."""
    for name in ("dst_grpc", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def first_failure(repository: Path, *paths: str) -> str | None:
    """The first test of *paths* that fails; None if none does."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *paths]
    # Without compiled files: a fault may leave a file's size and second of change as they were.
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE)
    if failed is None and ran.returncode:
        raise RuntimeError(ran.stdout + ran.stderr)
    return None if failed is None else failed[1]


def caught(repository: Path, fault: dict[str, str]) -> str | None:
    """The test that catches *fault*: one of the file that is known to, else any; None if none does."""
    path = repository / fault["file"]
    sound = path.read_text(encoding="utf-8")
    if sound.count(fault["sound"]) != 1:
        return None
    path.write_text(sound.replace(fault["sound"], fault["faulty"]), encoding="utf-8")
    try:
        return first_failure(repository, fault["caught_by"]) or first_failure(repository, *EVERYTHING)
    finally:
        path.write_text(sound, encoding="utf-8")


def main(names: list[str]) -> int:
    """Print a line per fault; 1 if any is not caught."""
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        repository = copy_of_repository(Path(folder))
        for fault in FAULTS:
            if not names or fault["name"] in names:
                test = caught(repository, fault)
                missed += test is None
                sys.stdout.write(f"{fault['name']:24} {test or 'NOT CAUGHT'}\n")
                sys.stdout.flush()
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
