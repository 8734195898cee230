"""Who may read a server's metrics, and over what: the files that say so, and what was read of them."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from dst_grpc.errors import InvalidRequest
from dst_grpc.rpc.certificates import CertificateFiles
from dst_grpc.rpc.reloading import NewContent, ReadFile
from dst_grpc.rpc.settings import Settings
from dst_grpc.rpc.tokens import TokenTable, bearer_of, digest_of


class MetricsAccess:
    """Who may read the metrics, and over what."""

    def __init__(self, settings: Settings) -> None:
        """As *settings* say, once their files are read."""
        self._tokens: TokenTable | None = None
        self.tls: ssl.SSLContext | None = None
        """The server's side of TLS, of the files that were adopted last; None = plain HTTP."""
        self.files: list[ReadFile] = []
        """What is read at the start, and at each reload."""
        if settings.metrics_token_file is not None:
            self._tokens = TokenTable(())
            self.files.append(partial(self._read_tokens, settings.metrics_token_file))
        if settings.metrics_tls_certificate is not None and settings.metrics_tls_key is not None:
            pair = settings.metrics_tls_certificate, settings.metrics_tls_key
            self.files.append(partial(self._read_certificate, *pair))

    def is_allowed(self, authorization: str) -> bool:
        """Whether who sends this header may read. On any thread."""
        tokens = self._tokens
        if tokens is None:
            return True
        token = tokens.find(digest_of(bearer_of(authorization)))
        return token is not None and token.is_valid(datetime.now(UTC))

    def _read_tokens(self, file: Path) -> NewContent:
        try:
            tokens = TokenTable.read(file)
        except InvalidRequest as error:
            raise error.under("metrics_token_file") from None

        def adopt() -> None:
            self._tokens = tokens

        return NewContent(adopt=adopt, facts={"metrics_tokens": len(tokens)})

    def _read_certificate(self, certificate: Path, key: Path) -> NewContent:
        files = CertificateFiles.read(certificate, key, prefix="metrics_")
        warning = f"metrics_tls_certificate: {files.warning}" if files.warning else ""

        def adopt() -> None:
            self.tls = files.context

        return NewContent(adopt=adopt, warning=warning)
