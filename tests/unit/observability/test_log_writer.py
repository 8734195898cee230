from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from dst_grpc.observability.log_writer import LogWriter


def record(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "levelno": logging.INFO, "levelname": "INFO"})


@contextmanager
def piped() -> Iterator[tuple[TextIO, TextIO]]:
    """Where a pipe is read, and where it is written."""
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as reader, os.fdopen(writing, "w", encoding="utf-8") as writer:
        yield reader, writer


def fill(pipe: TextIO) -> str:
    """Fill *pipe* to the last byte; what was written."""
    text = ""
    os.set_blocking(pipe.fileno(), False)
    for size in (4096, 1):
        try:
            while True:
                text += "." * os.write(pipe.fileno(), b"." * size)
        except BlockingIOError:
            pass
    os.set_blocking(pipe.fileno(), True)
    return text


def test_lines_are_written_in_order() -> None:
    with piped() as (reader, stream):
        writer = LogWriter(stream)
        for i in range(1000):
            writer.handle(record(f"{i}"))
        assert [reader.readline() for _ in range(1000)] == [f"{i}\n" for i in range(1000)]
        writer.close()


def test_nobody_waits_for_who_reads_and_what_is_too_much_is_dropped_and_counted() -> None:
    with piped() as (reader, stream):
        before = fill(stream)
        writer = LogWriter(stream, max_characters=100)
        for i in range(100):
            writer.handle(record(f"line {i:04}"))  # of ten characters
        assert writer.dropped == 90
        assert reader.read(len(before)) == before
        assert [reader.readline() for _ in range(10)] == [f"line {i:04}\n" for i in range(10)]
        assert "records are missing" in reader.readline()
        writer.flush()
        writer.handle(record("later"))
        assert reader.readline() == "later\n"
        writer.close()
        assert writer.dropped == 90


def test_what_was_logged_is_written_at_the_end_unless_nobody_reads() -> None:
    with piped() as (reader, stream):
        writer = LogWriter(stream)
        writer.handle(record("the last"))
        writer.close()
        stream.close()
        assert reader.read() == "the last\n"
    with piped() as (_, stream):
        fill(stream)
        writer = LogWriter(stream)
        writer.handle(record("never read"))
        writer.close()


def test_a_full_disk_loses_lines_and_no_more() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        writer = LogWriter(full)
        writer.handle(record("lost"))
        writer.flush()
        writer.handle(record("lost too"))
        writer.close()


def test_a_stream_that_does_not_block_is_waited_for() -> None:
    with piped() as (reader, stream):
        before = fill(stream)
        os.set_blocking(stream.fileno(), False)
        writer = LogWriter(stream)
        writer.handle(record("after"))
        assert reader.read(len(before)) == before
        assert reader.readline() == "after\n"
        writer.close()


def test_a_line_of_another_process_is_written_as_it_is() -> None:
    with piped() as (reader, stream):
        writer = LogWriter(stream)
        writer.write_line("[0 cpu] as it is")
        assert reader.readline() == "[0 cpu] as it is\n"
        writer.close()
