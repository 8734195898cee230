"""The store of callers' tensors, in main memory: per caller, with quotas and lifetimes.

Used on the event loop only. A tensor that a request uses stays alive until the request ends.
"""

from __future__ import annotations

import heapq
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dst_grpc.contexts.sweeps import Sweeps, Timer
from dst_grpc.domain.readings import MemoryKind, MemoryReading
from dst_grpc.domain.request_tensors import RequestTensor, TensorSource
from dst_grpc.errors import Exhausted, NotFound, Reason

_LEAST_BYTES = 1024
"""Least bytes that a tensor counts for, because of its entry."""

_LEAST_STALE = 1000
"""Expiries of tensors that are gone, which may be noted besides as many as there are tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLimits:
    """Limits of size and lifetime."""

    max_caller_bytes: int = 256 << 20
    """Bytes of one caller's tensors."""
    max_total_bytes: int = 1 << 30
    """Bytes of all tensors."""
    max_ttl_seconds: float = 3600.0
    """Longest lifetime of a tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTensor:
    """A stored tensor."""

    handle: str
    """What requests name it by."""
    caller: str
    """Its owner."""
    tensor: RequestTensor
    """The numbers."""
    byte_count: int
    """Bytes that it counts for."""
    ttl_seconds: float
    """How long it is kept."""
    expires_at: float
    """Reading of the store's clock, in seconds, when it is deleted."""


Keep = Callable[[RequestTensor, float | None], KeptTensor]
"""Stores a tensor for a number of seconds; None = for the longest lifetime."""


class TensorStore:
    """Keeps tensors by handle."""

    def __init__(
        self,
        limits: TensorLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        call_later: Callable[[float, Callable[[], None]], Timer] | None = None,
    ) -> None:
        """Start empty.

        Args:
            limits: limits of size and lifetime.
            clock: gives seconds, from any beginning.
            call_later: schedules a call after a number of seconds; None = on the running event loop.
        """
        self.limits = limits
        self._clock = clock
        self._kept: dict[str, KeptTensor] = {}
        self._expiring: list[tuple[float, str]] = []
        """When each expires, the next first (a heap); those that are gone may be in it for a while."""
        self._bytes_of: Counter[str] = Counter()
        self._sweeps = Sweeps(self._sweep, call_later)

    @property
    def byte_count(self) -> int:
        """Bytes of all tensors, including those that are still arriving. May be asked on any thread."""
        return sum(list(self._bytes_of.values()))

    def memory(self) -> MemoryReading:
        """What they take. May be called on any thread."""
        return MemoryReading(
            kind=MemoryKind.PUT_TENSORS, used_bytes=self.byte_count, limit_bytes=self.limits.max_total_bytes
        )

    @contextmanager
    def arriving(self, caller: str, n_elements: int) -> Iterator[Keep]:
        """Reserve room for a tensor; yields the function that stores it once it has arrived.

        Raises:
            Exhausted: There is no room; waiting helps only if tensors expire or are deleted meanwhile.
        """
        byte_count = max(_LEAST_BYTES, 4 * n_elements)
        self._check_room(caller, byte_count)
        self._bytes_of[caller] += byte_count
        kept: list[KeptTensor] = []

        def keep(tensor: RequestTensor, ttl_seconds: float | None) -> KeptTensor:
            ttl_seconds = min(ttl_seconds or math.inf, self.limits.max_ttl_seconds)
            kept.append(
                KeptTensor(
                    handle=f"tensor-{secrets.token_urlsafe(16)}",
                    caller=caller,
                    tensor=tensor,
                    byte_count=byte_count,
                    ttl_seconds=ttl_seconds,
                    expires_at=self._clock() + ttl_seconds,
                )
            )
            self._kept[kept[0].handle] = kept[0]
            self._note_expiry(kept[0])
            self._sweeps.go_on()
            return kept[0]

        try:
            yield keep
        finally:
            if not kept:
                self._release(caller, byte_count)

    def of(self, caller: str) -> TensorSource:
        """The tensors of *caller*."""
        return _CallersTensors(self, caller)

    def get(self, caller: str, handle: str) -> RequestTensor:
        """The tensor of *caller* at *handle*; raises NotFound."""
        return self._find(caller, handle).tensor

    def delete(self, caller: str, handle: str) -> None:
        """Delete a tensor of *caller*; raises NotFound."""
        self._forget(self._find(caller, handle))

    def close(self) -> None:
        """Delete everything."""
        self._kept.clear()
        self._expiring.clear()
        self._bytes_of.clear()
        self._sweeps.close()

    def _find(self, caller: str, handle: str) -> KeptTensor:
        found = self._kept.get(handle)
        if found is not None and found.caller == caller:
            if found.expires_at > self._clock():
                return found
            self._forget(found)
        # Without similar names: handles must not be guessable.
        raise NotFound(
            f"there is no tensor {handle!r}: it was not put by this caller, or it has expired",
            resource_type="tensor",
            resource_name=handle,
            reason=Reason.TENSOR_NOT_FOUND,
            metadata={"resource_type": "tensor", "resource_name": handle},
        )

    def _check_room(self, caller: str, byte_count: int) -> None:
        caller_limit, total_limit = self.limits.max_caller_bytes, self.limits.max_total_bytes
        if self._bytes_of[caller] + byte_count > caller_limit or self.byte_count + byte_count > total_limit:
            self._sweep()
        held = self._bytes_of[caller]
        if held + byte_count > caller_limit:
            raise Exhausted(
                f"the tensor takes {byte_count} bytes; the caller's others take {held} of {caller_limit}",
                reason=Reason.QUOTA_EXCEEDED,
                metadata={"max_put_tensor_bytes": str(caller_limit)},
            )
        if self.byte_count + byte_count > total_limit:
            raise Exhausted(
                f"the tensor takes {byte_count} bytes, more than the server has left for tensors of all callers",
                reason=Reason.QUOTA_EXCEEDED,
                metadata={"max_put_tensor_bytes": str(caller_limit)},
            )

    def _forget(self, kept: KeptTensor) -> None:
        del self._kept[kept.handle]
        self._release(kept.caller, kept.byte_count)

    def _release(self, caller: str, byte_count: int) -> None:
        self._bytes_of[caller] -= byte_count
        if self._bytes_of[caller] <= 0:
            del self._bytes_of[caller]

    def _note_expiry(self, kept: KeptTensor) -> None:
        heapq.heappush(self._expiring, (kept.expires_at, kept.handle))
        if len(self._expiring) > 2 * len(self._kept) + _LEAST_STALE:
            self._expiring = [(one.expires_at, one.handle) for one in self._kept.values()]
            heapq.heapify(self._expiring)

    def _sweep(self) -> bool:
        """Drop what has expired; returns whether any is left. Takes no longer the more is kept: every tensor that is
        refused for want of room comes here."""
        now = self._clock()
        while self._expiring and self._expiring[0][0] <= now:
            _, handle = heapq.heappop(self._expiring)
            if handle in self._kept:
                self._forget(self._kept[handle])
        return bool(self._kept)


@dataclass(frozen=True, slots=True)
class _CallersTensors:
    store: TensorStore
    caller: str

    def get(self, handle: str) -> RequestTensor:
        """The tensor at *handle*; raises NotFound."""
        return self.store.get(self.caller, handle)
