"""How loaded the server is, sent with the status of each call: proxies that weigh servers read it (ORCA).

It is an `xds.data.orca.v3.OrcaLoadReport` in the trailing metadata `endpoint-load-metrics-bin`. Two of its numbers are
sent, so it is written here, without the library that has the message.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from typing import Final

from dst_grpc.domain.server_info import DeviceLoad

LOAD_KEY: Final = "endpoint-load-metrics-bin"
"""Key of the metadata."""
TARGET_SECONDS = 1.0
"""The expected wait that counts as a utilisation of 1; longer ones count as more."""
_LEAST = 0.01
"""The least utilisation: those who weigh leave out servers that report 0."""
_KEPT_SECONDS = 0.1
_DOUBLE = 1
"""The wire type of protobuf for 8 bytes."""
_RATE, _UTILISATION = 6, 9
"""Numbers of the fields `rps_fractional` and `application_utilization`."""
_REPORT = struct.Struct("<BdBd")


class LoadReport:
    """The report of one server. It is made anew when a tenth of a second has passed."""

    def __init__(
        self, loads: Callable[[], Sequence[DeviceLoad]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Report the longest wait among *loads*, and how many calls a second ended by *clock*."""
        self._loads, self._clock = loads, clock
        self._made_at = clock()
        self._count = 0
        self._report = self._made(0.0)

    def of_ended_call(self) -> tuple[str, bytes]:
        """The metadata to send with the status of a call."""
        self._count += 1
        seconds = self._clock() - self._made_at
        if seconds >= _KEPT_SECONDS:
            self._report = self._made(self._count / seconds)
            self._made_at += seconds
            self._count = 0
        return self._report

    def _made(self, calls_per_second: float) -> tuple[str, bytes]:
        wait = max((load.expected_wait for load in self._loads()), default=0.0)
        utilisation = max(_LEAST, wait / TARGET_SECONDS)
        return LOAD_KEY, _REPORT.pack(_RATE << 3 | _DOUBLE, calls_per_second, _UTILISATION << 3 | _DOUBLE, utilisation)
