"""One server process for each device, under one supervisor: it starts them, restarts those that end, passes signals on
to all, and writes their logs as one.

Processes are kept apart so that a fault of a device ends the calls of that device alone, and so that each has an
interpreter of its own. The supervisor itself imports neither torch nor a model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from dst_grpc.observability.log_writer import LogWriter
from dst_grpc.observability.logs import configure_logging
from dst_grpc.observability.standard_error import READ_BYTES, split_lines, text_of
from dst_grpc.rpc.hangups import Hangups
from dst_grpc.rpc.service_manager import ServiceManager
from dst_grpc.rpc.settings import UNIX_PREFIX, Settings

COMMAND: Final = (sys.executable, "-m", "dst_grpc.rpc.device_process")
"""What runs a process: it takes its settings as a line of JSON from standard input, and drains when that ends."""

_READY = "dst-grpc is ready at "
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a process that ended is started again; twice as many each time, until it has served for the latter."""
_STOP_SECONDS = 15.0
"""How much longer than its notice and grace a process may take to end before it is killed."""
_LAST_LINES_SECONDS = 1.0
_OF_THE_SUPERVISOR = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
"""What the system's service manager gives to the supervisor alone."""

_log = logging.getLogger(__name__)


def say_ready(address: str) -> None:
    """Write that it serves at *address*, for programs that start it, a supervisor among them; nothing else is written
    to standard output."""
    sys.stdout.write(f"{_READY}{address}\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Assignment:
    """What one process is to serve, and how."""

    number: int
    """Its place in `devices`, from 0."""
    device: str
    """The device, as it was named there."""
    settings: Settings
    """Its own settings."""
    environment: Mapping[str, str]
    """Its own environment."""

    def __str__(self) -> str:
        """As it stands before its lines in the log."""
        return f"{self.number} {self.device}"


def assignments(settings: Settings, environment: Mapping[str, str], processors: int) -> list[Assignment]:
    """A process for each of the devices in *settings*.

    The first listens on `port`, or on unix:PATH.0, the next on the port after it; for metrics and health likewise. Each
    of N has an N-th of *processors* for torch's threads, unless OMP_NUM_THREADS says how many, and sees no other GPU
    than its own, which it calls cuda:0: so handles of contexts are the same on all of them.
    """
    inherited = {name: value for name, value in environment.items() if name not in _OF_THE_SUPERVISOR}
    threads = {"OMP_NUM_THREADS": str(max(1, processors // len(settings.devices)))}
    found = []
    for number, device in enumerate(settings.devices):
        seen, device_there = _visible(device, environment)
        changes: dict[str, object] = {"devices": (), "device": device_there}
        if settings.unix_sockets:
            changes["host"] = f"{UNIX_PREFIX}{settings.unix_sockets[number]}"
        elif settings.port:
            changes["port"] = settings.port + number
        for name in ("metrics_port", "health_port"):
            if first := getattr(settings, name):
                changes[name] = first + number
        own = settings.model_copy(update=changes)
        found.append(Assignment(number, device, own, threads | inherited | seen))
    return found


def _visible(device: str, environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """What a process is told to see of the GPUs, and what *device* is called there."""
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index:
        return {}, device
    name = "CUDA_VISIBLE_DEVICES"
    listed = [each.strip() for each in environment.get(name, "").split(",") if each.strip()]
    # An index beyond those listed is left as it is: the process says that there is no such device.
    if listed and int(index) >= len(listed):
        return {}, device
    return {name: listed[int(index)] if listed else index}, "cuda:0"


def supervise(settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> int:
    """Serve on each of the devices until SIGTERM or SIGINT, then drain all and return; a second signal stops them at
    once, a third kills them. SIGHUP has each reload, as `serve` does.

    *on_ready* is called with the addresses, with commas between them, once all serve. A process that ends by itself is
    started again, on its port, after a pause; but if one ends before it has ever served, all stop.

    Returns:
        The exit status: 0, or that of the first process that did not end well.
    """
    Hangups.installed()
    writer = configure_logging(log_format=settings.log_format, level=settings.log_level)

    async def run() -> int:
        return await _Supervisor(settings, writer).run(on_ready)

    return asyncio.run(run())


class _Supervisor:
    """All processes. Made on the event loop that it runs on."""

    def __init__(self, settings: Settings, writer: LogWriter) -> None:
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._processes = [_Kept(each, writer) for each in assignments(settings, os.environ, processors)]
        self._manager = ServiceManager.of(os.environ)
        self._is_ready = False
        self._stops = 0

    async def run(self, on_ready: Callable[[str], None] | None) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        running = [asyncio.create_task(process.run()) for process in self._processes]
        telling = [asyncio.create_task(self._tell_ready(on_ready)), asyncio.create_task(self._manager.keep_alive())]
        with Hangups.installed().told_to(lambda: loop.call_soon_threadsafe(self._reload)):
            for finished in asyncio.as_completed(running):
                if await finished and not self._stops:
                    self._stop()
        for task in telling:
            task.cancel()
        await asyncio.wait(telling)
        statuses = [task.result() for task in running]
        _log.info("stopped")
        return next((status for status in statuses if status), 0)

    async def _tell_ready(self, on_ready: Callable[[str], None] | None) -> None:
        addresses = [await process.address for process in self._processes]
        self._is_ready = True
        self._manager.ready()
        _log.info("all processes serve", extra={"addresses": ",".join(addresses)})
        if on_ready is not None:
            on_ready(",".join(addresses))

    def _signalled(self, number: signal.Signals) -> None:
        _log.info("signal", extra={"signal": number.name})
        self._stop()

    def _stop(self) -> None:
        self._stops += 1
        self._manager.stopping()
        for process in self._processes:
            process.stop(kill=self._stops > 2)

    def _reload(self) -> None:
        """Have all reload; a service manager takes that for done once they are told."""
        if self._is_ready:
            self._manager.reloading()
        for process in self._processes:
            process.reload()
        if self._is_ready:
            self._manager.ready()


class _Kept:
    """One process, which is started again when it ends."""

    def __init__(self, assignment: Assignment, writer: LogWriter) -> None:
        self._assignment, self._writer = assignment, writer
        self._settings = assignment.settings
        self._fields = {"process_number": assignment.number, "device": assignment.device}
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Where it serves, once it has."""
        self._process: Process | None = None
        self._serves = False
        """Whether the present process is ready."""
        self._hung_up = False
        """Whether it is to reload once it is."""
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Keep it running until it is stopped; returns its exit status."""
        pause = _FIRST_PAUSE
        while True:
            started = time.monotonic()
            status = await self._run_once()
            if self._stopping.is_set():
                # Before it serves, it knows no other answer to SIGTERM than its end.
                return 0 if status == -signal.SIGTERM and not self._serves else _exit_status(status)
            fields = self._fields | {"status": status}
            if not self.address.done():
                _log.error("a process could not start", extra=fields)
                return _exit_status(status) or 1
            if time.monotonic() - started > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            _log.error("a process ended, and is started again", extra=fields | {"pause_seconds": pause})
            try:
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            except TimeoutError:
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                return 0

    def stop(self, *, kill: bool) -> None:
        """Have it drain; stop at once, if it was told before; or *kill* it."""
        self._stopping.set()
        self._send(signal.SIGKILL if kill else signal.SIGTERM)

    def reload(self) -> None:
        """Have it reload what the operator wrote, as soon as it serves."""
        if self._serves:
            self._send(signal.SIGHUP)
        else:
            self._hung_up = True

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _run_once(self) -> int:
        """Start it and wait for its end; returns its exit status, negative if a signal ended it."""
        self._serves = self._hung_up = False
        # A session of its own: what a terminal signals to all its processes is passed on once, by us.
        process = await asyncio.create_subprocess_exec(
            *COMMAND, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=self._assignment.environment, start_new_session=True
        )
        self._process = process
        _log.info("started a process", extra=self._fields | {"pid": process.pid})
        if process.stdin is not None:
            process.stdin.write(self._settings.model_dump_json().encode() + b"\n")
        if self._stopping.is_set():
            self._send(signal.SIGTERM)
        reading = [asyncio.create_task(each) for each in (self._read_output(process), self._read_log(process))]
        late = asyncio.create_task(self._kill_late(process))
        status = await process.wait()
        late.cancel()
        # What it has started may hold its pipes for longer.
        await asyncio.wait(reading, timeout=_LAST_LINES_SECONDS)
        for task in reading:
            task.cancel()
        return status

    async def _kill_late(self, process: Process) -> None:
        """Kill *process* if it does not end in time once it is stopped."""
        await self._stopping.wait()
        await asyncio.sleep(self._settings.drain_notice_seconds + self._settings.grace_seconds + _STOP_SECONDS)
        _log.error("a process does not end, and is killed", extra=self._fields)
        process.kill()

    async def _read_output(self, process: Process) -> None:
        async for line in _lines(process.stdout):
            if line.startswith(_READY):
                self._ready(line.removeprefix(_READY))
            else:
                self._pass_on(line)

    def _ready(self, address: str) -> None:
        self._serves = True
        if not self.address.done():
            self.address.set_result(address)
            if self._settings.unix_socket is None:
                # A port that the system chose is kept.
                self._settings = self._settings.model_copy(update={"port": int(address.rpartition(":")[2])})
        if self._hung_up:
            self.reload()

    async def _read_log(self, process: Process) -> None:
        async for line in _lines(process.stderr):
            self._pass_on(line)

    def _pass_on(self, line: str) -> None:
        """Write a line of its log, with its number and device."""
        if self._settings.log_format == "text":
            self._writer.write_line(f"[{self._assignment}] {line}")
        elif line.startswith("{"):
            own = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in self._fields.items())
            self._writer.write_line(f"{{{own}, {line[1:]}")
        else:
            record = {"name": __name__, "levelno": logging.INFO, "levelname": "INFO", "msg": line, **self._fields}
            self._writer.emit(logging.makeLogRecord(record))


async def _lines(stream: asyncio.StreamReader | None) -> AsyncGenerator[str]:
    """The lines of *stream*, without their ends; one that is too long in pieces."""
    rest = b""
    while stream is not None and (data := await stream.read(READ_BYTES)):
        lines, rest = split_lines(rest + data)
        for line in lines:
            yield line
    if rest:
        yield text_of(rest)


def _exit_status(status: int) -> int:
    """What a shell would say of a process that ended with *status*, negative if a signal ended it."""
    return 128 - status if status < 0 else status
