"""Who calls, and whether they may: by bearer token, by the name in a certificate, or by host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from dst_grpc.domain.callers import ASKING, OPERATING, Caller, Grants, Role
from dst_grpc.errors import NotAllowed, Unauthenticated
from dst_grpc.observability.calls import HEALTH_PREFIX, CallInfo, CallOutcome, ItemInfo
from dst_grpc.rpc.guesses import Guesses
from dst_grpc.rpc.hosts import Host, Hosts
from dst_grpc.rpc.tokens import TokenTable, bearer_of, digest_of

_CONTEXTS = "/dst.v1.ContextService/"
OPERATORS_METHODS = frozenset(
    _CONTEXTS + name for name in ("LoadContext", "UnpinContext", "UnloadContext", "ReloadRegistry")
)
"""Methods that change what all callers share."""
_MAX_TOKEN_CHARACTERS = 4096


class WrongToken(Unauthenticated):
    """A token that the server does not know; refused after `wait_seconds`."""

    def __init__(self, message: str, *, wait_seconds: float) -> None:
        """Make the error."""
        super().__init__(message)
        self.wait_seconds = wait_seconds


def role_for(method: str) -> Role | None:
    """The role that *method* needs; None for health checks, which anybody may call."""
    if method in OPERATORS_METHODS:
        return Role.OPERATE
    return None if method.startswith(HEALTH_PREFIX) else Role.ASK


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityRules:
    """How callers are known."""

    by_token: bool = False
    """By their bearer tokens."""
    by_certificate: str | None = None
    """By the names of this kind, as gRPC calls it, in their certificates; None = not by certificate."""
    open_operate: bool = False
    """If neither: whether callers from other hosts may operate the server."""


class Identity:
    """Finds out who calls, and refuses those who may not. Used on the event loop only."""

    def __init__(
        self,
        rules: IdentityRules,
        hosts: Hosts | None = None,
        *,
        guesses: Guesses | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Know callers by *rules* and their *hosts*; *now* tells the time."""
        self._rules, self._hosts = rules, hosts or Hosts()
        self._guesses = guesses or Guesses()
        self._now = now
        self.tokens = TokenTable(())
        """The tokens that are known; a reload replaces them."""
        self.grants = Grants()
        """What callers are granted; a reload replaces it."""

    def is_configured(self, name: str) -> bool:
        """Whether *name* is that of a caller in the operator's files. May be asked on any thread."""
        return name in self.tokens.names or name in self.grants.by_name

    def on_start(self, call: CallInfo) -> None:
        """Note who calls.

        Raises:
            Unauthenticated: Nobody that is known.
            NotAllowed: Somebody who may not.
            Exhausted: Too many wrong tokens came from its host.
        """
        if role_for(call.method) is None:
            return
        given = call.values("authorization") if self._rules.by_token else []
        if given:
            call.check_allowed = partial(self._check_token, self._digest(given, call))
            call.still_allowed()
        else:
            call.caller = self._by_certificate(call) or self._by_host(self._hosts.of(call))
            self._check_role(call)

    def on_end(self, token: object, call: CallInfo, outcome: CallOutcome) -> None:
        """Do nothing."""

    def on_item(self, call: CallInfo, item: ItemInfo, outcome: CallOutcome) -> None:
        """Do nothing."""

    def _digest(self, given: list[str], call: CallInfo) -> bytes:
        """The digest of the token in the metadata, which is one that the server knows."""
        text = bearer_of(given[0])
        if len(given) > 1 or not 0 < len(text) <= _MAX_TOKEN_CHARACTERS:
            raise Unauthenticated("the metadata `authorization` must come once, as `Bearer TOKEN`")
        digest = digest_of(text)
        if self.tokens.find(digest) is None:
            wait = self._guesses.wait_after_wrong(self._hosts.of(call).subnet)
            raise WrongToken("the bearer token is not one that this server knows", wait_seconds=wait)
        return digest

    def _check_token(self, digest: bytes, call: CallInfo) -> None:
        """Note whose token it is now; raise if it is no longer known, has expired, or has lost its role."""
        token = self.tokens.find(digest)
        if token is None:
            raise Unauthenticated("the bearer token was revoked")
        if not token.is_valid(self._now()):
            raise Unauthenticated("the bearer token has expired")
        call.caller = token.caller
        self._check_role(call)

    def _by_certificate(self, call: CallInfo) -> Caller | None:
        """The caller that its certificate names; None if callers are not known by anything but their hosts."""
        kind = self._rules.by_certificate
        for name in call.certificate().get(kind, ()) if kind is not None else ():
            text = name.decode("utf-8", "backslashreplace")
            return Caller(name=text, roles=self.grants.of(text).roles or ASKING)
        wanted = ["the metadata `authorization: Bearer TOKEN`"] if self._rules.by_token else []
        wanted += [f"a client certificate with a name of the kind {kind}"] if kind is not None else []
        if wanted:
            raise Unauthenticated(f"this server wants {' or '.join(wanted)}")
        return None

    def _by_host(self, host: Host) -> Caller:
        usual = OPERATING if host.is_local or self._rules.open_operate else ASKING
        return Caller(name=host.name, roles=self.grants.of(host.name).roles or usual)

    def _check_role(self, call: CallInfo) -> None:
        caller, role = call.caller, role_for(call.method)
        if role is None or role in caller.roles:
            return
        is_known = self._rules.by_token or self._rules.by_certificate is not None
        hint = "" if is_known else ", which callers from other hosts have only if the operator opens it to them"
        raise NotAllowed(
            f"{caller.name!r} may not call {call.method.rpartition('/')[2]}: it needs the role {role}{hint}",
            metadata={"caller": caller.name, "role": role.value},
        )
