"""A log that nobody reads: the server serves on, and ends when it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import grpc

from dst_grpc._gen.dst.v1 import catalog_service_pb2
from dst_grpc._gen.dst.v1.catalog_service_pb2_grpc import CatalogServiceStub
from tests.e2e.conftest import CALL_SECONDS

PROGRAM = """
from dst_grpc.rpc import process, settings
from tests.fake_parts import FakeParts
process.build_parts = lambda _: FakeParts().parts
process.serve(settings.Settings(port=0), on_ready=lambda address: print(address, flush=True))
"""
_OF_PIPE = 1 << 16
"""Bytes that a pipe takes."""
_CALLS = 2 * _OF_PIPE // 100
"""Each has a line of more than a hundred bytes."""


def test_a_log_that_nobody_reads_keeps_nobody_waiting() -> None:
    pipe = subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=pipe, stderr=pipe, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            with grpc.insecure_channel(process.stdout.readline().strip()) as channel:
                stub: Any = CatalogServiceStub(channel)
                for _ in range(_CALLS):
                    stub.ListModels(catalog_service_pb2.ListModelsRequest(), timeout=CALL_SECONDS)
            process.terminate()
            assert process.wait(timeout=CALL_SECONDS) == 0
        finally:
            process.kill()
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
    assert all(" dst_grpc." in line for line in lines[:-1])
