"""A server's life over a real socket: start, health, reflection, guards, TLS, metrics."""

from __future__ import annotations

import asyncio
import re
import socket
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2

from dst_grpc._gen.dst.v1 import catalog_service_pb2, inference_pb2
from dst_grpc.domain.resolution import ContextState
from dst_grpc.errors import DataLoss, DstError, Internal, NotFound, Reason, Unauthenticated
from dst_grpc.rpc.access import warn_if_open
from dst_grpc.rpc.health import SERVICE as HEALTH
from dst_grpc.rpc.parts import StartupError
from dst_grpc.rpc.server import Server
from dst_grpc.rpc.settings import Settings
from tests import tokens
from tests.e2e.conftest import CALL_SECONDS, Rig, error_of, rigged
from tests.fake_parts import FakeParts, context_status

SERVICES = (
    *("dst.v1.CatalogService", "dst.v1.CausalService", "dst.v1.ContextService"),
    *("dst.v1.DerivedScalarService", "dst.v1.GraphService", "dst.v1.TensorService"),
)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def item(request_id: str) -> inference_pb2.DeriveStreamRequest:
    request = inference_pb2.DeriveRequest(request_id=request_id, prompt=inference_pb2.Prompt(text="ab"))
    return inference_pb2.DeriveStreamRequest(request=request)


def list_models(rig: Rig, **options: Any) -> Any:
    return rig.catalog.ListModels(catalog_service_pb2.ListModelsRequest(), timeout=CALL_SECONDS, **options)


def health_check(rig: Rig, service: str = "") -> Any:
    stub: Any = HealthStub(rig.channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=CALL_SECONDS)


async def test_health_knows_the_server_its_services_and_its_models(rig: Rig) -> None:
    for service in ("", *SERVICES):
        assert (await health_check(rig, service)).status == SERVING
    assert (await health_check(rig, "model/tiny")).status == SERVING  # not loaded yet; the first request loads it
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_check(rig, "model/none")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_lists_everything(rig: Rig) -> None:
    response_type = GetMessageClass(HEALTH.methods_by_name["List"].output_type)
    method: Any = rig.channel.unary_unary("/grpc.health.v1.Health/List")
    raw = await method(b"", timeout=CALL_SECONDS)
    statuses: Any = response_type.FromString(raw).statuses  # type: ignore[attr-defined]  # a class made at run time
    assert {name: status.status for name, status in statuses.items()} == {
        **dict.fromkeys(("", "live", *SERVICES), SERVING),
        "model/tiny": SERVING,
    }


async def test_health_watch_follows_the_cache_and_the_drain(rig: Rig) -> None:
    stub: Any = HealthStub(rig.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="model/tiny"), timeout=CALL_SECONDS)
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="model/later"), timeout=CALL_SECONDS)
    assert (await watch.read()).status == SERVING
    assert (await unknown.read()).status == SERVICE_UNKNOWN
    rig.parts.cache.tell(context_status(state=ContextState.LOADING))
    rig.parts.cache.tell(context_status(state=ContextState.FAILED))
    assert (await watch.read()).status == NOT_SERVING
    rig.parts.cache.tell(context_status(state=ContextState.LOADING))
    rig.parts.cache.tell(context_status())
    assert (await watch.read()).status == SERVING
    rig.parts.cache.tell(context_status(state=ContextState.UNLOADING))
    whole = stub.Watch(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS)
    assert (await whole.read()).status == SERVING
    draining = asyncio.create_task(rig.server.drain())
    assert (await whole.read()).status == NOT_SERVING
    assert (await watch.read()).status == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await whole.read()
    assert error_of(caught.value).reason is Reason.DRAINING
    await draining


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes_the_services(rig: Rig, version: str) -> None:
    method: Any = rig.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    names = {*SERVICES, HEALTH.full_name, *(f"grpc.reflection.{v}.ServerReflection" for v in ("v1", "v1alpha"))}
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
    requests += [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in sorted(names)]
    responses = [response async for response in method(iter(requests), timeout=CALL_SECONDS)]
    assert {service.name for service in responses[0].list_services_response.service} == names
    assert all(response.file_descriptor_response.file_descriptor_proto for response in responses[1:])


