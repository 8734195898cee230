"""Tensors up to the quota, half of one, and others' handles: refused beyond the quota, and memory is given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dst_grpc._gen.dst.v1 import tensor_pb2, tensor_service_pb2
from tests.load.common import Findings, Outcome, Target, call

_PUT = "/dst.v1.TensorService/PutTensor"
_DELETE = "/dst.v1.TensorService/DeleteTensor"
_MIB = 1 << 20
_QUOTA = 64 * _MIB
_SLACK_MIB = 48
_HALVES = 10


def arguments(_folder: Path) -> tuple[str, ...]:
    """A quota of 64 MiB."""
    return ("--max-put-tensor-bytes", str(_QUOTA))


def _messages(n_bytes: int, sent: int | None = None) -> list[bytes]:
    """A tensor of *n_bytes*, of which *sent* are there."""
    description = tensor_service_pb2.TensorDescription(
        element_type=tensor_pb2.TENSOR_ELEMENT_TYPE_FLOAT32, sizes=[n_bytes // 4]
    )
    block = tensor_service_pb2.PutTensorRequest(data=bytes(_MIB)).SerializeToString()
    first = tensor_service_pb2.PutTensorRequest(description=description).SerializeToString()
    return [first, *[block] * ((n_bytes if sent is None else sent) // _MIB)]


async def attack(target: Target, found: Findings) -> None:
    """Fill the quota, try for more, leave uploads half done, and delete."""

    def expect(what: str, outcome: Outcome, code: str) -> None:
        found.say(what, outcome.code, code, outcome.code == code)

    def delete(handle: str) -> bytes:
        return tensor_service_pb2.DeleteTensorRequest(handle=handle).SerializeToString()

    async with target.channel() as channel:
        before, peak = target.memory_mib, 0
        put: Any = channel.stream_unary(_PUT)
        kept = tensor_service_pb2.PutTensorResponse.FromString(await put(iter(_messages(_QUOTA)), timeout=60.0))
        expect("one more than the quota", await call(channel, _PUT, *_messages(_MIB)), "RESOURCE_EXHAUSTED")
        expect("an unknown handle", await call(channel, _DELETE, delete("x")), "NOT_FOUND")
        expect("its own", await call(channel, _DELETE, delete(kept.handle)), "OK")
        expect("a petabyte", await call(channel, _PUT, *_messages(1 << 50, sent=0)), "RESOURCE_EXHAUSTED")
        for _ in range(_HALVES):
            half = put(timeout=60.0)
            for message in _messages(_QUOTA, sent=_QUOTA // 2):
                await half.write(message)
            peak = max(peak, target.memory_mib)
            half.cancel()
        expect(f"the quota, after {_HALVES} that were left", await call(channel, _PUT, *_messages(_QUOTA)), "OK")
        taken, right = max(peak, target.memory_mib) - before, 2 * (_QUOTA // _MIB) + _SLACK_MIB
        found.say("MiB taken at most", str(taken), f"<= {right}", taken <= right)
