"""Who calls, over real sockets: tokens, certificates, unix sockets, proxies, and changes beneath open streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from typer.testing import CliRunner

from dst_grpc._gen.dst.v1 import catalog_service_pb2, context_service_pb2, inference_pb2
from dst_grpc.cli._app import app
from dst_grpc.domain.callers import Grant, Role
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.errors import Exhausted, InvalidRequest, NotAllowed, Unauthenticated
from dst_grpc.rpc.parts import StartupError
from dst_grpc.rpc.ports import AnswerPart
from tests import tokens
from tests.e2e.conftest import CALL_SECONDS, Rig, error_of, rigged
from tests.fake_parts import FakeRegistry, answer, context_status

LOCAL_ROLES = [catalog_service_pb2.ROLE_ASK, catalog_service_pb2.ROLE_OPERATE]
RELOADING = "dst_grpc.rpc.reloading"
ASK_ONLY = [catalog_service_pb2.ROLE_ASK]


async def caller(rig: Rig, **options: Any) -> tuple[str, list[int]]:
    """Who the server says that we are."""
    request = catalog_service_pb2.GetServerInfoRequest()
    info = await rig.catalog.GetServerInfo(request, timeout=CALL_SECONDS, **options)
    return info.caller.name, list(info.caller.roles)


async def reload(rig: Rig, **options: Any) -> None:
    """Do what only operators may."""
    await rig.contexts.ReloadRegistry(
        context_service_pb2.ReloadRegistryRequest(), timeout=CALL_SECONDS, **options
    ).read()


async def refusal(call: Any) -> Any:
    """Our error that *call* ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_of(caught.value)


@asynccontextmanager
async def dialled(rig: Rig, credentials: grpc.ChannelCredentials | None = None) -> AsyncGenerator[Rig, None]:
    """The same server by another connection."""
    if credentials is None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.insecure_channel(rig.server.address, options=options)
    else:
        channel = grpc.aio.secure_channel(rig.server.address, credentials)
    async with channel:
        yield rig._replace(channel=channel)


async def test_who_calls_from_this_machine_operates_unless_a_proxy_passed_it_on(rig: Rig) -> None:
    assert await caller(rig) == ("127.0.0.1", LOCAL_ROLES)
    await reload(rig)
    forwarded = (("x-forwarded-for", "203.0.113.9"),)
    assert await caller(rig, metadata=forwarded) == ("127.0.0.1", ASK_ONLY)
    error = await refusal(reload(rig, metadata=forwarded))
    assert isinstance(error, NotAllowed)
    assert error.metadata == {"caller": "127.0.0.1", "role": "operate"}


async def test_behind_a_trusted_proxy_callers_are_who_it_says() -> None:
    async with rigged(trusted_proxies="127.0.0.0/8, 10.0.0.0/8") as rig:
        for hops, name in (("203.0.113.9", "203.0.113.9"), ("8.8.8.8, 203.0.113.9, 10.1.1.1", "203.0.113.9")):
            assert await caller(rig, metadata=(("x-forwarded-for", hops),)) == (name, ASK_ONLY)
        assert isinstance(await refusal(reload(rig)), NotAllowed), "whoever the proxy does not name is not local"
    async with rigged(trusted_proxies="127.0.0.1", open_operate=True) as rig:
        await reload(rig, metadata=(("x-forwarded-for", "203.0.113.9"),))


async def test_all_callers_of_a_unix_socket_are_one_and_operate(tmp_path: Path) -> None:
    socket = tmp_path / "dst.sock"
    async with rigged(host=f"unix:{socket}") as rig:
        assert rig.server.address == f"unix:{socket}"
        assert await caller(rig) == ("unix", LOCAL_ROLES)
        await reload(rig)
        async with dialled(rig) as other:
            assert await caller(other) == ("unix", LOCAL_ROLES)
        with pytest.raises(StartupError, match="another server does"):
            async with rigged(host=f"unix:{socket}"):
                pytest.fail("it must not take the socket")
        assert await caller(rig) == ("unix", LOCAL_ROLES)
    async with rigged(host=f"unix:{socket}") as rig:
        assert await caller(rig) == ("unix", LOCAL_ROLES)


async def test_a_unix_socket_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="No such file or directory"):
        async with rigged(host=f"unix:{tmp_path}/none/dst.sock"):
            pytest.fail("it must not start")


