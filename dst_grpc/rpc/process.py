"""The process of a server: started, told by signals to reload and to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from dst_grpc.observability.logs import configure_logging
from dst_grpc.rpc.interpreter import favour_event_loop
from dst_grpc.rpc.parts import build_parts
from dst_grpc.rpc.server import Server, cancel
from dst_grpc.rpc.settings import Settings
from dst_grpc.rpc.tracing import exporting

_log = logging.getLogger(__name__)


def serve(settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return; a second signal stops at once. SIGHUP reloads what
    the operator wrote, as `Server.reload` does; before the server serves, as soon as it does.

    *on_ready* is called with the address once the server serves.

    Raises:
        StartupError: The server cannot start.
    """
    hangups = _noted_hangups()
    configure_logging(log_format=settings.log_format, level=settings.log_level)

    def ready(address: str) -> None:
        favour_event_loop()
        if on_ready is not None:
            on_ready(address)

    with exporting() as tracer_provider:
        asyncio.run(run(Server(settings, build_parts(settings), tracer_provider), on_ready=ready, hangups=hangups))


def _noted_hangups() -> Sequence[int]:
    """From now on SIGHUP does not end the process: each is added to what this returns."""
    noted: list[int] = []
    if hasattr(signal, "SIGHUP"):  # Windows has none
        signal.signal(signal.SIGHUP, lambda number, _frame: noted.append(number))
    return noted


async def run(server: Server, *, on_ready: Callable[[str], None] | None = None, hangups: Sequence[int] = ()) -> None:
    """Start *server*, and serve until a signal; see `serve`. Reload once if there are any *hangups* by then."""
    signals: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number.name)
    if not await _unless_signalled(server.start(), signals):
        return
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(server.reload_if_sound())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, reload)
    if hangups:
        reload()
    _log.info("listening on %s", server.address)
    if on_ready is not None:
        on_ready(server.address)
    _log.info("signal", extra={"signal": await signals.get()})
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
