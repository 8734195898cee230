"""Who calls, and what they may: by token, certificate or host, under every combination of settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dst_grpc.domain.callers import ASKING, NOBODY, OPERATING, Caller, Grant, Grants, Role
from dst_grpc.errors import DstError, Exhausted, NotAllowed, Unauthenticated
from dst_grpc.observability.calls import CallInfo
from dst_grpc.rpc.identity import OPERATORS_METHODS, Identity, IdentityRules, WrongToken
from dst_grpc.rpc.tokens import Token, TokenTable, digest_of
from tests.tokens import bearer

ASK, OPERATE = "/dst.v1.CatalogService/ListModels", "/dst.v1.ContextService/LoadContext"
HEALTH = "/grpc.health.v1.Health/Check"
NOON = datetime(2027, 1, 1, 12, tzinfo=UTC)
CERTIFICATE = {
    "peer_dns": [b"alice.example", b"other.example"],
    "peer_uri": [b"spiffe://example/alice"],
    "x509_common_name": [b"alice"],
}


def call(
    method: str = ASK,
    *metadata: tuple[str, str],
    peer: str = "ipv4:10.0.0.7:1",
    certificate: dict[str, list[bytes]] | None = None,
) -> CallInfo:
    return CallInfo(method=method, peer=peer, metadata=metadata, certificate=lambda: certificate or {})


def token(name: str, roles: Any = ASKING, expires_at: datetime | None = None) -> Token:
    """A token whose text is the name."""
    return Token(caller=Caller(name=name, roles=roles), digest=digest_of(name), expires_at=expires_at)


class Clock:
    """Stands still until a test moves it."""

    now = NOON

    def __call__(self) -> datetime:
        return self.now


def by_token(*tokens: Token, clock: Clock | None = None, **rules: Any) -> Identity:
    identity = Identity(IdentityRules(by_token=True, **rules), now=clock or Clock())
    identity.tokens = TokenTable(tokens)
    return identity


def known(identity: Identity, one: CallInfo) -> Caller:
    """Who *identity* says that *one* comes from."""
    identity.on_start(one)
    return one.caller


@pytest.mark.parametrize(
    ("peer", "open_operate", "may_operate"),
    [
        ("ipv4:127.0.0.1:1", False, True),
        ("ipv6:%5B::1%5D:1", False, True),
        ("unix:/run/dst", False, True),
        ("ipv4:10.0.0.7:1", False, False),
        ("ipv4:10.0.0.7:1", True, True),
    ],
)
@pytest.mark.parametrize("method", sorted(OPERATORS_METHODS))
def test_without_identity_only_this_machine_operates(
    peer: str, open_operate: bool, may_operate: bool, method: str
) -> None:
    identity = Identity(IdentityRules(open_operate=open_operate))
    assert known(identity, call(peer=peer)).roles[0] is Role.ASK
    operate = call(method, peer=peer)
    if may_operate:
        assert known(identity, operate).roles == OPERATING
        return
    with pytest.raises(NotAllowed, match="needs the role operate") as caught:
        identity.on_start(operate)
    assert caught.value.metadata == {"caller": "10.0.0.7", "role": "operate"}


def test_a_known_token_says_who_calls() -> None:
    identity = by_token(token("alice"), token("ops", OPERATING))
    for text, name in (("Bearer alice", "alice"), ("bearer alice", "alice"), ("BEARER  ops ", "ops")):
        assert known(identity, call(ASK, ("authorization", text))).name == name
    assert known(identity, call(OPERATE, *bearer("ops"))).roles == OPERATING
    with pytest.raises(NotAllowed, match="'alice' may not call LoadContext: it needs the role operate"):
        identity.on_start(call(OPERATE, *bearer("alice")))
    with pytest.raises(NotAllowed):
        identity.on_start(call(OPERATE, *bearer("alice"), peer="ipv4:127.0.0.1:1"))


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", "")],
        [("authorization", "alice")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer   ")],
        [("authorization", "Basic alice")],
        [("authorization", "Bearer alice"), ("authorization", "Bearer alice")],
        [("authorization", "Bearer alice"), ("authorization", "")],
        [("authorization", f"Bearer {'a' * 5000}")],
        [("authorization-x", "Bearer alice")],
    ],
)
def test_whatever_is_not_one_token_is_refused_and_no_guess(metadata: Sequence[tuple[str, str]]) -> None:
    identity = by_token(token("alice"))
    for _ in range(50):
        with pytest.raises(Unauthenticated) as caught:
            identity.on_start(call(ASK, *metadata))
        assert not isinstance(caught.value, WrongToken)


def test_health_is_for_everybody() -> None:
    one = call(HEALTH)
    assert known(by_token(token("alice")), one) == NOBODY


def wrong(identity: Identity, times: int, peer: str = "ipv4:10.0.0.7:1") -> list[DstError]:
    """The errors of as many wrong tokens."""
    errors: list[DstError] = []
    for i in range(times):
        with pytest.raises((WrongToken, Exhausted)) as caught:
            identity.on_start(call(ASK, *bearer(f"guess {i}"), peer=peer))
        errors.append(caught.value)
    return errors


def test_wrong_tokens_are_slowed_by_host_and_right_ones_never() -> None:
    identity = by_token(token("alice"))
    errors = wrong(identity, 100)
    waits = [error.wait_seconds for error in errors if isinstance(error, WrongToken)]
    assert waits[:10] == [0.0] * 10
    assert 0 < waits[10] < waits[-1] <= 5.0
    assert {type(error) for error in errors[20:]} == {Exhausted}
    assert known(identity, call(ASK, *bearer("alice"))).name == "alice"
    (other,) = wrong(identity, 1, peer="ipv4:10.0.0.8:1")
    assert isinstance(other, WrongToken)
    assert other.wait_seconds == 0


def test_a_token_that_expires_or_is_revoked_ends_what_it_began() -> None:
    clock = Clock()
    identity = by_token(token("alice", OPERATING, NOON + timedelta(seconds=1)), clock=clock)
    one = call(OPERATE, *bearer("alice"))
    identity.on_start(one)
    one.still_allowed()
    identity.tokens = TokenTable([token("alice", ASKING)])
    with pytest.raises(NotAllowed):
        one.still_allowed()
    identity.tokens = TokenTable([token("alice", OPERATING, NOON + timedelta(seconds=1))])
    one.still_allowed()
    clock.now += timedelta(seconds=1)
    with pytest.raises(Unauthenticated, match="expired"):
        one.still_allowed()
    with pytest.raises(Unauthenticated, match="expired"):
        identity.on_start(call(OPERATE, *bearer("alice")))
    identity.tokens = TokenTable([token("bob")])
    with pytest.raises(Unauthenticated, match="revoked"):
        one.still_allowed()
    assert len(wrong(identity, 1)) == 1, "an expired token was no guess"


@pytest.mark.parametrize(
    ("kind", "name"),
    [("peer_dns", "alice.example"), ("peer_uri", "spiffe://example/alice"), ("x509_common_name", "alice")],
)
def test_a_certificate_names_its_caller_by_the_one_kind(kind: str, name: str) -> None:
    identity = Identity(IdentityRules(by_certificate=kind))
    assert known(identity, call(certificate=CERTIFICATE)) == Caller(name=name, roles=ASKING)
    with pytest.raises(NotAllowed):
        identity.on_start(call(OPERATE, certificate=CERTIFICATE, peer="ipv4:127.0.0.1:1"))
    identity.grants = Grants(by_name={name: Grant(roles=OPERATING)})
    assert known(identity, call(OPERATE, certificate=CERTIFICATE)).roles == OPERATING


@pytest.mark.parametrize("certificate", [{}, {"peer_email": [b"alice.example"]}, {"peer_dns": []}])
def test_a_name_of_another_kind_is_none(certificate: dict[str, list[bytes]]) -> None:
    identity = Identity(IdentityRules(by_certificate="peer_dns"))
    with pytest.raises(Unauthenticated, match="a client certificate with a name of the kind peer_dns"):
        identity.on_start(call(certificate=certificate))


def test_names_that_are_no_text_stay_apart() -> None:
    identity = Identity(IdentityRules(by_certificate="peer_dns"))
    names = {known(identity, call(certificate={"peer_dns": [raw]})).name for raw in (b"\xff", b"\xfe")}
    assert len(names) == 2


def test_with_both_a_token_goes_before_a_certificate() -> None:
    identity = by_token(token("bob"), by_certificate="peer_dns")
    assert known(identity, call(ASK, *bearer("bob"), certificate=CERTIFICATE)).name == "bob"
    assert known(identity, call(certificate=CERTIFICATE)).name == "alice.example"
    with pytest.raises(WrongToken):
        identity.on_start(call(ASK, *bearer("eve"), certificate=CERTIFICATE))
    with pytest.raises(Unauthenticated, match=r"authorization: Bearer TOKEN` or a client certificate"):
        identity.on_start(call())


def test_without_tokens_the_metadata_of_a_mesh_is_nobodys_business() -> None:
    """A proxy may pass on a token that is meant for itself."""
    assert known(Identity(IdentityRules()), call(ASK, *bearer("of-the-mesh"))).name == "10.0.0.7"


def test_roles_of_a_token_are_its_own_and_those_of_a_host_may_be_granted() -> None:
    grants = Grants(by_name={name: Grant(roles=OPERATING) for name in ("alice", "10.0.0.7")})
    identity = by_token(token("alice"))
    identity.grants = grants
    with pytest.raises(NotAllowed):
        identity.on_start(call(OPERATE, *bearer("alice")))
    open_to_all = Identity(IdentityRules())
    open_to_all.grants = grants
    assert known(open_to_all, call(OPERATE)).name == "10.0.0.7"
    with pytest.raises(NotAllowed):
        open_to_all.on_start(call(OPERATE, peer="ipv4:10.0.0.8:1"))


def test_every_method_of_operators_is_a_method() -> None:
    from dst_grpc._gen.dst.v1 import context_service_pb2

    services: Iterable[Any] = context_service_pb2.DESCRIPTOR.services_by_name.values()
    methods = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert methods - OPERATORS_METHODS == {
        "/dst.v1.ContextService/ListContexts",
        "/dst.v1.ContextService/WatchContexts",
    }
    assert methods >= OPERATORS_METHODS
