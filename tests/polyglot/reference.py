"""The tour of `examples/clients/README.md`, told by the Python client: what the other languages' documents must equal.

Checksums are computed anew, from the arrays that the client hands out; `Explain` is read from its messages.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc.aio
import numpy as np
from google.rpc import code_pb2

from dst_grpc._gen.dst.v1 import component_pb2, explain_pb2
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from dst_grpc.client import (
    Answer,
    AsyncClient,
    Axis,
    DerivedScalarTensor,
    DeriveRequest,
    GraphRequest,
    GraphView,
    LoadProgress,
    PatchRequest,
    Resolution,
    ResolveRequest,
    TensorElementType,
    TransferProgress,
)
from dst_grpc.errors import DeadlineExceeded, DstError, Exhausted, InvalidRequest, Unavailable
from dst_grpc.wire.errors import code_of
from tests.polyglot.requests import Json, Requests

if TYPE_CHECKING:
    from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceAsyncStub

TYPES_A_PAGE = 40
CALL_SECONDS = 60.0
POLL_SECONDS = 0.05
EXPLAIN_PARTS = ("header", "node_table", "scored_tokens", "top_logits", "trailer")


async def tour(address: str, inputs: Json, retry_address: str) -> Json:
    """The document of the Python client."""
    requests = Requests(inputs)
    model = inputs["model"]
    async with AsyncClient(address) as client, AsyncClient(retry_address) as refusing:
        tokens = await client.tokenize(inputs["prompt"], model=model)
        return {
            "health": (await client.health("dst.v1.DerivedScalarService")).name,
            "models": await models(client),
            "types": await types(client),
            "tokens": {"token_ids": list(tokens.ids), "token_strings": list(tokens.strings)},
            "unicode": await tokenized(client, inputs["unicode"], model),
            "resolve": await resolve(client, requests.sparse()),
            "resolve_stream": await resolve_stream(client, [requests.dense(), requests.sparse(), requests.wrong()]),
            "derive": {
                "dense": answer(await client.derive_request(requests.dense(), timeout=CALL_SECONDS)),
                "sparse": answer(await client.derive_request(requests.sparse(), timeout=CALL_SECONDS)),
                **{
                    element_type.value: answer(
                        await client.derive_request(requests.half(element_type), timeout=CALL_SECONDS), element_type
                    )
                    for element_type in (TensorElementType.FLOAT16, TensorElementType.BFLOAT16)
                },
            },
            "derive_stream": await derive_stream(client, [requests.prefix(i, tokens.ids) for i in range(8)]),
            "explain": await explain(address, requests.explain()),
            "patch": await patched(client, requests.patch(tokens.ids)),
            "graph": await graph(client, requests.graph()),
            "deadline": await deadline(client),
            "cancel": await cancel(client, requests.large()),
            "rejected": await rejected(client, requests.rejected()),
            "retry": await retry(refusing, tokens.ids, model),
        }


async def patched(client: AsyncClient, request: PatchRequest) -> Json:
    answer = await client.patch_request(request, timeout=CALL_SECONDS)
    (grid,) = answer.grids
    return {
        "axes": list(grid.axes),
        "shape": list(grid.shape),
        "base": bits32(answer.base),
        "source": bits32(answer.source),
        "metrics": [bits32(metric) for metric in grid.metric.reshape(-1)],
    }


async def graph(client: AsyncClient, request: GraphRequest) -> Json:
    try:
        answer = await client.graph_request(request, timeout=CALL_SECONDS)
    except DstError as refusal:
        return {"error": error(refusal)}
    target = answer.names[-len(answer.header.targets)]
    found = await client.graph_neighbours(answer, target, 3, direction="inputs", timeout=CALL_SECONDS)
    await client.drop_graph(answer)
    return {
        "nodes": [node.name for node in answer.nodes if node.kept],
        "edges": edges(answer),
        "replacement_score": struct.pack(">d", answer.replacement_score).hex(),
        "inputs": edges(found),
    }


def edges(view: GraphView) -> Json:
    names = dict(zip(view.table.nodes.tolist(), view.names, strict=True))
    return [[names[source], names[end], bits32(weight)] for source, end, weight in zip(*view.coo, strict=True)]


async def models(client: AsyncClient) -> Json:
    return [
        {
            "name": model.name,
            "family": model.family,
            "n_layers": model.dimensions.n_layers,
            "d_model": model.dimensions.d_model,
            "n_heads": model.dimensions.n_heads,
            "d_mlp": model.dimensions.d_mlp,
            "vocab_size": model.dimensions.vocab_size,
            "context_window": model.dimensions.context_window,
            "parameter_bytes": model.parameter_bytes,
            "default_model": model.default_model,
            "autoencoders": list(model.autoencoders),
        }
        for model in await client.models()
    ]


async def types(client: AsyncClient) -> Json:
    infos = await client.derived_scalar_types()
    return {
        "pages": -(-len(infos) // TYPES_A_PAGE),
        "names": [info.dst.value for info in infos],
        "last": {
            "name": infos[-1].dst.value,
            "dimensions": [f"DIMENSION_{dimension.name}" for dimension in infos[-1].dimensions],
            "formula": infos[-1].formula,
        },
    }


async def tokenized(client: AsyncClient, text: str, model: str) -> Json:
    tokens = await client.tokenize(text, model=model)
    return {"token_ids": list(tokens.ids), "token_strings": list(tokens.strings)}


async def resolve(client: AsyncClient, request: DeriveRequest) -> Json:
    loaded: dict[str, int] = {}

    def on_progress(progress: LoadProgress) -> None:
        loaded[progress.context] = progress.bytes_done

    resolution = await client.resolve_request(ResolveRequest(request=request, load=True), on_progress=on_progress)
    # The client insists on this order of the stages.
    stages = ["VALIDATED", "LOADING", "RESOLVED"] if loaded else ["VALIDATED", "RESOLVED"]
    return {"stages": stages, "loaded": loaded, "resolved": resolved(resolution)}


async def resolve_stream(client: AsyncClient, requests: list[DeriveRequest]) -> Json:
    answers = client.resolve_stream([ResolveRequest(request=request) for request in requests], timeout=CALL_SECONDS)
    return {
        request_id: {"error": error(result)} if isinstance(result, DstError) else {"resolved": resolved(result)}
        async for request_id, result in answers
    }


async def derive_stream(client: AsyncClient, requests: list[DeriveRequest]) -> Json:
    def report(result: Answer | DstError) -> Json:
        if isinstance(result, DstError):
            return {"error": error(result)}
        logits = np.asarray(result.tensors[0])
        return {"token_count": len(result.token_ids), "next_token": int(logits[-1].argmax())}

    answers = client.derive_stream(requests, timeout=CALL_SECONDS)
    return {request_id: report(result) async for request_id, result in answers}


async def deadline(client: AsyncClient) -> Json:
    try:
        async for _ in client.watch_contexts(timeout=0.25):
            pass
    except DeadlineExceeded as late:
        return {"code": code_pb2.Code.Name(code_of(late))}
    raise AssertionError("the watch ended by itself")


async def cancel(client: AsyncClient, request: DeriveRequest) -> Json:
    began = asyncio.Event()

    def on_progress(_: TransferProgress) -> None:
        began.set()

    call = asyncio.create_task(client.derive_request(request, on_progress=on_progress))
    await began.wait()
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call
    for _ in range(200):
        if (pins := sum(context.pins for context in await client.contexts())) == 0:
            return {"pins": pins}
        await asyncio.sleep(POLL_SECONDS)
    raise AssertionError("the server still works for a cancelled call")


async def rejected(client: AsyncClient, request: DeriveRequest) -> Json:
    try:
        await client.derive_request(request)
    except InvalidRequest as refusal:
        return error(refusal)
    raise AssertionError("a request with four bad fields was accepted")


async def retry(client: AsyncClient, token_ids: tuple[int, ...], model: str) -> Json:
    for _ in range(3):
        try:
            return {"text": await client.detokenize(token_ids, model=model)}
        except (Exhausted, Unavailable) as busy:
            if busy.retry_after_seconds is None:
                raise
            await asyncio.sleep(busy.retry_after_seconds)
    return {"text": await client.detokenize(token_ids, model=model)}


# ---- Explain, from its frames


async def explain(address: str, request: explain_pb2.ExplainRequest) -> Json:
    parts: Counter[str] = Counter()
    table, logits = explain_pb2.NodeTable(), explain_pb2.NodeTable()
    scored: list[Json] = []
    count = 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub: DerivedScalarServiceAsyncStub = DerivedScalarServiceStub(channel)
        async for message in stub.Explain(request, timeout=CALL_SECONDS):
            for frame in message.frames:
                count += 1
                kind = frame.WhichOneof("frame")
                if kind not in EXPLAIN_PARTS:
                    continue
                parts[kind] += 1
                if kind == "node_table":
                    table.MergeFrom(frame.node_table)
                elif kind == "scored_tokens":
                    scored.append(scored_tokens(frame.scored_tokens))
                elif kind == "top_logits":
                    logits.MergeFrom(frame.top_logits)
                elif kind == "trailer":
                    assert frame.trailer.frame_count == count
    rows = [logits.nodes[i] for i in logits.groups[0].top]
    top_logits = [[row.vocab_token, bits32(row.values[0])] for row in rows]
    return {"parts": dict(parts), "scored_tokens": scored, "groups": groups(table), "top_logits": top_logits}


def groups(table: explain_pb2.NodeTable) -> Json:
    def node(row: explain_pb2.TableNode, group: int) -> Json:
        index = row.node
        return {
            "node_type": component_pb2.NodeType.Name(index.node_type),
            "layer_index": index.layer_index if index.HasField("layer_index") else None,
            "tensor_indices": [entry.at if entry.HasField("at") else None for entry in index.tensor_indices],
            "bits": bits32(row.values[group]),
        }

    return [
        {
            "group_id": group.group_id,
            "top": [node(table.nodes[i], g) for i in group.top],
            "bottom": [node(table.nodes[i], g) for i in group.bottom],
        }
        for g, group in enumerate(table.groups)
    ]


def scored_tokens(part: explain_pb2.ScoredTokens) -> Json:
    return {
        "part": explain_pb2.ExplainPart.Name(part.part),
        "nodes": [
            {
                "node": scored.node,
                "top": [[score.token, bits32(score.score)] for score in scored.top],
                "bottom": [[score.token, bits32(score.score)] for score in scored.bottom],
            }
            for scored in part.nodes
        ],
    }


# ---- what several steps print


def resolved(resolution: Resolution) -> Json:
    return {
        "device": resolution.device,
        "model": resolution.model.name,
        "autoencoders": [autoencoder.name for autoencoder in resolution.autoencoders],
        "forward_passes": resolution.cost.forward_passes,
        "backward_passes": resolution.cost.backward_passes,
        "output_bytes": resolution.cost.output_bytes,
        "scalars": [
            {
                "dst": f"DERIVED_SCALAR_TYPE_{scalar.dst.name}",
                "requires_grad": scalar.requires_grad,
                "layer_indices": list(scalar.layer_indices),
                "axes": axes(scalar.axes),
            }
            for scalar in resolution.scalars
        ],
    }


def axes(values: tuple[Axis, ...]) -> Json:
    return [[f"DIMENSION_{axis.dimension.name}", axis.size] for axis in values]


def error(failure: DstError) -> Json:
    violations = failure.violations if isinstance(failure, InvalidRequest) else ()
    return {
        "code": code_pb2.Code.Name(code_of(failure)),
        "reason": failure.reason.value,
        "fields": [violation.field for violation in violations],
    }


def answer(result: Answer, element_type: TensorElementType = TensorElementType.FLOAT32) -> Json:
    return {
        "model": result.model,
        "token_count": len(result.token_ids),
        "loss": None if result.loss is None else struct.pack(">d", result.loss).hex(),
        "byte_count": sum(len(raw(tensor, element_type)) for tensor in result.tensors),
        "tensors": [summary(tensor, element_type) for tensor in result.tensors],
    }


def summary(tensor: DerivedScalarTensor, element_type: TensorElementType) -> Json:
    flat = tensor.values.ravel().astype(np.float32)
    return {
        "dst": f"DERIVED_SCALAR_TYPE_{tensor.dst.name}",
        "pass_type": f"PASS_TYPE_{tensor.pass_type.name}",
        "layer_index": tensor.layer_index,
        "axes": axes(tensor.axes),
        "element_type": f"TENSOR_ELEMENT_TYPE_{element_type.name}",
        "encoding": f"TENSOR_ENCODING_{'SPARSE_LATENTS' if tensor.is_sparse else 'DENSE'}",
        "nonzero_count": len(flat) if tensor.is_sparse else None,
        "checksum": zlib.crc32(raw(tensor, element_type)),
        "minus_infinities": int(np.isneginf(flat).sum()),
        "largest": extreme(tensor, np.where(np.isfinite(flat), flat, -np.inf), 1),
        "smallest": extreme(tensor, np.where(np.isfinite(flat), flat, np.inf), -1),
    }


def extreme(tensor: DerivedScalarTensor, flat: Json, sign: int) -> Json:
    if not np.isfinite(flat).any():
        return None
    entry = int((sign * flat).argmax())
    at = entry
    if tensor.coordinates is not None:
        at = int(np.ravel_multi_index(tuple(tensor.coordinates[entry]), tensor.shape))
    return {"at": at, "bits": bits32(flat[entry])}


def raw(tensor: DerivedScalarTensor, element_type: TensorElementType) -> bytes:
    """The tensor's bytes as they travelled."""
    values = tensor.values
    if element_type is TensorElementType.BFLOAT16:
        # The client widened them: what was sent is the upper half.
        values = (values.view(np.uint32) >> 16).astype("<u2")
    assert values.dtype.itemsize == element_type.byte_width
    coordinates = b"" if tensor.coordinates is None else tensor.coordinates.astype("<u4").tobytes()
    return values.astype(values.dtype.newbyteorder("<")).tobytes() + coordinates


def bits32(value: float) -> str:
    return struct.pack(">f", value).hex()
