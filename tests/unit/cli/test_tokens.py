"""`dst-grpc tokens new`: the token is shown once, and the file learns no more than its digest."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dst_grpc.domain.callers import ASKING, OPERATING
from dst_grpc.rpc.tokens import TokenTable, digest_of
from tests.unit.cli.conftest import Run


def test_a_token_is_shown_once_beside_the_line_that_makes_it_known(run: Run, tmp_path: Path) -> None:
    before = datetime.now(UTC)
    result = run("tokens", "new", "alice", "--role", "operate", "--expires", "12h")
    assert result.exit_code == 0
    text = result.stderr.split()[-1]
    assert text not in result.stdout
    file = tmp_path / "tokens"
    file.write_text(result.stdout)
    token = TokenTable.read(file).find(digest_of(text))
    assert token is not None
    assert (token.caller.name, token.caller.roles) == ("alice", OPERATING)
    assert token.expires_at is not None
    late = timedelta(hours=12, seconds=-1), timedelta(hours=12) + (datetime.now(UTC) - before)
    assert late[0] <= token.expires_at - before <= late[1]


def test_programs_get_both(run: Run, tmp_path: Path) -> None:
    made = json.loads(run("tokens", "new", "bob", "--expires", "never", "--json").stdout)
    file = tmp_path / "tokens"
    file.write_text(made["line"])
    token = TokenTable.read(file).find(digest_of(made["token"]))
    assert token is not None
    assert (token.caller.name, token.caller.roles, token.expires_at) == ("bob", ASKING, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("a b",),
        ("",),
        ("#a",),
        ("a", "--expires", "soon"),
        ("a", "--expires", "0d"),
        ("a", "--expires", "90"),
        ("a", "--expires", "nan"),
        ("a", "--expires", "inf"),
        ("a", "--expires", "999999w"),
        ("a", "--expires", "-1d"),
        ("a", "--role", "admin"),
    ],
)
def test_what_cannot_be_is_refused(run: Run, arguments: tuple[str, ...]) -> None:
    result = run("tokens", "new", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
