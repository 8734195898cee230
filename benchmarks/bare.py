"""Bare servers of gRPC: what ours are measured beside, and what takes what ours send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc
import grpc.aio

from scripts.serving import READY

HandlerOf: TypeAlias = "Callable[[str], grpc.RpcMethodHandler[bytes, bytes] | None]"
"""Gives what handles a method, by its full name; None if nothing does."""


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, handler_of: HandlerOf) -> None:
        self._handler_of = handler_of

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        return self._handler_of(handler_call_details.method)


@asynccontextmanager
async def bare_server(handler_of: HandlerOf) -> AsyncIterator[str]:
    """A server on a free port, for the time of the block; yields HOST:PORT."""
    server = grpc.aio.server(handlers=(_Methods(handler_of),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def serve_bare(handler_of: HandlerOf) -> None:
    """Serve until the process is ended, which is one of `scripts.serving.running`."""
    async with bare_server(handler_of) as address:
        print(f"{READY}{address}", flush=True)
        await asyncio.Event().wait()
