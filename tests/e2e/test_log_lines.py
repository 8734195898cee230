"""What the log says of calls: who, what and why, and nothing of what was asked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from dst_grpc._gen.dst.v1 import derived_scalar_type_pb2, inference_pb2
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from dst_grpc.client import Client, make_request
from dst_grpc.errors import DstError
from tests.e2e.conftest import CALL_SECONDS, environment_with, ready_address, stopped
from tests.services import SERVICES

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-00")
SECRET = "Xyzzy"
PROMPT = f"When {SECRET} and John went to the store, John gave a drink to"
OTHER = f"When {SECRET} and Mary went to the store, Mary gave a drink to"
OF_NO_ONE_MODEL = {
    *("GetServerInfo", "ListModels", "ListAutoencoders", "ListDerivedScalarTypes", "ListGraphs", "ListContexts"),
    *("DeriveStream", "ResolveStream", "PutTensor"),
}
_DEEPEST = 6


@contextmanager
def logged(lines: list[dict[str, Any]], *, log_level: str = "INFO") -> Iterator[str]:
    """The address of a server whose log is in *lines*, each an object, once it has ended."""
    code = f"""
from dst_grpc.rpc import process, settings
process.serve(settings.Settings(port=0, log_format="json", log_level={log_level!r}))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment_with()
    ) as server:
        try:
            yield ready_address(server)
        finally:
            lines += map(json.loads, stopped(server).splitlines())


def ask_well(client: Client) -> None:
    """Questions that are answered."""
    target: Any = {"target": " Mary", "distractor": " John"}
    client.derive(PROMPT, ["mlp_post_act"])
    client.derive(PROMPT, ["mlp_act_times_grad"], **target)
    client.resolve(PROMPT, ["mlp_post_act"])
    client.explain(PROMPT, **target)
    client.patch(PROMPT, OTHER, **target)
    client.attribute(PROMPT, OTHER, **target)
    client.circuit(PROMPT, OTHER, **target)
    graph = client.graph(PROMPT)
    client.graph_neighbours(graph, "t1")
    client.feature_tokens(graph, [graph.top(1)[0].name])
    client.drop_graph(graph)
    client.detokenize(client.tokenize(PROMPT).ids)
    client.model()
    for _ in client.derive_stream(make_request(f"{PROMPT} {i}", "mlp_post_act", request_id=str(i)) for i in range(4)):
        pass


def ask_badly(client: Client) -> None:
    """Questions with one mistake each, which the answer quotes."""
    questions: list[Any] = [
        lambda: client.derive(PROMPT, ["mlp_post_act"], target=SECRET),
        lambda: client.derive(PROMPT, ["mlp_post_act"], model=SECRET),
        lambda: client.derive(PROMPT * 1000, ["mlp_post_act"]),
        lambda: client.explain(PROMPT, target=" Mary", distractor=SECRET),
        lambda: client.patch(PROMPT, f"{OTHER} {SECRET}", target=" Mary", distractor=" John"),
        lambda: client.graph(PROMPT, targets=[SECRET]),
        lambda: client.load_context(SECRET),
    ]
    for question in questions:
        with pytest.raises(DstError):
            question()


def filled(descriptor: Descriptor, choice: int, depth: int = 0) -> Message:
    """A message with the secret in every text of it, and one of each choice; ids are left alone."""
    message = GetMessageClass(descriptor)()
    chosen = {oneof.fields[choice % len(oneof.fields)] for oneof in descriptor.oneofs}
    for field in descriptor.fields:
        if field.containing_oneof is not None and field not in chosen:
            continue
        if field.type == FieldDescriptor.TYPE_STRING and not field.name.endswith("_id"):
            put(message, field, SECRET)
        elif field.type == FieldDescriptor.TYPE_BYTES:
            put(message, field, SECRET.encode())
        elif field.message_type is not None and depth < _DEEPEST:
            inside = getattr(message, field.name)
            one = inside.add() if field.is_repeated else inside
            one.CopyFrom(filled(field.message_type, choice, depth + 1))
    return message


