from __future__ import annotations

import io
import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextvars import copy_context

import pytest

from dst_grpc.domain.callers import Caller
from dst_grpc.domain.timeline import Stage, Timeline
from dst_grpc.failures import failure_of
from dst_grpc.observability.calls import CallInfo, CallOutcome, ItemInfo, enter
from dst_grpc.observability.logs import LOGGER_NAMES, LogCalls, configure_logging, dropped_records


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is logged; afterwards logging is as it was."""
    loggers = [logging.getLogger(name) for name in LOGGER_NAMES]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield io.StringIO()
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
    logging.captureWarnings(False)


def test_text_is_one_line_with_quotes_only_where_needed(stream: io.StringIO) -> None:
    writer = configure_logging(stream=stream)
    logging.getLogger("dst_grpc.x").info("event", extra={"a": "plain", "b": "two words", "c": 1.23456, "d": "x\ny"})
    writer.flush()
    (line,) = stream.getvalue().splitlines()
    assert line.endswith('INFO dst_grpc.x event a=plain b="two words" c=1.235 d="x\\ny"')


def test_json_is_one_object_per_line(stream: io.StringIO) -> None:
    writer = configure_logging(log_format="json", stream=stream)
    logging.getLogger("dst_grpc.x").error("event", exc_info=ValueError("boom"), extra={"n": 1})
    writer.flush()
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert (record["event"], record["level"], record["n"]) == ("event", "ERROR", 1)
    assert "boom" in record["traceback"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_ends_a_line_or_controls_a_terminal_is_escaped(stream: io.StringIO, log_format: str) -> None:
    text = "modèle\x1b[2J\x85\x9b\u2028\u202e\udcff\r\n"
    writer = configure_logging(log_format=log_format, stream=stream)
    logging.getLogger("dst_grpc.x").info("event", extra={"told": text})
    writer.flush()
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    told = json.loads(line)["told"] if log_format == "json" else json.loads(line.partition("told=")[2])
    assert told == text


def test_names_in_any_script_stay_readable(stream: io.StringIO) -> None:
    writer = configure_logging(log_format="json", stream=stream)
    logging.getLogger("dst_grpc.x").info("event", extra={"told": "模型"})
    writer.flush()
    assert "模型" in stream.getvalue()


def test_little_is_written_of_the_name_of_an_unknown_method(stream: io.StringIO) -> None:
    writer = configure_logging(log_format="json", stream=stream)
    LogCalls().on_end(None, CallInfo(method="/" + "x" * 10_000), CallOutcome(code="UNIMPLEMENTED", seconds=0.1))
    writer.flush()
    assert json.loads(stream.getvalue())["method"] == "/" + "x" * 255


def test_the_level_holds_back_what_is_below(stream: io.StringIO) -> None:
    writer = configure_logging(level="WARNING", stream=stream)
    logging.getLogger("dst_grpc.x").info("quiet")
    writer.flush()
    assert stream.getvalue() == ""


def test_a_call_is_one_line(stream: io.StringIO) -> None:
    writer = configure_logging(stream=stream)
    call = CallInfo(method="/a.B/C", peer="ipv4:127.0.0.1:1", received_bytes=3, sent_bytes=4)
    outcome = CallOutcome(code="INTERNAL", seconds=0.25, reason="INTERNAL", error_id="e1")
    LogCalls().on_end(None, call, outcome)
    writer.flush()
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(
        "call method=/a.B/C code=INTERNAL millis=250.000 received_bytes=3 sent_bytes=4 peer=ipv4:127.0.0.1:1"
        " reason=INTERNAL error_id=e1"
    )


def test_warnings_and_records_of_asyncio_are_written_too(stream: io.StringIO) -> None:
    writer = configure_logging(stream=stream)
    logging.getLogger("asyncio").error("never retrieved")
    with warnings.catch_warnings(action="always"):
        logging.captureWarnings(True)
        warnings.warn("beware", stacklevel=1)
    writer.flush()
    assert "ERROR asyncio never retrieved" in stream.getvalue()
    assert "beware" in stream.getvalue()


def test_what_is_dropped_is_counted_and_told(stream: io.StringIO) -> None:
    is_read = threading.Event()

    class Unread(io.StringIO):
        def write(self, text: str) -> int:
            is_read.wait()
            return stream.write(text)

    writer = configure_logging(stream=Unread())
    for _ in range(6):
        logging.getLogger("dst_grpc.x").warning("x" * (1 << 20))
    dropped = dropped_records()
    assert 0 < dropped < 6
    is_read.set()
    writer.flush()
    logging.getLogger("dst_grpc.x").info("later")
    writer.flush()
    missing, later = stream.getvalue().splitlines()[-2:]
    assert missing.endswith(f"the log was not read: records are missing dropped={dropped}")
    assert later.endswith("later")


def test_a_line_tells_whose_call_it_was_and_where_its_time_went(stream: io.StringIO) -> None:
    writer = configure_logging(log_format="json", stream=stream)
    call = CallInfo(
        method="/a.B/C",
        metadata=(("x-forwarded-for", "10.0.0.1, 10.0.0.2"),),
        request_id="r1",
        caller=Caller(name="alice"),
    )
    call.timeline.model, call.timeline.contexts = "tiny", ["tiny/mlp", "tiny/resid"]
    for stage, started, ended in ((Stage.QUEUE, 0, 0.25), (Stage.PASS, 1, 2), (Stage.DERIVE, 2, 2.5)):
        call.timeline.note(stage, started, ended)
    LogCalls().on_end(None, call, CallOutcome(code="OK", seconds=3.0))
    writer.flush()
    line = json.loads(stream.getvalue())
    told = {"queued_millis": 250, "run_millis": 1500, "millis": 3000, "contexts": "tiny/mlp,tiny/resid"}
    told |= {"caller": "alice", "request_id": "r1", "model": "tiny", "forwarded_for": "10.0.0.1, 10.0.0.2"}
    assert line.items() >= told.items()


def test_an_item_has_a_line_only_if_it_failed(stream: io.StringIO) -> None:
    writer = configure_logging(log_format="json", stream=stream)
    call, timeline = CallInfo(method="/a.B/C", request_id="r1"), Timeline()
    timeline.model = "tiny"
    for index, code in enumerate(("OK", "NOT_FOUND", "OK")):
        item = ItemInfo(index=index, request_id=f"i{index}", timeline=timeline, received_bytes=3, sent_bytes=4)
        LogCalls().on_item(call, item, CallOutcome(code=code, seconds=0.5, reason="MODEL_NOT_FOUND"))
    writer.flush()
    line = json.loads(stream.getvalue())
    told = {"event": "item", "item": 1, "item_id": "i1", "code": "NOT_FOUND", "reason": "MODEL_NOT_FOUND"}
    told |= {"request_id": "r1", "model": "tiny", "millis": 500, "received_bytes": 3, "sent_bytes": 4}
    assert line.items() >= told.items()


@pytest.mark.parametrize(("level", "n_lines"), [("INFO", 1), ("DEBUG", 2)])
def test_probes_are_quiet_unless_they_fail(stream: io.StringIO, level: str, n_lines: int) -> None:
    writer = configure_logging(level=level, stream=stream)
    for code in ("OK", "NOT_FOUND"):
        LogCalls().on_end(None, CallInfo(method="/grpc.health.v1.Health/Check"), CallOutcome(code=code, seconds=0.1))
    writer.flush()
    lines = stream.getvalue().splitlines()
    assert len(lines) == n_lines
    assert "NOT_FOUND" in lines[-1]


def logged_in_a_call(log: Callable[[], object], *, is_over: bool = False) -> None:
    """Log something in a task that works for a call."""

    def work() -> None:
        enter(CallInfo(method="/a.B/C", request_id="r1", timeline=Timeline("t1"), is_over=is_over))
        log()

    copy_context().run(work)


@pytest.mark.parametrize("is_over", [False, True])
def test_a_record_names_the_call_that_it_was_made_in_while_that_lasts(stream: io.StringIO, is_over: bool) -> None:
    writer = configure_logging(log_format="json", stream=stream)
    logged_in_a_call(lambda: logging.getLogger("dst_grpc.x").info("event"), is_over=is_over)
    writer.flush()
    line = json.loads(stream.getvalue())
    assert (line.get("request_id"), line.get("trace_id")) == ((None, None) if is_over else ("r1", "t1"))


ASKED = "a prompt"


def raised(error: BaseException) -> BaseException:
    """*error*, as if it were raised because of what a caller asked."""
    try:
        try:
            raise KeyError(ASKED)  # noqa: TRY301  it is caught here because that is what is logged
        except KeyError as cause:
            raise error from cause
    except BaseException as caught:  # noqa: BLE001
        return caught


class Panic(BaseException):
    """As libraries in other languages raise it."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("shapes [2] and [3]"), True),
        (OSError("no such file"), True),
        (ValueError(f"invalid: {ASKED}"), False),
        (Panic(f"byte 3 of {ASKED}"), False),
        (failure_of(Panic(f"byte 3 of {ASKED}")), False),
        (ExceptionGroup("two", [ValueError(ASKED), KeyError(ASKED)]), False),
    ],
)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_errors_within_a_call_quote_nothing_that_was_asked(
    stream: io.StringIO, error: BaseException, told: bool, log_format: str
) -> None:
    writer = configure_logging(log_format=log_format, stream=stream)
    chained = error if error.__cause__ is not None else raised(error)
    logged_in_a_call(lambda: logging.getLogger("dst_grpc.x").error("internal error", exc_info=chained))
    writer.flush()
    written = stream.getvalue()
    assert ASKED not in written
    assert type(error).__name__ in written
    assert (str(error) in written) is told
    assert error.__cause__ is None or "KeyError" in written or type(error.__cause__).__name__ in written


def test_errors_outside_calls_are_told_whole(stream: io.StringIO) -> None:
    writer = configure_logging(stream=stream)
    logging.getLogger("dst_grpc.x").error("internal error", exc_info=raised(ValueError("what it was")))
    writer.flush()
    written = stream.getvalue()
    assert written.index(f"KeyError: '{ASKED}'") < written.index("ValueError: what it was")
    assert "in raised" in written
