"""The catalogue (models, autoencoder sets, derived scalar types), tokenization, and the server's health."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, SupportsIndex

# The health messages have one field each, with the number and type of the well-known wrappers. The package with their
# own classes is not part of the bare install.
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from dst_grpc._gen.dst.v1 import catalog_service_pb2 as pb
from dst_grpc._gen.dst.v1.catalog_service_pb2_grpc import CatalogServiceStub
from dst_grpc.client._calls import Calls, pages
from dst_grpc.client._given import integers
from dst_grpc.domain.resolution import AutoencoderInfo, ModelInfo
from dst_grpc.domain.server_info import ServerInfo
from dst_grpc.domain.type_info import DerivedScalarTypeInfo
from dst_grpc.wire.codec import read_answer, read_request

if TYPE_CHECKING:
    # For the type checker only.
    from dst_grpc._gen.dst.v1.catalog_service_pb2_grpc import CatalogServiceAsyncStub


class ServingStatus(StrEnum):
    """Health of a server, a service or a model."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as tokens."""

    ids: tuple[int, ...]
    """Token ids."""
    strings: tuple[str, ...]
    """Each token decoded alone; bytes that are not text on their own become U+FFFD."""


class CatalogCalls(Calls):
    """CatalogService, and the standard health service."""

    @cached_property
    def _catalog_stub(self) -> CatalogServiceAsyncStub:
        return CatalogServiceStub(self._channel)

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Ask the server for its version, its limits and its features.

        Raises:
            Unimplemented: If the server is older than this call.
        """
        response = await self._unary(self._catalog_stub.GetServerInfo, pb.GetServerInfoRequest(), timeout)
        return read_answer(ServerInfo, response)

    async def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """List the models that the server can load, by name.

        Raises:
            DstError: If the call fails.
        """
        listed = pages(
            lambda token: self._unary(self._catalog_stub.ListModels, pb.ListModelsRequest(page_token=token), timeout)
        )
        return [read_answer(ModelInfo, model) async for page in listed for model in page.models]

    async def model(self, name: str = "", *, timeout: float | None = None) -> ModelInfo:
        """Describe one model, the default one unless *name* says otherwise.

        Raises:
            NotFound: If there is no model of that name; it lists the nearest.
        """
        response = await self._unary(self._catalog_stub.GetModel, pb.GetModelRequest(name=name), timeout, model=name)
        return read_answer(ModelInfo, response.model)

    async def autoencoders(self, model: str = "", *, timeout: float | None = None) -> list[AutoencoderInfo]:
        """List the autoencoder sets that the server can load, by name; those of *model* only if it is given.

        Raises:
            NotFound: If there is no model of that name; it lists the nearest.
        """
        listed = pages(
            lambda token: self._unary(
                self._catalog_stub.ListAutoencoders,
                pb.ListAutoencodersRequest(model=model, page_token=token),
                timeout,
            )
        )
        return [read_answer(AutoencoderInfo, info) async for page in listed for info in page.autoencoders]

    async def derived_scalar_types(self, *, timeout: float | None = None) -> list[DerivedScalarTypeInfo]:
        """List the server's derived scalar types, by number; those newer than this client are left out.

        Raises:
            DstError: If the call fails.
        """
        listed = pages(
            lambda token: self._unary(
                self._catalog_stub.ListDerivedScalarTypes,
                pb.ListDerivedScalarTypesRequest(page_token=token),
                timeout,
            )
        )
        types = [read_request(DerivedScalarTypeInfo, info) async for page in listed for info in page.types]
        return [info for info, problems in types if info is not None and not problems.count]

    async def tokenize(self, text: str, *, model: str = "", timeout: float | None = None) -> Tokens:
        """Encode a text as it is: no begin token is added.

        Raises:
            NotFound: If there is no model of that name.
        """
        request = pb.TokenizeRequest(model=model, text=text)
        ids: list[int] = []
        strings: list[str] = []
        async with aclosing(self._responses(self._catalog_stub.Tokenize, request, timeout)) as responses:
            async for response in responses:
                ids += response.token_ids
                strings += response.token_strings
        return Tokens(tuple(ids), tuple(strings))

    async def detokenize(
        self, token_ids: Iterable[SupportsIndex], *, model: str = "", timeout: float | None = None
    ) -> str:
        """Decode tokens to text.

        Raises:
            InvalidRequest: If an id lies outside the vocabulary.
            NotFound: If there is no model of that name.
        """
        return "".join([response.text for response in await self._detokenized(token_ids, model, timeout)])

    async def token_strings(
        self, token_ids: Iterable[SupportsIndex], *, model: str = "", timeout: float | None = None
    ) -> tuple[str, ...]:
        """Decode each token alone, as `Tokens.strings` has them; raises as `detokenize` does."""
        found = await self._detokenized(token_ids, model, timeout)
        return tuple(text for response in found for text in response.token_strings)

    async def _detokenized(
        self, token_ids: Iterable[SupportsIndex], model: str, timeout: float | None
    ) -> list[pb.DetokenizeResponse]:
        request = pb.DetokenizeRequest(model=model, token_ids=integers("token_ids", token_ids))
        async with aclosing(self._responses(self._catalog_stub.Detokenize, request, timeout)) as responses:
            return [response async for response in responses]

    async def health(self, service: str = "", *, timeout: float | None = None) -> ServingStatus:
        """Ask the standard health service.

        Args:
            service: Full name of a gRPC service, or a model as the server documents it; empty = the whole server.
            timeout: Seconds; None = no limit.

        Raises:
            DstError: If the server does not answer, or knows no such service.
        """
        check = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=Int32Value.FromString,
        )
        response = await self._unary(check, StringValue(value=service), timeout)
        return _HEALTH.get(response.value, ServingStatus.UNKNOWN)


_HEALTH = {1: ServingStatus.SERVING, 2: ServingStatus.NOT_SERVING}
