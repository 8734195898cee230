"""`dst-grpc resolve`: checks, completes and costs a request without running it."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dst_grpc.cli._arguments import RequestOptions, takes_request
from dst_grpc.cli._console import (
    JsonOption,
    ServerOption,
    TimeoutOption,
    connect,
    console,
    print_json,
)
from dst_grpc.cli._progress import progress_bar, show_load
from dst_grpc.cli._tables import human_bytes, human_check, human_ranges, print_rows
from dst_grpc.client import DEFAULT_TARGET, Resolution, ResolveRequest


@takes_request
def resolve(
    options: RequestOptions,
    *,
    load: Annotated[bool, typer.Option("--load", help="Load the model and autoencoders that it needs.")] = False,
    server: ServerOption = DEFAULT_TARGET,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check, complete and cost a request without running it."""
    request = options.request()
    with connect(server) as client, progress_bar() as bar:
        task = bar.add_task("loading", total=None, visible=load)
        resolution = client.resolve_request(
            ResolveRequest(request=request, load=load),
            on_progress=lambda done: show_load(bar, task, done),
            timeout=timeout,
        )
    if as_json:
        print_json(dataclasses.asdict(resolution))
    else:
        _print(console(), resolution)


def _print(out: Console, resolution: Resolution) -> None:
    rows = [
        (
            scalar.dst.value,
            " x ".join(f"{axis.dimension} {axis.size}" for axis in scalar.axes),
            human_ranges(scalar.layer_indices) or "once",
            "forward, backward" if scalar.requires_grad else "forward",
            human_bytes(scalar.output_bytes),
            ", ".join(dict.fromkeys(tap.location.value for tap in scalar.taps)) or "nothing",
        )
        for scalar in resolution.scalars
    ]
    print_rows(out, ("type", "axes", "layers", "passes", "size", "reads"), rows)
    out.print()
    cost = resolution.cost
    facts = [("model", resolution.model.handle or resolution.model.name)]
    for info in resolution.autoencoders:
        facts.append(("autoencoder", info.handle or info.name))
        facts.append(("self-check", human_check(info)))
    facts += [
        ("tokens", str(cost.sequence_tokens)),
        ("passes", f"{cost.forward_passes} forward, {cost.backward_passes} backward"),
        ("operations", f"{cost.floating_point_operations:.2e}"),
        ("memory", f"{human_bytes(cost.peak_bytes)} on {resolution.device} beyond the weights"),
        ("to send", human_bytes(cost.output_bytes)),
    ]
    for status in resolution.contexts:
        facts.append(("context", f"{status.handle} {status.state}, {human_bytes(status.bytes_total)}"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, Text(value))
    out.print(grid)
