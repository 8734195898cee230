"""Every metric of docs/metrics.md is there, and moves when what it counts happens."""

from __future__ import annotations

import asyncio
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trustme
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from prometheus_client.parser import text_string_to_metric_families

from dst_grpc.client import AsyncClient, Tls, make_request
from dst_grpc.domain.callers import Role
from dst_grpc.errors import DstError, Exhausted, InvalidRequest
from dst_grpc.observability.sampling import Sampling
from dst_grpc.observability.tracing import TraceCalls
from dst_grpc.rpc.parts import build_parts
from dst_grpc.rpc.server import Server, running_server
from dst_grpc.rpc.settings import Settings
from tests import tokens
from tests.e2e.conftest import CALL_SECONDS, rigged
from tests.e2e.gate import Gate

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
STILL = {"dst_build_info", "dst_memory_limit_bytes", "dst_log_records_dropped_total"}
"""What does not move, or, as the log is not full here, in tests/unit/observability/test_logs.py only."""
NEURONS, GRADIENTS = "mlp_post_act", "mlp_act_times_grad"
MOST_WAITING = 2

Samples: TypeAlias = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def documented() -> list[str]:
    """The names in the table."""
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`((?:dst|grpc|process)_\w+)`", row.split("|")[1])]


class Measured:
    """A server that is measured, and who asks it."""

    def __init__(self, server: Server, client: AsyncClient) -> None:
        self.server, self.client = server, client
        self.seen: list[Samples] = []

    async def look(self) -> Samples:
        """Read all metrics, and note them."""
        text = await asyncio.to_thread(read, self.server.metrics_port)
        samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        self.seen.append(samples)
        return samples

    async def value(self, name: str, **labels: str) -> float:
        """One of them now; 0 if it is not there yet."""
        return (await self.look()).get((name, frozenset(labels.items())), 0.0)

    def moved(self, name: str) -> bool:
        """Whether any of its samples changed."""
        keys = {key for samples in self.seen for key in samples if re.fullmatch(f"{name}(_count)?", key[0])}
        return any(len({samples.get(key, 0.0) for samples in self.seen}) > 1 for key in keys)


def read(port: int | None, accepted: str = "text/plain") -> str:
    """The metrics at *port*, as text of this type."""
    opener = urllib.request.build_opener()
    opener.addheaders = [("Accept", accepted)]
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=CALL_SECONDS) as answer:
        text: str = answer.read().decode()
        return text


def certify(authority: trustme.CA, folder: Path, expires: datetime) -> dict[str, Any]:
    """The settings of a certificate that *expires* then."""
    issued = authority.issue_cert("127.0.0.1", not_after=expires)
    files = {"tls_certificate": folder / "certificate.pem", "tls_key": folder / "key.pem"}
    issued.cert_chain_pems[0].write_to_path(str(files["tls_certificate"]))
    issued.private_key_pem.write_to_path(str(files["tls_key"]))
    return files


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def measured(tmp_path: Path, authority: trustme.CA) -> AsyncIterator[Measured]:
    signer = tmp_path / "signer.pem"
    authority.cert_pem.write_to_path(str(signer))
    callers = tmp_path / "callers.toml"
    callers.write_text('[callers."127.0.0.1"]\n', encoding="utf-8")
    settings = Settings(
        port=0,
        metrics_port=0,
        callers_file=callers,
        max_queued_requests_per_caller=MOST_WAITING,
        **certify(authority, tmp_path, datetime(2031, 5, 6, tzinfo=UTC)),
    )
    async with (
        running_server(settings, build_parts(settings)) as server,
        AsyncClient(server.address, tls=Tls(root_certificates=signer)) as client,
    ):
        yield Measured(server, client)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(CALL_SECONDS):
        while not await condition():
            pass


def status_of(url: str, tls: ssl.SSLContext, *headers: tuple[str, str]) -> int:
    """The status of an answer over HTTPS."""
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=tls))
    opener.addheaders = list(headers)
    try:
        with opener.open(url, timeout=CALL_SECONDS) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


