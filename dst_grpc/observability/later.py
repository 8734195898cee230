"""Tells observers of calls a little later, of many calls at once.

To write a line or to count a call takes some microseconds if it is done again and again, and several times that between
other work, whose code and data the processor has to fetch again. So it is done for all calls of some milliseconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from dst_grpc.observability.calls import CallInfo, CallObserver, CallOutcome, ItemInfo

_DELAY_SECONDS = 0.02
_MOST = 128
"""Events that wait; so many take about a millisecond."""


class Later:
    """An observer that passes on what it is told. For observers that refuse no calls and need no token."""

    def __init__(self, observers: Sequence[CallObserver]) -> None:
        """Tell *observers*, in order of calls' starts and in reverse of their ends."""
        self._observers = observers
        self._events: deque[tuple[CallInfo, ItemInfo | None, CallOutcome | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def on_start(self, call: CallInfo) -> None:
        """Note the start."""
        self._note(call, None, None)

    def on_end(self, token: object, call: CallInfo, outcome: CallOutcome) -> None:
        """Note the end."""
        del token
        self._note(call, None, outcome)

    def on_item(self, call: CallInfo, item: ItemInfo, outcome: CallOutcome) -> None:
        """Note the end of an item."""
        self._note(call, item, outcome)

    def flush(self) -> None:
        """Tell what was not told yet. May be called on any thread."""
        while self._events:
            try:
                call, item, outcome = self._events.popleft()
            except IndexError:  # another thread was faster
                return
            if outcome is None:
                for observer in self._observers:
                    observer.on_start(call)
            elif item is None:
                for observer in reversed(self._observers):
                    observer.on_end(None, call, outcome)
            else:
                for observer in self._observers:
                    observer.on_item(call, item, outcome)

    def _note(self, call: CallInfo, item: ItemInfo | None, outcome: CallOutcome | None) -> None:
        self._events.append((call, item, outcome))
        if len(self._events) >= _MOST:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_DELAY_SECONDS, self._flush_in_time)

    def _flush_in_time(self) -> None:
        self._timer = None
        self.flush()


class FlushBeforeReading(Collector):
    """Makes metrics that are read hold all that was observed before."""

    def __init__(self, later: Later, registry: CollectorRegistry) -> None:
        """Register with *registry*, before the metrics that *later* tells of calls."""
        self._later = later
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """No metrics of its own."""
        self._later.flush()
        return iter(())
