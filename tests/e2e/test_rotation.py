"""Certificates, tokens and the registry are replaced while the server serves, over real sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme

from dst_grpc._gen.dst.v1 import catalog_service_pb2, inference_pb2
from dst_grpc._gen.dst.v1.catalog_service_pb2_grpc import CatalogServiceStub
from dst_grpc.domain.callers import Role
from dst_grpc.errors import InvalidRequest
from tests import tokens
from tests.e2e.conftest import CALL_SECONDS, Rig, rigged
from tests.e2e.scripts import half_until
from tests.fake_parts import FakeRegistry

RELOADING = "dst_grpc.rpc.reloading"


@dataclass(frozen=True)
class Files:
    """The server's files, which a test replaces."""

    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        names = ("tls_certificate", "tls_key", "tls_client_ca")
        return {name: path for name in names if (path := self.folder / f"{name}.pem").exists()}

    def write(self, ca: trustme.CA, clients: trustme.CA | None = None) -> None:
        """A new certificate by *ca*; clients' are by *clients*, if they need any."""
        issued = ca.issue_cert("127.0.0.1")
        self.put("tls_certificate", issued.cert_chain_pems[0])
        self.put("tls_key", issued.private_key_pem)
        if clients is not None:
            self.put("tls_client_ca", clients.cert_pem)

    def put(self, name: str, blob: trustme.Blob) -> None:
        new = self.folder / "new"
        blob.write_to_path(str(new))
        new.rename(self.folder / f"{name}.pem")


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def dialled(rig: Rig, trusted: trustme.CA, own: trustme.LeafCert | None = None) -> AsyncIterator[Any]:
    """A stub over a connection of its own, which trusts an authority and shows its own certificate."""
    pair = () if own is None else (own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_channel_credentials(trusted.cert_pem.bytes(), *pair)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(rig.server.address, credentials, options) as channel:
        yield CatalogServiceStub(channel)


async def call(stub: Any) -> grpc.StatusCode:
    """The status of a call."""
    try:
        await stub.ListModels(catalog_service_pb2.ListModelsRequest(), timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        code = error.code()
        assert isinstance(code, grpc.StatusCode)
        return code
    return grpc.StatusCode.OK


OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE


async def test_new_connections_see_the_new_certificate_and_open_ones_go_on(files: Files) -> None:
    old, new = trustme.CA(), trustme.CA()
    files.write(old)
    async with rigged(**files.settings) as rig, dialled(rig, old) as before:
        assert await call(before) is OK
        files.write(new)
        await rig.server.reload()
        assert await call(before) is OK
        async with dialled(rig, new) as after:
            assert await call(after) is OK
        async with dialled(rig, old) as late:
            assert await call(late) is UNAVAILABLE


async def test_a_client_of_an_authority_that_is_gone_is_refused_at_its_next_connection(files: Files) -> None:
    own, old, new = trustme.CA(), trustme.CA(), trustme.CA()
    files.write(own, old)
    alice, bob = old.issue_cert("alice.example"), new.issue_cert("bob.example")
    async with rigged(**files.settings) as rig, dialled(rig, own, alice) as before:
        assert await call(before) is OK
        async with dialled(rig, own, bob) as early:
            assert await call(early) is UNAVAILABLE
        files.put("tls_client_ca", new.cert_pem)
        await rig.server.reload()
        assert await call(before) is OK, "its connection is open"
        for leaf, status in ((alice, UNAVAILABLE), (bob, OK), (None, UNAVAILABLE)):
            async with dialled(rig, own, leaf) as after:
                assert await call(after) is status


async def test_connections_that_are_old_enough_are_made_anew_and_so_lose_a_revoked_certificate(files: Files) -> None:
    own, old = trustme.CA(), trustme.CA()
    files.write(own, old)
    settings = files.settings | {"max_connection_age_seconds": 0.2}
    async with rigged(**settings) as rig, dialled(rig, own, old.issue_cert("alice.example")) as alice:
        assert await call(alice) is OK
        files.put("tls_client_ca", trustme.CA().cert_pem)
        await rig.server.reload()
        async with asyncio.timeout(CALL_SECONDS):
            while await call(alice) is OK:
                pass


@pytest.mark.parametrize("grace", [None, 0.05])
async def test_calls_of_an_old_connection_go_on_unless_their_time_is_bounded_too(grace: float | None) -> None:
    async with rigged(max_connection_age_seconds=0.05, max_connection_age_grace_seconds=grace) as rig:
        gate = asyncio.Event()
        rig.parts.pipeline.scripts["x"] = half_until(gate)
        request = inference_pb2.DeriveRequest(request_id="x", prompt=inference_pb2.Prompt(text="ab"))
        call = rig.scalars.Derive(request, timeout=CALL_SECONDS)
        await call.read()
        if grace is not None:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is UNAVAILABLE
            return
        await rig.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)  # it was asked to connect anew
        await rig.catalog.ListModels(catalog_service_pb2.ListModelsRequest(), timeout=CALL_SECONDS)
        gate.set()
        assert (await call.read()).frames[-1].WhichOneof("frame") == "trailer"


async def test_half_a_pair_is_not_used_and_told_in_one_line_until_it_is_whole(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """The files are looked at all the while; nobody tells the server to reload."""
    old, new = trustme.CA(), trustme.CA()
    files.write(old)
    caplog.set_level(logging.INFO, RELOADING)

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == RELOADING]

    async with rigged(**files.settings, watch_seconds=0.005) as rig, asyncio.timeout(CALL_SECONDS):
        issued = new.issue_cert("127.0.0.1")
        files.put("tls_certificate", issued.cert_chain_pems[0])
        while not lines():
            async with dialled(rig, old) as during:
                assert await call(during) is OK
        with pytest.raises(InvalidRequest, match="is not the key of tls_certificate"):
            await rig.server.reload()
        files.put("tls_key", issued.private_key_pem)
        while len(lines()) < 2:
            async with dialled(rig, old) as during:
                assert await call(during) in {OK, UNAVAILABLE}
        async with dialled(rig, new) as after:
            assert await call(after) is OK
    wrong, reloaded = lines()
    assert wrong.startswith("nothing reloaded, all is served as before: ")
    assert "tls_key: is not the key of tls_certificate" in wrong
    assert reloaded == "reloaded"


async def test_all_files_are_replaced_together_or_none_is(files: Files, tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    files.write(old)
    known = tokens.write(tmp_path / "tokens", alice=Role.ASK)
    async with rigged(**files.settings, auth_token_file=known) as rig:
        files.write(new)
        known.write_text("bare-token\n")
        with pytest.raises(InvalidRequest, match="holds a token itself"):
            await rig.server.reload()
        async with dialled(rig, old) as stub:
            assert await call(stub) is grpc.StatusCode.UNAUTHENTICATED, "the certificate is still the old one"
        tokens.write(known, bob=Role.ASK)
        await rig.server.reload()
        async with dialled(rig, new) as stub:
            request = catalog_service_pb2.ListModelsRequest()
            await stub.ListModels(request, timeout=CALL_SECONDS, metadata=tokens.bearer("bob-token"))


async def test_a_changed_token_file_revokes_by_itself(tmp_path: Path) -> None:
    known = tokens.write(tmp_path / "tokens", alice=Role.ASK, bob=Role.ASK)
    async with rigged(auth_token_file=known, watch_seconds=0.005) as rig:
        rig.parts.next_registry = FakeRegistry(2)

        async def list_as(name: str) -> int:
            request = catalog_service_pb2.ListModelsRequest()
            metadata = tokens.bearer(f"{name}-token")
            return len((await rig.catalog.ListModels(request, timeout=CALL_SECONDS, metadata=metadata)).models)

        assert await list_as("alice") == 1
        tokens.write(known, bob=Role.ASK)

        async def list_without_end() -> None:
            while True:
                await list_as("alice")

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(list_without_end(), CALL_SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await list_as("bob") == 2, "the registry is read with them"


@pytest.mark.parametrize(("period", "looks"), [(0, False), (60, True)])
async def test_files_are_looked_at_unless_the_period_is_zero(period: float, looks: bool) -> None:
    async with rigged(watch_seconds=period):
        assert any("Reloader.follow" in repr(task) for task in asyncio.all_tasks()) is looks
