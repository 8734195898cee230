"""The application with all commands."""

from __future__ import annotations

from typing import Annotated

import typer

from dst_grpc import __version__
from dst_grpc.cli._attribute import attribute
from dst_grpc.cli._catalog import models, server_info, tokenize, types
from dst_grpc.cli._circuit import circuit
from dst_grpc.cli._console import reports_errors
from dst_grpc.cli._contexts import contexts, load, unload, unpin
from dst_grpc.cli._convert import convert
from dst_grpc.cli._derive import derive
from dst_grpc.cli._explain import explain
from dst_grpc.cli._graph import graph
from dst_grpc.cli._patch import patch
from dst_grpc.cli._registry import pull, reload
from dst_grpc.cli._resolve import resolve
from dst_grpc.cli._serve import make_serve
from dst_grpc.cli._tokens import tokens

app = typer.Typer(
    name="dst-grpc",
    help="The inside of a language model over gRPC: serve it, or ask a server about it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dst-grpc {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("serve")(make_serve())
for command in (
    derive,
    explain,
    patch,
    attribute,
    circuit,
    graph,
    resolve,
    models,
    types,
    tokenize,
    server_info,
    contexts,
    load,
    unpin,
    unload,
    reload,
    pull,
    convert,
):
    app.command()(reports_errors(command))
app.add_typer(tokens, name="tokens")
