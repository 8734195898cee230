"""Shared by all calls: the channel, the metadata, the deadline, the translation of errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import cached_property
from typing import Protocol, Self, TypeVar

import grpc.aio
from google.protobuf.message import Message

from dst_grpc.client._channel import Connection
from dst_grpc.client._errors import our_errors
from dst_grpc.client._forks import note_closed
from dst_grpc.client._given import seconds
from dst_grpc.client._routing import named_model

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT")


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


PageT = TypeVar("PageT", bound=_Page)


class Calls:
    """Owner of a channel. It is opened at the first call, on the event loop of that call, and bound to that loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._closed = False
        self._models_of_kept: dict[str, str] = {}
        """By handle of what a server keeps for this client: the model whose calls lead to that server; empty for the
        default one."""

    @property
    def target(self) -> str:
        """Address of the server."""
        return self._connection.target

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        if self._closed:
            raise RuntimeError("this client is closed")
        return self._connection.open()

    async def close(self) -> None:
        """Cancel running calls and close the connection. Closing twice is harmless."""
        self._closed = True
        channel: grpc.aio.Channel | None = self.__dict__.pop("_channel", None)
        # Stubs and methods made from it refer to the channel too.
        for name in [name for name in self.__dict__ if isinstance(getattr(type(self), name, None), cached_property)]:
            del self.__dict__[name]
        if channel is not None:
            await channel.close()
            note_closed(channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        timeout: float | None = None,
        *,
        model: str | None = None,
    ) -> ResponseT:
        """Answer of a unary call. *model* is the one that it is about, if the request itself does not tell."""
        metadata = self._connection.call_metadata(model or named_model(request))
        with our_errors(self.target, timeout):
            return await method(request, timeout=seconds(timeout), metadata=metadata)

    async def _responses(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[RequestT, ResponseT],
        request: RequestT,
        timeout: float | None = None,
        *,
        model: str | None = None,
    ) -> AsyncGenerator[ResponseT]:
        """The messages of a server stream; closing the iterator cancels the call. *model* as in `_unary`."""
        metadata = self._connection.call_metadata(model or named_model(request))
        call = method(request, timeout=seconds(timeout), metadata=metadata)
        try:
            with our_errors(self.target, timeout):
                async for response in call:
                    yield response
        finally:
            call.cancel()


async def pages(page: Callable[[str], Awaitable[PageT]]) -> AsyncGenerator[PageT]:
    """Every page of a list; *page* fetches the page of a token."""
    token = ""
    while True:
        response = await page(token)
        yield response
        token = response.next_page_token
        if not token:
            return
