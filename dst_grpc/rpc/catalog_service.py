"""CatalogService: what can be asked. Reads the registry and the table of facts; the cache only adds what is loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from dst_grpc._gen.dst.v1 import catalog_service_pb2 as pb
from dst_grpc.domain.resolution import AutoencoderInfo, ModelInfo
from dst_grpc.domain.scalar_facts import ScalarFacts
from dst_grpc.domain.scalars import FACTS
from dst_grpc.rpc.pagination import page_of
from dst_grpc.rpc.ports import CachePort
from dst_grpc.wire.catalog import autoencoder_info_to_wire, model_info_to_wire, scalar_type_info_to_wire

T = TypeVar("T")


class CatalogService:
    """Lists models, autoencoders and derived scalar types, and tokenizes."""

    def __init__(self, cache: CachePort) -> None:
        """Read the registry of *cache*, which knows what of it is loaded."""
        self._cache = cache

    async def ListModels(self, request: pb.ListModelsRequest, _context: object) -> pb.ListModelsResponse:
        """List the models."""
        models = await _aside(self._cache.registry.models)
        page, token = page_of(
            models, key=_name, page_size=request.page_size, page_token=request.page_token, scope="models"
        )
        return pb.ListModelsResponse(
            models=[model_info_to_wire(info) for info in map(self._cache.describe, page)], next_page_token=token
        )

    async def GetModel(self, request: pb.GetModelRequest, _context: object) -> pb.GetModelResponse:
        """Get one model and its autoencoder sets."""
        registry = self._cache.registry
        model = await _aside(lambda: registry.model(request.name))
        sets = await _aside(lambda: registry.autoencoders(model.name))
        return pb.GetModelResponse(
            model=model_info_to_wire(self._cache.describe(model)),
            autoencoders=[autoencoder_info_to_wire(info) for info in map(self._cache.describe, sets)],
        )

    async def ListAutoencoders(
        self, request: pb.ListAutoencodersRequest, _context: object
    ) -> pb.ListAutoencodersResponse:
        """List the autoencoder sets, of one model if it is named."""
        registry = self._cache.registry
        sets = await _aside(lambda: registry.autoencoders(request.model or None))
        page, token = page_of(
            sets,
            key=_name,
            page_size=request.page_size,
            page_token=request.page_token,
            scope=f"autoencoders of {request.model}",
        )
        return pb.ListAutoencodersResponse(
            autoencoders=[autoencoder_info_to_wire(info) for info in map(self._cache.describe, page)],
            next_page_token=token,
        )

    async def ListDerivedScalarTypes(
        self, request: pb.ListDerivedScalarTypesRequest, _context: object
    ) -> pb.ListDerivedScalarTypesResponse:
        """List the rows of facts."""
        page, token = page_of(
            list(FACTS.values()),
            key=_number,
            page_size=request.page_size,
            page_token=request.page_token,
            scope="types",
        )
        return pb.ListDerivedScalarTypesResponse(
            types=[scalar_type_info_to_wire(facts) for facts in page], next_page_token=token
        )

    async def Tokenize(self, request: pb.TokenizeRequest, _context: object) -> pb.TokenizeResponse:
        """Encode a text."""
        registry = self._cache.registry

        def tokenize() -> tuple[list[int], list[str]]:
            tokenizer = registry.tokenizer(request.model)
            token_ids = tokenizer.encode(request.text)
            return token_ids, tokenizer.token_strings(token_ids)

        token_ids, token_strings = await _aside(tokenize)
        return pb.TokenizeResponse(token_ids=token_ids, token_strings=token_strings)

    async def Detokenize(self, request: pb.DetokenizeRequest, _context: object) -> pb.DetokenizeResponse:
        """Decode tokens."""
        registry = self._cache.registry
        text = await _aside(lambda: registry.tokenizer(request.model).decode(list(request.token_ids)))
        return pb.DetokenizeResponse(text=text)


async def _aside(read: Callable[[], T]) -> T:
    """Run *read*, which may open files, without holding up the calls in progress."""
    return await asyncio.to_thread(read)


def _name(info: ModelInfo | AutoencoderInfo) -> str:
    return info.name


def _number(facts: ScalarFacts) -> str:
    """Numbers as text of one width, which sorts as they do."""
    return f"{facts.type.number:06d}"