@dataclass(frozen=True)
class Authority:
    """Who signs the certificates of a test, and the server's."""

    ca: trustme.CA
    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        """Those of a server with mutual TLS."""
        issued = self.ca.issue_cert("127.0.0.1")
        files = {name: self.folder / f"{name}.pem" for name in ("tls_certificate", "tls_key", "tls_client_ca")}
        issued.cert_chain_pems[0].write_to_path(str(files["tls_certificate"]))
        issued.private_key_pem.write_to_path(str(files["tls_key"]))
        self.ca.cert_pem.write_to_path(str(files["tls_client_ca"]))
        return dict(files)

    def client(self, *names: str, common_name: str | None = None) -> grpc.ChannelCredentials:
        """What a client of these *names* dials with."""
        issued = self.ca.issue_cert(*names, common_name=common_name)
        return grpc.ssl_channel_credentials(
            self.ca.cert_pem.bytes(), issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes()
        )


@pytest.fixture(name="authority")
def _authority(tmp_path: Path) -> Authority:
    return Authority(trustme.CA(), tmp_path)


async def test_a_certificate_names_its_caller_by_the_configured_kind_alone(
    authority: Authority, tmp_path: Path
) -> None:
    grants = tmp_path / "callers.toml"
    grants.write_text('[callers."ops.example"]\nroles = ["operate"]\n')
    settings = authority.settings | {"tls_client_name": "peer_dns", "callers_file": grants}
    async with rigged(**settings) as rig:
        async with dialled(rig, authority.client("alice.example", "alice@mail.example")) as alice:
            assert await caller(alice) == ("alice.example", ASK_ONLY)
            assert isinstance(await refusal(reload(alice)), NotAllowed)
        async with dialled(rig, authority.client("ops.example")) as ops:
            assert await caller(ops) == ("ops.example", LOCAL_ROLES)
            await reload(ops)
        async with dialled(rig, authority.client("ops@mail.example", common_name="ops.example")) as eve:
            error = await refusal(caller(eve))
            assert isinstance(error, Unauthenticated), "neither its mail address nor its common name is a host"
            assert "peer_dns" in error.message
    async with (
        rigged(**authority.settings, tls_client_name="x509_common_name") as rig,
        dialled(rig, authority.client("alice.example", common_name="Alice")) as alice,
    ):
        assert await caller(alice) == ("Alice", ASK_ONLY)


async def test_mutual_tls_without_a_kind_of_name_leaves_callers_their_hosts(authority: Authority) -> None:
    async with (
        rigged(**authority.settings) as rig,
        dialled(rig, authority.client("alice.example")) as alice,
    ):
        assert await caller(alice) == ("127.0.0.1", LOCAL_ROLES)


async def test_the_command_shows_the_certificate_in_its_environment(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = authority.ca.issue_cert("alice.example")
    certificate, key = tmp_path / "alice.pem", tmp_path / "alice.key"
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))
    async with rigged(**authority.settings, tls_client_name="peer_dns") as rig:
        environment = {"CA": tmp_path / "tls_client_ca.pem", "CERT": certificate, "KEY": key}
        for name, path in environment.items():
            monkeypatch.setenv(f"DST_CLIENT_{name}", str(path))
        command = ("server-info", "--server", rig.server.address)
        result = await asyncio.to_thread(CliRunner().invoke, app, command)
        assert "alice.example, who may ask" in result.output
        monkeypatch.delenv("DST_CLIENT_KEY")
        result = await asyncio.to_thread(CliRunner().invoke, app, command)
        assert result.exit_code == 1
        assert "DST_CLIENT_KEY: is required, as there is a certificate" in result.output


async def test_tokens_over_tls_have_names_and_roles(authority: Authority, tmp_path: Path) -> None:
    file = tokens.write(tmp_path / "tokens", alice=Role.ASK, ops=Role.OPERATE)
    settings = authority.settings | {"tls_client_ca": None, "auth_token_file": file}
    trusting = grpc.ssl_channel_credentials(authority.ca.cert_pem.bytes())
    async with rigged(**settings) as rig, dialled(rig, trusting) as dialling:
        assert await caller(dialling, metadata=tokens.bearer("alice-token")) == ("alice", ASK_ONLY)
        assert await caller(dialling, metadata=tokens.bearer("ops-token")) == ("ops", LOCAL_ROLES)
        assert isinstance(await refusal(reload(dialling, metadata=tokens.bearer("alice-token"))), NotAllowed)
        await reload(dialling, metadata=tokens.bearer("ops-token"))
        assert isinstance(await refusal(caller(dialling)), Unauthenticated)


