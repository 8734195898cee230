"""How a client connects: targets, tokens, TLS; and that it holds nothing open afterwards."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from dst_grpc.client import AsyncClient, Client, Tls
from dst_grpc.client._channel import Connection
from dst_grpc.errors import InvalidRequest, Unavailable
from tests.fake_service import FakeService, fake_server


def test_a_token_and_metadata_travel_with_every_call(service: FakeService) -> None:
    with Client(service.target, token="s3cret", metadata={"Traceparent": "00-1"}) as client:
        client.models()
        assert service.metadata["authorization"] == "Bearer s3cret"
        assert service.metadata["traceparent"] == "00-1"
        client.derive("a", "logits")
        assert service.metadata["authorization"] == "Bearer s3cret"
        assert "dst-grpc-python/" in service.metadata["user-agent"]


def test_a_token_is_not_shown() -> None:
    assert "s3cret" not in repr(Connection(token="s3cret"))
    with pytest.raises(InvalidRequest) as raised:
        AsyncClient(token="s3cret with spaces")
    assert "s3cret" not in raised.value.message


def test_a_target_that_is_no_text_is_told() -> None:
    with pytest.raises(TypeError, match="target must be a text, not 50051"):
        Client(cast("Any", 50051))


@pytest.mark.parametrize("target", ["", "http://127.0.0.1:50051", "https://x"])
def test_what_is_no_target_is_refused(target: str) -> None:
    with pytest.raises(InvalidRequest, match="HOST:PORT"):
        Client(target)


def test_a_server_is_trusted_by_its_authority(pki: Path) -> None:
    pair = [((pki / "key.pem").read_bytes(), (pki / "cert.pem").read_bytes())]
    tls = Tls(root_certificates=pki / "cert.pem", server_name="localhost")
    with fake_server(grpc.ssl_server_credentials(pair)) as service:
        with Client(service.target, tls=tls) as client:
            assert len(client.models()) == 3
        with Client(service.target, tls=True) as client, pytest.raises(Unavailable):
            client.models()


def test_both_sides_may_show_certificates(pki: Path) -> None:
    certificate, key = (pki / "cert.pem").read_bytes(), (pki / "key.pem").read_bytes()
    credentials = grpc.ssl_server_credentials([(key, certificate)], certificate, require_client_auth=True)
    known = Tls(
        root_certificates=pki / "cert.pem",
        certificate=pki / "cert.pem",
        private_key=pki / "key.pem",
        server_name="localhost",
    )
    unknown = Tls(root_certificates=pki / "cert.pem", server_name="localhost")
    with fake_server(credentials) as service:
        with Client(service.target, tls=known) as client:
            assert len(client.models()) == 3
        with Client(service.target, tls=unknown) as client, pytest.raises(Unavailable):
            client.models()


def test_files_may_be_named_by_text(pki: Path) -> None:
    text = Tls(root_certificates=str(pki / "cert.pem"), server_name="localhost")
    with (
        fake_server(
            grpc.ssl_server_credentials([((pki / "key.pem").read_bytes(), (pki / "cert.pem").read_bytes())])
        ) as service,
        Client(service.target, tls=text) as client,
    ):
        assert len(client.models()) == 3
    with pytest.raises(InvalidRequest, match=r"tls\.root_certificates: there is no file"):
        Tls(root_certificates=str(pki / "absent.pem"))


def test_half_a_certificate_is_refused(pki: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"tls\.private_key"):
        Tls(certificate=pki / "cert.pem")
    with pytest.raises(InvalidRequest, match=r"tls\.certificate"):
        Tls(private_key=pki / "key.pem")
    with pytest.raises(InvalidRequest, match=r"tls\.root_certificates: there is no file"):
        Tls(root_certificates=pki / "absent.pem")


def test_a_closed_client_leaves_no_thread(service: FakeService) -> None:
    before = set(threading.enumerate())
    with Client(service.target) as client:
        client.models()
        assert set(threading.enumerate()) - before
    ours = [thread for thread in set(threading.enumerate()) - before if "dst-grpc" in thread.name]
    assert ours == []


def test_several_clients_of_several_threads_do_not_disturb_one_another(service: FakeService) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with Client(service.target) as client:
                for _ in range(5):
                    assert client.derive("a b", "mlp_post_act")["mlp_post_act"][0].shape == (2, 5)
        except BaseException as error:  # noqa: BLE001  reported by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


async def test_a_sync_client_works_inside_a_running_loop(service: FakeService) -> None:
    """As in a notebook."""
    with Client(service.target) as client:
        assert client.derive("a b", "logits").tokens == ("a", " b")
