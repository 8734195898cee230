"""The metrics' files: what was checked is what is put in use."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

from dst_grpc.rpc.metrics_access import MetricsAccess
from dst_grpc.rpc.settings import Settings


def shakes_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> bool:
    """Whether *client* believes the certificate that *server* shows, without a network."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [asking, answering]
    while waiting:
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)
        except ssl.SSLCertVerificationError:
            return False
    return True


def test_files_that_change_after_they_were_checked_do_not_matter(tmp_path: Path) -> None:
    """Adopting cannot fail: the registry that was reloaded with them is in use already."""
    old, new = trustme.CA(), trustme.CA()
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"

    def write(authority: trustme.CA) -> None:
        issued = authority.issue_cert("localhost")
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)

    write(old)
    access = MetricsAccess(Settings(metrics_port=0, metrics_tls_certificate=certificate, metrics_tls_key=key))
    (read,) = access.files
    read().adopt()
    write(new)
    content = read()
    certificate.write_bytes(b"half a certif")
    content.adopt()
    assert access.tls is not None
    for authority, is_believed in ((old, False), (new, True)):
        client = ssl.create_default_context()
        client.load_verify_locations(cadata=authority.cert_pem.bytes().decode())
        assert shakes_hands(access.tls, client) is is_believed
