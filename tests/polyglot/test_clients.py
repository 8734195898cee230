"""Every client in `examples/clients` makes the same tour of a live server, and prints the same document.

What the document must be is what the Python client says (`reference.py`), and where the reference results know the
numbers, those. A client whose toolchain is not there is skipped, except where CI runs.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from dst_grpc.domain.components import PassType
from tests.lacking import skip_for_want_of
from tests.parity.cases import load_case
from tests.polyglot.conftest import LiveServer
from tests.polyglot.reference import tour
from tests.polyglot.refusals import REFUSALS, RefusingCatalog, refusing_server
from tests.polyglot.toolchains import CLIENTS, NEEDS, missing
from tests.processes import group

TOURS = {"embedded": CLIENTS / "tour.json", "golden": Path(__file__).parent / "golden.json"}
IN_SHELL = {"health", "models", "types", "tokens", "unicode", "resolve", "resolve_stream", "retry"}
PATCHING = {"go", "node", "ruby"}
"""The clients that patch too."""
GRAPHING = {"go", "node"}
"""The clients that ask for a graph too."""
SPEAKING_TLS = [language for language in NEEDS if language != "java"]
"""The clients that speak TLS and show tokens: Debian's Netty has no ALPN, which gRPC needs."""
CASES = {"dense": "loss_logit_diff", "sparse": "loss_with_mlp_post_act_autoencoder"}
"""The tour's requests that the reference knows, and its cases."""
RELATIVE_TOLERANCE = 1e-4

# The first test of a client may have to build it.
pytestmark = pytest.mark.timeout(900)

Json = Any


class Run(NamedTuple):
    """A tour that was made."""

    language: str
    document: Json
    refusing: RefusingCatalog
    """The server that refused, with what it saw."""
    log_start: int
    """How long the server's log was before."""


def has_cancelled_one(lines: list[str]) -> bool:
    """Whether the server's log says that it was told to stop in the middle of one Derive."""
    return sum("DerivedScalarService/Derive code=CANCELLED" in line for line in lines) == 1


@pytest.fixture(scope="module", params=TOURS)
def inputs(request: pytest.FixtureRequest) -> Path:
    """What a tour is about."""
    return TOURS[request.param]


@pytest.fixture(scope="module")
def reference(server: LiveServer, inputs: Path) -> Json:
    """The document of the Python client."""
    server.unload_all()
    log_start = len(server.log.lines)
    with refusing_server() as refusing:
        document = asyncio.run(tour(server.address, json.loads(inputs.read_text()), refusing.address))
    assert inputs != TOURS["embedded"] or server.log.wait_for(has_cancelled_one, since=log_start)
    # As the other documents come: a tuple is a list.
    return json.loads(json.dumps(document))


@pytest.fixture(scope="module", params=NEEDS)
def language(request: pytest.FixtureRequest) -> str:
    """A client that can be built here."""
    skip_for_want_of(missing(request.param))
    return str(request.param)


@pytest.fixture(scope="module")
def run(server: LiveServer, inputs: Path, language: str, reference: Json) -> Iterator[Run]:
    """The tour of one client, after that of the reference."""
    server.unload_all()
    log_start = len(server.log.lines)
    with refusing_server() as refusing:
        done = made(language, f"ADDRESS={server.address}", f"TOUR={inputs}", f"RETRY_ADDRESS={refusing.address}")
        assert done.returncode == 0, done.stderr
        assert "loading " in done.stderr
        yield Run(language, json.loads(done.stdout), refusing, log_start)


