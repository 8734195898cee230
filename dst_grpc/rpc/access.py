"""Who may call, from the settings and the files that the operator keeps beside them."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from dst_grpc.domain.callers import Grants
from dst_grpc.errors import InvalidRequest
from dst_grpc.rpc.callers_file import read_callers
from dst_grpc.rpc.certificates import CertificateFiles, Certificates
from dst_grpc.rpc.hosts import Hosts
from dst_grpc.rpc.identity import Identity, IdentityRules
from dst_grpc.rpc.parts import StartupError
from dst_grpc.rpc.reloading import NewContent, ReadFile
from dst_grpc.rpc.settings import Settings
from dst_grpc.rpc.tokens import TokenTable

_log = logging.getLogger(__name__)


def identity_of(settings: Settings) -> Identity:
    """What knows callers as *settings* say; it knows no token until their file is read."""
    rules = IdentityRules(
        by_token=settings.auth_token_file is not None,
        by_certificate=settings.tls_client_name,
        open_operate=settings.open_operate,
    )
    return Identity(rules, Hosts(settings.trusted_proxies))


def warn_if_open(settings: Settings) -> None:
    """Log what others than this machine can do to a server with *settings* that its operator may not have meant."""
    if is_local(settings):
        return
    warnings = []
    if not settings.has_tls:
        what = "requests and answers" if settings.auth_token_file is None else "bearer tokens, requests and answers"
        warnings.append(f"{what} travel unencrypted without TLS (tls_certificate)")
    if settings.auth_token_file is None and settings.tls_client_ca is None:
        may = "use and operate it" if settings.open_operate else "use it"
        warnings.append(f"whoever reaches it may {may} without tokens (auth_token_file) or clients' certificates")
    if warnings:
        _log.warning("other machines can reach %s: %s", settings.host, "; ".join(warnings))


def is_local(settings: Settings) -> bool:
    """Whether only this machine can reach a server with *settings*."""
    if settings.unix_socket is not None:
        return True
    try:
        found = socket.getaddrinfo(settings.host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def files_of(
    settings: Settings, identity: Identity, use_grants: Callable[[Grants], None], certificates: Certificates
) -> Sequence[ReadFile]:
    """Readers of the files of *settings* that are read at start and at each reload, for all these. *use_grants* puts
    what callers are granted in use elsewhere."""
    files = []
    if settings.tls_certificate is not None and settings.tls_key is not None:
        paths = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
        files.append(partial(_certificates, paths, certificates))
    if settings.auth_token_file is not None:
        files.append(partial(_tokens, settings.auth_token_file, identity))
    if settings.callers_file is not None:
        files.append(partial(_grants, settings.callers_file, identity, use_grants))
    return files


def _tokens(file: Path, identity: Identity) -> NewContent:
    try:
        tokens = TokenTable.read(file)
    except InvalidRequest as error:
        raise error.under("auth_token_file") from None

    def adopt() -> None:
        identity.tokens = tokens

    return NewContent(adopt=adopt, facts={"tokens": len(tokens)})


def _certificates(paths: tuple[Path, Path, Path | None], certificates: Certificates) -> NewContent:
    files = CertificateFiles.read(*paths)
    warning = f"tls_certificate: {files.warning}" if files.warning else ""
    facts = {"certificate_expires": files.expires_at.isoformat(timespec="seconds")}
    return NewContent(adopt=lambda: certificates.use(files), facts=facts, warning=warning)


def _grants(file: Path, identity: Identity, use_grants: Callable[[Grants], None]) -> NewContent:
    try:
        grants = read_callers(file)
    except InvalidRequest as error:
        raise error.under("callers_file") from None

    def adopt() -> None:
        identity.grants = grants
        use_grants(grants)

    return NewContent(adopt=adopt, facts={"callers": len(grants.by_name)})


def at_start(read: ReadFile) -> NewContent:
    """What *read* gives; raises StartupError with what is wrong with it."""
    try:
        return read()
    except InvalidRequest as error:
        raise StartupError("\n  ".join(["a file cannot be used:", *map(str, error.violations)])) from None
