"""What callers cost: the same three numbers for each, under the names that the operator knows."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import cache

from prometheus_client import CollectorRegistry, Counter

OTHER = "other"
"""The label of callers without a name in the operator's files, so that callers cannot create labels."""


class CostKind(StrEnum):
    """What is counted."""

    SECONDS = "seconds"
    """Time of a device, as quotas count it."""
    TOKENS = "tokens"
    """Tokens of prompts that ran."""
    BYTES = "bytes"
    """Bytes of messages that were sent."""


class CallerCosts:
    """The costs of each caller."""

    def __init__(self, registry: CollectorRegistry, is_configured: Callable[[str], bool]) -> None:
        """Register the metric with *registry*; *is_configured* tells whether a caller's name is in the operator's
        files."""
        self._is_configured = is_configured
        cost = Counter("dst_caller_cost", "What a caller has cost.", ("caller", "kind"), registry=registry)

        @cache
        def cost_of(caller: str, kind: CostKind) -> Counter:
            return cost.labels(caller, kind.value)

        self._cost_of = cost_of

    def add(self, caller: str, kind: CostKind, amount: float) -> None:
        """Count *amount* for *caller*."""
        self._cost_of(caller if self._is_configured(caller) else OTHER, kind).inc(amount)