async def test_metrics_may_need_tls_and_a_token_which_a_reload_replaces(tmp_path: Path, authority: trustme.CA) -> None:
    files = certify(authority, tmp_path, datetime(2031, 5, 6, tzinfo=UTC))
    token_file = tokens.write(tmp_path / "tokens", prometheus=Role.ASK)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with rigged(
        host="127.0.0.1",
        metrics_port=0,
        metrics_host="localhost",
        metrics_tls_certificate=files["tls_certificate"],
        metrics_tls_key=files["tls_key"],
        metrics_token_file=token_file,
    ) as rig:
        url = f"https://127.0.0.1:{rig.server.metrics_port}/metrics"

        async def status(name: str) -> int:
            return await asyncio.to_thread(status_of, url, trusting, *tokens.bearer(f"{name}-token"))

        assert (await status("prometheus"), await status("other")) == (200, 401)
        tokens.write(token_file, other=Role.ASK)
        files["tls_certificate"].write_text("no certificate", encoding="utf-8")
        with pytest.raises(InvalidRequest, match="metrics_tls_certificate"):
            await rig.server.reload()
        assert (await status("prometheus"), await status("other")) == (200, 401)
        certify(authority, tmp_path, datetime(2032, 5, 6, tzinfo=UTC))
        await rig.server.reload()
        assert (await status("prometheus"), await status("other")) == (401, 200)


@pytest.mark.parametrize("is_recorded", [True, False])
async def test_what_is_traced_is_pointed_to_if_it_is_recorded(*, is_recorded: bool) -> None:
    tracing = TraceCalls(TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False), Sampling(float(is_recorded)))
    settings = Settings(port=0, metrics_port=0)
    async with (
        running_server(settings, build_parts(settings), tracing) as server,
        AsyncClient(server.address) as client,
    ):
        await client.derive([1, 2, 3], GRADIENTS, target=" Mary")
        text = await asyncio.to_thread(read, server.metrics_port, "application/openmetrics-text; version=1.0.0")
    pointing = re.findall(r'^(\w+)_bucket\{.*\} \d.* # \{trace_id="[0-9a-f]{32}"\}', text, flags=re.MULTILINE)
    assert set(pointing) == (
        {
            "grpc_server_call_duration_seconds",
            "dst_first_chunk_seconds",
            "dst_queue_wait_seconds",
            "dst_pass_seconds",
        }
        if is_recorded
        else set()
    )


async def test_every_metric_of_the_table_is_there_and_moves(
    measured: Measured, tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gate = measured.client, Gate(monkeypatch)
    await measured.look()
    # One request runs, two wait and are given up, and one more is refused.
    running = asyncio.create_task(client.derive([10, 11, 12], NEURONS))
    await gate.reached()
    waiting = [asyncio.create_task(client.derive([20 + i, 1], NEURONS)) for i in range(MOST_WAITING)]
    await until(lambda: waits(measured, MOST_WAITING))
    with pytest.raises(Exhausted):
        await client.derive([30, 1], NEURONS)
    assert await measured.value("dst_queue_oldest_seconds", device="cpu") > 0
    assert await measured.value("dst_expected_wait_seconds", device="cpu") > 0
    for one in waiting:
        one.cancel()
    await until(lambda: waits(measured, 0))
    gate.is_open.set()
    await running
    # The same again is found in the store; some gradients take a backward pass.
    await client.derive([10, 11, 12], NEURONS)
    await client.derive("When Mary and John", GRADIENTS, target=" Mary")
    items = [make_request([1, 2], NEURONS, request_id="good"), make_request([1, 2], GRADIENTS, request_id="bad")]
    answers = [answer async for _, answer in client.derive_stream(items)]
    assert sum(isinstance(answer, DstError) for answer in answers) == 1
    certify(authority, tmp_path, datetime(2032, 5, 6, tzinfo=UTC))
    await measured.server.reload()
    await measured.look()

    names = documented()
    there = {name for samples in measured.seen for name, _ in samples if not name.endswith("_created")}
    assert not [name for name in names if not {name, f"{name}_count"} & there]
    ours = {re.sub("_(bucket|count|sum)$", "", name) for name in there}
    assert ours == set(names)
    assert {name for name in names if not measured.moved(name) and not name.startswith("process_")} == STILL
    assert measured.moved("process_cpu_seconds_total")


async def waits(measured: Measured, count: int) -> bool:
    return await measured.value("dst_queue_requests", device="cpu", **{"class": "interactive"}) == count
