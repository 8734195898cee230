"""The host that a call comes from: that of its connection or, behind trusted proxies, the one that they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import unquote

from dst_grpc.observability.calls import CallInfo

UNIX = "unix"
"""Name of all callers of a unix socket."""
_UNIX_KINDS = frozenset({"unix", "unix-abstract"})
FORWARDED = "x-forwarded-for"
"""Metadata in which each proxy adds the address that it was called from, the nearest last."""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
_MAX_ADDRESS_CHARACTERS = 100
_HOST_BITS = 64
"""Bits of an IPv6 address that its holder chooses."""


@dataclass(frozen=True, slots=True)
class Host:
    """Where a call comes from."""

    name: str
    """Its address as text; `unix` for a unix socket."""
    is_local: bool
    """Whether it is this machine, without a proxy in between as far as can be told."""

    @property
    def subnet(self) -> str:
        """The same for all hosts that may be one: its address, or the first 64 bits of an IPv6 address."""
        address = _parsed(self.name)
        if not isinstance(address, IPv6Address):
            return self.name
        return str(IPv6Network((int(address) >> _HOST_BITS << _HOST_BITS, 128 - _HOST_BITS)))


class Hosts:
    """Finds the hosts of calls."""

    def __init__(self, proxies: Sequence[Network] = ()) -> None:
        """Believe what *proxies* say of where a call comes from."""
        self._proxies = tuple(proxies)

    def of(self, call: CallInfo) -> Host:
        """The host of *call*: the first, seen from here, that is no trusted proxy.

        Hops before one that is not trusted are not believed, nor are those before what is no address.
        """
        forwarded = call.values(FORWARDED)
        kind, _, rest = call.peer.partition(":")
        if kind in _UNIX_KINDS:
            return Host(UNIX, is_local=not forwarded)
        peer = _parsed(unquote(rest))
        if peer is None:
            return Host(call.peer, is_local=False)
        if self._trusts(peer):
            hops = [hop for value in forwarded for hop in value.split(",")]
            return Host(str(self._last_untrusted(peer, hops)), is_local=False)
        return Host(str(peer), is_local=peer.is_loopback and not forwarded)

    def _last_untrusted(self, peer: Address, hops: list[str]) -> Address:
        """The nearest of *hops*, the farthest first, that is no trusted proxy; *peer* if they name none."""
        nearest = peer
        for hop in reversed(hops):
            address = _parsed(hop.strip())
            if address is None:
                break
            nearest = address
            if not self._trusts(address):
                break
        return nearest

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._proxies)


def _parsed(text: str) -> Address | None:
    """The address in *text*, perhaps in brackets or with a port; None if there is none."""
    return _parsed_short(text) if len(text) <= _MAX_ADDRESS_CHARACTERS else None


@lru_cache(4096)
def _parsed_short(text: str) -> Address | None:
    """As `_parsed`; remembers texts, of which callers choose some."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
