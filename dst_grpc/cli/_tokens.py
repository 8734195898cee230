"""`dst-grpc tokens new`: bearer tokens for the callers of a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from dst_grpc.cli._console import JsonOption, fail, print_json
from dst_grpc.domain.callers import Caller, Role

_NEVER = "never"

tokens = typer.Typer(
    help="Make bearer tokens for the callers of a server.", no_args_is_help=True, rich_markup_mode=None
)


@tokens.callback()
def _root() -> None:
    """Without it, a group of one command would be that command."""


@tokens.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the caller.", show_default=False)],
    role: Annotated[Role, typer.Option(help="What it may do; who may operate may ask too.")] = Role.ASK,
    expires: Annotated[str, typer.Option(metavar="TIME", help="From now, as 90d, 12h or 30m; or never.")] = "90d",
    as_json: JsonOption = False,
) -> None:
    """Make a token, and show it once: on stderr, while stdout has its line for the server's file of tokens.

    The file holds only the token's digest: dst-grpc tokens new alice >> tokens
    """
    from dst_grpc.rpc.tokens import MAX_NAME_CHARACTERS, is_name, new_token

    if not is_name(name):
        fail(f"NAME must be one word of at most {MAX_NAME_CHARACTERS} printable characters, not {name!r}", code=2)
    text, token = new_token(Caller(name=name, roles=role.implied), _expiry(expires))
    if as_json:
        print_json({"token": text, "line": str(token)})
        return
    typer.echo(f"token of {name}, shown this once: {text}", err=True)
    typer.echo(str(token))


def _expiry(text: str) -> datetime | None:
    """When a token expires that is made now."""
    if text == _NEVER:
        return None
    from dst_grpc.rpc.quantities import seconds_of

    try:
        after = timedelta(seconds=seconds_of(text))
        expires_at = datetime.now(UTC) + after
    except ValueError:
        after, expires_at = timedelta(0), None
    except OverflowError:
        fail(f"--expires {text} is later than any calendar reaches", code=2)
    if after <= timedelta(0) or text.isdigit():  # a number alone may have been meant as days
        fail(f"--expires must be a time from now, as 90d, 12h or 30m, or never, not {text!r}", code=2)
    return expires_at
