"""Limits of requests: every list has one, the protos state it, and it is far above what requests hold."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet
from google.protobuf.message import Message
from google.rpc import status_pb2

from benchmarks import explain as explain_benchmark
from benchmarks import serving, subjects
from dst_grpc._gen.dst.v1 import inference_pb2
from dst_grpc.causal.graph import Graph
from dst_grpc.client import (
    AttributedNode,
    AttributeRequest,
    CircuitRequest,
    GraphEdgeQuery,
    GraphFeatureTokens,
    GraphInterventions,
    GraphNodeFilter,
    GraphNodeKind,
    GraphRequest,
    PatchGrid,
    PatchRequest,
    ProbeGraphRequest,
    QueryGraphRequest,
    make_attribute_request,
    make_circuit_request,
    make_graph_intervention,
    make_graph_request,
    make_pair,
    make_patch_request,
    scale,
)
from dst_grpc.domain.circuit import FRACTIONS
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.wire.codec import to_wire
from dst_grpc.wire.limits import MAX_ENTRIES, MAX_FIELDS, MAX_LONG_TEXT_BYTES, MAX_TEXT_BYTES
from tests.parity.cases import CASES, load_case
from tests.parity.explain_cases import EXPLAIN_CASES, load_explain_case
from tests.polyglot.requests import Requests
from tests.services import SERVICES

ROOT = Path(__file__).parents[2]


def fields_of(descriptor: Any, seen: set[str]) -> Iterator[Any]:
    """The fields of a message and of those within it."""
    if descriptor.full_name in seen:
        return
    seen.add(descriptor.full_name)
    for field in descriptor.fields:
        yield field
        if field.message_type is not None:
            yield from fields_of(field.message_type, seen)


def fields_of_requests() -> dict[str, Any]:
    """The fields of all requests, by full name."""
    seen: set[str] = set()
    methods = [method for service in SERVICES for method in service.methods]
    return {field.full_name: field for method in methods for field in fields_of(method.input_type, seen)}


@pytest.fixture(name="comments", scope="module")
def _comments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The comment of every field of the protos, by full name."""
    image = tmp_path_factory.mktemp("protos") / "image"
    files = sorted(path.relative_to(ROOT / "protos").as_posix() for path in (ROOT / "protos" / "dst").rglob("*.proto"))
    folders = [f"-I{ROOT / 'protos'}", f"-I{Path(status_pb2.__file__).parents[2]}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *folders, "--include_source_info"]
    subprocess.run([*command, f"--descriptor_set_out={image}", *files], check=True)
    found: dict[str, str] = {}
    for file in FileDescriptorSet.FromString(image.read_bytes()).file:
        comment_at = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for i, message in enumerate(file.message_type):
            found |= _comments_of(message, (4, i), f"{file.package}.{message.name}", comment_at)
    return found


def _comments_of(
    message: DescriptorProto, place: tuple[int, ...], name: str, comment_at: dict[tuple[int, ...], str]
) -> dict[str, str]:
    return {
        f"{name}.{field.name}": " ".join(comment_at.get((*place, 2, i), "").split())
        for i, field in enumerate(message.field)
    }


def test_every_list_and_no_other_field_has_a_limit() -> None:
    fields = fields_of_requests()
    assert {name for name, field in fields.items() if field.is_repeated} == set(MAX_ENTRIES)
    assert {name for name in MAX_LONG_TEXT_BYTES if fields[name].type == fields[name].TYPE_STRING} == set(
        MAX_LONG_TEXT_BYTES
    )


def test_the_protos_state_the_limits(comments: dict[str, str]) -> None:
    for name, limit in MAX_ENTRIES.items():
        assert re.search(rf"at most {limit}\b", comments[name], re.IGNORECASE), name
    for name, limit in MAX_LONG_TEXT_BYTES.items():
        assert f"At most {limit} bytes" in comments[name], name
    text = (ROOT / "protos" / "dst" / "v1" / "derived_scalar_service.proto").read_text(encoding="utf-8")
    assert f"at most {MAX_FIELDS} fields" in text
    assert f"at most {MAX_TEXT_BYTES} bytes" in text


def circuit_request() -> CircuitRequest:
    """All edges of GPT-2 small, and what else a request of Circuit may list."""
    graph = Graph(n_layers=12, n_heads=12)
    return make_circuit_request(
        pairs=[make_pair("a", "b", target=" c")] * 100,
        alternative="mean",
        reference=["d"] * 1000,
        autoencoders=["one", "two"],
        circuits=[["input", "m0"], list(map(str, graph.edges[:20_000]))],
        fractions=FRACTIONS,
    )


def attribute_request() -> AttributeRequest:
    """What a request of Attribute may list."""
    pairs = [make_pair("a", "b", target=" c")] * 100
    return make_attribute_request(pairs=pairs, autoencoders=["one", "two"], nodes=list(AttributedNode)[:10])


def patch_request() -> PatchRequest:
    """What a request of Patch may list: all edges of GPT-2 small into its heads, and grids and cells of any kind."""
    graph = Graph(n_layers=12, n_heads=12)
    return make_patch_request(
        pairs=[make_pair("a", "b", target=" c")] * 100,
        autoencoders=["one", "two"],
        alternative="mean",
        reference=["d"] * 1000,
        nodes=list(AttributedNode)[1:9],
        layers=range(12),
        positions=range(16),
        grids=[PatchGrid(node=AttributedNode.NEURON, entries=tuple(range(3072)))],
        senders=map(str, graph.sources),
        receivers=map(str, graph.readers),
        edges=map(str, graph.edges[:5000]),
        cells=[[scale("attn.v_out", 0.0, layer=layer)] for layer in range(12)],
    )


def graph_requests() -> Iterator[GraphRequest | QueryGraphRequest | ProbeGraphRequest]:
    """What requests of GraphService may list."""
    names = [f"f0.{i}@0" for i in range(1000)]
    runs = [make_graph_intervention(off=names), *(make_graph_intervention({name: 1.0}) for name in names[:90])]
    runs.append(make_graph_intervention(dict.fromkeys(names[:90], 1.0)))
    yield ProbeGraphRequest(graph="one", probe=GraphFeatureTokens(nodes=tuple(names)))
    yield ProbeGraphRequest(graph="one", probe=GraphInterventions(interventions=tuple(runs)))
    targets = [f" {i}" for i in range(50)]
    yield make_graph_request("a", "one", targets=targets, directions={str(i): np.ones(768) for i in range(50)})
    nodes = GraphNodeFilter(layers=tuple(range(48)), tokens=tuple(range(2048)), kinds=tuple(GraphNodeKind))
    yield QueryGraphRequest(graph="one", query=GraphEdgeQuery(min_weight=0.5), filter=nodes)


def known_requests() -> Iterator[Message]:
    """What goldens, vectors, examples and benchmarks ask."""
    yield from (to_wire(load_case(name, "golden").request) for name in CASES)
    yield from (to_wire(load_explain_case(name, "golden").request) for name in EXPLAIN_CASES)
    for vector in json.loads((ROOT / "tests" / "conformance" / "requests.json").read_text(encoding="utf-8")):
        yield inference_pb2.DeriveRequest.FromString(base64.b64decode(vector["message"]))
    for inputs in ("examples/clients/tour.json", "tests/polyglot/golden.json"):
        tour = Requests(json.loads((ROOT / inputs).read_text(encoding="utf-8")))
        asked = (tour.dense(), tour.sparse(), tour.wrong(), tour.rejected(), tour.large())
        yield from map(to_wire, asked)
        yield tour.explain()
    yield to_wire(attribute_request())
    yield to_wire(circuit_request())
    yield to_wire(patch_request())
    yield from map(to_wire, graph_requests())
    yield to_wire(serving.small_request())
    yield to_wire(serving.large_request())
    yield to_wire(subjects.request(64, list(DerivedScalarType)))
    yield to_wire(explain_benchmark.plan(64, second=64).plans[0].request)


def held(message: Message, most: Counter[str]) -> int:
    """The number of fields of *message*; the entries of its lists, and the bytes of its texts, go to *most*."""
    total = 0
    for field, value in message.ListFields():
        values = list(value) if field.is_repeated else [value]
        name = field.full_name
        total += len(values)
        if field.is_repeated:
            most[name] = max(most[name], len(values))
        if field.message_type is not None:
            total += sum(held(each, most) for each in values)
        elif field.type == field.TYPE_STRING:
            key = name if name in MAX_LONG_TEXT_BYTES else "text"
            most[key] = max(most[key], *(len(each.encode()) for each in values))
    return total


def test_no_limit_is_near_what_requests_hold() -> None:
    most: Counter[str] = Counter()
    largest = max(held(message, most) for message in known_requests())
    assert largest * 10 <= MAX_FIELDS
    limits = {**MAX_ENTRIES, **MAX_LONG_TEXT_BYTES, "text": MAX_TEXT_BYTES}
    assert {name for name, count in most.items() if count * 10 > limits[name]} == set()
    assert len(most) > len(limits) // 3  # they hold much of what may be held
