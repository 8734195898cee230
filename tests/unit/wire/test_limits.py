"""What is too large is refused by its path before it is parsed, in whatever form protobuf lets it be sent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc._gen.dst.v1 import (
    catalog_service_pb2,
    explain_pb2,
    index_pb2,
    inference_pb2,
    resolution_pb2,
    tensor_service_pb2,
)
from dst_grpc.errors import InvalidRequest, Reason
from dst_grpc.wire.limits import MAX_FIELDS, MAX_LONG_TEXT_BYTES, MAX_TEXT_BYTES
from dst_grpc.wire.parsing import is_light, parse, text_at
from tests.arbitrary import messages


def tag(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*parts, value))


def delimited(number: int, content: bytes) -> bytes:
    return tag(number, 2) + varint(len(content)) + content


def refusal(message_type: type[Message], data: bytes) -> tuple[str, str]:
    """Where *data* is beyond a limit, and what is said of it."""
    with pytest.raises(InvalidRequest) as caught:
        parse(message_type, data)
    (violation,) = caught.value.violations
    assert caught.value.reason is Reason.INVALID_FIELD
    return violation.field, violation.description


def tokens(n_tokens: int) -> inference_pb2.Prompt:
    return inference_pb2.Prompt(token_ids=inference_pb2.TokenIds(token_ids=[300] * n_tokens))


LARGE: list[tuple[Callable[[int], Message], int, str]] = [
    (lambda n: inference_pb2.DeriveRequest(ablation_specs=[{}] * n), 10_000, "ablation_specs"),
    (lambda n: inference_pb2.DeriveRequest(prompt=tokens(n)), 100_000, "prompt.token_ids.token_ids"),
    (
        lambda n: explain_pb2.TopKRequest(runs=[{}, {"derived_scalars": [{}] * n}]),
        5000,
        "runs[1].derived_scalars",
    ),
    (
        lambda n: resolution_pb2.ResolveStreamRequest(
            request={"request": {"loss_fn_config": {"target_tokens": ["a b"] * n}}}
        ),
        1000,
        "request.request.loss_fn_config.target_tokens",
    ),
    (
        lambda n: tensor_service_pb2.PutTensorRequest(description={"sizes": [2**40] * max(n, 1000 * (n > 100))}),
        100,
        "description.sizes",
    ),
]


@pytest.mark.parametrize(("made", "limit", "path"), LARGE, ids=[path for *_, path in LARGE])
def test_a_list_may_hold_so_many_entries_and_no_more(made: Callable[[int], Message], limit: int, path: str) -> None:
    full = made(limit)
    assert parse(type(full), full.SerializeToString()) == full
    larger = made(limit + 1)
    assert refusal(type(larger), larger.SerializeToString()) == (path, f"must hold at most {limit} entries")


def test_the_parts_of_a_list_count_together() -> None:
    """Protobuf merges messages that are sent in parts, and numbers that are packed or not."""
    part = inference_pb2.DeriveRequest(prompt=tokens(60_000)).SerializeToString()
    assert refusal(inference_pb2.DeriveRequest, part * 2)[0] == "prompt.token_ids.token_ids"
    packed = delimited(2, bytes(300_000))
    single = (tag(2, 0) + b"\x05") * 100_000
    assert parse(catalog_service_pb2.DetokenizeRequest, packed + single).token_ids[-1] == 5
    assert refusal(catalog_service_pb2.DetokenizeRequest, packed + single + packed)[0] == "token_ids"
    runs = explain_pb2.TopKRequest(runs=[inference_pb2.DeriveRequest(prompt=tokens(60_000))] * 2)
    assert parse(explain_pb2.TopKRequest, runs.SerializeToString()) == runs  # each has a list of its own


def test_a_text_may_take_so_many_bytes_and_no_more() -> None:
    limit = MAX_LONG_TEXT_BYTES["dst.v1.Prompt.text"]
    for size in (limit, limit + 1):
        request = inference_pb2.DeriveRequest(prompt={"text": "é" * (size // 2) + "e" * (size % 2)})
        if size == limit:
            assert parse(inference_pb2.DeriveRequest, request.SerializeToString()) == request
        else:
            found = refusal(inference_pb2.DeriveRequest, request.SerializeToString())
            assert found == ("prompt.text", f"must take at most {limit} bytes, not {size}")
    names = inference_pb2.DeriveRequest(autoencoders=["a", "b" * (MAX_TEXT_BYTES + 1)])
    assert refusal(inference_pb2.DeriveRequest, names.SerializeToString())[0] == "autoencoders[1]"


@pytest.mark.parametrize(
    "field",
    [tag(2000, 0) + b"\x01", tag(2000, 2) + b"\x00", tag(2000, 3), tag(8, 2) + b"\x00", b"\x70\x01"],
    ids=["unknown", "unknown message", "group", "message in parts", "number again and again"],
)
def test_a_message_holds_so_many_fields_whatever_they_are(field: bytes) -> None:
    data = field * (MAX_FIELDS + 1)
    path, description = refusal(inference_pb2.DeriveRequest, data)
    assert path == ""
    assert str(MAX_FIELDS) in description


def test_counting_follows_no_deeper_than_parsing() -> None:
    trace = b""
    while len(trace) < 20_000:
        trace = delimited(5, trace)
    with pytest.raises(InvalidRequest) as caught:
        parse(inference_pb2.DeriveRequest, trace)
    assert caught.value.reason is Reason.MALFORMED_MESSAGE


@given(st.binary(max_size=200), st.integers(1, 40))
def test_any_bytes_are_a_message_or_refused(data: bytes, repeated: int) -> None:
    data = data * repeated + bytes(1100)  # beyond what is small
    for message_type in (inference_pb2.DeriveStreamRequest, explain_pb2.ExplainRequest, index_pb2.NodeIndex):
        with suppress(InvalidRequest):
            assert isinstance(parse(message_type, data), message_type)


@given(messages.messages(inference_pb2.DeriveStreamRequest))
def test_counting_changes_nothing_for_others(message: inference_pb2.DeriveStreamRequest) -> None:
    data = message.SerializeToString()
    assert parse(inference_pb2.DeriveStreamRequest, data) == message
    assert is_light(inference_pb2.DeriveStreamRequest, data) or len(data) > 1000


def test_light_is_what_reads_fast() -> None:
    few = inference_pb2.DeriveRequest(prompt={"text": "x" * 450_000}).SerializeToString()
    many = inference_pb2.DeriveRequest(ablation_specs=[{}] * 2000).SerializeToString()
    numbers = inference_pb2.DeriveRequest(prompt=tokens(50_000)).SerializeToString()
    wrong = inference_pb2.DeriveRequest(model="x" * 5000).SerializeToString()
    found = [is_light(inference_pb2.DeriveRequest, data) for data in (few, many, numbers, wrong, b"\xff" * 2000)]
    assert found == [True, False, False, True, True]


def test_the_id_of_a_message_that_is_refused_is_found_in_its_bytes() -> None:
    stream = inference_pb2.DeriveStreamRequest
    item = stream(request={"request_id": "é1", "ablation_specs": [{}] * 20_000}).SerializeToString()
    path = "request.request_id"
    assert text_at(stream, item, path) == "é1"
    assert text_at(stream, stream(request={"model": "x"}).SerializeToString(), path) == ""
    assert text_at(stream, stream(cancel={"request_id": "x"}).SerializeToString(), path) is None
    assert text_at(stream, b"\xff" * 10, path) is None
    assert text_at(stream, item[:4], path) == ""
    assert sys.getsizeof(text_at(stream, stream(request={"request_id": "x" * 10**6}).SerializeToString(), path)) < 5000
