"""The process of a server: started, told by signals to reload and to stop, and watched by a service manager."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from dst_grpc.observability.logs import configure_logging
from dst_grpc.observability.standard_error import logged_standard_error
from dst_grpc.rpc.hangups import Hangups
from dst_grpc.rpc.interpreter import favour_event_loop
from dst_grpc.rpc.parts import build_parts
from dst_grpc.rpc.server import Server, cancel
from dst_grpc.rpc.service_manager import ServiceManager
from dst_grpc.rpc.settings import Settings
from dst_grpc.rpc.tracing import exporting
from dst_grpc.rpc.watching import Watch

_log = logging.getLogger(__name__)


def serve(settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return; a second signal stops at once. SIGHUP reloads what
    the operator wrote, as `Server.reload` does; before the server serves, as soon as it does.

    *on_ready* is called with the address once the server serves; a service manager is told as well.

    Raises:
        StartupError: The server cannot start.
    """
    Hangups.installed()
    watch = Watch(settings.reloaded_files)

    def ready(address: str) -> None:
        favour_event_loop()
        if on_ready is not None:
            on_ready(address)

    with logged_standard_error() as stream:
        log = configure_logging(log_format=settings.log_format, level=settings.log_level, stream=stream)
        try:
            with exporting() as tracing:
                asyncio.run(run(Server(settings, build_parts(settings), tracing, watch), on_ready=ready))
        finally:
            log.flush()  # before it is said why it does not start


async def run(server: Server, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Start *server*, and serve until a signal; see `serve`."""
    signals: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number.name)
    manager = ServiceManager.of(os.environ)
    living = asyncio.create_task(manager.keep_alive())
    try:
        if await _unless_signalled(server.start(), signals):
            await _serve(server, signals, manager, on_ready)
    finally:
        await cancel(living)


async def _serve(
    server: Server, signals: asyncio.Queue[str], manager: ServiceManager, on_ready: Callable[[str], None] | None
) -> None:
    """Serve with *server*, which is started, until one of *signals*."""
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        manager.reloading()
        await server.reload_if_sound()
        manager.ready()

    def begin() -> None:
        task = asyncio.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop = asyncio.get_running_loop()
    with Hangups.installed().told_to(lambda: loop.call_soon_threadsafe(begin)):
        _log.info("listening on %s", server.address)
        manager.ready()
        if on_ready is not None:
            on_ready(server.address)
        _log.info("signal", extra={"signal": await signals.get()})
    manager.stopping()
    if not await _unless_signalled(server.drain(), signals):
        await server.stop()


async def _unless_signalled(work: Coroutine[Any, Any, None], signals: asyncio.Queue[str]) -> bool:
    """Run *work* to its end and return True; or, at a signal, cancel it and return False."""
    running, signalled = asyncio.create_task(work), asyncio.create_task(signals.get())
    await asyncio.wait([running, signalled], return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        await cancel(running)
        return False
    await cancel(signalled)
    await running
    return True