async def test_reflection_can_be_switched_off() -> None:
    async with rigged(reflection=False) as rig:
        method: Any = rig.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [r async for r in method(iter([b""]), timeout=CALL_SECONDS)]
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_port_in_use_is_an_error(rig: Rig) -> None:
    port = int(rig.server.address.rpartition(":")[2])
    parts = FakeParts()
    with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{port}: another process listens there"):
        async with rigged(parts, port=port):
            pytest.fail("it must not start")
    assert parts.pipeline.is_closed
    assert parts.cache.is_closed


async def test_a_preload_that_fails_is_an_error() -> None:
    parts = FakeParts()
    parts.cache.load_error = NotFound("there is no such model", resource_type="model", resource_name="tiny")
    with pytest.raises(StartupError, match=r"tiny.*no such model"):
        async with rigged(parts, preload=("tiny",)):
            pytest.fail("it must not start")
    assert parts.cache.is_closed


@pytest.mark.parametrize("error", [DataLoss("the file is cut short"), Internal("a fault", error_id="0123")])
async def test_what_cannot_be_preloaded_for_its_files_is_an_error_only_if_the_server_is_strict(
    error: DstError, caplog: pytest.LogCaptureFixture
) -> None:
    parts = FakeParts()
    parts.cache.load_error = error
    async with rigged(parts, preload=("tiny",)) as rig:
        assert (await rig.catalog.ListModels(catalog_service_pb2.ListModelsRequest())).models
    assert f"preload failed: {error.message}" in caplog.text
    strict = FakeParts()
    strict.cache.load_error = error
    with pytest.raises(StartupError, match=f"tiny.*{error.message}"):
        async with rigged(strict, preload=("tiny",), strict=True):
            pytest.fail("it must not start")


async def test_nothing_serves_before_all_is_preloaded() -> None:
    parts = FakeParts(2)
    parts.cache.gate = asyncio.Event()
    server = Server(Settings(port=0, preload=("tiny", "model-000")), parts.parts)
    starting = asyncio.create_task(server.start())
    try:
        await parts.cache.asked.wait()
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service="model/tiny"), timeout=CALL_SECONDS)
            assert (await watch.read()).status == NOT_SERVING
            check = health_pb2.HealthCheckRequest(service="live")
            assert (await stub.Check(check, timeout=CALL_SECONDS)).status == SERVING
            parts.cache.gate.set()
            assert (await watch.read()).status == SERVING
            watch.cancel()
    finally:
        await starting
        await server.stop()


async def test_stopping_closes_the_parts() -> None:
    async with rigged() as rig:
        pass
    assert rig.parts.pipeline.is_closed
    assert rig.parts.cache.is_closed


