"""Admission of calls: observers that may refuse a call before anything of it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from dst_grpc.domain.callers import Caller
from dst_grpc.errors import Exhausted, Reason, Unauthenticated
from dst_grpc.observability.calls import CallInfo, CallOutcome
from dst_grpc.rpc.draining import RETRY_AFTER_SECONDS, DrainSignal, draining_error

_HEALTH_PREFIX = "/grpc.health.v1.Health/"
_NAME_DIGITS = 16


class CallAdmission:
    """Bounds the calls in flight, and refuses new ones while draining.

    Health checks always pass: a full or stopping server must still report it.
    """

    def __init__(self, drain: DrainSignal, max_concurrent_calls: int | None) -> None:
        """Admit up to *max_concurrent_calls* at once; None admits any number."""
        self._drain = drain
        self._max_concurrent_calls = max_concurrent_calls
        self._in_flight = 0

    def on_start(self, call: CallInfo) -> int:
        """Admit or refuse a call; the token is how many calls it counts as."""
        if call.method.startswith(_HEALTH_PREFIX):
            return 0
        if self._drain.given:
            raise draining_error()
        limit = self._max_concurrent_calls
        if limit is not None and self._in_flight >= limit:
            raise Exhausted(
                f"{self._in_flight} calls are in progress, and no more than {limit} may be",
                reason=Reason.QUEUE_FULL,
                retry_after_seconds=RETRY_AFTER_SECONDS,
                metadata={"max_concurrent_calls": str(limit)},
            )
        self._in_flight += 1
        return 1

    def on_end(self, token: object, call: CallInfo, outcome: CallOutcome) -> None:
        """Count the call out."""
        del call, outcome
        self._in_flight -= int(bool(token))


class BearerTokens:
    """Demands `authorization: Bearer TOKEN` with one of the operator's tokens, except of health checks."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """Accept *tokens*; only their digests are kept."""
        # The time of looking up a digest does not reveal how much of a guessed token was right.
        self._digests = frozenset(_digest(token) for token in tokens)

    @classmethod
    def from_file(cls, path: Path) -> BearerTokens:
        """Read one token per line; empty lines and those starting with # are skipped. Raises OSError, ValueError."""
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        tokens = [line for line in lines if line and not line.startswith("#")]
        if not tokens:
            raise ValueError("holds no token")
        return cls(tokens)

    def __repr__(self) -> str:
        """The number of tokens only."""
        return f"BearerTokens({len(self._digests)} tokens)"

    def on_start(self, call: CallInfo) -> None:
        """Refuse a caller without a known token, and note the name of the token of others."""
        if call.method.startswith(_HEALTH_PREFIX):
            return
        scheme, _, token = (call.header("authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("this server wants the metadata `authorization: Bearer TOKEN`")
        digest = _digest(token.strip())
        if digest not in self._digests:
            raise Unauthenticated("the bearer token is not one that this server knows")
        call.caller = Caller(name=f"token:{digest.hex()[:_NAME_DIGITS]}")

    def on_end(self, token: object, call: CallInfo, outcome: CallOutcome) -> None:
        """Do nothing."""


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
