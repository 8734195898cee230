"""`dst-grpc contexts`, `load`, `unpin`, `unload`: the contexts in the server's memory."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from dst_grpc.cli._console import (
    JsonOption,
    ServerOption,
    TimeoutOption,
    connect,
    console,
    error_facts,
    print_json,
)
from dst_grpc.cli._progress import progress_bar, show_load
from dst_grpc.cli._tables import human_bytes, print_rows
from dst_grpc.client import DEFAULT_TARGET, ContextStatus, LoadProgress

ContextArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name or handle of a model or an autoencoder set.", show_default=False)
]


def contexts(server: ServerOption = DEFAULT_TARGET, timeout: TimeoutOption = None, as_json: JsonOption = False) -> None:
    """List the models and autoencoders that the server has loaded."""
    with connect(server) as client:
        _show(client.contexts(timeout=timeout), as_json)


def load(
    context: ContextArgument,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it loaded until it is unpinned, used or not.")] = False,
    server: ServerOption = DEFAULT_TARGET,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load a model or an autoencoder set, and wait until it is available."""
    with connect(server) as client:
        with progress_bar() as bar:
            task = bar.add_task("loading", total=None)

            def show(status: ContextStatus) -> None:
                done = LoadProgress(
                    context=status.handle, bytes_done=status.bytes_loaded, bytes_total=status.bytes_total
                )
                show_load(bar, task, done)

            status = client.load_context(context, pin=pin, on_progress=show, timeout=timeout)
        _show([status], as_json)


def unpin(
    context: ContextArgument,
    server: ServerOption = DEFAULT_TARGET,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unpin a model or an autoencoder set, so that it can be evicted or expire."""
    with connect(server) as client:
        _show([client.unpin_context(context, timeout=timeout)], as_json)


def unload(
    context: ContextArgument,
    server: ServerOption = DEFAULT_TARGET,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unload a model or an autoencoder set, and wait until its memory is free."""
    with connect(server) as client:
        _show([client.unload_context(context, timeout=timeout)], as_json)


def _show(statuses: list[ContextStatus], as_json: bool) -> None:
    if as_json:
        print_json([_facts(status) for status in statuses])
        return
    if not statuses:
        console().print("nothing is loaded")
        return
    rows = [
        (
            status.handle,
            status.state.value,
            status.device,
            human_bytes(status.bytes_total),
            f"{status.pins} + pinned" if status.pinned else str(status.pins),
            str(status.hits),
            f"{status.idle_duration:.0f} s",
        )
        for status in statuses
    ]
    print_rows(console(), ("context", "state", "device", "memory", "in use", "hits", "idle"), rows)


def _facts(status: ContextStatus) -> dict[str, Any]:
    facts = {field.name: getattr(status, field.name) for field in dataclasses.fields(status)}
    return facts | {"error": None if status.error is None else error_facts(status.error)}