async def test_bearer_tokens_guard_everything_but_health(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# the team\n{tokens.line('a', 'first')}\n{tokens.line('b', 'second')}", encoding="utf-8")
    async with rigged(auth_token_file=file) as rig:
        assert (await health_check(rig)).status == SERVING
        await list_models(rig, metadata=(("authorization", "Bearer second"),))
        for value in (None, "Bearer third", "Basic first", "Bearer "):
            metadata = (("authorization", value),) if value is not None else ()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await list_models(rig, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert isinstance(error_of(caught.value), Unauthenticated)


def test_an_address_that_others_reach_is_warned_of_unless_it_is_guarded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key, signer = make_certificate(tmp_path)
    known = tmp_path / "tokens"
    known.write_text(tokens.line("a", "first"))
    tls = {"tls_certificate": certificate, "tls_key": key}

    def warning(**settings: Any) -> str:
        caplog.clear()
        warn_if_open(Settings(**settings))
        return "; ".join(record.getMessage() for record in caplog.records)

    for host in ("127.0.0.1", "::1", "localhost", f"unix:{tmp_path}/socket"):
        assert not warning(host=host)
    for host in ("0.0.0.0", "::", "192.0.2.1", "no.such.host.invalid"):  # noqa: S104  nothing listens
        assert warning(host=host) == (
            f"other machines can reach {host}: requests and answers travel unencrypted without TLS (tls_certificate); "
            "whoever reaches it may use it without tokens (auth_token_file) or clients' certificates"
        )
    everywhere = {"host": "::"}
    assert "use and operate it" in warning(**everywhere, open_operate=True)
    assert warning(**everywhere, auth_token_file=known).endswith(
        "bearer tokens, requests and answers travel unencrypted without TLS (tls_certificate)"
    )
    assert "unencrypted" not in warning(**everywhere, **tls)
    assert "whoever reaches it may use it" in warning(**everywhere, **tls)
    assert not warning(**everywhere, **tls, auth_token_file=known)
    assert not warning(**everywhere, **tls, tls_client_ca=signer)


async def test_nobody_is_warned_of_a_host_that_does_not_exist(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StartupError, match="no name that can be resolved"):
        async with rigged(host="no.such.host.invalid"):
            pytest.fail("it must not start")
    assert "can reach" not in caplog.text


async def test_an_empty_token_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# nobody\n", encoding="utf-8")
    with pytest.raises(StartupError, match="holds no token"):
        async with rigged(auth_token_file=file):
            pytest.fail("it must not start")


def make_certificate(folder: Path) -> tuple[Path, Path, Path]:
    """A certificate for 127.0.0.1, its key, and the certificate of who signed it."""
    certificate, key, signer = folder / "certificate.pem", folder / "key.pem", folder / "signer.pem"
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(signer))
    return certificate, key, signer


async def test_tls_and_mutual_tls(tmp_path: Path) -> None:
    certificate, key, signer = make_certificate(tmp_path)
    pem = signer.read_bytes()
    async with rigged(tls_certificate=certificate, tls_key=key, tls_client_ca=signer) as rig:
        with_certificate = grpc.ssl_channel_credentials(pem, key.read_bytes(), certificate.read_bytes())
        async with grpc.aio.secure_channel(rig.server.address, with_certificate) as channel:
            await list_models(rig._replace(channel=channel))
        async with grpc.aio.secure_channel(rig.server.address, grpc.ssl_channel_credentials(pem)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await list_models(rig._replace(channel=channel))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_unusable_certificate_is_an_error(tmp_path: Path) -> None:
    certificate, key, _ = make_certificate(tmp_path)
    certificate.write_text("no certificate", encoding="utf-8")
    with pytest.raises(StartupError, match="tls_certificate: holds no certificate in PEM"):
        async with rigged(tls_certificate=certificate, tls_key=key):
            pytest.fail("it must not start")


async def test_metrics_count_calls_by_method_and_code() -> None:
    async with rigged(metrics_port=0) as rig:
        await list_models(rig)
        unknown: Any = rig.channel.unary_unary("/made.up/Method")
        with pytest.raises(grpc.aio.AioRpcError):
            await unknown(b"", timeout=CALL_SECONDS)
        url = f"http://127.0.0.1:{rig.server.metrics_port}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        assert 'grpc_server_call_started_total{grpc_method="dst.v1.CatalogService/ListModels"} 1.0' in text
        method = 'grpc_method="dst.v1.CatalogService/ListModels",grpc_status="OK"'
        assert f"grpc_server_call_duration_seconds_count{{{method}}} 1.0" in text
        assert 'grpc_method="other",grpc_status="UNIMPLEMENTED"' in text
        assert "made.up" not in text


async def test_a_taken_metrics_port_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"metrics_port {port} .*: another process listens there"):
            async with rigged(metrics_port=port):
                pytest.fail("it must not start")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "[::1]"])
async def test_a_wrong_host_of_metrics_is_an_error(host: str) -> None:
    with pytest.raises(StartupError, match=f"metrics_port 0 .*: '{re.escape(host)}' is no address"):
        async with rigged(metrics_port=0, metrics_host=host):
            pytest.fail("it must not start")


async def test_a_health_port_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f":{port}: another process listens there"):
            async with rigged(health_port=port):
                pytest.fail("it must not start")
