"""`make demo`: start a server, ask it why the model says what it says, switch the foremost head off, and stop.

It is `dst-grpc explain`, twice: every number printed comes from a call to that server.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from dst_grpc.cli._explain import explain_request_of
from dst_grpc.cli._facts import rows_of
from dst_grpc.client import Client
from dst_grpc.errors import DstError
from scripts.serving import server

PROMPT = "When Mary and John went to the store, John gave a drink to"
TARGET, DISTRACTOR = " Mary", " John"
ASKED = ["explain", PROMPT, "--target", TARGET, "--distractor", DISTRACTOR]


def foremost_head(client: Client) -> str:
    """The head with the largest direct effect, as `--ablate` takes it at every token: "2.h1"."""
    request = explain_request_of(PROMPT, target=[TARGET], distractor=[DISTRACTOR])
    rows = rows_of(client.explain_request(request).runs[0], "direction_write")
    return next(row.text.partition("@")[0] for row in rows if row.is_head)


def command(*options: str) -> str:
    """The command as a person types it."""
    words = [f'"{word}"' if " " in word else word for word in (*ASKED, *options)]
    return " ".join(["dst-grpc", *words])


def run(out: Console, address: str, *options: str) -> None:
    """Show the command, and what it prints."""
    out.print(f"\n$ {command(*options)}\n", style="bold", markup=False, soft_wrap=True)
    sys.stdout.flush()  # the other program writes to the same place
    subprocess.run(
        [sys.executable, "-m", "dst_grpc.cli", *ASKED, *options],
        env=os.environ | {"DST_SERVER": address},
        check=True,
    )


def show_how_to_go_on(out: Console, head: str) -> None:
    """Print three commands."""
    program = Path(sys.executable).with_name("dst-grpc")
    name = str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else "dst-grpc"
    out.print("\nGo on from here:", style="bold")
    out.print(f"  {name} serve", markup=False)
    page = command("--ablate", head, "--html", "why.html").removeprefix("dst-grpc")
    out.print(f"  {name}{page}", markup=False, soft_wrap=True)
    out.print("  docs/finding-a-circuit.md\n", markup=False)


def main() -> None:
    """Run the demo."""
    out = Console(highlight=False)
    try:
        with server() as address, Client(address) as client:
            out.print(f"A server is running at {address}, on the package's own model.", style="dim")
            head = foremost_head(client)
            run(out, address, "--top", "6")
            out.print(f"\nAnd if {head} were off?", style="bold")
            run(out, address, "--top", "3", "--ablate", head)
            show_how_to_go_on(out, head)
    except DstError as error:
        sys.exit(f"error: {error.message}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)


if __name__ == "__main__":
    main()
