"""The file of tokens: what it holds, what is wrong with it, and that nothing of a token is ever told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from dst_grpc.domain.callers import ASKING, OPERATING, Caller
from dst_grpc.errors import InvalidRequest
from dst_grpc.rpc.tokens import Token, TokenTable, digest_of, is_name, new_token, read_tokens

DIGEST = digest_of("secret").hex()


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def problems(file: Path, content: str) -> dict[str, str]:
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidRequest) as caught:
        read_tokens(file)
    assert str(file.parent) not in str(caught.value)
    assert "secret" not in str(caught.value)
    return {violation.field: violation.description for violation in caught.value.violations}


def test_a_new_token_is_found_by_its_text_in_what_its_line_says(file: Path) -> None:
    text, token = new_token(Caller(name="alice", roles=OPERATING), datetime(2027, 3, 1, tzinfo=UTC))
    assert len(text) >= 43, "256 random bits"
    assert text not in str(token)
    file.write_text(f"# the team\n\n{token}\n")
    table = TokenTable.read(file)
    assert table.find(digest_of(text)) == token
    assert table.find(digest_of("another")) is None
    assert len(table) == 1
    assert new_token(token.caller, None)[0] != text


def test_lines_say_who_may_do_what_until_when(file: Path) -> None:
    lines = [
        f"alice sha256:{DIGEST} ask 2027-03-01T02:00:00+02:00",
        f"  ops\tsha256:{digest_of('2').hex().upper()}  operate   never  ",
        f"ops sha256:{digest_of('3').hex()} ask,operate 2027-03-01T00:00:00Z",
    ]
    file.write_text("\r\n".join(lines))
    alice, first, second = read_tokens(file)
    assert alice.caller == Caller(name="alice", roles=ASKING)
    assert alice.expires_at == datetime(2027, 3, 1, tzinfo=UTC)
    assert first.caller == second.caller == Caller(name="ops", roles=OPERATING), "operators may ask too"
    assert str(alice) == f"alice sha256:{DIGEST} ask 2027-03-01T00:00:00Z"
    assert str(first) == f"ops sha256:{digest_of('2').hex()} ask,operate never"


def test_a_token_is_valid_until_the_moment_of_its_expiry() -> None:
    expiry = datetime(2027, 3, 1, tzinfo=timezone(timedelta(hours=2)))
    token = Token(caller=Caller(name="a"), digest=b"", expires_at=expiry)
    assert token.is_valid(expiry - timedelta(microseconds=1))
    assert not token.is_valid(expiry)
    assert Token(caller=Caller(name="a"), digest=b"").is_valid(expiry)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("secret-token-of-old", "holds a token itself; the file keeps digests only: write NAME sha256:DIGEST"),
        ("alice secret", "has 2 words; write NAME sha256:DIGEST"),
        (f"alice sha256:{DIGEST} ask never more", "has 5 words"),
        ("alice secret ask never", "the second word must be sha256:"),
        (f"alice {DIGEST} ask never", "the second word must be sha256:"),
        (f"alice sha256:{DIGEST[:-1]} ask never", "64 hexadecimal digits"),
        (f"alice sha256:{DIGEST} admin never", "the third word must be ask, operate or ask,operate"),
        (f"alice sha256:{DIGEST} ask, never", "the third word"),
        (f"alice sha256:{DIGEST} ask soon", "never, or a time with its zone"),
        (f"alice sha256:{DIGEST} ask 2027-03-01", "never, or a time with its zone"),
        (f"alice sha256:{DIGEST} ask 2027-03-01T00:00:00", "never, or a time with its zone"),
        (f"{'a' * 129} sha256:{DIGEST} ask never", "at most 128 characters"),
        (f"a\x00b sha256:{DIGEST} ask never", "printable"),
    ],
)
def test_each_mistake_is_named_by_its_line(file: Path, line: str, part: str) -> None:
    found = problems(file, f"\n{line}\n")
    assert found.keys() == {"line 2"}
    assert part in found["line 2"]


def test_all_mistakes_are_named_at_once(file: Path) -> None:
    sound = f"a sha256:{DIGEST} ask never"
    assert problems(file, f"one\n{sound}\n{sound}\ntwo\n").keys() == {"line 1", "line 3", "line 4"}


def test_a_file_without_tokens_or_that_cannot_be_read_is_named(file: Path) -> None:
    assert "tokens holds no token" in problems(file, "# nobody\n")[""]
    file.write_bytes(b"\xff")
    with pytest.raises(InvalidRequest, match="tokens cannot be read: it is not UTF-8"):
        read_tokens(file)
    file.unlink()
    with pytest.raises(InvalidRequest, match="tokens cannot be read: No such file"):
        read_tokens(file)


@pytest.mark.parametrize(("text", "sound"), [("a", True), ("", False), ("a b", False), ("#a", False), ("ä@x/y", True)])
def test_names_are_single_words(text: str, sound: bool) -> None:
    assert is_name(text) is sound
