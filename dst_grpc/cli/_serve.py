"""`dst-grpc serve`: every setting of the server is a flag.

The flags are generated from the settings' fields; only the settings check values, and report everything that is wrong
at once.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from dst_grpc.cli._console import fail

_ALIASES = {
    "models": ("--model", "NAME=FOLDER"),
    "devices": ("--devices", "DEVICE"),
    "autoencoder_roots": ("--autoencoder-root", "FOLDER"),
    "trusted_proxies": ("--trusted-proxies", "NETWORK"),
}
"""Flags of settings with several values: each gives one of them, and may be repeated."""

_METAVARS = {
    "host": "ADDRESS",
    "model": "NAME",
    "device": "DEVICE",
    "bytes": "SIZE",
    "seconds": "TIME",
    "certificate": "FILE",
    "key": "FILE",
    "ca": "FILE",
    "name": "KIND",
    "file": "FILE",
    "registry": "FILE",
    "cache": "FOLDER",
    "endpoint": "URL",
    "mode": "MODE",
    "format": "text|json",
    "level": "LEVEL",
}
"""Placeholder of a value in the help, by the last word of the setting's name; by default a number."""


def make_serve() -> Callable[..., None]:
    """The command. The server's packages are imported here, so that the client's commands start without them."""
    from dst_grpc.rpc.settings import Settings

    docs = attribute_docstrings(Settings)
    config = Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings. [env var: DST_CONFIG]")
    ]
    check = Annotated[
        bool,
        typer.Option("--check", help="Check the settings and all that they name, say what is wrong, and exit."),
    ]
    show = Annotated[
        bool, typer.Option("--print-settings", help="Print the settings, with what each comes from, and exit.")
    ]
    parameters = [
        _parameter("config", config),
        _parameter("check", check, default=False),
        _parameter("print_settings", show, default=False),
    ]
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        help_text = f"{docs.get(name, '')} [env var: DST_{name.upper()}]"
        if default not in (None, {}, ()):
            help_text += f" [default: {_default_text(default)}]"
        parameters.append(_parameter(name, _annotation(name, default, help_text)))

    def serve(**flags: Any) -> None:
        """Start a server; without any flag, one with the embedded model on 127.0.0.1:50051."""
        only = {name: flags.pop(name) for name in ("check", "print_settings")}
        _serve(flags.pop("config"), flags, **only)

    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions may carry one
    serve.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return serve


def _default_text(default: Any) -> str:
    """A default as the environment may give it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return str(default)


def _parameter(name: str, annotation: Any, default: object = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(name: str, default: Any, help_text: str) -> Any:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(default, bool):
        return Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=help_text)]
    if isinstance(default, dict | tuple):
        short, metavar = _ALIASES.get(name, (flag, "NAME"))
        names = dict.fromkeys((short, flag))
        return Annotated[list[str] | None, typer.Option(*names, metavar=metavar, help=help_text)]
    return Annotated[
        str | None, typer.Option(flag, metavar=_METAVARS.get(name.rpartition("_")[2], "N"), help=help_text)
    ]


def _serve(config: Path | None, flags: dict[str, Any], *, check: bool, print_settings: bool) -> None:
    from dst_grpc.rpc.checking import problems_of
    from dst_grpc.rpc.parts import StartupError
    from dst_grpc.rpc.settings_sources import Given, SettingsError, wanted_log_format
    from dst_grpc.rpc.supervisor import say_ready, supervise

    # An option that may be repeated is an empty list, not None, if it is not given.
    options = {name: value for name, value in flags.items() if value != []}
    log_format = wanted_log_format(options, {})
    try:
        given = Given.read(options, config)
        log_format = wanted_log_format(given.flags, given.content)
        if print_settings:
            typer.echo(given.as_toml(), nl=False)
            return
        settings = given.settings()
        if check:
            _say_problems(problems_of(settings))
            return
        if settings.devices:
            raise typer.Exit(supervise(settings, on_ready=say_ready))
        # Imports torch: seconds and memory that nothing above needs, a supervisor least of all.
        from dst_grpc.rpc.process import serve

        serve(settings, on_ready=say_ready)
    except SettingsError as error:
        _fail_to_start(str(error), log_format, code=2)
    except StartupError as error:
        _fail_to_start(str(error), log_format, code=1)


def _fail_to_start(problem: str, log_format: str, *, code: int) -> NoReturn:
    """Say what is wrong, in the format of the log, and exit with *code*."""
    from dst_grpc.observability.logs import start_error

    if log_format != "json":
        fail(problem, code=code)
    sys.stderr.write(f"{start_error(problem, log_format)}\n")
    raise typer.Exit(code)


def _say_problems(problems: list[str]) -> None:
    if problems:
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        fail("\n  ".join([f"{count}:", *problems]), code=1)
    typer.echo("the settings, and all that they name, can be used")


def attribute_docstrings(cls: type) -> dict[str, str]:
    """The docstrings of a class's fields, by field; their line breaks become spaces."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    docs = {}
    for field, below in pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            docs[field.target.id] = " ".join(below.value.value.split())
    return docs
