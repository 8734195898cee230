"""CatalogService. Reads the registry and the table of facts; the cache adds the state of contexts."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from dst_grpc._gen.dst.v1 import catalog_service_pb2 as pb
from dst_grpc.contexts.threads import Threads
from dst_grpc.domain.resolution import AutoencoderInfo, ModelInfo
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.server_info import ServerInfo
from dst_grpc.domain.type_info import DerivedScalarTypeInfo
from dst_grpc.rpc.calls import ObservedContext
from dst_grpc.rpc.pagination import page_of
from dst_grpc.rpc.ports import CachePort, InfoT, PipelinePort, RegistryPort
from dst_grpc.wire.codec import to_wire
from dst_grpc.wire.envelope import MESSAGE_BYTES
from dst_grpc.wire.pieces import split_text

T = TypeVar("T")
_TEXTS_AT_ONCE = 2
"""Texts that are tokenized, or made, at the same time."""
_OVERHEAD_BYTES = 12
"""Upper bound of the bytes of tags and lengths around a field that fills a message."""


class CatalogService:
    """Describes the server, its models, autoencoder sets and derived scalar types, and tokenizes."""

    def __init__(self, cache: CachePort, server: ServerInfo, pipeline: PipelinePort) -> None:
        """Read the registry and states of *cache*; *server* describes the server, but for the loads of *pipeline*."""
        self._cache = cache
        self._server = server
        self._pipeline = pipeline
        self._threads = Threads("dst-text", at_once=_TEXTS_AT_ONCE)

    async def GetServerInfo(
        self, _request: pb.GetServerInfoRequest, context: ObservedContext
    ) -> pb.GetServerInfoResponse:
        """Get the server's version, limits and features, who asks, and how busy the devices are."""
        now = replace(self._server, caller=context.caller, loads=tuple(self._pipeline.loads()))
        info: pb.GetServerInfoResponse = to_wire(now)
        return info

    async def ListModels(self, request: pb.ListModelsRequest, _context: object) -> pb.ListModelsResponse:
        """List the models."""
        models = await _aside(self._cache.registry.models)
        page, token = page_of(models, request, key=_name, to_wire=self._described, scope="models")
        return pb.ListModelsResponse(models=page, next_page_token=token)

    async def GetModel(self, request: pb.GetModelRequest, context: ObservedContext) -> pb.GetModelResponse:
        """Get one model."""
        registry = self._cache.registry
        info = await _aside(lambda: registry.model(request.name))
        context.info.timeline.model = info.name
        return pb.GetModelResponse(model=self._described(info))

    async def ListAutoencoders(
        self, request: pb.ListAutoencodersRequest, _context: object
    ) -> pb.ListAutoencodersResponse:
        """List the autoencoder sets, of one model if it is named."""
        registry = self._cache.registry
        sets = await _aside(lambda: registry.autoencoders(request.model or None))
        scope = f"autoencoders of {request.model}"
        page, token = page_of(sets, request, key=_name, to_wire=self._described, scope=scope)
        return pb.ListAutoencodersResponse(autoencoders=page, next_page_token=token)

    async def ListDerivedScalarTypes(
        self, request: pb.ListDerivedScalarTypesRequest, _context: object
    ) -> pb.ListDerivedScalarTypesResponse:
        """List the rows of facts."""
        page, token = page_of(list(FACTS), request, key=_number, to_wire=_type_info, scope="types")
        return pb.ListDerivedScalarTypesResponse(types=page, next_page_token=token)

    def Tokenize(
        self, request: pb.TokenizeRequest, context: ObservedContext
    ) -> AsyncGenerator[pb.TokenizeResponse, None]:
        """Encode a text."""
        return self._each(partial(_tokenized, self._registry_about(request.model, context), request), context)

    def Detokenize(
        self, request: pb.DetokenizeRequest, context: ObservedContext
    ) -> AsyncGenerator[pb.DetokenizeResponse, None]:
        """Decode tokens."""
        return self._each(partial(_detokenized, self._registry_about(request.model, context), request), context)

    async def _each(self, read: Callable[[], Iterator[T]], context: ObservedContext) -> AsyncGenerator[T, None]:
        """The items that *read* iterates over, each made off the event loop, a few at a time, in the caller's turn."""
        caller = context.caller
        with self._pipeline.waiting(caller, context.info.received_bytes):
            items = await self._threads.run(read, caller=caller.name)
        del read  # with the request, which may be large: it is not kept for as long as the items are sent
        while (item := await self._threads.run(next, items, None, caller=caller.name)) is not None:
            yield item

    def _registry_about(self, model: str, context: ObservedContext) -> RegistryPort:
        """The registry, once *model* is noted as what the call is about; raises NotFound."""
        registry = self._cache.registry
        context.info.timeline.model = registry.model_name(model)
        return registry

    def _described(self, info: InfoT) -> Any:
        """The description of a model or an autoencoder set, with its state in the cache."""
        return to_wire(self._cache.describe(info))


