"""The server's certificates: read and checked as a whole, and replaced while it serves.

gRPC asks for them at each handshake: a new connection has the new ones at once, an open one keeps what it began with.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import grpc

from dst_grpc.errors import InvalidRequest, Violations

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_BEGINNING = b"-----BEGIN CERTIFICATE-----"
_KEY = re.compile(rb"-----BEGIN ([A-Z]+ |)PRIVATE KEY-----.+?-----END \1PRIVATE KEY-----", re.DOTALL)
_OTHERS_KEY = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
"""OpenSSL's names for a key that is not the certificate's."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """The contents of the files, in PEM."""

    tls_certificate: bytes
    """The server's own certificate, and those that link it to an authority."""
    tls_key: bytes
    """The key to it."""
    tls_client_ca: bytes | None = None
    """The authorities of clients' certificates; None = clients need none."""
    context: ssl.SSLContext | None = field(default=None, compare=False, repr=False)
    """The server's side of TLS with the certificate and the key, which asks for no client's certificate. `read` makes
    it, so that whoever uses it need not read the files again."""

    @classmethod
    def read(cls, certificate: Path, key: Path, client_ca: Path | None = None, *, prefix: str = "") -> Self:
        """The contents of three files, checked; the settings that name them begin with *prefix*.

        Raises:
            InvalidRequest: They cannot be used; lists everything, by setting.
        """
        files = cls._as_they_are(certificate, key, client_ca, prefix)
        problems = Violations()
        for name, pem in (("tls_certificate", files.tls_certificate), ("tls_client_ca", files.tls_client_ca)):
            if pem is not None and (problem := _problem_of_certificates(pem)):
                problems.add(prefix + name, problem)
        own_name, key_name = f"{prefix}tls_certificate", f"{prefix}tls_key"
        if _KEY.search(files.tls_key) is None:
            problems.add(key_name, "holds no private key in PEM")
        elif b"ENCRYPTED" in files.tls_key:
            problems.add(key_name, "is encrypted; the server needs a key without a password")
        problems.raise_if_any()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(certificate, key)
        except ssl.SSLError as error:
            what = f"is not the key of {own_name}" if error.reason in _OTHERS_KEY else f"cannot be used: {error}"
            raise InvalidRequest.of(key_name, what) from None
        # OpenSSL has read the files itself.
        if cls._as_they_are(certificate, key, client_ca, prefix) != files:
            raise InvalidRequest.of(own_name, "is being written, or a file beside it is")
        return replace(files, context=context)

    @classmethod
    def _as_they_are(cls, certificate: Path, key: Path, client_ca: Path | None, prefix: str) -> Self:
        problems = Violations()
        contents: dict[str, Any] = {}
        for name, file in (("tls_certificate", certificate), ("tls_key", key), ("tls_client_ca", client_ca)):
            if file is None:
                continue
            try:
                contents[name] = file.read_bytes()
            except OSError as error:
                problems.add(prefix + name, f"cannot be read: {error.strerror}")
        problems.raise_if_any()
        return cls(**contents)

    @property
    def expires_at(self) -> datetime:
        """When the server's own certificate expires, or one that links it to an authority, whichever is first."""
        return min(map(_expiry_of, _ders(self.tls_certificate)))

    @property
    def warning(self) -> str:
        """What is wrong with them, though they can be used; empty if nothing is."""
        if self.expires_at >= datetime.now(UTC):
            return ""
        return f"has expired, at {self.expires_at.isoformat(timespec='seconds')}: clients will not trust it"

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What gRPC makes of them."""
        return grpc.ssl_server_certificate_configuration(
            [(self.tls_key, self.tls_certificate)], root_certificates=self.tls_client_ca
        )


class Certificates:
    """The certificates in use, if any."""

    def __init__(self) -> None:
        """Begin without any: no TLS."""
        self._files: CertificateFiles | None = None
        self._given: CertificateFiles | None = None

    @property
    def expires_at(self) -> datetime | None:
        """When the server's expire; None without TLS."""
        return None if self._files is None else self._files.expires_at

    def use(self, files: CertificateFiles) -> None:
        """Use *files* for every connection from now on."""
        self._files = files

    def credentials(self) -> grpc.ServerCredentials | None:
        """What a server listens with, now and after each `use`; None without TLS. For one server."""
        files = self._given = self._files
        if files is None:
            return None
        return grpc.dynamic_ssl_server_credentials(
            files.configuration(),
            self._if_changed,  # type: ignore[arg-type]  # the stubs do not know of None
            require_client_authentication=files.tls_client_ca is not None,
        )

    def _if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at each handshake, on a thread of its own: what to use from now on; None = as before."""
        files = self._files
        if files is None or files is self._given:
            return None
        self._given = files
        return files.configuration()


def _problem_of_certificates(pem: bytes) -> str:
    """What is wrong with a file of certificates; empty if nothing is."""
    try:
        ders = list(_ders(pem))
        # What reads the file later would do without it, or say that the key is wrong.
        if len(ders) < pem.count(_BEGINNING):
            return "holds a certificate that is cut short"
        if not ders:
            return "holds no certificate in PEM"
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=b"".join(ders))
    except (ValueError, ssl.SSLError) as error:
        return f"holds a certificate that cannot be read: {error}"
    return ""


def _ders(pem: bytes) -> Iterator[bytes]:
    """The certificates in *pem*, in DER; raises ValueError for one that is no base64."""
    for found in _CERTIFICATE.findall(pem):
        yield ssl.PEM_cert_to_DER_cert(found.decode("ascii"))


def _expiry_of(der: bytes) -> datetime:
    """The end of a certificate's validity (RFC 5280, section 4.1)."""
    ((_, certificate),) = _elements(der)
    signed = list(_elements(next(_elements(certificate))[1]))
    # After an optional version: serial number, algorithm, issuer, validity.
    has_version = signed[0][0] == 0xA0
    _, (tag, time) = _elements(signed[3 + has_version][1])
    text = time.decode("ascii")
    if tag == 0x17:  # UTCTime, of two digits of the year
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The tags and contents of the elements that *der* is made of (X.690)."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(der[at : at + count], "big")
            at += count
        yield tag, der[at : at + length]
        at += length
