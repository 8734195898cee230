"""Who calls: the host of a connection, or the name in its certificate."""

from __future__ import annotations

from collections.abc import Iterable

UNIX = "unix"
"""Name of all callers of a unix socket."""


def caller_name(peer: str, identities: Iterable[bytes] | None) -> str:
    """Name of the caller at *peer*, an address as gRPC prints it, with the names in its certificate, if any."""
    for identity in identities or ():
        return f"certificate:{identity.decode('utf-8', 'replace')}"
    kind, _, address = peer.partition(":")
    return address.rpartition(":")[0] if kind in {"ipv4", "ipv6"} else UNIX
