"""Why no server could be reached, told from gRPC's own words and the environment, with what to do about it."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from urllib.parse import urlsplit

_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Those that gRPC reads."""
_PROXY_CODE = re.compile(r"HTTP proxy returned response code (\d+)")
_SENTENCES = tuple(
    (re.compile(pattern, re.IGNORECASE), sentence)
    for pattern, sentence in (
        (r"resolving|dns|name resolution", "the name in {target!r} cannot be resolved"),
        (
            r"hostname verification check failed",
            "the certificate of {target} is another host's; Tls(server_name=...) says which it should be",
        ),
        (r"certificate has expired", "the certificate of {target} has expired"),
        (
            r"certificate_verify_failed: ([^:]*)",
            "the certificate of {target} is not trusted ({0}): name its authority, Tls(root_certificates=...)",
        ),
        (r"wrong_version_number", "{target} does not speak TLS"),
        (
            r"failed to create security handshaker",
            "no TLS connection to {target}: the client's own files are no PEM, or key and certificate differ",
        ),
        (r"handshake|certificate|ssl", "no TLS connection to {target}: {details}"),
        (r"http1\.x|http/2", "what answers at {target} is no gRPC server: it does not speak HTTP/2"),
        (r"connection refused|no such file", "no server answers at {target}; start one with `dst-grpc serve`"),
        (
            r"failed to connect.*(socket closed|connection reset|broken pipe)",
            "{target} closes the connection: it wants TLS, or a client's certificate, or is no gRPC server",
        ),
        (r"failed to connect", "no connection to {target}: {details}"),
        (r"", "the connection to {target} broke: {details}"),
    )
)
"""What gRPC's words mean; the first that they match counts."""
_SCHEMES = ("dns:///", "dns:", "ipv4:", "ipv6:")


def is_this_machine(target: str) -> bool:
    """Whether *target* is an address of this machine's own, which is behind no proxy."""
    for scheme in _SCHEMES:
        target = target.removeprefix(scheme)
    host = host_and_port(target)[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def why_unreachable(details: str, target: str) -> str:
    """A sentence about a call to *target* that failed as UNAVAILABLE with *details*, and not by our server."""
    target = _with_port(target)
    proxied = _why_no_proxy(details, target)
    if proxied:
        return proxied
    matches = ((pattern.search(details), sentence) for pattern, sentence in _SENTENCES)
    return next(s.format(*match.groups(), target=target, details=details) for match, s in matches if match)


def _why_no_proxy(details: str, target: str) -> str:
    """The same, if a proxy is what failed; empty if not."""
    proxy, code = _proxy_in(details), _PROXY_CODE.search(details)
    if not proxy and code is None:
        return ""
    name = f"the proxy {proxy[1]}, which {proxy[0]} names," if proxy else "a proxy"
    what = "cannot be reached" if code is None else f"refuses to connect to {target}, by {code[1]}"
    host = host_and_port(target)[0]
    return f"{name} {what}; with {host} in no_proxy, the server is connected to without it"


def _proxy_in(details: str) -> tuple[str, str] | None:
    """The environment's variable, and the address, of the proxy that *details* are about; None if of none."""
    for name in _PROXY_VARIABLES:
        value = os.environ.get(name)
        if not value:
            continue
        host, port = host_and_port(urlsplit(value if "://" in value else f"//{value}").netloc.rpartition("@")[2])
        address = f"{host}:{port}"
        if address in details or any(known in details for known in _resolved(host, port)):
            return name, address
        return None  # gRPC reads the first that is set
    return None


def _resolved(host: str, port: str) -> list[str]:
    """Addresses of *host*, as gRPC writes them."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    addresses = {str(address[0]) for *_, address in found}
    return [f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address in addresses]


def _with_port(target: str) -> str:
    """*target*; if it is a host without a port, with the one that gRPC takes, which may surprise."""
    return target if ":" in target.rpartition("]")[2] else f"{target}:443"


def host_and_port(text: str) -> tuple[str, str]:
    """The two parts of `HOST:PORT` or `[ADDRESS]:PORT`; no port if there is none."""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return host, port.removeprefix(":")
    host, colon, port = text.rpartition(":")
    return (host, port) if colon and ":" not in host else (text, "")
