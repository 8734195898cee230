"""How a server ends, over a real socket: what it tells and still answers while it drains."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from dst_grpc._gen.dst.v1 import context_service_pb2
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from dst_grpc.errors import Reason, Unavailable
from tests.e2e.conftest import CALL_SECONDS, READY, error_of, rigged
from tests.e2e.scripts import half_until, until
from tests.e2e.test_life import (
    NOT_SERVING,
    SERVICES,
    SERVING,
    health_check,
    item,
    list_models,
    make_certificate,
)
from tests.fake_parts import context_status


async def test_draining_finishes_items_in_flight_and_refuses_new_ones() -> None:
    async with rigged() as rig:
        gate = asyncio.Event()
        rig.parts.pipeline.scripts["x"] = half_until(gate)
        call = rig.scalars.DeriveStream(timeout=CALL_SECONDS)
        await call.write(item("x"))
        assert (await call.read()).frames[-1].WhichOneof("frame") == "header"
        stub: Any = HealthStub(rig.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS)
        assert (await watch.read()).status == SERVING
        draining = asyncio.create_task(rig.server.drain())
        assert (await watch.read()).status == NOT_SERVING
        gate.set()
        assert (await call.read()).frames[-1].WhichOneof("frame") == "trailer"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        error = error_of(caught.value)
        assert isinstance(error, Unavailable)
        assert error.reason is Reason.DRAINING
        assert error.retry_after_seconds
        await draining


async def test_a_stream_that_was_answered_whole_ends_well_while_draining() -> None:
    async with rigged() as rig:
        gate = asyncio.Event()
        rig.parts.pipeline.scripts["x"] = until(gate)
        call = rig.scalars.DeriveStream(iter([item("x")]), timeout=CALL_SECONDS)
        while rig.parts.pipeline.started != ["x"]:
            await list_models(rig)
        stub: Any = HealthStub(rig.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS)
        assert (await watch.read()).status == SERVING
        draining = asyncio.create_task(rig.server.drain())
        assert (await watch.read()).status == NOT_SERVING
        gate.set()
        frames = [frame async for response in call for frame in response.frames]
        assert [frame.WhichOneof("frame") for frame in frames] == ["header", "trailer"]
        await draining


async def test_during_the_notice_health_says_no_and_everything_is_served() -> None:
    async with rigged(drain_notice_seconds=600) as rig:
        stub: Any = HealthStub(rig.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS)
        assert (await watch.read()).status == SERVING
        draining = asyncio.create_task(rig.server.drain())
        assert (await watch.read()).status == NOT_SERVING
        for service in (*SERVICES, "model/tiny"):
            assert (await health_check(rig, service)).status == NOT_SERVING
        assert (await health_check(rig, "live")).status == SERVING
        await list_models(rig)
        call = rig.scalars.DeriveStream(timeout=CALL_SECONDS)
        for request_id in ("x", "y"):
            await call.write(item(request_id))
            while (await call.read()).frames[-1].WhichOneof("frame") != "trailer":
                pass
        rig.parts.cache.tell(context_status())
        async with grpc.aio.insecure_channel(rig.server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            new = rig._replace(channel=channel)
            await list_models(new)
            assert (await health_check(new, "model/tiny")).status == NOT_SERVING, "nothing changes that"
        draining.cancel()


async def test_new_calls_are_told_to_go_elsewhere_once_work_is_refused() -> None:
    async with rigged() as rig:
        rig.server._drain.give()  # what gRPC lets in before it closes its port
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await list_models(rig)
        assert error_of(caught.value).reason is Reason.DRAINING
        assert dict(caught.value.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "1000"


async def test_health_has_a_plain_port_of_its_own_beside_tls_until_all_calls_are_over(tmp_path: Path) -> None:
    certificate, key, signer = make_certificate(tmp_path)
    settings = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": signer, "health_port": 0}
    async with rigged(**settings) as rig:
        assert rig.server.health_address is not None
        assert rig.server.health_address.startswith("127.0.0.1:")
        own = grpc.ssl_channel_credentials(signer.read_bytes(), key.read_bytes(), certificate.read_bytes())
        async with (
            grpc.aio.insecure_channel(rig.server.health_address) as plain,
            grpc.aio.secure_channel(rig.server.address, own) as secure,
        ):
            probe, client = rig._replace(channel=plain), rig._replace(channel=secure)
            for service in ("", "live", *SERVICES, "model/tiny"):
                assert (await health_check(probe, service)).status == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await list_models(probe)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_check(probe, "a" * 5000)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # nothing that large need be read
            gate = asyncio.Event()
            rig.parts.pipeline.scripts["x"] = half_until(gate)
            call = client.scalars.Derive(item("x").request, timeout=CALL_SECONDS)
            await call.read()
            stub: Any = HealthStub(plain)
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS)
            assert (await watch.read()).status == SERVING
            draining = asyncio.create_task(rig.server.drain())
            assert (await watch.read()).status == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError):  # told to go elsewhere
                await watch.read()
            assert (await health_check(probe, "live")).status == SERVING, "a call is still being answered"
            assert (await health_check(probe)).status == NOT_SERVING
            gate.set()
            assert (await call.read()).frames[-1].WhichOneof("frame") == "trailer"
            await draining
            with pytest.raises(grpc.aio.AioRpcError):
                await health_check(probe, "live")


async def test_watches_do_not_hold_up_a_drain() -> None:
    async with rigged(grace_seconds=600) as rig:
        watch = rig.contexts.WatchContexts(context_service_pb2.WatchContextsRequest())
        rig.parts.cache.tell(context_status())
        await watch.read()
        await asyncio.wait_for(rig.server.drain(), CALL_SECONDS)


async def test_work_beyond_the_grace_period_is_cut_off_and_told_why(caplog: pytest.LogCaptureFixture) -> None:
    async with rigged(grace_seconds=0) as rig:
        rig.parts.pipeline.scripts["x"] = half_until(asyncio.Event())
        call = rig.scalars.Derive(item("x").request)
        await call.read()
        with caplog.at_level(logging.INFO, "dst_grpc"):
            await asyncio.wait_for(rig.server.drain(), CALL_SECONDS)
        assert rig.parts.pipeline.ended.get_nowait() == "x"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert error_of(caught.value).reason is Reason.DRAINING
    (line,) = (record.__dict__ for record in caplog.records if record.message == "call")
    assert (line["code"], line["reason"]) == ("UNAVAILABLE", Reason.DRAINING)


async def test_a_call_that_its_client_ends_while_the_server_stops_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rigged(grace_seconds=600) as rig:
        rig.parts.pipeline.scripts["x"] = half_until(asyncio.Event())
        call = rig.scalars.Derive(item("x").request)
        await call.read()
        with caplog.at_level(logging.INFO, "dst_grpc"):
            draining = asyncio.create_task(rig.server.drain())
            call.cancel()
            await asyncio.wait_for(draining, CALL_SECONDS)
    (line,) = (record.__dict__ for record in caplog.records if record.message == "call")
    assert line["code"] == "CANCELLED"


PROGRAM = """
import asyncio, sys
from dst_grpc.rpc import process, server, settings
from dst_grpc.observability.logs import configure_logging
from tests.fake_parts import FakeParts, answer

async def script(request):
    parts = answer()
    yield parts[:1]
    await asyncio.to_thread(sys.stdin.readline)
    yield parts[1:]

fakes = FakeParts()
fakes.pipeline.scripts["x"] = script
configure_logging()
asyncio.run(process.run(server.Server(settings.Settings(port=0, grace_seconds=30), fakes.parts)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_exits_with_zero(number: signal.Signals) -> None:
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", PROGRAM, env=environment, stdin=pipe, stderr=pipe
    )
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        found = None
        while found is None:
            line = (await process.stderr.readline()).decode()
            assert line, "the server did not start"
            found = READY.search(line)
        async with grpc.aio.insecure_channel(found[1]) as channel:
            stub: Any = DerivedScalarServiceStub(channel)
            call = stub.Derive(item("x").request, timeout=CALL_SECONDS)
            await call.read()
            process.send_signal(number)
            while b"draining" not in await process.stderr.readline():
                pass
            process.stdin.write(b"go on\n")
            assert (await call.read()).frames[-1].WhichOneof("frame") == "trailer"
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK
        _, rest = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, rest
    assert b"Traceback" not in rest
