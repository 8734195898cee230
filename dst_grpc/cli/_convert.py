"""`dst-grpc convert`: a pickled file of tensors made a safetensors file, offline and without running its pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dst_grpc.cli._console import console, errors_reported
from dst_grpc.cli._tables import human_bytes, human_count


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A file written by torch.save.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT.safetensors", dir_okay=False, help="Where to write; must not exist yet.")
    ],
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Give up after this long.")] = 600.0,
) -> None:
    """Make a safetensors file of a pickled one that the server refuses, without running what is in it."""
    # The server's part of the package, which a bare install lacks.
    from dst_grpc.contexts.conversion import convert_pickle

    with errors_reported():
        converted = convert_pickle(source, target, timeout_seconds=timeout)
    console().print(
        f"{target}: {human_count(converted.n_tensors, 'tensor')}, {human_bytes(converted.byte_count)}, "
        f"and {human_count(len(converted.texts), 'text')} ({', '.join(converted.texts) or 'none'})",
        markup=False,
        soft_wrap=True,
    )
