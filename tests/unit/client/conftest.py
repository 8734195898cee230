"""A server to talk to, and clients that talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

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
