"""Callers: who a call comes from, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a caller may do."""

    ASK = "ask"
    """Ask about models, and see which are loaded."""
    OPERATE = "operate"
    """Load, pin and unload what all callers share, and reload the server's files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever a call comes from. Equal names are one caller."""

    name: str
    """Its name: that of its token or certificate, else the host that it calls from, `unix` for all unix sockets."""
    roles: frozenset[Role] = frozenset(Role)
    """What it may do."""


LOCAL = Caller(name="local")
"""The caller of a pipeline that is used without a server."""

NOBODY = Caller(name="", roles=frozenset())
"""Whoever a call comes from that has not been identified."""
