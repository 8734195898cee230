"""The nginx of `examples/mesh` in front of two servers: calls, streams and errors go through."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from dst_grpc._gen.dst.v1.catalog_service_pb2 import GetModelRequest
from dst_grpc._gen.dst.v1.catalog_service_pb2_grpc import CatalogServiceStub
from dst_grpc.client import Answer, Client, make_request
from dst_grpc.domain.callers import ASKING
from dst_grpc.errors import NotAllowed, NotFound, Reason
from tests.mesh.conftest import MESH, Backend, wait_until

CALLS, THREADS = 200, 4


@pytest.fixture
def address(backends: list[Backend], tmp_path: Path) -> Iterator[str]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.fail("nginx is not installed: apt-get install nginx-light")
    # nginx cannot be asked for a free port: the kernel is, and nothing else is started between this and nginx.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = (MESH / "nginx.conf").read_text(encoding="utf-8").replace(":8080 ", f":{port} ")
    for shipped, backend in zip((50051, 50052), backends, strict=True):
        config = config.replace(f":{shipped} ", f":{backend.port} ")
    (tmp_path / "build").mkdir()
    (tmp_path / "nginx.conf").write_text(config, encoding="utf-8")
    log = tmp_path / "nginx.log"
    command = [program, "-p", str(tmp_path), "-c", "nginx.conf"]
    with log.open("wb") as errors, subprocess.Popen(command, stderr=errors) as process:
        try:
            wait_until(lambda: _accepts(port), process, log)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_answers_and_streams_go_through(address: str) -> None:
    with Client(address) as client:
        answer = client.derive("a gave a drink to", "mlp_post_act")
        assert list(answer["mlp_post_act"]) == [0, 1, 2, 3]
        requests = [make_request("a" * n, "logits", request_id=str(n)) for n in (1, 9, 4)]
        found = dict(client.derive_stream(requests))
    assert sorted(found) == ["1", "4", "9"]
    assert all(isinstance(each, Answer) for each in found.values())


def test_a_server_that_dies_under_load_costs_no_call_of_a_client_that_retries(
    address: str, backends: list[Backend]
) -> None:
    # nginx does not keep what it has sent on: a call that was under way fails with UNAVAILABLE.
    policy = {"maxAttempts": 5, "initialBackoff": "0.01s", "maxBackoff": "0.1s", "backoffMultiplier": 2}
    methods = {"name": [{}], "retryPolicy": policy | {"retryableStatusCodes": ["UNAVAILABLE"]}}
    options = [("grpc.service_config", json.dumps({"methodConfig": [methods]}))]
    with grpc.insecure_channel(address, options) as channel, ThreadPoolExecutor(THREADS) as threads:
        get_model = CatalogServiceStub(channel).GetModel
        expected = get_model(GetModelRequest())
        calls = [threads.submit(get_model, GetModelRequest()) for _ in range(CALLS)]
        calls[CALLS // 4].result()
        assert not calls[-1].done()
        backends[0].kill()
        assert all(each.result() == expected for each in calls)


def test_callers_of_the_proxy_are_not_taken_for_this_machine(address: str) -> None:
    """The servers see a connection from here, and yet leave what needs the role operate to others."""
    with Client(address) as client:
        caller = client.server_info().caller
        assert caller is not None
        assert (caller.name, caller.roles) == ("127.0.0.1", ASKING)
        with pytest.raises(NotAllowed):
            client.reload_registry()


def test_the_details_of_an_error_survive(address: str) -> None:
    with Client(address) as client, pytest.raises(NotFound) as caught:
        client.model("embeded")
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert "embedded" in str(caught.value)
