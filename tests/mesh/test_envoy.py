"""The Envoy of `examples/mesh` in front of two servers: balancing, retries, authorisation, gRPC-Web, JSON."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
import trustme

from dst_grpc._gen.dst.v1 import catalog_service_pb2 as catalog
from dst_grpc._gen.dst.v1 import inference_pb2 as inference
from dst_grpc._gen.dst.v1.catalog_service_pb2_grpc import CatalogServiceStub
from dst_grpc._gen.dst.v1.context_service_pb2 import ListContextsRequest
from dst_grpc._gen.dst.v1.context_service_pb2_grpc import ContextServiceStub
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from tests.mesh.conftest import MESH, OPERATOR, Backend
from tests.mesh.proxy import Proxy, envoy_of

SECONDS = 60.0
CALLS, THREADS = 400, 8
PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture
def envoy(backends: list[Backend], build_folder: Path, authority: trustme.CA, tmp_path: Path) -> Iterator[Proxy]:
    with envoy_of(MESH / "envoy.yaml", [backend.port for backend in backends], build_folder, tmp_path) as started:
        proxy = replace(started, root=authority.cert_pem.bytes())
        proxy.wait_for("cluster.dst.membership_healthy", len(backends))
        yield proxy


def question(prompt: str = PROMPT) -> inference.DeriveRequest:
    return inference.DeriveRequest(
        prompt=inference.Prompt(text=prompt),
        derived_scalars=[inference.DerivedScalarSpec(dst="DERIVED_SCALAR_TYPE_LOGITS")],
    )


def derived(channel: grpc.Channel) -> int:
    """Tensor bytes of a whole answer, from header to trailer; one that breaks off after it began is asked for again."""
    frames: list[inference.DeriveFrame] = []
    try:
        for part in DerivedScalarServiceStub(channel).Derive(question(), timeout=SECONDS):
            frames += part.frames
    except grpc.RpcError as error:
        # A connection that breaks after the headers is INTERNAL; before them, it is Envoy's to try again.
        if not frames and error.code() is not grpc.StatusCode.INTERNAL:
            raise
        return derived(channel)
    assert frames[-1].HasField("trailer")
    return int(frames[-1].trailer.byte_count)


def layers(channel: grpc.Channel) -> int:
    """Layers of the default model, by a unary call."""
    response = CatalogServiceStub(channel).GetModel(catalog.GetModelRequest(), timeout=SECONDS)
    return int(response.model.dimensions.n_layers)


@pytest.mark.parametrize("call", [layers, derived])
def test_a_server_that_dies_under_load_costs_no_call(
    call: Callable[[grpc.Channel], int], envoy: Proxy, backends: list[Backend]
) -> None:
    with envoy.channel() as channel, ThreadPoolExecutor(THREADS) as threads:
        expected = call(channel)
        calls = [threads.submit(call, channel) for _ in range(CALLS)]
        calls[CALLS // 4].result()
        assert not calls[-1].done()
        backends[0].kill()
        assert {each.result() for each in calls} == {expected}
    assert envoy.statistic("cluster.dst.upstream_rq_retry_overflow") == 0
    assert envoy.statistic("cluster.dst.upstream_rq_retry_success") > 0


def test_streams_go_through_as_they_are(envoy: Proxy) -> None:
    with envoy.channel() as channel:
        stub = DerivedScalarServiceStub(channel)
        requests = [inference.DeriveStreamRequest(request=question("a" * n)) for n in (1, 5)]
        for i, request in enumerate(requests):
            request.request.request_id = str(i)
        bad = inference.DeriveStreamRequest(request=inference.DeriveRequest(request_id="bad"))
        ends = {
            (part.request_id, part.item_index): frame.WhichOneof("frame")
            for part in stub.DeriveStream(iter([*requests, bad]), timeout=SECONDS)
            for frame in part.frames
        }
        assert ends == {("0", 0): "trailer", ("1", 1): "trailer", ("bad", 2): "error"}


def test_only_operators_reach_what_is_in_memory(envoy: Proxy, authority: trustme.CA) -> None:
    with envoy.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        ContextServiceStub(channel).ListContexts(ListContextsRequest(), timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with envoy.channel(authority.issue_cert("somebody.example")) as channel, pytest.raises(grpc.RpcError) as caught:
        ContextServiceStub(channel).ListContexts(ListContextsRequest(), timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with envoy.channel(authority.issue_cert(OPERATOR)) as channel:
        ContextServiceStub(channel).ListContexts(ListContextsRequest(), timeout=SECONDS)


def test_callers_are_who_the_proxy_says_whatever_they_say(envoy: Proxy) -> None:
    """Envoy calls a caller of its own machine by an address of that machine which is not 127.0.0.1, and not trusted."""
    with envoy.channel() as channel:
        ask = CatalogServiceStub(channel).GetServerInfo
        plain = ask(catalog.GetServerInfoRequest(), timeout=SECONDS).caller
        assert not ip_address(plain.name).is_unspecified
        assert list(plain.roles) == [catalog.ROLE_ASK]
        forged = (("x-forwarded-for", "203.0.113.9, 8.8.8.8"),)
        assert ask(catalog.GetServerInfoRequest(), timeout=SECONDS, metadata=forged).caller == plain


def test_json_is_transcoded(envoy: Proxy) -> None:
    headers = {"content-type": "application/json"}
    status, body = envoy.fetch("/dst.v1.CatalogService/Tokenize", json.dumps({"text": "ab"}).encode(), **headers)
    assert (status, [part["tokenStrings"] for part in json.loads(body)]) == (200, [["ab"]])
    status, body = envoy.fetch("/dst.v1.DerivedScalarService/Derive", b'{"prompt": {}}', **headers)
    assert status == 400
    assert "prompt" in body.decode()


def test_grpc_web_is_understood(envoy: Proxy) -> None:
    message = catalog.TokenizeRequest(text="ab").SerializeToString()
    frame = b"\0" + struct.pack(">I", len(message)) + message
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    status, body = envoy.fetch("/dst.v1.CatalogService/Tokenize", frame, **headers)
    length = struct.unpack(">I", body[1:5])[0]
    assert status == 200
    assert catalog.TokenizeResponse.FromString(body[5 : 5 + length]).token_strings == ["ab"]
    assert b"grpc-status:0" in body[5 + length :]


def test_the_page_is_served(envoy: Proxy) -> None:
    status, body = envoy.fetch("/")
    assert status == 200
    assert b"Why that word?" in body
