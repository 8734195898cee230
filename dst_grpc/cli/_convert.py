"""`dst-grpc convert`: converts files that the server refuses to ones that it reads, offline.

A pickled file of tensors becomes a safetensors file, without running its pickle; a GGUF file a folder with a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dst_grpc.cli._console import console, fail
from dst_grpc.cli._tables import human_bytes, human_count


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", exists=True, dir_okay=False, help="A file written by torch.save, or a GGUF file."
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="Where to write, OUT.safetensors or, for GGUF, a folder; must not exist yet."
        ),
    ],
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up on a file of torch.save after this long."),
    ] = 600.0,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="For GGUF: the tokenizer.json of the model it was made of.",
        ),
    ] = None,
) -> None:
    """Convert a pickled file, which the server refuses, to safetensors, without running its pickle.

    Or make a folder, in float32, of a GGUF file with a model of the Llama architecture.
    """
    if _is_gguf(source):
        _convert_gguf(source, target, tokenizer)
    else:
        _convert_pickle(source, target, timeout)


def _is_gguf(source: Path) -> bool:
    with source.open("rb") as file:
        return source.suffix == ".gguf" or file.read(4) == b"GGUF"


def _convert_pickle(source: Path, target: Path, timeout: float) -> None:
    # From the server's extra, which a bare install lacks.
    from dst_grpc.contexts.conversion import convert_pickle

    converted = convert_pickle(source, target, timeout_seconds=timeout)
    _say(
        f"{target}: {human_count(converted.n_tensors, 'tensor')}, {human_bytes(converted.byte_count)}, "
        f"and {human_count(len(converted.texts), 'text')} ({', '.join(converted.texts) or 'none'})"
    )


def _convert_gguf(source: Path, folder: Path, tokenizer: Path | None) -> None:
    try:
        from dst_grpc.contexts.gguf_folder import convert_gguf
    except ModuleNotFoundError as error:
        fail(
            f"to convert GGUF, dst-grpc needs {error.name}; install it with: pip install 'dst-grpc[server,gguf]'",
            code=1,
        )
    written = convert_gguf(source, folder, tokenizer)
    _say(f"{folder}: {human_count(written.parameter_count, 'parameter')}, {human_bytes(written.parameter_bytes)}")


def _say(text: str) -> None:
    console().print(text, markup=False, soft_wrap=True)
