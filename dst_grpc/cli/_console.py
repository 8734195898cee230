"""Shared by all commands: the console, the format of errors, the connection to the server."""

from __future__ import annotations

import difflib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from dst_grpc.cli._encoding import has_every_character
from dst_grpc.cli._option_names import in_options, options_of
from dst_grpc.client import DEFAULT_TARGET, Client, Tls
from dst_grpc.errors import (
    DstError,
    FieldViolation,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    Unauthenticated,
    Violations,
)

_CLIENT_PREFIX = "DST_CLIENT_"
_CLIENT_VARIABLES = tuple(_CLIENT_PREFIX + name for name in ("TOKEN", "CA", "CERT", "KEY"))
_CLIENT_FIELDS = ("token", "tls.root_certificates", "tls.certificate", "tls.private_key")
_GIVEN_BY = {"target": "--server", **dict(zip(_CLIENT_FIELDS, _CLIENT_VARIABLES, strict=True))}
"""Where the command line has what a client is made of."""
PIPE_WIDTH = 200
"""Columns where there is no terminal: wide enough that nothing is cut."""

ServerOption = Annotated[
    str,
    typer.Option("--server", envvar="DST_SERVER", metavar="HOST:PORT", help="Server to ask.", show_envvar=True),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Name or handle of the model; default: the server's own.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up after this long.")
]


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, made anew for each use so that a redirected stream is seen."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def print_json(value: Any) -> None:
    """Print *value* as JSON, indented; NaN and infinities as protobuf writes them."""
    typer.echo(json.dumps(_json_value(value), indent=2, ensure_ascii=needs_ascii(), allow_nan=False))


def print_json_line(value: Any, *, stderr: bool = False) -> None:
    """Print *value*, which is ready to be JSON, in one line."""
    typer.echo(json.dumps(value, ensure_ascii=needs_ascii(stderr=stderr)), err=stderr)


def needs_ascii(*, stderr: bool = False) -> bool:
    """Whether JSON must escape what is not ASCII: the output's encoding does not have every character."""
    return not has_every_character((sys.stderr if stderr else sys.stdout).encoding)


def _json_value(value: Any) -> Any:
    """*value* without numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _json_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(each) for each in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"


def connect(server: str) -> Client:
    """A client of *server*, with the credentials in the environment.

    DST_CLIENT_TOKEN is a bearer token; DST_CLIENT_CA, DST_CLIENT_CERT and DST_CLIENT_KEY are PEM files of the
    authorities that are trusted, of the client's own certificate, and of its key. One of the files means TLS.

    Raises:
        InvalidRequest: If one of them cannot be used, or there is another one.
    """
    given = {name: value for name, value in os.environ.items() if name.startswith(_CLIENT_PREFIX) and value}
    problems = Violations()
    for name in sorted(given.keys() - _CLIENT_VARIABLES):
        nearest = difflib.get_close_matches(name, _CLIENT_VARIABLES, n=1)
        problems.add(name, f"is no variable of ours; did you mean {(nearest or _CLIENT_VARIABLES)[0]}?")
    problems.raise_if_any()
    token, *files = (given.get(name) for name in _CLIENT_VARIABLES)
    tls: Tls | bool = False
    try:
        if any(files):
            authorities, certificate, key = (None if file is None else Path(file) for file in files)
            tls = Tls(root_certificates=authorities, certificate=certificate, private_key=key)
        return Client(server or DEFAULT_TARGET, tls=tls, token=token)
    except InvalidRequest as error:
        raise InvalidRequest([FieldViolation(_GIVEN_BY[v.field], v.description) for v in error.violations]) from None


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """*command*, which prints a DstError as text or, with `--json`, as JSON, and exits with 1."""

    @wraps(command)
    def run(**values: Any) -> None:
        try:
            command(**values)
        except DstError as error:
            named = in_options(error, options_of(command, values))
            if values.get("as_json"):
                print_json_line({"error": error_facts(named)}, stderr=True)
            else:
                print_error(named)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return run


def fail(problem: str, *, code: int) -> NoReturn:
    """Print what is wrong, and exit with *code*."""
    # Not wrapped: there may be a command in it, to be copied.
    console(stderr=True).print(Text.assemble(("error:", "bold red"), f" {problem}"), soft_wrap=True)
    raise typer.Exit(code)


def print_error(error: DstError) -> None:
    """Print an error: its message, each bad field on a line of its own, suggestions."""
    out = console(stderr=True)
    violations = error.violations if isinstance(error, InvalidRequest | PreconditionFailed) else ()
    sentence = error.message
    if isinstance(error, InvalidRequest):
        sentence = "the request is not valid:"
    elif isinstance(error, PreconditionFailed):
        sentence = "the request lacks something:"
    out.print(Text.assemble(("error:", "bold red"), f" {sentence}"))
    for violation in violations:
        field = f"[bold]{escape(violation.field)}[/bold]: " if violation.field else ""
        out.print(Padding(f"{field}{escape(violation.description)}", (0, 0, 0, 2), expand=False))
    if isinstance(error, Unauthenticated):
        out.print(
            "  the command shows the token in DST_CLIENT_TOKEN, or the certificate in DST_CLIENT_CERT, if they are set"
        )
    if "Tls(root_certificates=...)" in error.message:
        out.print("  the command trusts the authorities in DST_CLIENT_CA")
    if isinstance(error, NotFound):
        unnamed = [name for name in error.nearest if name not in error.message]
        if unnamed:
            out.print(f"  the nearest are {escape(', '.join(unnamed))}")
    retry: float | None = getattr(error, "retry_after_seconds", None)
    if retry is not None:
        out.print(f"  try again in {retry:g} s")
    error_id: str = getattr(error, "error_id", "")
    if error_id:
        out.print(f"  the server's log tells more under the id {escape(error_id)}")


def error_facts(error: DstError) -> dict[str, Any]:
    """An error for programs."""
    facts: dict[str, Any] = {"kind": type(error).__name__, "reason": error.reason.value, "message": error.message}
    if isinstance(error, InvalidRequest | PreconditionFailed):
        facts["violations"] = [{"field": v.field, "description": v.description} for v in error.violations]
    if isinstance(error, NotFound):
        facts["nearest"] = list(error.nearest)
    retry: float | None = getattr(error, "retry_after_seconds", None)
    return facts if retry is None else facts | {"retry_after_seconds": retry}
