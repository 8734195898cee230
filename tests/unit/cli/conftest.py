"""The command line, run in this process against a server that does what a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner, Result

from dst_grpc.cli._app import app
from tests.fake_service import FakeService, fake_server

Run = Callable[..., Result]


@pytest.fixture(name="service")
def _service() -> Iterator[FakeService]:
    with fake_server() as service:
        yield service


@pytest.fixture(name="run")
def _run(service: FakeService) -> Run:
    """Run `dst-grpc ARGUMENTS`, asking the fake server, on a terminal of so many columns (None = no terminal)."""

    def run(*arguments: str, columns: int | None = None) -> Result:
        environment = {"DST_SERVER": service.target, "COLUMNS": None if columns is None else str(columns)}
        return CliRunner().invoke(app, arguments, env=environment, prog_name="dst-grpc")

    return run
