"""Files of bearer tokens, as an operator keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from dst_grpc.domain.callers import Caller, Role
from dst_grpc.rpc.tokens import Token, digest_of


def line(name: str, text: str, role: Role = Role.ASK, expires_at: datetime | None = None) -> str:
    """The line of the token *text* of the caller *name*."""
    caller = Caller(name=name, roles=role.implied)
    return f"{Token(caller=caller, digest=digest_of(text), expires_at=expires_at)}\n"


def bearer(text: str) -> Sequence[tuple[str, str]]:
    """The metadata of a call with the token *text*."""
    return (("authorization", f"Bearer {text}"),)


def write(file: Path, **roles: Role) -> Path:
    """Write a file of tokens: one for each name, whose text is the name and `-token`; returns it."""
    file.write_text("".join(line(name, f"{name}-token", role) for name, role in roles.items()), encoding="utf-8")
    return file
