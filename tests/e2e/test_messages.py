"""No message of any answer is larger than 1 MiB, whatever is asked for; what comes in pieces joins to the whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import grpc.aio
import numpy as np
from google.protobuf.message import Message

from dst_grpc._gen.dst.v1 import (
    attribute_pb2,
    catalog_service_pb2,
    circuit_pb2,
    context_service_pb2,
    explain_pb2,
    graph_pb2,
    graph_probe_pb2,
    inference_pb2,
    patch_pb2,
    resolution_pb2,
    tensor_pb2,
    tensor_service_pb2,
)
from dst_grpc.domain.attribute_answers import AttributePart, AttributePartKind, VerifiedEdges
from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.domain.circuit import CircuitEdges, CircuitPart, CircuitPartKind, CircuitRequest
from dst_grpc.domain.components import NodeType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.explain import ExplainRequest, TopKRequest
from dst_grpc.domain.explanations import (
    ExplainPart,
    ExplanationPart,
    GroupValues,
    NodeTable,
    NodeTokenPairs,
    NodeTokens,
    PartKind,
    ScalarSum,
    ScoredTokens,
    TokenPairs,
    TokenScore,
)
from dst_grpc.domain.graph import GraphRequest
from dst_grpc.domain.graph_answers import GraphPart, GraphPartKind, GraphPath, GraphPaths
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_probe_answers import GraphChange, GraphChanges, GraphProbePart, GraphProbePartKind
from dst_grpc.domain.graph_probes import ProbeGraphRequest
from dst_grpc.domain.graph_queries import QueryGraphRequest
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.patch import PatchRequest
from dst_grpc.domain.patch_answers import PatchedCells, PatchPart, PatchPartKind
from dst_grpc.domain.requests import DeriveRequest, ResolveRequest
from dst_grpc.domain.resolution import ContextState, ScalarResolution
from dst_grpc.domain.results import AnswerHeader, RunHeader, RunSummary
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.errors import DataLoss
from dst_grpc.pipeline.graph_parts import EDGES_AT_ONCE, NODES_AT_ONCE
from dst_grpc.rpc.ports import AnswerPart, Stage
from tests.e2e.conftest import CALL_SECONDS, Rig, rigged
from tests.fake_causal import attribute_parts, circuit_parts, patch_parts
from tests.fake_graphs import KEPT, header_of
from tests.fake_parts import FakeParts, FakeRegistry, context_status, resolution, tensor
from tests.fake_runs import MODEL_HANDLE, SUMMARY
from tests.random_graphs import random_graph
from tests.services import SERVICES

LIMIT = 1 << 20
N_TOKENS = 150_000
N_TENSORS = 4000
N_NODES = 5000
N_GROUPS = 64
Asked = Callable[[Rig], Awaitable[Sequence[Message]]]


async def derive_script(_request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
    tensors = [tensor(i, np.zeros(3)) for i in range(N_TENSORS)] + [tensor(N_TENSORS, np.zeros(600_000))]
    header = AnswerHeader(
        model=MODEL_HANDLE,
        token_ids=(50_000,) * N_TOKENS,
        token_strings=("token",) * N_TOKENS,
        tensors=tuple(each.info for each in tensors),
    )
    yield [header, *tensors, SUMMARY]


async def resolve_script(_request: ResolveRequest) -> AsyncGenerator[Stage, None]:
    one = ScalarResolution(
        dst=DerivedScalarType.MLP_POST_ACT,
        config=DstConfig(layer_indices=tuple(range(20))),
        requires_grad=False,
        taps=(),
        pass_types=(),
        layer_indices=tuple(range(20)),
        axes=(),
        output_bytes=0,
    )
    yield replace(resolution(), scalars=(one,) * 20_000)


def table() -> NodeTable:
    nodes = tuple(
        NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(i % 100, i), layer_index=1) for i in range(N_NODES)
    )
    values = np.zeros(N_NODES, np.float32)
    group = GroupValues(group_id="g", values=values, top=tuple(range(N_NODES)), bottom=(), completeness=None)
    groups = tuple(replace(group, group_id=f"group {i}") for i in range(N_GROUPS))
    return NodeTable(nodes=nodes, groups=groups)


async def runs_script(
    request: ExplainRequest | TopKRequest,
) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
    header = RunHeader(model=MODEL_HANDLE, token_ids=(50_000,) * N_TOKENS, token_strings=("token",) * N_TOKENS)
    square = np.zeros((1000, 1000), np.float32)
    total = ScalarSum(dst=DerivedScalarType.UNFLATTENED_ATTN_WRITE_NORM, values=square)
    parts = [
        ExplanationPart(kind=PartKind.HEADER, value=header),
        ExplanationPart(kind=PartKind.NODE_TABLE, value=table()),
        ExplanationPart(kind=PartKind.SCALAR_SUM, value=total),
    ]
    if isinstance(request, ExplainRequest):
        score = TokenScore(1, "token", 1.0, 1.0)
        tokens = tuple(NodeTokens(node=i, top=(score,) * 100, bottom=()) for i in range(1000))
        scored = ScoredTokens(part=ExplainPart.UPVOTED_OUTPUT_TOKENS, nodes=tokens)
        pairs = tuple(NodeTokenPairs(node=i, attended_tokens=((1, 0.5),) * 100) for i in range(2000))
        parts += [
            ExplanationPart(kind=PartKind.SCORED_TOKENS, value=scored),
            ExplanationPart(kind=PartKind.TOKEN_PAIRS, value=TokenPairs(nodes=pairs)),
        ]
    yield [*parts, SUMMARY]


async def patch_script(_request: PatchRequest) -> AsyncGenerator[Sequence[PatchPart | RunSummary], None]:
    many = PatchedCells(grid=0, pair=0, cells=(1,) * N_TOKENS, metrics=(0.5,) * N_TOKENS)
    found = patch_parts()
    yield [*found[:-1], PatchPart(kind=PatchPartKind.CELLS, value=many), found[-1]]


async def attribute_script(_request: AttributeRequest) -> AsyncGenerator[Sequence[AttributePart | RunSummary], None]:
    verified = VerifiedEdges(
        sources=(300,) * N_TOKENS, readers=(800,) * N_TOKENS, scores=(0.5,) * N_TOKENS, effects=(0.25,) * N_TOKENS
    )
    found = attribute_parts()
    yield [*found[:-1], AttributePart(kind=AttributePartKind.VERIFIED, value=verified), found[-1]]


async def circuit_script(_request: CircuitRequest) -> AsyncGenerator[Sequence[CircuitPart | RunSummary], None]:
    many = CircuitEdges(sources=(300,) * N_TOKENS, readers=(800,) * N_TOKENS, scores=(0.5,) * N_TOKENS)
    found = circuit_parts()
    yield [*found[:-1], CircuitPart(kind=CircuitPartKind.SCORES, value=many), found[-1]]


async def probe_script(_request: ProbeGraphRequest) -> AsyncGenerator[Sequence[GraphProbePart | RunSummary], None]:
    change = GraphChange(node="f30.123456@4000", predicted=0.5, measured=0.25)
    changes = GraphChanges(index=0, name="\N{SNOWMAN}" * 256, changes=(change,) * 60_000)
    yield [GraphProbePart(kind=GraphProbePartKind.CHANGES, value=changes), SUMMARY]


async def graph_script(
    _request: GraphRequest | QueryGraphRequest,
) -> AsyncGenerator[Sequence[GraphPart | RunSummary], None]:
    header = replace(header_of(), token_ids=(50_000,) * N_TOKENS, token_strings=("token",) * N_TOKENS)
    table = random_graph().table.rows(np.zeros(NODES_AT_ONCE, int))
    ones = np.ones(EDGES_AT_ONCE, np.int32)
    edges = GraphEdges.of_pairs(ones, ones, ones)
    paths = GraphPaths(paths=(GraphPath(nodes=(100_000,) * 30, strength=0.5),) * 20_000)
    nodes = GraphPart(kind=GraphPartKind.NODES, value=table)
    some = GraphPart(kind=GraphPartKind.EDGES, value=edges)
    found = GraphPart(kind=GraphPartKind.PATHS, value=paths)
    yield [GraphPart(kind=GraphPartKind.HEADER, value=header), *[nodes, some] * 3, found, SUMMARY]


def prompted(request_id: str) -> inference_pb2.DeriveRequest:
    return inference_pb2.DeriveRequest(request_id=request_id, prompt=inference_pb2.Prompt(text="a"))


def put_messages() -> Iterable[Message]:
    description = tensor_service_pb2.TensorDescription(element_type=tensor_pb2.TENSOR_ELEMENT_TYPE_FLOAT32, sizes=[1])
    yield tensor_service_pb2.PutTensorRequest(description=description)
    yield tensor_service_pb2.PutTensorRequest(data=bytes(4))


LONG_ID = "ä" * 256
RESOLVE = resolution_pb2.ResolveRequest(request=prompted(LONG_ID))
REQUESTS: Mapping[str, Any] = {
    "GetServerInfo": catalog_service_pb2.GetServerInfoRequest(),
    "ListModels": catalog_service_pb2.ListModelsRequest(page_size=1000),
    "GetModel": catalog_service_pb2.GetModelRequest(),
    "ListAutoencoders": catalog_service_pb2.ListAutoencodersRequest(page_size=1000),
    "ListDerivedScalarTypes": catalog_service_pb2.ListDerivedScalarTypesRequest(page_size=1000),
    "Tokenize": catalog_service_pb2.TokenizeRequest(text="a" * 500_000),
    "Detokenize": catalog_service_pb2.DetokenizeRequest(token_ids=[228] * 500_000),
    "LoadContext": context_service_pb2.LoadContextRequest(context="tiny"),
    "UnpinContext": context_service_pb2.UnpinContextRequest(context="tiny"),
    "UnloadContext": context_service_pb2.UnloadContextRequest(context="tiny"),
    "ListContexts": context_service_pb2.ListContextsRequest(page_size=1000),
    "WatchContexts": context_service_pb2.WatchContextsRequest(),
    "ReloadRegistry": context_service_pb2.ReloadRegistryRequest(),
    "Resolve": RESOLVE,
    "ResolveStream": [resolution_pb2.ResolveStreamRequest(request=RESOLVE)],
    "Derive": prompted(LONG_ID),
    "DeriveStream": [inference_pb2.DeriveStreamRequest(request=prompted(LONG_ID))],
    "TopK": explain_pb2.TopKRequest(request_id=LONG_ID, runs=[prompted("")], groups=[{"group_id": "g", "dsts": [26]}]),
    "Explain": explain_pb2.ExplainRequest(request_id=LONG_ID, runs=[{"prompt": {"text": "a"}}]),
    "Patch": patch_pb2.PatchRequest(
        request_id=LONG_ID,
        pairs=[{"clean": {"text": "a"}, "corrupt": {"text": "b"}}],
        loss_fn_config={"name": 1, "target_tokens": ["a"]},
        grids=[{"node": "ATTRIBUTED_NODE_RESID_PRE"}],
    ),
    "Attribute": attribute_pb2.AttributeRequest(
        request_id=LONG_ID,
        pairs=[{"clean": {"text": "a"}, "corrupt": {"text": "b"}}],
        loss_fn_config={"name": 1, "target_tokens": ["a"]},
    ),
    "Circuit": circuit_pb2.CircuitRequest(
        request_id=LONG_ID,
        pairs=[{"clean": {"text": "a"}, "corrupt": {"text": "b"}}],
        loss_fn_config={"name": 1, "target_tokens": ["a"]},
        circuits=[{}],
    ),
    "Graph": graph_pb2.GraphRequest(request_id=LONG_ID, prompt={"text": "a"}, transcoders="tiny/plt"),
    "QueryGraph": graph_pb2.QueryGraphRequest(request_id=LONG_ID, graph="graph-one", edges={}),
    "ProbeGraph": graph_probe_pb2.ProbeGraphRequest(request_id=LONG_ID, graph="graph-one", verification={}),
    "ListGraphs": graph_pb2.ListGraphsRequest(page_size=1000),
    "DropGraph": graph_pb2.DropGraphRequest(graph="graph-0"),
    "PutTensor": list(put_messages()),
    "DeleteTensor": tensor_service_pb2.DeleteTensorRequest(handle="x"),
}
METHODS = {method.name: method for service in SERVICES for method in service.methods}


ENDS = {"DeleteTensor": grpc.StatusCode.NOT_FOUND, "WatchContexts": grpc.StatusCode.CANCELLED}
MUCH = {
    *(
        "Attribute",
        "Circuit",
        "Derive",
        "DeriveStream",
        "Detokenize",
        "Explain",
        "Graph",
        "Patch",
        "ProbeGraph",
        "QueryGraph",
    ),
    *("ReloadRegistry", "Resolve", "ResolveStream", "Tokenize", "TopK", "WatchContexts"),
}
"""What is answered by more than a single message may hold."""


def test_every_method_is_asked() -> None:
    assert set(REQUESTS) == set(METHODS)


async def answers(channel: grpc.aio.Channel, name: str) -> list[bytes]:
    """The messages of the answer to a method, however it ends; some of one that never does."""
    method, request = METHODS[name], REQUESTS[name]
    call: Any = channel.stream_stream(f"/{method.containing_service.full_name}/{name}")
    messages = request if isinstance(request, list) else [request]
    found: list[bytes] = []
    stream = call(iter([message.SerializeToString() for message in messages]), timeout=CALL_SECONDS)
    with suppress(grpc.aio.AioRpcError):
        while (answer := await stream.read()) is not grpc.aio.EOF:
            found.append(answer)
            if name == "WatchContexts" and len(found) == N_CONTEXTS:
                stream.cancel()
                break
    assert await stream.code() is ENDS.get(name, grpc.StatusCode.OK), name
    return found


N_CONTEXTS = 900


def large_parts() -> FakeParts:
    """Everything that a server answers, made large."""
    parts = FakeParts(300)
    pipeline, registry = parts.pipeline, parts.registry
    pipeline.scripts[LONG_ID] = derive_script
    pipeline.resolve_scripts[LONG_ID] = resolve_script
    pipeline.explain_scripts[LONG_ID] = runs_script
    pipeline.patch_scripts[LONG_ID] = patch_script
    pipeline.attribute_scripts[LONG_ID] = attribute_script
    pipeline.circuit_scripts[LONG_ID] = circuit_script
    pipeline.graph_scripts[LONG_ID] = graph_script
    pipeline.probe_scripts[LONG_ID] = probe_script
    pipeline.kept = [replace(KEPT, handle=f"graph-{i}", prompt="\N{SNOWMAN}" * 200) for i in range(3000)]
    for name, info in registry.sets.items():
        registry.sets[name] = replace(info, layer_indices=tuple(range(2000)), folded=("what was folded",) * 200)
    for i in range(N_CONTEXTS):
        failed = context_status(f"model-{i:03d}@0123456789ab:float32:cpu", ContextState.FAILED)
        damaged = DataLoss("damaged" * 70, metadata={str(i): "x" * 250 for i in range(4)})
        parts.cache.tell(replace(failed, error=damaged))
    parts.cache.tell(context_status())
    parts.next_registry = FakeRegistry(100_000)
    return parts


async def test_no_message_is_larger() -> None:
    async with rigged(large_parts()) as rig:
        found = {name: await answers(rig.channel, name) for name in REQUESTS}
    largest = {name: max(map(len, messages), default=0) for name, messages in found.items()}
    assert {name: size for name, size in largest.items() if size > LIMIT} == {}
    totals = {name: sum(map(len, messages)) for name, messages in found.items()}
    assert {name for name, total in totals.items() if total > LIMIT} == MUCH
    # Messages are not smaller than they need be, either.
    assert {name for name in MUCH if len(found[name]) > 2 * totals[name] / LIMIT + 3} <= {"WatchContexts"}
