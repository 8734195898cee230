"""A server to talk to, and clients that talk to it."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dst_grpc.client import AsyncClient, Client
from tests.fake_service import FakeService, fake_server


@pytest.fixture(name="service")
def _service() -> Iterator[FakeService]:
    with fake_server() as service:
        yield service


@pytest.fixture(name="client")
def _client(service: FakeService) -> Iterator[Client]:
    with Client(service.target) as client:
        yield client


@pytest.fixture(name="async_client")
async def _async_client(service: FakeService) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.target) as client:
        yield client


@pytest.fixture(name="pki", scope="module")
def _pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, as cert.pem and key.pem."""
    folder = tmp_path_factory.mktemp("pki")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", *key, "-out", "cert.pem", "-days", "2", *subject],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder
