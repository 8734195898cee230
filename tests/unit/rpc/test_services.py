"""The services over fakes, without sockets."""

from __future__ import annotations

import asyncio
import tracemalloc
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import Message

import dst_grpc
from dst_grpc._gen.dst.v1 import catalog_service_pb2 as catalog_pb
from dst_grpc._gen.dst.v1 import context_service_pb2 as context_pb
from dst_grpc._gen.dst.v1 import graph_pb2, inference_pb2, resolution_pb2
from dst_grpc._gen.dst.v1.context_pb2 import CONTEXT_STATE_AVAILABLE, CONTEXT_STATE_LOADING, CONTEXT_STATE_NOT_LOADED
from dst_grpc.domain.callers import Caller
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.domain.resolution import RegistryChange
from dst_grpc.domain.scalars import FACTS
from dst_grpc.errors import InvalidRequest, NotFound
from dst_grpc.observability.calls import CallInfo
from dst_grpc.rpc.catalog_service import CatalogService, _tokenized
from dst_grpc.rpc.context_service import ContextService
from dst_grpc.rpc.derived_scalar_service import DerivedScalarService
from dst_grpc.rpc.draining import DrainSignal
from dst_grpc.rpc.graph_service import GraphService
from dst_grpc.rpc.multiplex import StreamLimits
from dst_grpc.rpc.outbox import Unread
from dst_grpc.rpc.ports import AnswerPart
from dst_grpc.rpc.server_info import server_info
from dst_grpc.rpc.settings import Settings
from dst_grpc.rpc.tensor_store import TensorLimits, TensorStore
from dst_grpc.wire.envelope import MESSAGE_BYTES
from tests.fake_graphs import KEPT
from tests.fake_parts import FakeCache, FakePipeline, FakeRegistry, answer, context_status


@pytest.fixture
def cache() -> FakeCache:
    return FakeCache(FakeRegistry(250))


@pytest.fixture
def catalog(cache: FakeCache) -> CatalogService:
    return CatalogService(cache, server_info(Settings()), FakePipeline())


async def test_models_come_in_pages(catalog: CatalogService) -> None:
    names, token = [], ""
    while True:
        response = await catalog.ListModels(catalog_pb.ListModelsRequest(page_size=60, page_token=token), None)
        names += [model.name for model in response.models]
        token = response.next_page_token
        if not token:
            break
    assert len(names) == 250
    assert names == sorted(names)


async def test_a_loaded_model_says_so(catalog: CatalogService, cache: FakeCache) -> None:
    cache.tell(context_status())
    response = await catalog.GetModel(catalog_pb.GetModelRequest(name="tiny"), CALL)
    assert response.model.state == CONTEXT_STATE_AVAILABLE
    assert list(response.model.autoencoders) == ["tiny/mlp"]


async def test_a_page_ends_before_it_is_too_large(catalog: CatalogService, cache: FakeCache) -> None:
    for name in list(cache.registry.sets):
        cache.registry.sets[name] = replace(cache.registry.sets[name], folded=("x" * 100_000,))
    names, token = [], ""
    while True:
        response = await catalog.ListAutoencoders(catalog_pb.ListAutoencodersRequest(page_token=token), None)
        assert 9 <= len(response.autoencoders) <= 10 or not response.next_page_token
        assert response.ByteSize() <= MESSAGE_BYTES
        names += [info.name for info in response.autoencoders]
        token = response.next_page_token
        if not token:
            break
    assert names == sorted(cache.registry.sets)


async def test_a_row_that_is_too_large_comes_alone(catalog: CatalogService, cache: FakeCache) -> None:
    cache.registry.sets["tiny/mlp"] = replace(cache.registry.sets["tiny/mlp"], folded=("x" * 2_000_000,))
    request = catalog_pb.ListAutoencodersRequest(model="tiny")
    response = await catalog.ListAutoencoders(request, None)
    assert [info.name for info in response.autoencoders] == ["tiny/mlp"]
    assert not response.next_page_token


