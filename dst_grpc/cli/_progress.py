"""Progress bars on stderr."""

from __future__ import annotations

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from dst_grpc.cli._console import console
from dst_grpc.client import LoadProgress, TransferProgress


def progress_bar() -> Progress:
    """A progress bar on stderr that disappears at the end; none where stderr is not a terminal."""
    out = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    return Progress(*columns, console=out, transient=True, disable=not out.is_terminal)


def show_load(progress: Progress, task: TaskID, load: LoadProgress) -> None:
    """Show the progress of a load."""
    description = f"loading {escape(load.context)}"
    progress.update(task, description=description, completed=load.bytes_done, total=load.bytes_total)


def show_transfer(progress: Progress, task: TaskID, done: TransferProgress) -> None:
    """Show how much of an answer has arrived."""
    progress.update(task, completed=done.bytes_done, total=done.bytes_total)
