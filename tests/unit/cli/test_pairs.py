"""Files of pairs: prompts are taken as they are, and what is no such file is refused rather than guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dst_grpc.cli._pairs import read_pairs
from dst_grpc.errors import InvalidRequest


@pytest.fixture(name="written")
def _written(tmp_path: Path) -> Path:
    return tmp_path / "pairs.csv"


def test_every_character_of_a_quoted_prompt_is_kept(written: Path) -> None:
    prompts = ["two\nlines, and\n\nmore", 'says "yes"', "line\u2028separator", "form\x0cfeed", " spaces "]
    rows = ['"' + prompt.replace('"', '""') + '",x' for prompt in prompts]
    written.write_text("\n".join(["clean,corrupt", *rows]) + "\n", encoding="utf-8")
    assert [pair["clean"] for pair in read_pairs(written)] == prompts


def test_what_spreadsheets_write_is_read(written: Path) -> None:
    written.write_bytes('\ufeffclean,target\r\n"a, b", Mary\r\n\r\nc,\r\n'.encode())
    assert [(pair["clean"], pair["target"]) for pair in read_pairs(written)] == [("a, b", " Mary"), ("c", None)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "",
            "has no columns; it must have clean, and may have corrupt, target, distractor, each once, with commas ",
        ),
        ("clean,clean\na,b\n", "has the columns clean, clean; "),
        ("clean\ttarget\na\tb\n", r"has the columns 'clean\\ttarget'; it must have clean, .* with commas between them"),
        ("clean\na\n\nb\nWhen John came, Mary gave\n", "row 3 of .* has 2 values for 1 column; .* in quotes"),
        ("clean,corrupt\na,b\nWhen John came, Mary gave,c\n", "row 2 of .* has 3 values for 2 columns"),
        ('clean,corrupt\na,b\n"a,b\n', "is no CSV after 1 row: unexpected end of data"),
        ('clean,corrupt\n"a" b,c\n', "expected after"),
        ("clean\n" + "a" * 200_000 + "\n", "is no CSV after 0 rows: field larger than field limit"),
    ],
)
def test_what_is_no_file_of_pairs_is_refused(written: Path, text: str, problem: str) -> None:
    written.write_text(text)
    with pytest.raises(InvalidRequest, match=f"^--pairs: .*{problem}"):
        read_pairs(written)


def test_all_rows_that_do_not_fit_are_told(written: Path) -> None:
    written.write_text("clean\na,b\nc\nd,e\n")
    with pytest.raises(InvalidRequest) as raised:
        read_pairs(written)
    assert [violation.description.split(" of ")[0] for violation in raised.value.violations] == ["row 1", "row 3"]
