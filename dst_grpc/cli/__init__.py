"""The command `dst-grpc`. It needs the extra `server`, for typer and rich; this module imports neither.

`main` is the entry point. Each command is a module of its own; `_app` puts them together.
"""

from __future__ import annotations

import errno
import io
import os
import sys

from dst_grpc.cli._encoding import has_every_character

__all__ = ["main"]

_NEEDED = {"typer", "rich", "click"}


def main() -> None:
    """Run the command line of this process; ends it with the command's exit code."""
    if sys.argv[1:2] == ["serve"]:
        from dst_grpc.rpc.hangups import Hangups

        Hangups.installed()  # before anything slow: until then SIGHUP ends the process
    _escape_what_is_not_in_the_encoding()
    try:
        from dst_grpc.cli._app import app
    except KeyboardInterrupt:  # importing takes a second; later on, commands end with the same code
        sys.exit(130)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        sys.exit(f"dst-grpc needs {error.name}; install the command line with: pip install 'dst-grpc[server]'")
    try:
        app(prog_name="dst-grpc")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # Of what commands write, files tell it by themselves. The interpreter would try once more to write the rest.
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        sys.exit(f"error: the output cannot be written: {error.strerror}")


def _escape_what_is_not_in_the_encoding() -> None:
    """Have stdout escape characters that its encoding lacks, as stderr does, where that is not UTF."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not has_every_character(sys.stdout.encoding):
        sys.stdout.reconfigure(errors="backslashreplace")
