"""What a service manager such as systemd is told of the server's life; see sd_notify(3). Without one, nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Self

_ABSTRACT = "@"


class ServiceManager:
    """Sends messages to a datagram socket."""

    def __init__(self, address: str = "", watchdog_seconds: float | None = None) -> None:
        """Send to *address*, a path, or a name in the abstract namespace after @; nowhere if it is empty.

        Args:
            address: where to.
            watchdog_seconds: how long the manager waits for a sign of life; None = it waits for none.
        """
        self._address = f"\0{address[1:]}" if address.startswith(_ABSTRACT) else address
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """The one that *environment* names."""
        micros = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(environment.get("NOTIFY_SOCKET", ""), int(micros) / 1e6 if is_ours and micros.isdecimal() else None)

    def ready(self) -> None:
        """Say that the server serves."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that it reloads; `ready` says that it is done."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that it drains."""
        self._send("STOPPING=1")

    async def keep_alive(self) -> None:
        """Send signs of life from the event loop, twice as often as they are waited for; until cancelled."""
        while self.watchdog_seconds:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_seconds / 2)

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # A manager that is gone, or does not listen, is no reason not to serve.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode(), self._address)