async def test_autoencoders_are_those_of_a_model(catalog: CatalogService) -> None:
    response = await catalog.ListAutoencoders(catalog_pb.ListAutoencodersRequest(model="model-007"), None)
    assert [info.name for info in response.autoencoders] == ["model-007/mlp"]
    first = await catalog.ListAutoencoders(catalog_pb.ListAutoencodersRequest(page_size=1), None)
    with pytest.raises(InvalidRequest):  # the filter is part of what a token belongs to
        await catalog.ListAutoencoders(
            catalog_pb.ListAutoencodersRequest(model="tiny", page_token=first.next_page_token), None
        )


async def test_types_come_by_number_and_all(catalog: CatalogService) -> None:
    first = await catalog.ListDerivedScalarTypes(catalog_pb.ListDerivedScalarTypesRequest(), None)
    rest = await catalog.ListDerivedScalarTypes(
        catalog_pb.ListDerivedScalarTypesRequest(page_token=first.next_page_token), None
    )
    assert [info.dst for info in [*first.types, *rest.types]] == [dst.number for dst in FACTS]


async def test_text_becomes_tokens_and_back(catalog: CatalogService) -> None:
    (tokens,) = [answer async for answer in catalog.Tokenize(catalog_pb.TokenizeRequest(text="ab"), CALL)]
    assert (list(tokens.token_ids), list(tokens.token_strings)) == ([97, 98], ["a", "b"])
    request = catalog_pb.DetokenizeRequest(token_ids=[97])
    (answer,) = [answer async for answer in catalog.Detokenize(request, CALL)]
    assert (answer.text, list(answer.token_strings)) == ("a", ["a"])
    with pytest.raises(InvalidRequest):
        await anext(catalog.Detokenize(catalog_pb.DetokenizeRequest(token_ids=[5000]), CALL))
    with pytest.raises(NotFound):
        await anext(catalog.Tokenize(catalog_pb.TokenizeRequest(model="none"), CALL))


async def test_a_call_about_a_model_says_so_in_the_log(catalog: CatalogService) -> None:
    def call() -> Any:
        return SimpleNamespace(**{**vars(CALL), "info": CallInfo(method="")})

    described, encoded, decoded = call(), call(), call()
    await catalog.GetModel(catalog_pb.GetModelRequest(name="tiny@0123:float32:cpu"), described)
    await anext(catalog.Tokenize(catalog_pb.TokenizeRequest(text="a"), encoded))
    await anext(catalog.Detokenize(catalog_pb.DetokenizeRequest(token_ids=[97]), decoded))
    assert [one.info.timeline.model for one in (described, encoded, decoded)] == ["tiny"] * 3


@pytest.mark.parametrize("text", ["", "aä" * 400_000, "ä" * 600_000])
async def test_long_texts_and_many_tokens_come_in_pieces(catalog: CatalogService, text: str) -> None:
    token_ids: list[int] = []
    token_strings: list[str] = []
    async for tokens in catalog.Tokenize(catalog_pb.TokenizeRequest(text=text), CALL):
        assert tokens.ByteSize() <= MESSAGE_BYTES
        assert len(tokens.token_ids) == len(tokens.token_strings)
        token_ids += tokens.token_ids
        token_strings += tokens.token_strings
    assert token_ids == [ord(character) for character in text]
    assert "".join(token_strings) == text
    pieces = []
    alone: list[str] = []
    async for piece in catalog.Detokenize(catalog_pb.DetokenizeRequest(token_ids=token_ids), CALL):
        assert piece.ByteSize() <= MESSAGE_BYTES
        pieces.append(piece.text)
        alone += piece.token_strings
    assert "".join(pieces) == text
    assert alone == token_strings
    assert len(pieces) <= 2 + 4 * 2 * len(text) // (MESSAGE_BYTES - 100)


