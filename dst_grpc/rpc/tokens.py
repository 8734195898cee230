"""Bearer tokens: the operator's file of them, which holds only their digests, and making new ones.

A line for each token: the name of its caller, the SHA-256 of the token, its roles, and when it expires.

    alice sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b ask 2027-03-01T00:00:00Z
    ops sha256:486ea46224d1bb4fb680f34f7c9ad96a8f24ec88be73ea8e5a6c65260e9cb8a7 ask,operate never

Lines that are empty or begin with # are skipped. A caller may have several tokens, as while one replaces another.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from dst_grpc.domain.callers import Caller
from dst_grpc.errors import InvalidRequest, Violations
from dst_grpc.rpc.callers_file import roles_of

MAX_NAME_CHARACTERS = 128
_PREFIX = "sha256:"
_DIGEST = re.compile(f"{_PREFIX}[0-9a-fA-F]{{64}}")
_TOKEN_BYTES = 32
_NEVER = "never"
_FORM = "NAME sha256:DIGEST ROLES EXPIRY, as `dst-grpc tokens new` prints it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A bearer token that the operator gave out. The token itself is known to its caller only."""

    caller: Caller
    """Who holds it, and what it allows."""
    digest: bytes
    """SHA-256 of the token."""
    expires_at: datetime | None = None
    """When it stops to be valid; None = never."""

    def is_valid(self, now: datetime) -> bool:
        """Whether it has not expired *now*."""
        return self.expires_at is None or now < self.expires_at

    def __str__(self) -> str:
        """Its line of the file."""
        roles = ",".join(self.caller.roles)
        expiry = _NEVER if self.expires_at is None else self.expires_at.astimezone(UTC).isoformat(timespec="seconds")
        return f"{self.caller.name} {_PREFIX}{self.digest.hex()} {roles} {expiry.replace('+00:00', 'Z')}"


class TokenTable:
    """Tokens by digest."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        """Hold *tokens*."""
        # How long it takes to look up a digest does not tell how much of a guessed token is right.
        self._by_digest = {token.digest: token for token in tokens}
        self.names = frozenset(token.caller.name for token in self._by_digest.values())
        """Names of their callers."""

    @classmethod
    def read(cls, file: Path) -> Self:
        """The tokens of *file*.

        Raises:
            InvalidRequest: listing everything that is wrong with it, by line, without a word of what the line holds.
        """
        return cls(read_tokens(file))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._by_digest)

    def find(self, digest: bytes) -> Token | None:
        """The token with that *digest*, expired or not; None if there is none."""
        return self._by_digest.get(digest)


def digest_of(text: str) -> bytes:
    """The SHA-256 of a token."""
    return hashlib.sha256(text.encode()).digest()


def bearer_of(authorization: str) -> str:
    """The token of a header `Bearer TOKEN`; empty if there is none."""
    scheme, _, text = authorization.partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


def new_token(caller: Caller, expires_at: datetime | None) -> tuple[str, Token]:
    """A new token for *caller*: its text, of 256 random bits, and what the file keeps of it."""
    text = f"dst_{secrets.token_urlsafe(_TOKEN_BYTES)}"
    return text, Token(caller=caller, digest=digest_of(text), expires_at=expires_at)


def is_name(text: str) -> bool:
    """Whether *text* can be the name of a token's caller."""
    return 0 < len(text) <= MAX_NAME_CHARACTERS and text.isprintable() and " " not in text and text[0] != "#"


def read_tokens(file: Path) -> tuple[Token, ...]:
    """As `TokenTable.read`."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRequest.of("", f"{file.name} cannot be read: {reason}") from None
    problems = Violations()
    tokens: dict[bytes, Token] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        path = f"line {number}"
        try:
            token = _token(words)
        except ValueError as error:
            problems.add(path, str(error))
            continue
        problems.check(token.digest not in tokens, path, "this token is on an earlier line already")
        tokens[token.digest] = token
    if not problems.count:
        problems.check(bool(tokens), "", f"{file.name} holds no token")
    problems.raise_if_any()
    return tuple(tokens.values())


def _token(words: list[str]) -> Token:
    """The token of a line; raises ValueError with what is wrong with it."""
    if len(words) == 1:
        raise ValueError(f"holds a token itself; the file keeps digests only: write {_FORM}")
    if len(words) != 4:
        raise ValueError(f"has {len(words)} words; write {_FORM}")
    name, digest, roles, expiry = words
    if not is_name(name):
        raise ValueError(f"the name must have at most {MAX_NAME_CHARACTERS} characters, all of them printable")
    if _DIGEST.fullmatch(digest) is None:
        raise ValueError("the second word must be sha256: and the 64 hexadecimal digits of the token's SHA-256")
    found = roles_of(roles.split(","))
    if found is None:
        raise ValueError("the third word must be ask, operate or ask,operate")
    return Token(
        caller=Caller(name=name, roles=found),
        digest=bytes.fromhex(digest.removeprefix(_PREFIX)),
        expires_at=_expiry(expiry),
    )


def _expiry(text: str) -> datetime | None:
    """When a token expires; raises ValueError if *text* does not tell."""
    if text == _NEVER:
        return None
    try:
        expires_at = datetime.fromisoformat(text)
    except ValueError:
        expires_at = datetime.min  # noqa: DTZ901  without a time zone, as below
    if expires_at.tzinfo is None:
        raise ValueError("the last word must be never, or a time with its zone, as in 2027-03-01T00:00:00Z")
    return expires_at
