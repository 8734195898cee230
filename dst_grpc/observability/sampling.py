"""Which calls have a trace. It is decided before anything is made for one, as most may have none.

The samplers are those that OpenTelemetry's specification names, by its rules.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from dst_grpc.observability.trace_context import TraceParent

_SAMPLED = 1
_HALF_DIGITS = 16
_OF_PARENT = "parentbased_"
_RATIO = "traceidratio"
NAMES = tuple(f"{prefix}{name}" for prefix in ("", _OF_PARENT) for name in ("always_on", "always_off", _RATIO))
"""The samplers that there are."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which calls have a trace."""

    share: float = 1.0
    """The part of calls that have one, 0 to 1, if nobody has decided."""
    follows_parents: bool = True
    """Whether the caller's decision holds, if it says one."""
    draw: Callable[[], float] = random.random
    """Draws a number from 0 on and below 1."""

    @classmethod
    def named(cls, name: str, argument: str) -> Sampling:
        """The sampler of that *name*, with the *argument* that those by ratio have; raises ValueError."""
        if name not in NAMES:
            raise ValueError(f"is none of {', '.join(NAMES)}")
        kind, share = name.removeprefix(_OF_PARENT), 1.0
        if kind == _RATIO and argument:
            share = float(argument)
            if not 0 <= share <= 1:
                raise ValueError("is a part of calls, from 0 to 1")
        return cls(0.0 if kind == "always_off" else share, name.startswith(_OF_PARENT))

    def wants(self, parent: TraceParent | None) -> bool:
        """Whether a call has a trace whose caller says *parent*."""
        if parent is None:
            return self.draw() < self.share
        if self.follows_parents:
            return bool(int(parent.flags, 16) & _SAMPLED)
        # The same for all spans of the trace, wherever they are made.
        return int(parent.trace_id[_HALF_DIGITS:], 16) < self.share * 2.0 ** (4 * _HALF_DIGITS)
