"""The services over fakes, without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from dst_grpc._gen.dst.v1 import catalog_service_pb2 as catalog_pb
from dst_grpc._gen.dst.v1 import context_service_pb2 as context_pb
from dst_grpc._gen.dst.v1 import inference_pb2, resolution_pb2
from dst_grpc._gen.dst.v1.context_pb2 import CONTEXT_STATE_AVAILABLE, CONTEXT_STATE_LOADING, CONTEXT_STATE_NOT_LOADED
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.domain.resolution import RegistryChange
from dst_grpc.domain.scalars import FACTS
from dst_grpc.errors import InvalidRequest, NotFound
from dst_grpc.rpc.catalog_service import CatalogService
from dst_grpc.rpc.context_service import ContextService
from dst_grpc.rpc.derived_scalar_service import DerivedScalarService
from dst_grpc.rpc.draining import DrainSignal
from dst_grpc.rpc.multiplex import StreamLimits
from dst_grpc.rpc.ports import AnswerPart
from tests.rpc_fakes import FakeCache, FakePipeline, FakeRegistry, answer, context_status


@pytest.fixture
def cache() -> FakeCache:
    return FakeCache(FakeRegistry(250))


@pytest.fixture
def catalog(cache: FakeCache) -> CatalogService:
    return CatalogService(cache)


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
    response = await catalog.GetModel(catalog_pb.GetModelRequest(name="tiny"), None)
    assert response.model.state == CONTEXT_STATE_AVAILABLE
    assert [info.name for info in response.autoencoders] == ["tiny/mlp"]


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
    tokens = await catalog.Tokenize(catalog_pb.TokenizeRequest(text="ab"), None)
    assert (list(tokens.token_ids), list(tokens.token_strings)) == ([97, 98], ["a", "b"])
    assert (await catalog.Detokenize(catalog_pb.DetokenizeRequest(token_ids=[97]), None)).text == "a"
    with pytest.raises(InvalidRequest):
        await catalog.Detokenize(catalog_pb.DetokenizeRequest(token_ids=[5000]), None)
    with pytest.raises(NotFound):
        await catalog.Tokenize(catalog_pb.TokenizeRequest(model="none"), None)


async def no_reload() -> RegistryChange:
    return RegistryChange()


async def test_a_context_is_loaded_listed_and_unloaded(cache: FakeCache) -> None:
    service = ContextService(cache, DrainSignal(), no_reload)
    loading = service.LoadContext(context_pb.LoadContextRequest(context="tiny"), None)
    assert [answer.status.state async for answer in loading] == [CONTEXT_STATE_LOADING, CONTEXT_STATE_AVAILABLE]
    listed = await service.ListContexts(context_pb.ListContextsRequest(), None)
    assert [status.handle.partition("@")[0] for status in listed.contexts] == ["tiny"]
    pinning = service.LoadContext(context_pb.LoadContextRequest(context="tiny", pin=True), None)
    assert [answer.status.pinned async for answer in pinning] == [False, True]
    unpinned = await service.UnpinContext(context_pb.UnpinContextRequest(context="tiny"), None)
    assert not unpinned.status.pinned
    gone = await service.UnloadContext(context_pb.UnloadContextRequest(context="tiny"), None)
    assert gone.status.state == CONTEXT_STATE_NOT_LOADED


async def test_closing_a_watch_unsubscribes(cache: FakeCache) -> None:
    watch = ContextService(cache, DrainSignal(), no_reload).WatchContexts(context_pb.WatchContextsRequest(), None)
    cache.tell(context_status())
    assert (await anext(watch)).status.state == CONTEXT_STATE_AVAILABLE
    assert cache.watchers
    await watch.aclose()
    assert not cache.watchers


async def test_resolve_and_derive_name_fields_alike() -> None:
    service = DerivedScalarService(FakePipeline(), StreamLimits(), DrainSignal())
    request = inference_pb2.DeriveRequest(element_type=77)  # type: ignore[arg-type]  # what a newer client may send
    with pytest.raises(InvalidRequest) as derived:
        _ = [frame async for frame in service.Derive(request, None)]
    with pytest.raises(InvalidRequest) as resolved:
        _ = [stage async for stage in service.Resolve(resolution_pb2.ResolveRequest(request=request), None)]
    of_derive = {violation.under("request") for violation in derived.value.violations}
    assert "request.element_type" in {violation.field for violation in resolved.value.violations}
    assert set(resolved.value.violations) <= of_derive  # the prompt is Derive's alone


async def test_closing_an_answer_stops_the_work() -> None:
    async def script(_request: DeriveRequest) -> AsyncGenerator[AnswerPart, None]:
        yield answer()[0]
        await asyncio.Event().wait()

    pipeline = FakePipeline()
    pipeline.scripts["x"] = script
    service = DerivedScalarService(pipeline, StreamLimits(), DrainSignal())
    request = inference_pb2.DeriveRequest(request_id="x", prompt=inference_pb2.Prompt(text="a"))
    frames = service.Derive(request, None)
    await anext(frames)
    assert pipeline.running == {"x"}
    await frames.aclose()
    assert not pipeline.running


async def test_a_reload_tells_what_it_changed(cache: FakeCache) -> None:
    async def reload() -> RegistryChange:
        return RegistryChange(added=("a",), removed=("b", "b/c"), changed=("d",))

    service = ContextService(cache, DrainSignal(), reload)
    answer = await service.ReloadRegistry(context_pb.ReloadRegistryRequest(), None)
    assert (list(answer.added), list(answer.removed), list(answer.changed)) == (["a"], ["b", "b/c"], ["d"])
