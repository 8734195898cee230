from __future__ import annotations

import logging

import pytest

from dst_grpc.observability.standard_error import log_line, split_lines


@pytest.mark.parametrize(("letter", "level"), [("I", "INFO"), ("W", "WARNING"), ("E", "ERROR"), ("F", "CRITICAL")])
def test_a_line_of_grpcs_core_is_told_by_its_parts(letter: str, level: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "grpc.core"):
        log_line(f"{letter}0000 00:00:1764446467.923456   12345 ssl_transport_security.cc:1884] Handshake failed: 5]")
    (record,) = caplog.records
    assert (record.levelname, record.name, record.message) == (level, "grpc.core", "Handshake failed: 5]")
    assert record.__dict__["source"] == "ssl_transport_security.cc:1884"


def test_any_other_line_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    for line in ("", "  ", "Killed 100% of it"):
        log_line(line)
    (record,) = caplog.records
    assert (record.levelname, record.name, record.message) == ("WARNING", "dst_grpc.stderr", "Killed 100% of it")


def test_lines_are_split_at_their_ends_and_one_without_an_end_into_pieces() -> None:
    assert split_lines(b"a\n\xff\nb") == (["a", "\\xff"], b"b")
    assert split_lines(b"") == ([], b"")
    assert split_lines(b"x" * 2**20) == ([], b"x" * 2**20)
    assert split_lines(b"x" * (2**20 + 1)) == (["x" * (2**20 + 1)], b"")
