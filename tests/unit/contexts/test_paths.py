"""Paths of clients: regular files below the allowed roots, and nothing else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from dst_grpc.contexts.paths import AllowedRoots, _opened_below
from dst_grpc.engine.files import read_small
from dst_grpc.errors import DataLoss, InvalidRequest, NotAllowed, NotFound, Reason


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
        roots.open(str(path))
    assert caught.value.reason is Reason.PATH_NOT_ALLOWED
    return caught.value.message


def test_a_file_below_a_root_is_honoured_absolute_or_relative(roots: AllowedRoots, root: Path) -> None:
    expected = root / "sub" / "a.pt"
    for text in (str(expected), "sub/a.pt", "./sub/../sub/a.pt", f"{root}/sub/../sub//a.pt"):
        assert roots.open(text).path == expected


def test_a_relative_path_is_looked_up_below_each_root(tmp_path: Path, root: Path) -> None:
    roots = AllowedRoots([tmp_path / "root-but-longer", root])
    assert roots.open("sub/a.pt").path == root / "sub" / "a.pt"


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
    assert read_small(roots.open("in.pt")) == b"a"


def test_a_file_keeps_the_name_that_is_given_rather_than_that_of_where_links_lead(
    roots: AllowedRoots, root: Path
) -> None:
    (root / "x").mkdir()
    (root / "x" / "in.pt").symlink_to(root / "sub" / "a.pt")
    (root / "deep").symlink_to("x")
    for text in ("x/in.pt", "./x/../x/in.pt", f"{root}/x//in.pt"):
        assert roots.open(text).path == root / "x" / "in.pt"
    assert roots.open("deep/in.pt").path == root / "deep" / "in.pt"


def test_dots_behind_a_link_mean_what_lies_around_where_it_leads(roots: AllowedRoots, root: Path) -> None:
    (root / "x").mkdir()
    (root / "deep").symlink_to("sub/folder")
    (root / "sub" / "folder").mkdir()
    (root / "a.pt").write_text("another")
    allowed = roots.open("deep/../a.pt")
    assert (allowed.path, read_small(allowed)) == (root / "sub" / "a.pt", b"a")


def test_a_name_outside_the_roots_that_leads_inside_is_not_kept(
    roots: AllowedRoots, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "link.pt").symlink_to(root / "sub" / "a.pt")
    assert roots.open(str(tmp_path / "link.pt")).path == root / "sub" / "a.pt"


def test_a_snapshot_of_a_hugging_face_cache_is_no_root_without_what_its_links_lead_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = tmp_path / "models--x--y"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "5eed").write_text("a")
    (snapshot / "a.pt").symlink_to("../../blobs/5eed")
    assert "leads out of them" in refused(AllowedRoots([snapshot]), "a.pt")
    assert f"{snapshot} holds links to {repository}: allow that instead" in caplog.text
    caplog.clear()
    for roots in (AllowedRoots([repository]), AllowedRoots([tmp_path])):
        assert roots.open(str(snapshot / "a.pt")).path == snapshot / "a.pt"
    assert not caplog.text


def test_a_root_that_is_a_link_is_resolved(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    roots = AllowedRoots([tmp_path / "link"])
    assert roots.open(str(tmp_path / "link" / "sub" / "a.pt")).path == root / "sub" / "a.pt"


def test_what_is_no_regular_file_is_refused_for_what_it_is_without_waiting(root: Path) -> None:
    os.mkfifo(root / "fifo.pt")
    (root / "loop.pt").symlink_to("loop.pt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket.pt"))
    roots = AllowedRoots([root])
    kinds = {"fifo.pt": "a FIFO", "sub": "a folder", ".": "a folder", "socket.pt": "a socket", "loop.pt": "a link"}
    for text, kind in kinds.items():
        assert f"is not a regular file but {kind}" in refused(roots, text)
    assert "is not a regular file but a device" in refused(AllowedRoots([Path("/dev")]), "/dev/null")


def test_a_link_that_leads_nowhere_is_not_found_inside_and_refused_outside(
    roots: AllowedRoots, root: Path, tmp_path: Path
) -> None:
    (root / "dangling.pt").symlink_to("sub/gone.pt")
    (root / "out.pt").symlink_to(tmp_path / "gone.pt")
    with pytest.raises(NotFound):
        roots.open("dangling.pt")
    assert "outside" in refused(roots, "out.pt")


def test_a_link_that_appears_after_the_path_was_resolved_is_not_followed(root: Path, tmp_path: Path) -> None:
    """The race itself, where it is decided: the path was free of links, and is not any more."""
    (root / "folder").symlink_to(tmp_path)
    (root / "out.pt").symlink_to(tmp_path / "secret.pt")
    assert _opened_below("", root, root / "folder" / "secret.pt") is None
    with pytest.raises(NotAllowed, match="not a regular file but a link"):
        _opened_below("", root, root / "out.pt")


def test_a_file_is_allowed_rather_than_its_path(roots: AllowedRoots, root: Path) -> None:
    allowed = roots.open("sub/a.pt")
    other = root / "other.pt"
    other.write_text("b")
    other.replace(allowed.path)
    assert read_small(allowed) == b"a"
    allowed.let_go()
    with pytest.raises(DataLoss, match="changed since") as caught:
        read_small(allowed)
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_a_file_that_is_written_to_is_not_read_on(roots: AllowedRoots, root: Path) -> None:
    allowed = roots.open("sub/a.pt")
    (root / "sub" / "a.pt").write_text("longer")
    with pytest.raises(DataLoss, match="changed since"):
        read_small(allowed)


def test_who_reads_a_file_reads_on_when_it_is_let_go(roots: AllowedRoots) -> None:
    allowed = roots.open("sub/a.pt")
    with allowed.opened() as file:
        allowed.let_go()
        assert file.read(0, 1) == b"a"


def test_a_file_that_is_not_there_is_not_found(roots: AllowedRoots) -> None:
    with pytest.raises(NotFound) as caught:
        roots.open("sub/b.pt")
    assert caught.value.reason is Reason.AUTOENCODER_NOT_FOUND


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must not be empty"),
        ("a\0b", "NUL"),
        ("x" * 5000, "5000 bytes is too long"),
        ("é" * 2049, "4098 bytes is too long"),
        ("x" * 300, "name too long"),
        ("https://example.org/a.pt", "is a URL"),
        ("file:///etc/passwd", "is a URL"),
    ],
)
def test_what_can_be_no_path_is_refused_for_what_it_is(roots: AllowedRoots, text: str, problem: str) -> None:
    assert problem in refused(roots, text)


def test_a_path_through_a_file_or_a_circle_of_links_is_not_found(roots: AllowedRoots, root: Path) -> None:
    (root / "loop").symlink_to(root / "loop")
    for text in ("loop/a.pt", "sub/a.pt/b.pt"):
        with pytest.raises(NotFound):
            roots.open(text)


def test_looking_leaves_nothing_open(roots: AllowedRoots, root: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        roots.open("sub/a.pt")
        for text in ("sub/b.pt", "sub/a.pt/c.pt", "gone/b.pt"):
            with pytest.raises(NotFound):
                roots.open(text)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_without_roots_no_path_is_honoured(root: Path) -> None:
    assert "not allowed on this server" in refused(AllowedRoots([]), root / "sub" / "a.pt")


def test_a_root_that_is_no_folder_is_a_wrong_setting(root: Path) -> None:
    with pytest.raises(InvalidRequest, match="is not a folder") as caught:
        AllowedRoots([root, root / "sub" / "a.pt"])
    assert caught.value.violations[0].field == "autoencoder_roots[1]"