def put(message: Message, field: FieldDescriptor, value: str | bytes) -> None:
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def fill_everything(channel: grpc.Channel) -> None:
    """Calls of every method with texts wherever there may be some: most are refused."""
    for service in SERVICES:
        for method in service.methods:
            if method.name in {"WatchContexts", "ReloadRegistry"}:  # which take none
                continue
            kind = channel.stream_stream if method.client_streaming else channel.unary_stream
            call: Any = kind(f"/{service.full_name}/{method.name}")
            for choice in range(3):
                data = filled(method.input_type, choice).SerializeToString()
                try:
                    list(call(iter([data]) if method.client_streaming else data, timeout=CALL_SECONDS))
                except grpc.RpcError:
                    continue


def test_no_text_of_a_request_is_logged_whatever_is_asked() -> None:
    lines: list[dict[str, Any]] = []
    with logged(lines, log_level="DEBUG") as address:
        with Client(address) as client:
            ask_well(client)
            ask_badly(client)
        with grpc.insecure_channel(address) as channel:
            fill_everything(channel)
    methods = {line["method"] for line in lines if line["event"] == "call"}
    all_methods = {f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods}
    assert len(all_methods - methods) == 2
    assert {line["code"] for line in lines if line["event"] == "call"} >= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    well = [line for line in lines if line["event"] == "call" and line["code"] == "OK"]
    assert {line["method"].rpartition("/")[2] for line in well if "model" not in line} <= OF_NO_ONE_MODEL
    told = [line for line in lines if SECRET in json.dumps(line, ensure_ascii=False)]
    assert told == []


def request(**more: Any) -> inference_pb2.DeriveRequest:
    spec = {"dst": derived_scalar_type_pb2.DERIVED_SCALAR_TYPE_MLP_POST_ACT}
    return inference_pb2.DeriveRequest(prompt={"text": "x"}, derived_scalars=[spec], **more)


@pytest.fixture(scope="module")
def lines() -> Sequence[dict[str, Any]]:
    """The log of a server that was asked a known question, an unknown one, and both on a stream."""
    found: list[dict[str, Any]] = []
    with logged(found) as address, grpc.insecure_channel(address) as channel:
        stub: Any = DerivedScalarServiceStub(channel)
        known = stub.Derive(request(), timeout=CALL_SECONDS, metadata=(("x-request-id", "given"), PARENT))
        assert list(known)
        assert dict(known.trailing_metadata())["x-request-id"] == "given"
        unknown = stub.Derive(request(model="nothing"), timeout=CALL_SECONDS)
        with pytest.raises(grpc.RpcError):
            list(unknown)
        made = dict(unknown.trailing_metadata())["x-request-id"]
        items = [
            inference_pb2.DeriveStreamRequest(request=request(request_id="good")),
            inference_pb2.DeriveStreamRequest(request=request(model="none", request_id="bad")),
        ]
        list(stub.DeriveStream(iter(items), timeout=CALL_SECONDS))
    (bad,) = (line for line in found if line["event"] == "call" and line["code"] == "NOT_FOUND")
    assert bad["request_id"] == made
    return found


def test_a_line_says_who_asked_what_and_where_the_time_went(lines: Sequence[dict[str, Any]]) -> None:
    good, bad, stream = (line for line in lines if line["event"] == "call")
    told = {"request_id": "given", "trace_id": TRACE, "model": "embedded", "code": "OK", "caller": "127.0.0.1"}
    assert good.items() >= told.items()
    assert 0 < good["run_millis"] < good["millis"]
    assert good["sent_bytes"] > good["received_bytes"] > 0
    assert bad.items() >= {"code": "NOT_FOUND", "reason": "MODEL_NOT_FOUND"}.items()
    (item,) = (line for line in lines if line["event"] == "item")
    assert item.items() >= {"item": 1, "item_id": "bad", "code": "NOT_FOUND", "method": stream["method"]}.items()
    assert item["request_id"] == stream["request_id"]
    assert stream["code"] == "OK"


def test_what_happens_to_a_context_is_told_by_fields(lines: Sequence[dict[str, Any]]) -> None:
    found = [line for line in lines if line["event"].startswith("context ")]
    states = ("loading", "available", "unloading", "not_loaded")
    assert [line["event"] for line in found] == [f"context {state}" for state in states]
    for line in found:
        assert line.items() >= {"context": "embedded", "kind": "model", "device": "cpu"}.items()
        assert line["bytes"] > 0
    assert found[0]["request_id"] == "given"
    assert "request_id" not in found[-1]
    assert found[1]["before"] == "loading"
    assert found[1]["before_millis"] > 0
