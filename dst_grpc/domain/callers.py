"""Callers: who a call comes from, what they may do, and what share of the server is theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from dst_grpc.errors import Violations


class Role(StrEnum):
    """What a caller may do."""

    ASK = "ask"
    """Ask about models, and see which are loaded."""
    OPERATE = "operate"
    """Load, pin and unload what all callers share, and reload the server's files; and ask."""

    @property
    def implied(self) -> tuple[Role, ...]:
        """The roles that come with it, itself included."""
        return OPERATING if self is Role.OPERATE else ASKING


ASKING = (Role.ASK,)
"""Roles of those who may ask only."""
OPERATING = (Role.ASK, Role.OPERATE)
"""Roles of operators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever a call comes from. Equal names are one caller."""

    name: str
    """Its name: that of its token or certificate, else the host that it calls from, `unix` for all unix sockets."""
    roles: tuple[Role, ...] = OPERATING
    """What it may do."""


_LEAST = 1e-6
"""Of a weight, and of a quota that is not 0."""

LOCAL = Caller(name="local")
"""The caller of a pipeline that is used without a server."""

NOBODY = Caller(name="", roles=())
"""Whoever a call comes from that has not been identified."""


class Priority(StrEnum):
    """Classes of work."""

    INTERACTIVE = "interactive"
    """Somebody waits for it."""
    BATCH = "batch"
    """A program works through it: it gets a small part of the device while interactive work waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What the operator grants a caller."""

    weight: float = 1.0
    """Its part of a busy device, relative to the other callers that wait."""
    cost_seconds_per_minute: float | None = None
    """Seconds of a device that its requests may cost in a minute; None = no bound."""
    memory_share: float = 0.5
    """Part of the memory of all runs that its requests may take together."""
    priority: Priority = Priority.INTERACTIVE
    """The best class that its work may have."""
    roles: tuple[Role, ...] | None = None
    """What it may do if it is known by its certificate or its host: tokens bring their own roles. None = as others."""

    def __post_init__(self) -> None:
        """Check the numbers; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        # Beyond these, shares and waits are no numbers any more that can be computed or sent.
        is_weight = _LEAST <= self.weight <= 1 / _LEAST
        problems.check(is_weight, "weight", "must be between 0.000001 and 1000000")
        quota = self.cost_seconds_per_minute
        is_quota = not quota or _LEAST <= quota < math.inf
        problems.check(is_quota, "cost_seconds_per_minute", "must be 0, or at least 0.000001, and finite")
        problems.check(0 < self.memory_share <= 1, "memory_share", "must be above 0, and at most 1")
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """What the operator grants each caller."""

    default: Grant = Grant()
    """What callers are granted that are not named."""
    by_name: Mapping[str, Grant] = field(default_factory=lambda: MappingProxyType({}))
    """What others are granted."""

    def of(self, name: str) -> Grant:
        """What the caller of that *name* is granted."""
        return self.by_name.get(name, self.default)
