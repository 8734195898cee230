"""Structured logs: an event's name and its fields, as `key=value` or as JSON, one line each.

Modules log with the standard library: `_log.info("context loaded", extra={"context": handle})`. This module formats
such records, and has the observer that writes one line per call. A thread writes the lines (`log_writer.py`). Nothing
is configured on import.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO

from dst_grpc.domain.requests import MAX_REQUEST_ID_CHARACTERS
from dst_grpc.domain.timeline import Stage, Timeline
from dst_grpc.errors import DataLoss, Exhausted, Unavailable
from dst_grpc.failures import links
from dst_grpc.observability.calls import HEALTH_PREFIX, CallInfo, CallOutcome, ItemInfo, current_call
from dst_grpc.observability.log_writer import LogWriter

LOGGER_NAME = "dst_grpc"
CORE_LOGGER_NAME = "grpc.core"
"""For what gRPC's core says, which is not written in Python."""
LOGGER_NAMES = (LOGGER_NAME, CORE_LOGGER_NAME, "grpc", "asyncio", "opentelemetry", "py.warnings")
"""Whose records are written."""
_QUOTE_NOBODY = (OSError, MemoryError, RuntimeError, ImportError, DataLoss, Exhausted, Unavailable)
"""Errors whose texts are of files, devices, sizes. Others, as KeyError, ValueError and those of libraries, may be about
what was asked, and no text of a request belongs into a log."""
_log = logging.getLogger(__name__)
_BLANK = vars(logging.makeLogRecord({}))
_OWN_ATTRIBUTES = frozenset(_BLANK) | {"message", "asctime", "taskName"}
_OF_A_CALL: dict[str, Any] = _BLANK | {"name": __name__, "levelno": logging.INFO, "levelname": "INFO", "msg": "call"}
_OF_A_PROBE = _OF_A_CALL | {"levelno": logging.DEBUG, "levelname": "DEBUG"}
_OF_AN_ITEM = _OF_A_CALL | {"msg": "item"}
_MOST_CHARACTERS = 256
"""That are written of what callers and proxies say: where they come from, and the names of unknown methods."""
_FORWARDED_KEY = "x-forwarded-for"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """The fields that were passed as `extra`, and those of the call that the record was made in."""
    fields = {key: value for key, value in vars(record).items() if key not in _OWN_ATTRIBUTES}
    call = None if "request_id" in fields else current_call()
    if call is not None:
        fields |= {"request_id": call.request_id}
        fields |= {"trace_id": call.timeline.trace_id} if call.timeline.trace_id else {}
    return fields


def _timestamp(record: logging.LogRecord) -> str:
    second, micros = divmod(round(record.created * 1_000_000), 1_000_000)
    return f"{_second(second)}.{micros // 1000:03}+00:00"


@lru_cache(1)
def _second(second: int) -> str:
    """The second since 1970 as a date and a time; many lines are of the same."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _plain(value: object) -> str:
    """A value as written after `key=`; quoted only where its end would not be clear."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value) if isinstance(value, int) else _quoted(str(value))


@lru_cache(1024)
def _quoted(text: str) -> str:
    """*text* as `_plain` writes it; methods and callers are the same again and again."""
    is_clear = text and text.isprintable() and " " not in text and '"' not in text and "=" not in text
    return text if is_clear else _json(text)


def _json(value: object) -> str:
    """*value* in JSON, on one line for whoever reads it: Unicode has further ends of lines, and what controls
    terminals and the direction of writing. Names in any script stay as they are."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value, default=str)


def _traceback(record: logging.LogRecord) -> str:
    """Where an exception came from and what it says, after those that led to it."""
    error = record.exc_info[1] if record.exc_info else None
    may_quote = record.name == "asyncio" or current_call() is not None
    return "" if error is None else "\n".join(_lines(error, may_quote=may_quote))


def _lines(error: BaseException, *, may_quote: bool) -> Iterator[str]:
    for link in reversed(list(links(error))):
        for each in link.exceptions if isinstance(link, BaseExceptionGroup) else ():
            yield from _lines(each, may_quote=may_quote)
        yield from (frame.rstrip("\n") for frame in traceback.format_tb(link.__traceback__))
        yield _text(link, may_quote=may_quote)


def _text(error: BaseException, *, may_quote: bool) -> str:
    """What an exception says; only of what kind it is, if it may quote what a caller asked."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    # The panic of a library is the cause of an error of ours, which repeats it.
    is_panic = error.__cause__ is not None and not isinstance(error.__cause__, Exception)
    if may_quote and (is_panic or not isinstance(error, _QUOTE_NOBODY)):
        return f"{name} (its text may quote a request, and is left out)"
    return f"{name}: {error}"


class KeyValueFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000+00:00 INFO dst_grpc.rpc.server listening address=127.0.0.1:50051`."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line; a traceback follows on lines of its own."""
        parts = [_timestamp(record), record.levelname, record.name, record.getMessage()]
        parts += [f"{key}={_plain(value)}" for key, value in _fields(record).items()]
        line = " ".join(parts)
        return f"{line}\n{_traceback(record)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line, with the event's fields beside `time`, `level`, `logger` and `event`."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line."""
        line: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = _traceback(record)
        return _json(line)


def configure_logging(*, log_format: str = "text", level: str = "INFO", stream: TextIO | None = None) -> LogWriter:
    """Write this package's records to *stream* (standard error), as `text` or `json`, from *level* on.

    gRPC's own records, asyncio's and Python's warnings are written the same way. Returns what writes them.
    """
    # No line tells these, and finding them out takes a while.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    writer = LogWriter(stream or sys.stderr)
    writer.setFormatter(JsonFormatter() if log_format == "json" else KeyValueFormatter())
    logging.captureWarnings(True)
    for name in LOGGER_NAMES:
        logger = logging.getLogger(name)
        logger.handlers[:] = [writer]
        logger.setLevel(level if name in {LOGGER_NAME, CORE_LOGGER_NAME} else logging.WARNING)
        logger.propagate = False
    return writer


def start_error(problem: str, log_format: str) -> str:
    """The line that says why a program does not start, in the format of the log that it would have written."""
    if log_format != "json":
        return f"error: {problem}"
    values = {"name": LOGGER_NAME, "levelno": logging.ERROR, "levelname": "ERROR", "msg": "cannot start"}
    return JsonFormatter().format(logging.makeLogRecord(values | {"problem": problem}))


def dropped_records() -> int:
    """How many records were dropped because nobody read the log, since it was configured."""
    writers = [one for one in logging.getLogger(LOGGER_NAME).handlers if isinstance(one, LogWriter)]
    return sum(writer.dropped for writer in writers)


class LogCalls:
    """One line per call, and per item of a stream that fails, at INFO; health checks that end well, at DEBUG."""

    def on_start(self, call: CallInfo) -> None:
        """Do nothing at the start."""

    def on_end(self, token: object, call: CallInfo, outcome: CallOutcome) -> None:
        """Write the line."""
        del token
        is_probe = call.method.startswith(HEALTH_PREFIX) and outcome.code == "OK"
        level = _OF_A_PROBE if is_probe else _OF_A_CALL
        if not _log.isEnabledFor(level["levelno"]):
            return
        forwarded = call.values(_FORWARDED_KEY)
        facts = {"forwarded_for": ", ".join(forwarded)[:_MOST_CHARACTERS]} if forwarded else {}
        sizes = {"received_bytes": call.received_bytes, "sent_bytes": call.sent_bytes, "peer": call.peer}
        self._write(level, call, sizes | facts, call.timeline, outcome)

    def on_item(self, call: CallInfo, item: ItemInfo, outcome: CallOutcome) -> None:
        """Write a line if it has failed."""
        if outcome.code == "OK" or not _log.isEnabledFor(logging.INFO):
            return
        facts = {
            "received_bytes": item.received_bytes,
            "sent_bytes": item.sent_bytes,
            "item": item.index,
            "item_id": item.request_id[:MAX_REQUEST_ID_CHARACTERS],
        }
        self._write(_OF_AN_ITEM, call, facts, item.timeline, outcome)

    def _write(
        self,
        line: Mapping[str, object],
        call: CallInfo,
        facts: Mapping[str, object],
        timeline: Timeline,
        outcome: CallOutcome,
    ) -> None:
        """A *line* with all that is known of a request; nothing that the request says but for names and ids."""
        seconds = timeline.seconds
        fields: dict[str, object] = {
            **line,
            "created": outcome.ended_at,
            "method": call.method[:_MOST_CHARACTERS],
            "code": outcome.code,
            "millis": outcome.seconds * 1000,
        }
        if seconds:
            fields["queued_millis"] = seconds.get(Stage.QUEUE, 0.0) * 1000
            fields["run_millis"] = (seconds.get(Stage.PASS, 0.0) + seconds.get(Stage.DERIVE, 0.0)) * 1000
        fields |= facts
        for name, value in (
            ("request_id", call.request_id),
            ("caller", call.caller.name),
            ("model", timeline.model),
            ("contexts", ",".join(timeline.contexts)),
            ("reason", outcome.reason),
            ("error_id", outcome.error_id),
            ("trace_id", timeline.trace_id),
        ):
            if value:
                fields[name] = value
        # As `_log.info`, which also looks for the line that logs, and as `makeLogRecord`, which looks for the thread.
        record = logging.LogRecord.__new__(logging.LogRecord)
        vars(record).update(fields)
        _log.handle(record)