def made(language: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The tour of a client that is built, if it was not."""
    command = ["make", "--silent", "-C", str(CLIENTS / language)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    command += ["run", *arguments]
    with group(command, os.environ | environment) as process:
        stdout, stderr = process.communicate(timeout=100)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def assert_equal(document: Json, reference: Json, language: str) -> None:
    """A client's document is the reference's, as far as the client goes."""
    expected = {name: part for name, part in reference.items() if language != "shell" or name in IN_SHELL}
    if language not in PATCHING:
        expected.pop("patch", None)
    if language not in GRAPHING:
        expected.pop("graph", None)
    assert document.keys() == expected.keys()
    for name, part in expected.items():
        assert document[name] == part, name


def test_the_documents_are_equal(run: Run, reference: Json) -> None:
    assert_equal(run.document, reference, run.language)


@pytest.mark.parametrize("inputs", ["embedded"], indirect=True)
@pytest.mark.parametrize("language", SPEAKING_TLS, indirect=True)
def test_a_client_speaks_tls_and_shows_its_token(
    secure_server: LiveServer, inputs: Path, language: str, reference: Json
) -> None:
    secure_server.unload_all()
    known = secure_server.credentials
    arguments = [f"ADDRESS={secure_server.address}", f"TOUR={inputs}"]
    done = made(language, *arguments, **known)
    assert done.returncode == 0, done.stderr
    retried = {"text": json.loads(inputs.read_text())["prompt"]}  # by the same server, which refuses nothing
    assert_equal(json.loads(done.stdout), reference | {"retry": retried}, language)

    unknown = made(language, *arguments, DST_CLIENT_CA=known["DST_CLIENT_CA"])
    assert unknown.returncode != 0
    assert "unauthenticated" in unknown.stderr.lower()
    unencrypted = made(language, *arguments)
    assert unencrypted.returncode != 0


def test_a_client_tries_again_when_the_server_says(run: Run) -> None:
    delays = [refusal.retry_after_seconds or math.inf for refusal in REFUSALS]
    pauses = run.refusing.pauses()
    assert len(pauses) == len(delays)
    # Clocks differ by a little between the two ends.
    assert all(pause > delay - 0.01 for pause, delay in zip(pauses, delays, strict=True)), (pauses, delays)


def test_a_call_tells_proxies_its_model(run: Run, inputs: Path) -> None:
    assert set(run.refusing.routes) == {json.loads(inputs.read_text())["model"]}


def test_a_cancelled_call_ends_on_the_server(run: Run, server: LiveServer, inputs: Path) -> None:
    if run.language == "shell" or inputs != TOURS["embedded"]:
        return  # it cancels nothing, or the answer is too small not to have been sent already
    assert server.log.wait_for(has_cancelled_one, since=run.log_start)


# ---- the reference itself


def test_the_tour_covers_what_it_is_for(reference: Json, inputs: Path) -> None:
    derived = {name: answer["tensors"] for name, answer in reference["derive"].items()}
    assert any(tensor["minus_infinities"] for tensor in derived["dense"])
    assert {tensor["encoding"] for tensor in derived["sparse"]} == {"TENSOR_ENCODING_SPARSE_LATENTS"}
    for name in ("float16", "bfloat16"):
        assert {tensor["element_type"] for tensor in derived[name]} == {f"TENSOR_ELEMENT_TYPE_{name.upper()}"}
        assert {tensor["pass_type"] for tensor in derived[name]} == {"PASS_TYPE_FORWARD", "PASS_TYPE_BACKWARD"}
    assert reference["resolve"]["stages"] == ["VALIDATED", "LOADING", "RESOLVED"]
    assert len(reference["resolve"]["loaded"]) == 2
    assert len(reference["rejected"]["fields"]) == 4
    poisoned = [item for item in reference["derive_stream"].values() if "error" in item]
    assert [item["error"]["reason"] for item in poisoned] == ["NOT_ONE_TOKEN"]
    assert len(reference["derive_stream"]) == 8
    assert reference["explain"]["groups"]
    assert reference["explain"]["top_logits"]
    assert reference["patch"]["axes"] == ["layer", "position"]
    assert len(set(reference["patch"]["metrics"])) > len(reference["patch"]["metrics"]) // 2
    graph = reference["graph"]
    if inputs == TOURS["embedded"]:
        assert {name[0] for name in graph["nodes"]} >= {"f", "e", "t", "l"}
        assert len(graph["edges"]) > len(graph["inputs"]) == 3
        assert {end for _, end, _ in graph["inputs"]} == {graph["nodes"][-2]}
        assert reference["derive"]["dense"]["byte_count"] > 3 << 20, "no tensor needs several chunks"
        lengths = {item["token_count"] for item in reference["derive_stream"].values() if "error" not in item}
        assert len(lengths) == 7
    else:  # the golden model has no transcoders
        assert graph == {"error": {"code": "INVALID_ARGUMENT", "reason": "INVALID_FIELD", "fields": ["transcoders"]}}


@pytest.mark.parametrize("inputs", ["golden"], indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_the_reference_s(name: str, reference: Json) -> None:
    case = load_case(CASES[name], "golden")
    rows = {f"DERIVED_SCALAR_TYPE_{row.spec.dst.name}": row for row in case.rows}
    answer = reference["derive"][name]
    (loss,) = struct.unpack(">d", bytes.fromhex(answer["loss"]))
    assert answer["tensors"]
    for tensor in answer["tensors"]:
        row = rows[tensor["dst"]]
        assert loss == pytest.approx(row.loss, rel=RELATIVE_TOLERANCE)
        expected = row.expected[PassType.FORWARD, tensor["layer_index"]]
        assert [size for _, size in tensor["axes"]] == list(expected.shape)
        assert tensor["minus_infinities"] == np.isneginf(expected).sum()
        travels = expected != 0 if tensor["nonzero_count"] is not None else np.isfinite(expected)
        assert tensor["nonzero_count"] in {None, travels.sum()}
        bound = RELATIVE_TOLERANCE * np.abs(expected[travels]).max()
        for entry, extreme in (("largest", expected[travels].max()), ("smallest", expected[travels].min())):
            (value,) = struct.unpack(">f", bytes.fromhex(tensor[entry]["bits"]))
            assert abs(value - extreme) <= bound
            assert abs(value - expected.ravel()[tensor[entry]["at"]]) <= bound