def test_tokens_that_wait_to_be_sent_take_little() -> None:
    """A client that reads nothing has the server hold them: numbers of 4 bytes, and texts that the tokenizer has."""

    class Tokenizer:
        def encode(self, text: str) -> list[int]:
            return [1000 + i for i, _ in enumerate(text)]

        def token_strings(self, token_ids: Sequence[int]) -> list[str]:
            return ["a long text of a token"] * len(token_ids)

    count = 200_000
    registry: Any = SimpleNamespace(tokenizer=lambda _model: Tokenizer())
    request = catalog_pb.TokenizeRequest(text="x" * count)
    tracemalloc.start()
    try:
        pieces = _tokenized(registry, request)
        assert next(pieces).token_ids[0] == 1000
        assert tracemalloc.get_traced_memory()[0] <= (4 + 8) * count * 1.1
    finally:
        tracemalloc.stop()


async def test_the_server_says_what_it_is() -> None:
    settings = Settings(max_items_per_stream=7, put_tensor_ttl_seconds=90.5, reflection=False)
    catalog = CatalogService(FakeCache(), server_info(settings), FakePipeline())
    info = await catalog.GetServerInfo(catalog_pb.GetServerInfoRequest(), CALL)
    assert (info.caller.name, list(info.caller.roles)) == ("somebody", [catalog_pb.ROLE_ASK, catalog_pb.ROLE_OPERATE])
    assert (info.version, info.protocol_version, list(info.features)) == (dst_grpc.__version__, 1, [])
    (load,) = info.loads
    assert (load.device, load.expected_wait.ToTimedelta().total_seconds(), load.waiting_requests) == ("cpu", 0.25, 3)
    assert (info.limits.max_request_bytes, info.limits.max_response_bytes) == (4 << 20, 1 << 20)
    assert (info.limits.max_items_per_stream, info.limits.max_items_in_flight_per_stream) == (7, 16)
    assert info.limits.max_put_tensor_ttl.ToTimedelta() == timedelta(seconds=90.5)
    assert (info.limits.max_run_bytes, info.limits.max_put_tensor_bytes) == (4 << 30, 256 << 20)


def test_features_are_what_the_operator_switched_on(tmp_path: Path) -> None:
    assert server_info(Settings(autoencoder_roots=(tmp_path,))).features == ("autoencoder_paths", "reflection")


CALL: Any = SimpleNamespace(
    caller=Caller(name="somebody"),
    info=CallInfo(method=""),
    inner=SimpleNamespace(time_remaining=lambda: 60.0),
    time_remaining=lambda: 60.0,
    outbox=None,
)


def call_of(write: Callable[[bytes], Awaitable[None]]) -> Any:
    """A call whose messages go to *write*."""
    return SimpleNamespace(**{**vars(CALL), "outbox": Unread().outbox("somebody", write)})


def service_of(pipeline: FakePipeline) -> DerivedScalarService:
    return DerivedScalarService(pipeline, TensorStore(TensorLimits()), StreamLimits(), DrainSignal())


async def no_reload() -> RegistryChange:
    return RegistryChange()


async def test_a_context_is_loaded_listed_and_unloaded(cache: FakeCache) -> None:
    service = ContextService(cache, DrainSignal(), no_reload)
    loading = service.LoadContext(context_pb.LoadContextRequest(context="tiny"), CALL)
    assert [answer.status.state async for answer in loading] == [CONTEXT_STATE_LOADING, CONTEXT_STATE_AVAILABLE]
    listed = await service.ListContexts(context_pb.ListContextsRequest(), None)
    assert [status.handle.partition("@")[0] for status in listed.contexts] == ["tiny"]
    pinning = service.LoadContext(context_pb.LoadContextRequest(context="tiny", pin=True), CALL)
    assert [answer.status.pinned async for answer in pinning] == [False, True]
    unpinned = await service.UnpinContext(context_pb.UnpinContextRequest(context="tiny"), CALL)
    assert not unpinned.status.pinned
    gone = await service.UnloadContext(context_pb.UnloadContextRequest(context="tiny"), CALL)
    assert gone.status.state == CONTEXT_STATE_NOT_LOADED


