"""The command `dst-grpc`. It needs the extra `server`, for typer and rich; this module imports neither.

`main` is the entry point. Each command is a module of its own; `_app` puts them together.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

_NEEDED = {"typer", "rich", "click"}


def main() -> None:
    """Run the command line of this process; ends it with the command's exit code."""
    if sys.argv[1:2] == ["serve"]:
        from dst_grpc.rpc.hangups import Hangups

        Hangups.installed()  # before anything slow: until then SIGHUP ends the process
    try:
        from dst_grpc.cli._app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        sys.exit(f"dst-grpc needs {error.name}; install the command line with: pip install 'dst-grpc[server]'")
    app(prog_name="dst-grpc")