@pytest.mark.parametrize(
    "metadata",
    [
        (*tokens.bearer("alice-token"), *tokens.bearer("alice-token")),
        (("authorization", ""),),
        (("authorization", "Bearer "),),
        (("authorization", f"Bearer {'x' * 6000}"),),
    ],
    ids=["twice", "empty", "no token", "huge"],
)
async def test_metadata_that_are_not_one_token_are_refused(metadata: Sequence[tuple[str, str]], tmp_path: Path) -> None:
    async with rigged(auth_token_file=tokens.write(tmp_path / "tokens", alice=Role.ASK)) as rig:
        assert isinstance(await refusal(caller(rig, metadata=metadata)), Unauthenticated)


async def test_guessing_is_slowed_and_keeps_no_right_token_waiting(tmp_path: Path) -> None:
    """Forty guesses at once: ten are refused at once, some are held back, the others are too many."""
    async with rigged(auth_token_file=tokens.write(tmp_path / "tokens", alice=Role.ASK)) as rig:
        guesses = [asyncio.create_task(refusal(caller(rig, metadata=tokens.bearer(f"guess-{i}")))) for i in range(40)]
        answered: list[type] = []
        for done in asyncio.as_completed(guesses):
            answered.append(type(await done))
            if answered.count(Exhausted) >= 20 and answered.count(Unauthenticated) >= 10:
                break
        held = [guess for guess in guesses if not guess.done()]
        assert held, "some are held back"
        for _ in range(100):
            assert await caller(rig, metadata=tokens.bearer("alice-token")) == ("alice", ASK_ONLY)
        assert any(not guess.done() for guess in held), "right tokens waited for none of them"
        for guess in held:
            guess.cancel()
        await asyncio.gather(*held, return_exceptions=True)