async def _aside(read: Callable[[], T]) -> T:
    """Run *read*, which may open files or take long, off the event loop."""
    return await asyncio.to_thread(read)


def _name(info: ModelInfo | AutoencoderInfo) -> str:
    return info.name


def _number(dst: DerivedScalarType) -> str:
    """Its number as text of fixed width, so that text sorts as numbers do."""
    return f"{dst.number:06d}"


def _type_info(dst: DerivedScalarType) -> Any:
    return to_wire(DerivedScalarTypeInfo.of(dst))


def _tokenized(registry: RegistryPort, request: pb.TokenizeRequest) -> Iterator[pb.TokenizeResponse]:
    """The answer to *request*; raises what the registry and the tokenizer do."""
    tokenizer = registry.tokenizer(request.model)
    token_ids = array("I", tokenizer.encode(request.text))  # a tenth of a list, for as long as they are sent
    return _tokens(token_ids, tokenizer.token_strings(token_ids))


def _detokenized(registry: RegistryPort, request: pb.DetokenizeRequest) -> Iterator[pb.DetokenizeResponse]:
    """The answer to *request*; raises what the registry and the tokenizer do."""
    tokenizer, token_ids = registry.tokenizer(request.model), list(request.token_ids)
    return _texts(tokenizer.decode(token_ids), tokenizer.token_strings(token_ids))


def _tokens(token_ids: Sequence[int], token_strings: Sequence[str]) -> Iterator[pb.TokenizeResponse]:
    """The tokens in as few messages as possible, and at least one."""
    for part in _parts(map(int.__add__, map(_varint_bytes, token_ids), map(_text_bytes, token_strings))):
        yield pb.TokenizeResponse(token_ids=token_ids[part], token_strings=token_strings[part])


def _texts(text: str, token_strings: Sequence[str]) -> Iterator[pb.DetokenizeResponse]:
    """The text, and that of each token, in as few messages as possible, and at least one."""
    *pieces, last = split_text(text, MESSAGE_BYTES - 2 * _OVERHEAD_BYTES)
    for piece in pieces:
        yield pb.DetokenizeResponse(text=piece)
    for part in _parts(map(_text_bytes, token_strings), len(last.encode()) + _OVERHEAD_BYTES):
        yield pb.DetokenizeResponse(text=last, token_strings=token_strings[part])
        last = ""


def _parts(sizes: Iterable[int], taken: int = 0) -> Iterator[slice]:
    """Ranges of elements of these *sizes* that fit into a message each, and at least one; *taken* bytes of the first
    message are."""
    start, size = 0, _OVERHEAD_BYTES + taken
    for i, more in enumerate(sizes):
        if size + more > MESSAGE_BYTES:
            yield slice(start, i)
            start, size = i, _OVERHEAD_BYTES
        size += more
    yield slice(start, None)


def _text_bytes(text: str) -> int:
    """Bytes that a text takes as an element of a list."""
    n_bytes = len(text.encode())
    return 1 + _varint_bytes(n_bytes) + n_bytes


def _varint_bytes(number: int) -> int:
    """Bytes that a number takes."""
    return -(-number.bit_length() // 7) or 1
