"""Files of certificates: what is wrong with them is told by setting, and when they expire."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from dst_grpc.errors import InvalidRequest
from dst_grpc.rpc.certificates import CertificateFiles


@pytest.fixture(name="ca")
def _ca() -> trustme.CA:
    return trustme.CA()


def write(folder: Path, ca: trustme.CA, expires: datetime | None = None) -> tuple[Path, Path, Path]:
    """A server's certificate, its key, and the authority."""
    issued = ca.issue_cert("localhost", not_after=expires or datetime(2100, 1, 1, tzinfo=UTC))
    paths = folder / "certificate.pem", folder / "key.pem", folder / "ca.pem"
    for path, blob in zip(paths, (issued.cert_chain_pems[0], issued.private_key_pem, ca.cert_pem), strict=True):
        blob.write_to_path(str(path))
    return paths


@pytest.mark.parametrize("year", [1999, 2049, 2050, 2100])  # two digits of the year before 2050, four after (RFC 5280)
def test_they_expire_when_they_say(year: int, ca: trustme.CA, tmp_path: Path) -> None:
    expires = datetime(year, 2, 3, 4, 5, 6, tzinfo=UTC)
    if year < 2000:
        issued = ca.issue_cert("localhost", not_before=expires - timedelta(days=1), not_after=expires)
        (tmp_path / "old.pem").write_bytes(issued.cert_chain_pems[0].bytes())
        files = CertificateFiles(issued.cert_chain_pems[0].bytes(), b"")
    else:
        files = CertificateFiles.read(*write(tmp_path, ca, expires))
    assert files.expires_at == expires


def test_of_a_chain_the_first_to_expire_counts(tmp_path: Path, ca: trustme.CA) -> None:
    certificate, key, _ = write(tmp_path, ca)
    soon = datetime(2099, 1, 1, tzinfo=UTC)
    other = ca.issue_cert("a", not_after=soon).cert_chain_pems[0].bytes()
    certificate.write_bytes(certificate.read_bytes() + b"# an intermediate one\n" + other)
    assert CertificateFiles.read(certificate, key).expires_at == soon


def cut(pem: bytes) -> bytes:
    """*pem* as one finds it while it is written."""
    return pem[: len(pem) // 2]


def and_half_of_it(pem: bytes) -> bytes:
    """A chain or bundle of which the last part is not written yet."""
    return pem + cut(pem)


def garbled(pem: bytes) -> bytes:
    """*pem* with bytes that are no certificate."""
    lines = pem.split(b"\n")
    return b"\n".join([lines[0], b"AAAA" * 16, *lines[2:]])


@pytest.mark.parametrize(
    ("number", "content", "problem"),
    [
        (0, lambda _: b"", "tls_certificate: holds no certificate in PEM"),
        (0, cut, "tls_certificate: holds a certificate that is cut short"),
        (0, and_half_of_it, "tls_certificate: holds a certificate that is cut short"),
        (0, garbled, "tls_certificate: holds a certificate that cannot be read"),
        (1, lambda _: b"hello", "tls_key: holds no private key in PEM"),
        (1, cut, "tls_key: holds no private key in PEM"),
        (1, garbled, "tls_key: cannot be used"),
        (2, cut, "tls_client_ca: holds a certificate that is cut short"),
        (2, and_half_of_it, "tls_client_ca: holds a certificate that is cut short"),
        (2, garbled, "tls_client_ca: holds a certificate that cannot be read"),
    ],
)
def test_what_a_file_does_not_hold_is_told(
    number: int, content: object, problem: str, ca: trustme.CA, tmp_path: Path
) -> None:
    paths = write(tmp_path, ca)
    assert callable(content)
    paths[number].write_bytes(content(paths[number].read_bytes()))
    with pytest.raises(InvalidRequest) as caught:
        CertificateFiles.read(*paths)
    (violation,) = caught.value.violations
    assert f"{violation.field}: {violation.description}".startswith(problem)


def test_a_key_of_another_certificate_is_told(ca: trustme.CA, tmp_path: Path) -> None:
    certificate, key, _ = write(tmp_path, ca)
    for other in (
        ca.issue_cert("localhost").private_key_pem,
        ca.issue_cert("localhost", key_type=trustme.KeyType.RSA).private_key_pem,
    ):
        other.write_to_path(str(key))
        with pytest.raises(InvalidRequest, match="is not the key of tls_certificate"):
            CertificateFiles.read(certificate, key)
    with pytest.raises(InvalidRequest, match="metrics_tls_key: is not the key of metrics_tls_certificate"):
        CertificateFiles.read(certificate, key, prefix="metrics_")


def test_a_key_with_a_password_is_told_and_nobody_is_asked_for_it(ca: trustme.CA, tmp_path: Path) -> None:
    certificate, key, _ = write(tmp_path, ca)
    sealed = tmp_path / "sealed.pem"
    command = ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:x", "-out", str(sealed)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(InvalidRequest, match="is encrypted"):
        CertificateFiles.read(certificate, sealed)


def test_files_that_cannot_be_read_are_all_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        CertificateFiles.read(tmp_path / "a", tmp_path, tmp_path / "c")
    assert [(one.field, one.description) for one in caught.value.violations] == [
        ("tls_certificate", "cannot be read: No such file or directory"),
        ("tls_key", "cannot be read: Is a directory"),
        ("tls_client_ca", "cannot be read: No such file or directory"),
    ]
