"""Requests that are sent again are read once, for each caller apart."""

from __future__ import annotations

from dst_grpc._gen.dst.v1 import inference_pb2
from dst_grpc.domain.callers import Caller
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.rpc import reading
from dst_grpc.rpc.reading import Reading

FIRST, SECOND = Caller(name="first"), Caller(name="second")


def data_of(text: str = "a", **fields: object) -> bytes:
    message = inference_pb2.DeriveRequest(prompt=inference_pb2.Prompt(text=text), **fields)  # type: ignore[arg-type]
    return message.SerializeToString()


async def test_a_request_that_is_sent_again_is_read_once_for_each_caller() -> None:
    reads = Reading()
    value, known = await reads.request(DeriveRequest, data_of(), FIRST)
    again, _ = await reads.request(DeriveRequest, data_of(), FIRST)
    of_other, _ = await reads.request(DeriveRequest, data_of(), SECOND)
    assert again is value
    assert of_other is not value
    assert of_other == value
    assert known is None


async def test_what_is_wrong_is_found_each_time() -> None:
    reads = Reading()
    for _ in range(2):
        _, known = await reads.request(DeriveRequest, data_of(element_type=77), FIRST)
        assert known is not None
        assert [violation.field for violation in known.listed] == ["element_type"]


async def test_only_so_many_small_requests_are_remembered() -> None:
    reads = Reading()
    first, _ = await reads.request(DeriveRequest, data_of("0"), FIRST)
    size, most = 0, reading._RECENT_BYTES
    for i in range(most // 1000):
        data = data_of(f"{i:01000d}")
        await reads.request(DeriveRequest, data, FIRST)
        size += len(data)
    assert size > most
    assert (await reads.request(DeriveRequest, data_of("0"), FIRST))[0] is not first
    large = data_of("x" * reading._SMALL_BYTES)
    assert (await reads.request(DeriveRequest, large, FIRST))[0] is not (
        await reads.request(DeriveRequest, large, FIRST)
    )[0]
