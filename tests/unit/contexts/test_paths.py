"""Paths of clients: regular files below the allowed roots, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dst_grpc.contexts.paths import AllowedRoots
from dst_grpc.errors import InvalidRequest, NotAllowed, NotFound, Reason


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.pt").write_text("a")
    (tmp_path / "secret.pt").write_text("secret")
    (tmp_path / "root-but-longer").mkdir()
    (tmp_path / "root-but-longer" / "a.pt").write_text("a")
    return root


@pytest.fixture
def roots(root: Path) -> AllowedRoots:
    return AllowedRoots([root])


def refused(roots: AllowedRoots, path: str | Path) -> str:
    with pytest.raises(NotAllowed) as caught:
        roots.regular_file(str(path))
    assert caught.value.reason is Reason.PATH_NOT_ALLOWED
    return caught.value.message


def test_a_file_below_a_root_is_honoured_absolute_or_relative(roots: AllowedRoots, root: Path) -> None:
    expected = root / "sub" / "a.pt"
    for text in (str(expected), "sub/a.pt", "./sub/../sub/a.pt", f"{root}/sub/../sub//a.pt"):
        assert roots.regular_file(text) == expected


def test_a_relative_path_is_looked_up_below_each_root(tmp_path: Path, root: Path) -> None:
    roots = AllowedRoots([tmp_path / "root-but-longer", root])
    assert roots.regular_file("sub/a.pt") == root / "sub" / "a.pt"


def test_a_path_that_climbs_out_is_refused(roots: AllowedRoots, root: Path) -> None:
    for text in ("../secret.pt", "sub/../../secret.pt", f"{root}/../secret.pt"):
        assert "outside" in refused(roots, text)


def test_an_absolute_path_outside_is_refused_even_if_its_name_begins_like_the_root(
    roots: AllowedRoots, tmp_path: Path
) -> None:
    assert "outside" in refused(roots, tmp_path / "secret.pt")
    assert "outside" in refused(roots, tmp_path / "root-but-longer" / "a.pt")


def test_an_absent_file_outside_is_refused_in_the_same_words_as_one_that_exists(
    roots: AllowedRoots, tmp_path: Path
) -> None:
    exists, absent = refused(roots, tmp_path / "secret.pt"), refused(roots, tmp_path / "secrex.pt")
    assert exists.replace("secret", "secrex") == absent


def test_a_link_out_of_the_root_is_refused_and_one_within_is_followed(
    roots: AllowedRoots, root: Path, tmp_path: Path
) -> None:
    (root / "out.pt").symlink_to(tmp_path / "secret.pt")
    (root / "folder").symlink_to(tmp_path)
    (root / "in.pt").symlink_to("sub/a.pt")
    assert "outside" in refused(roots, "out.pt")
    assert "outside" in refused(roots, "folder/secret.pt")
    assert roots.regular_file("in.pt") == root / "sub" / "a.pt"


def test_a_root_that_is_a_link_is_resolved(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    roots = AllowedRoots([tmp_path / "link"])
    assert roots.regular_file(str(tmp_path / "link" / "sub" / "a.pt")) == root / "sub" / "a.pt"


def test_folders_and_fifos_are_refused_without_waiting(roots: AllowedRoots, root: Path) -> None:
    os.mkfifo(root / "fifo.pt")
    for text in ("fifo.pt", "sub", "."):
        assert "is not a regular file" in refused(roots, text)


def test_a_file_that_is_not_there_is_not_found(roots: AllowedRoots) -> None:
    with pytest.raises(NotFound) as caught:
        roots.regular_file("sub/b.pt")
    assert caught.value.reason is Reason.AUTOENCODER_NOT_FOUND


def test_paths_that_no_file_can_have_are_refused(roots: AllowedRoots, root: Path) -> None:
    (root / "loop").symlink_to(root / "loop")
    for text in ("a\0b", "x" * 5000, "loop", "loop/a.pt"):
        with pytest.raises((NotAllowed, NotFound)):
            roots.regular_file(text)


def test_without_roots_no_path_is_honoured(root: Path) -> None:
    assert "not allowed on this server" in refused(AllowedRoots([]), root / "sub" / "a.pt")


def test_a_root_that_is_no_folder_is_a_wrong_setting(root: Path) -> None:
    with pytest.raises(InvalidRequest, match="is not a folder") as caught:
        AllowedRoots([root, root / "sub" / "a.pt"])
    assert caught.value.violations[0].field == "autoencoder_roots[1]"
