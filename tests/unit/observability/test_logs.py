from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from dst_grpc.observability.calls import CallInfo, CallOutcome
from dst_grpc.observability.logs import LOGGER_NAME, LogCalls, configure_logging


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is logged; afterwards logging is as it was."""
    loggers = [logging.getLogger(name) for name in (LOGGER_NAME, "grpc")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield io.StringIO()
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_text_is_one_line_with_quotes_only_where_needed(stream: io.StringIO) -> None:
    configure_logging(stream=stream)
    logging.getLogger("dst_grpc.x").info("event", extra={"a": "plain", "b": "two words", "c": 1.23456, "d": "x\ny"})
    (line,) = stream.getvalue().splitlines()
    assert line.endswith('INFO dst_grpc.x event a=plain b="two words" c=1.235 d="x\\ny"')


def test_json_is_one_object_per_line(stream: io.StringIO) -> None:
    configure_logging(log_format="json", stream=stream)
    logging.getLogger("dst_grpc.x").error("event", exc_info=ValueError("boom"), extra={"n": 1})
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert (record["event"], record["level"], record["n"]) == ("event", "ERROR", 1)
    assert "boom" in record["traceback"]


def test_the_level_holds_back_what_is_below(stream: io.StringIO) -> None:
    configure_logging(level="WARNING", stream=stream)
    logging.getLogger("dst_grpc.x").info("quiet")
    assert stream.getvalue() == ""


def test_a_call_is_one_line(stream: io.StringIO) -> None:
    configure_logging(stream=stream)
    call = CallInfo(method="/a.B/C", peer="ipv4:127.0.0.1:1", received_bytes=3, sent_bytes=4)
    outcome = CallOutcome(code="INTERNAL", seconds=0.25, reason="INTERNAL", error_id="e1")
    LogCalls().on_end(None, call, outcome)
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(
        "call method=/a.B/C code=INTERNAL millis=250.000 received_bytes=3 sent_bytes=4 peer=ipv4:127.0.0.1:1"
        " reason=INTERNAL error_id=e1"
    )
