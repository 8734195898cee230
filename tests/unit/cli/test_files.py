"""Files that options name: what cannot be written is refused before it is, in the words of writing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dst_grpc.cli._files import check_writable, read_text, write_text
from dst_grpc.errors import InvalidRequest


def _said(path: Path) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as before:
        check_writable(path, "--html")
    with pytest.raises(InvalidRequest) as writing:
        write_text(path, "text", "--html")
    return str(before.value), str(writing.value)


def test_what_cannot_be_written_is_told_before_as_when_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("there")
    for path in (tmp_path / "none" / "file", tmp_path / "file" / "below", tmp_path, tmp_path / ("a" * 300)):
        before, writing = _said(path)
        assert before == writing
        assert f"--html: cannot write {path}: " in before


@pytest.mark.parametrize("name", ["there", "new"])
def test_what_may_not_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Root may write everything, and tests may run as root."""
    (tmp_path / "there").write_text("text")
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(os, "access", lambda *what: asked.append(what))
    with pytest.raises(InvalidRequest, match="Permission denied"):
        check_writable(tmp_path / name, "--html")
    assert asked == [(tmp_path / "there" if name == "there" else tmp_path, os.W_OK)]


def test_nothing_is_written_by_looking(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("text")
    check_writable(tmp_path / "there", "--html")
    check_writable(tmp_path / "new", "--html")
    check_writable(None, "--html")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "text"


def test_what_cannot_be_read_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for name, problem in (("latin", "byte 3 is not UTF-8"), ("none", "No such file or directory"), (".", "Is a dir")):
        with pytest.raises(InvalidRequest) as raised:
            read_text(tmp_path / name, "--pairs")
        assert str(raised.value).startswith(f"--pairs: cannot read {tmp_path / name}: {problem}")
