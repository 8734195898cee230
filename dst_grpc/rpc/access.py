"""Who may call, from the settings and the files that the operator keeps beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from dst_grpc.errors import InvalidRequest
from dst_grpc.rpc.callers_file import read_callers
from dst_grpc.rpc.certificates import CertificateFiles, Certificates
from dst_grpc.rpc.hosts import Hosts
from dst_grpc.rpc.identity import Identity, IdentityRules
from dst_grpc.rpc.parts import StartupError
from dst_grpc.rpc.ports import PipelinePort
from dst_grpc.rpc.reloading import NewContent, ReadFile
from dst_grpc.rpc.settings import Settings
from dst_grpc.rpc.tokens import TokenTable

_log = logging.getLogger(__name__)


def identity_of(settings: Settings) -> Identity:
    """What knows callers as *settings* say; it knows no token until their file is read."""
    by_token = settings.auth_token_file is not None
    if by_token and not settings.has_tls:
        _log.warning("bearer tokens travel unencrypted without TLS")
    rules = IdentityRules(
        by_token=by_token, by_certificate=settings.tls_client_name, open_operate=settings.open_operate
    )
    return Identity(rules, Hosts(settings.trusted_proxies))


def files_of(
    settings: Settings, identity: Identity, pipeline: PipelinePort, certificates: Certificates
) -> Sequence[ReadFile]:
    """Readers of the files of *settings* that are read at start and at each reload, for all these."""
    files = []
    if settings.tls_certificate is not None and settings.tls_key is not None:
        paths = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
        files.append(partial(_certificates, paths, certificates))
    if settings.auth_token_file is not None:
        files.append(partial(_tokens, settings.auth_token_file, identity))
    if settings.callers_file is not None:
        files.append(partial(_grants, settings.callers_file, identity, pipeline))
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
    expires_at = files.expires_at.isoformat(timespec="seconds")

    def adopt() -> None:
        certificates.use(files)
        if files.expires_at < datetime.now(UTC):
            _log.warning("the certificate has expired, at %s: clients will not trust it", expires_at)

    return NewContent(adopt=adopt, facts={"certificate_expires": expires_at})


def _grants(file: Path, identity: Identity, pipeline: PipelinePort) -> NewContent:
    try:
        grants = read_callers(file)
    except InvalidRequest as error:
        raise error.under("callers_file") from None

    def adopt() -> None:
        identity.grants = grants
        pipeline.use_grants(grants)

    return NewContent(adopt=adopt, facts={"callers": len(grants.by_name)})


def at_start(read: ReadFile) -> NewContent:
    """What *read* gives; raises StartupError with what is wrong with it."""
    try:
        return read()
    except InvalidRequest as error:
        raise StartupError("\n  ".join(["a file cannot be used:", *map(str, error.violations)])) from None