class Asked(SimpleNamespace):
    """A request, of which those of protobuf have no weak references to tell whether it is still there."""


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("Tokenize", {"model": "tiny", "text": "ab"}),
        ("Detokenize", {"model": "tiny", "token_ids": [97]}),
        ("LoadContext", {"context": "tiny", "pin": False}),
        ("WatchContexts", {}),
        ("ReloadRegistry", {}),
    ],
)
async def test_a_request_is_let_go_while_its_answer_is_sent(
    catalog: CatalogService, cache: FakeCache, method: str, fields: dict[str, object]
) -> None:
    """A request may be large, and who asks may take the answer slowly."""
    contexts = ContextService(cache, DrainSignal(), no_reload)
    cache.tell(context_status())
    request: Any = Asked(**fields)
    kept = weakref.ref(request)
    answer = getattr(contexts, method, None) or getattr(catalog, method)
    messages = answer(request, CALL)
    del request
    await anext(messages)
    assert kept() is None
    await messages.aclose()


async def test_of_kept_graphs_those_of_the_page_are_described() -> None:
    pipeline = FakePipeline()
    pipeline.kept = [replace(KEPT, handle=f"graph-{name}") for name in "cab"]
    service = GraphService(pipeline, TensorStore(TensorLimits()))
    first = await service.ListGraphs(graph_pb2.ListGraphsRequest(page_size=2), CALL)
    assert [graph.handle for graph in first.graphs] == pipeline.described == ["graph-a", "graph-b"]
    rest = await service.ListGraphs(graph_pb2.ListGraphsRequest(page_token=first.next_page_token), CALL)
    assert [graph.handle for graph in rest.graphs] == ["graph-c"]
    assert len(pipeline.described) == 3


async def test_closing_a_watch_unsubscribes(cache: FakeCache) -> None:
    watch = ContextService(cache, DrainSignal(), no_reload).WatchContexts(context_pb.WatchContextsRequest(), CALL)
    cache.tell(context_status())
    assert (await anext(watch)).status.state == CONTEXT_STATE_AVAILABLE
    assert cache.watchers
    await watch.aclose()
    assert not cache.watchers


async def sent(
    method: Callable[[bytes, Any], Awaitable[Any]], request: Message, write: Callable[[bytes], Awaitable[None]]
) -> None:
    """*write* the answer of *method*, which is made meanwhile, to *request*."""
    context = call_of(write)
    await context.outbox.send(await method(request.SerializeToString(), context))


async def test_resolve_and_derive_name_fields_alike() -> None:
    service = service_of(FakePipeline())
    request = inference_pb2.DeriveRequest(element_type=77)  # type: ignore[arg-type]  # what a newer client may send

    async def never(_message: bytes) -> None:
        pytest.fail("nothing is answered")

    with pytest.raises(InvalidRequest) as derived:
        await sent(service.Derive, request, never)
    with pytest.raises(InvalidRequest) as resolved:
        await sent(service.Resolve, resolution_pb2.ResolveRequest(request=request), never)
    of_derive = {violation.under("request") for violation in derived.value.violations}
    assert "request.element_type" in {violation.field for violation in resolved.value.violations}
    assert set(resolved.value.violations) <= of_derive  # the prompt is Derive's alone


async def test_cancelling_a_call_stops_the_work() -> None:
    async def script(_request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
        yield answer()[:1]
        await asyncio.Event().wait()

    pipeline = FakePipeline()
    pipeline.scripts["x"] = script
    service = service_of(pipeline)
    request = inference_pb2.DeriveRequest(request_id="x", prompt=inference_pb2.Prompt(text="a"))
    taken = asyncio.Event()

    async def take(_message: bytes) -> None:
        taken.set()

    call = asyncio.create_task(sent(service.Derive, request, take))
    await taken.wait()
    assert pipeline.running == {"x"}
    call.cancel()
    await asyncio.wait([call])
    assert not pipeline.running


async def test_a_reload_tells_what_it_changed(cache: FakeCache) -> None:
    async def reload() -> RegistryChange:
        return RegistryChange(added=("a",), removed=("b", "b/c"), changed=("d",))

    service = ContextService(cache, DrainSignal(), reload)
    (answer,) = [answer async for answer in service.ReloadRegistry(context_pb.ReloadRegistryRequest(), None)]
    assert (list(answer.added), list(answer.removed), list(answer.changed)) == (["a"], ["b", "b/c"], ["d"])
