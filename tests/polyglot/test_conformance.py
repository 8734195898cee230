"""What the vectors of `tests/conformance` say of answers is what every client's assembler makes of them. No server."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.lacking import skip_for_want_of
from tests.polyglot.toolchains import CLIENTS, NEEDS, missing

VECTORS = CLIENTS.parents[1] / "tests" / "conformance" / "answers.json"

# The first test of a client may have to build it.
pytestmark = pytest.mark.timeout(900)


# A shell has no use for tensors.
@pytest.mark.parametrize("language", sorted(NEEDS.keys() - {"shell"}))
def test_a_client_passes_the_vectors(language: str) -> None:
    skip_for_want_of(missing(language))
    command = ["make", "--silent", "-C", str(CLIENTS / language)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    done = subprocess.run(
        [*command, "conformance", f"VECTORS={VECTORS}"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    expected = {vector["name"]: vector["result"] for vector in json.loads(VECTORS.read_text(encoding="utf-8"))}
    assert json.loads(done.stdout) == expected
