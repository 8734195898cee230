"""Tells observers of calls a little later, of many calls at once.

To write a line or to count a call takes some microseconds if it is done again and again, and several times that between
other work, whose code and data the processor has to fetch again. So it is done for all calls of some milliseconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from dst_grpc.observability.calls import CallInfo, CallObserver, CallOutcome, ItemInfo

T = TypeVar("T")

_DELAY_SECONDS = 0.02
_MOST = 128
"""Events that wait; so many take about a millisecond."""


class Later:
    """An observer that passes on what it is told. For observers that refuse no calls and need no token."""

    def __init__(self, observers: Sequence[CallObserver]) -> None:
        """Tell *observers*, in order of calls' starts and in reverse of their ends."""
        self._observers = observers
        self._events: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = Lock()
        """Who reads metrics does so on another thread, and what is told must stay in order."""

    def on_start(self, call: CallInfo) -> None:
        """Note the start."""
        self._note(self._tell_start, call)

    def on_end(self, token: object, call: CallInfo, outcome: CallOutcome) -> None:
        """Note the end."""
        del token
        self._note(self._tell_end, call, outcome)

    def on_item(self, call: CallInfo, item: ItemInfo, outcome: CallOutcome) -> None:
        """Note the end of an item."""
        self._note(self._tell_item, call, item, outcome)

    def telling(self, observer: Callable[[T], object]) -> Callable[[T], None]:
        """What tells another *observer*, of something else than calls, in the same way."""
        return lambda event: self._note(observer, event)

    def flush(self) -> None:
        """Tell what was not told yet. May be called on any thread."""
        with self._flushing:
            while self._events:
                tell, event = self._events.popleft()
                tell(*event)

    def _tell_start(self, call: CallInfo) -> None:
        for observer in self._observers:
            observer.on_start(call)

    def _tell_end(self, call: CallInfo, outcome: CallOutcome) -> None:
        for observer in reversed(self._observers):
            observer.on_end(None, call, outcome)

    def _tell_item(self, call: CallInfo, item: ItemInfo, outcome: CallOutcome) -> None:
        for observer in self._observers:
            observer.on_item(call, item, outcome)

    def _note(self, tell: Callable[..., object], *event: Any) -> None:
        self._events.append((tell, event))
        if len(self._events) >= _MOST:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_DELAY_SECONDS, self._flush_in_time)

    def _flush_in_time(self) -> None:
        self._timer = None
        self.flush()


class BeforeReading(Collector):
    """Brings metrics up to date that are about to be read."""

    def __init__(self, registry: CollectorRegistry, update: Callable[[], None]) -> None:
        """Register with *registry*, before the metrics that *update* brings up to date; it is called on any thread."""
        self._update = update
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """No metrics of its own."""
        self._update()
        return iter(())
