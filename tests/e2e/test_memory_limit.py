"""Memory that really is limited: a request that is too large for it is refused, and the next is served, again and
again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from dst_grpc._gen.dst.v1 import component_pb2, derived_scalar_type_pb2, explain_pb2, inference_pb2
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from dst_grpc.errors import Reason
from tests.e2e.conftest import CALL_SECONDS, error_of

_FREE_MIB = 32
"""More than a small request takes, and less than a tenth of what a large one does."""
_ROUNDS = 5
_LARGE_SECONDS = 3 * CALL_SECONDS
"""A large one takes five seconds of a processor."""
_RUNS = 16
_TOKENS = 256
PROGRAM = f"""
import resource, signal
from dst_grpc.rpc import process, settings

def limit(*_):
    "From now on there are so many MiB more than are mapped."
    status = open("/proc/self/status", encoding="utf-8").read()
    mapped = int(status.partition("VmSize:")[2].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ({_FREE_MIB} << 20), resource.RLIM_INFINITY))
    print("limited", flush=True)

signal.signal(signal.SIGUSR1, limit)
# What the C library keeps counts as mapped, and would serve the next large request.
chosen = settings.Settings(port=0, store_bytes=0, return_freed_memory=True)
process.serve(chosen, on_ready=lambda address: print(address, flush=True))
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")


def run_of(first: int, n_tokens: int) -> inference_pb2.DeriveRequest:
    """A run of a prompt that begins with a token of its own."""
    run = inference_pb2.DeriveRequest()
    run.prompt.token_ids.token_ids.extend([first, *[7] * (n_tokens - 1)])
    run.loss_fn_config.name = component_pb2.LOSS_FN_NAME_LOGIT_DIFF
    run.loss_fn_config.target_tokens.append(" Mary")
    return run


def large(stub: Any, number: int) -> int:
    """Ask for the largest nodes of many prompts, which run as one batch; the messages of the answer."""
    request = explain_pb2.TopKRequest(k=3, runs=[run_of(number * _RUNS + i, _TOKENS) for i in range(_RUNS)])
    types = ("MLP_ACT_TIMES_GRAD", "UNFLATTENED_ATTN_ACT_TIMES_GRAD")
    numbers = [derived_scalar_type_pb2.DerivedScalarType.Value(f"DERIVED_SCALAR_TYPE_{name}") for name in types]
    request.groups.add(group_id="g", dsts=numbers)
    return sum(1 for _ in stub.TopK(request, timeout=_LARGE_SECONDS))


def small(stub: Any, number: int) -> int:
    """Ask for the neurons of a short prompt; the messages of the answer."""
    request = run_of(number, 12)
    request.derived_scalars.add(dst=derived_scalar_type_pb2.DERIVED_SCALAR_TYPE_MLP_ACT_TIMES_GRAD)
    return sum(1 for _ in stub.Derive(request, timeout=CALL_SECONDS))


@contextmanager
def limited() -> Iterator[Any]:
    """A stub of a server that has answered both kinds of requests, and then has little memory left."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            with grpc.insecure_channel(process.stdout.readline().strip()) as channel:
                stub: Any = DerivedScalarServiceStub(channel)
                assert large(stub, 0)
                assert small(stub, 0)
                process.send_signal(signal.SIGUSR1)
                assert process.stdout.readline() == "limited\n"
                yield stub
            process.terminate()
            assert process.wait(timeout=CALL_SECONDS) == 0
        finally:
            process.kill()


def test_a_request_that_memory_does_not_suffice_for_takes_none_from_the_next() -> None:
    with limited() as stub:
        for number in range(1, _ROUNDS + 1):
            with pytest.raises(grpc.RpcError) as caught:
                large(stub, number)
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error_of(error).reason is Reason.OUT_OF_MEMORY
            assert small(stub, number)