class Messages:
    """The messages of an open stream, which a test adds."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[inference_pb2.DeriveStreamRequest | None] = asyncio.Queue()

    def derive(self, request_id: str) -> None:
        request = inference_pb2.DeriveRequest(request_id=request_id, prompt=inference_pb2.Prompt(text="ab"))
        self._queue.put_nowait(inference_pb2.DeriveStreamRequest(request=request))

    def end(self) -> None:
        self._queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[inference_pb2.DeriveStreamRequest]:
        while (message := await self._queue.get()) is not None:
            yield message


async def outcome(stream: Any) -> tuple[str, str]:
    """The id of the next item that ends, and the name of its last frame's kind or of its error's code."""
    while True:
        response = await stream.read()
        frame = response.frames[-1]
        kind = frame.WhichOneof("frame")
        if kind == "error":
            return response.request_id, grpc.StatusCode(_code(frame.error.code)).name
        if kind == "trailer":
            return response.request_id, kind


def _code(number: int) -> Any:
    return next(code.value for code in grpc.StatusCode if code.value[0] == number)


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_on_an_open_stream_the_next_item_fails_once_the_token_does(how: str, tmp_path: Path) -> None:
    """What was in flight is answered, and what comes after fails at once, each item alone."""
    file = tokens.write(tmp_path / "tokens", alice=Role.ASK, ops=Role.OPERATE)
    started, gate = asyncio.Event(), asyncio.Event()

    async def script(_request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
        parts = answer()
        started.set()
        yield parts[:1]
        await gate.wait()
        yield parts[1:]

    async with rigged(auth_token_file=file) as rig:
        rig.parts.pipeline.scripts["slow"] = script
        messages = Messages()
        stream = rig.scalars.DeriveStream(aiter(messages), timeout=CALL_SECONDS, metadata=tokens.bearer("alice-token"))
        messages.derive("before")
        assert await outcome(stream) == ("before", "trailer")
        messages.derive("slow")
        await started.wait()
        if how == "revoked":
            tokens.write(file, ops=Role.OPERATE)
        else:
            passed = datetime.now(UTC) - timedelta(seconds=1)
            file.write_text(tokens.line("alice", "alice-token", expires_at=passed) + tokens.line("ops", "ops-token"))
        await rig.server.reload()
        messages.derive("after")
        assert await outcome(stream) == ("after", "UNAUTHENTICATED")
        gate.set()
        assert await outcome(stream) == ("slow", "trailer")
        messages.derive("later")
        assert await outcome(stream) == ("later", "UNAUTHENTICATED")
        messages.end()
        assert await stream.read() is grpc.aio.EOF
        assert "after" not in rig.parts.pipeline.started


async def test_a_watch_ends_at_the_first_news_after_its_token_was_revoked(tmp_path: Path) -> None:
    file = tokens.write(tmp_path / "tokens", alice=Role.ASK, ops=Role.OPERATE)
    async with rigged(auth_token_file=file) as rig:
        rig.parts.cache.tell(context_status())
        request = context_service_pb2.WatchContextsRequest()
        watch = rig.contexts.WatchContexts(request, timeout=CALL_SECONDS, metadata=tokens.bearer("alice-token"))
        await watch.read()
        tokens.write(file, ops=Role.OPERATE)
        await rig.server.reload()
        rig.parts.cache.tell(context_status())
        error = await refusal(watch.read())
        assert isinstance(error, Unauthenticated)
        assert "revoked" in error.message


async def test_everything_is_reloaded_or_nothing_with_one_line_of_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tokens.write(tmp_path / "tokens", alice=Role.ASK, ops=Role.OPERATE)
    grants = tmp_path / "callers.toml"
    grants.write_text("[callers.alice]\nweight = 2\n")
    bearer = {"metadata": tokens.bearer("ops-token")}
    async with rigged(auth_token_file=file, callers_file=grants) as rig:
        assert rig.parts.pipeline.grants.of("alice") == Grant(weight=2.0)
        caplog.set_level("INFO", logger=RELOADING)
        tokens.write(file, bob=Role.ASK, ops=Role.OPERATE, new=Role.ASK)
        grants.write_text("[callers.alice]\nweight = -3\n")
        rig.parts.next_registry = FakeRegistry(2)
        error = await refusal(reload(rig, **bearer))
        assert isinstance(error, InvalidRequest)
        assert [violation.field for violation in error.violations] == ["callers_file.callers.alice.weight"]
        assert rig.parts.pipeline.grants.of("alice") == Grant(weight=2.0)
        assert len(rig.parts.cache.registry.models()) == 1
        assert await caller(rig, metadata=tokens.bearer("alice-token")) == ("alice", ASK_ONLY)
        assert isinstance(await refusal(caller(rig, metadata=tokens.bearer("bob-token"))), Unauthenticated)
        file.write_text("bare-token\n")
        rig.parts.next_registry = InvalidRequest.of("models.a", "is wrong")
        error = await refusal(reload(rig, **bearer))
        assert {violation.field for violation in error.violations} == {
            "auth_token_file.line 1", "callers_file.callers.alice.weight", "models.a",
        }  # fmt: skip
        assert "bare-token" not in str(error)
        assert str(tmp_path) not in str(error)
        assert not [record for record in caplog.records if record.name == RELOADING]
        tokens.write(file, bob=Role.ASK, ops=Role.OPERATE, new=Role.ASK)
        grants.write_text("[callers.bob]\nweight = 3\n[callers.carol]\n")
        rig.parts.next_registry = FakeRegistry(2)
        await reload(rig, **bearer)
        (record,) = [record for record in caplog.records if record.name == RELOADING]
        assert (record.message, record.__dict__["added"]) == ("reloaded", "model-000")
        assert (record.__dict__["tokens"], record.__dict__["callers"]) == (3, 2)
        assert rig.parts.pipeline.grants.of("bob") == Grant(weight=3.0)
        assert await caller(rig, metadata=tokens.bearer("bob-token")) == ("bob", ASK_ONLY)
        assert isinstance(await refusal(caller(rig, metadata=tokens.bearer("alice-token"))), Unauthenticated)


async def test_files_that_are_wrong_at_start_are_errors(tmp_path: Path) -> None:
    file, grants = tmp_path / "tokens", tmp_path / "callers.toml"
    file.write_text("bare-token\n")
    with pytest.raises(StartupError, match=r"auth_token_file\.line 1: holds a token itself") as caught:
        async with rigged(auth_token_file=file):
            pytest.fail("it must not start")
    assert "bare-token" not in str(caught.value)
    grants.write_text("caller = 1")
    with pytest.raises(StartupError, match=r"callers_file\.caller: there is no such key; did you mean callers"):
        async with rigged(callers_file=grants):
            pytest.fail("it must not start")


async def test_the_pipeline_is_told_who_asks(tmp_path: Path) -> None:
    async with rigged(auth_token_file=tokens.write(tmp_path / "tokens", alice=Role.ASK, bob=Role.ASK)) as rig:
        request = inference_pb2.DeriveRequest(request_id="x", prompt=inference_pb2.Prompt(text="ab"))
        for name in ("alice", "bob"):
            await rig.scalars.Derive(request, timeout=CALL_SECONDS, metadata=tokens.bearer(f"{name}-token")).read()
            assert rig.parts.pipeline.sender.caller.name == name
