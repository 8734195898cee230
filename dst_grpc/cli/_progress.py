"""Progress bars on stderr: none where that is no terminal, and they disappear at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from dst_grpc.cli._console import connect, console
from dst_grpc.cli._tables import human_count
from dst_grpc.client import Client, LoadProgress, TransferProgress


class Work(NamedTuple):
    """What a server is doing."""

    doing: str
    """In words: "running circuits"."""
    noun: str
    """One of what it counts: "run"."""


class _Bytes(DownloadColumn):
    """How many bytes of all; nothing while that is not known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class _Count(ProgressColumn):
    """How many of all, and of what: "5/20 cells"; nothing while that is not known."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text()
        return Text(
            f"{task.completed:.0f}/{human_count(int(task.total), task.fields['noun'])}", style="progress.download"
        )


def progress_bar() -> Progress:
    """A bar of bytes."""
    return _bar(_Bytes(binary_units=True))


def _bar(amount: ProgressColumn) -> Progress:
    out = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), amount)
    return Progress(*columns, console=out, transient=True, disable=not out.is_terminal)


@contextmanager
def asking(server: str, work: Callable[[Any], Work]) -> Iterator[tuple[Client, Callable[[Any], None]]]:
    """A client of *server*, and what a call reports its progress to: a bar shows how much of which *work* is done."""
    with connect(server) as client, _bar(_Count()) as bar:
        task = bar.add_task("waiting for the server", total=None)

        def show(progress: Any) -> None:
            doing, noun = work(progress)
            bar.update(task, description=doing, completed=progress.done, total=progress.total, noun=noun)

        yield client, show


def show_load(progress: Progress, task: TaskID, load: LoadProgress) -> None:
    """Show the progress of a load."""
    description = f"loading {escape(load.context)}"
    progress.update(task, description=description, completed=load.bytes_done, total=load.bytes_total)


def show_transfer(progress: Progress, task: TaskID, done: TransferProgress) -> None:
    """Show how much of an answer has arrived."""
    progress.update(task, completed=done.bytes_done, total=done.bytes_total)
