"""Npz archives: what is read is what was written, and forged ones are named before anything is allocated."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.engine.files import File
from dst_grpc.engine.npz_file import NpzFile
from dst_grpc.errors import DataLoss, Reason


def npy(array: object, **header: object) -> bytes:
    """An array as a member, its header laid over with *header*."""
    file = io.BytesIO()
    np.save(file, np.asarray(array), allow_pickle=True)
    if header:
        body = file.getvalue()[128:]
        said = {"descr": "<f4", "fortran_order": False, "shape": (2,)} | header
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, said)
        file.write(body)
    return file.getvalue()


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return path


def test_arrays_come_back_in_either_order_and_any_float(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
        "c": np.array(2.5),
        "empty": np.zeros((0, 3), np.float32),
    }
    np.savez(tmp_path / "x.npz", whole=np.arange(3), **arrays)
    file = NpzFile.open(File.at(tmp_path / "x.npz"))
    assert dict(file.shapes) == {name: array.shape for name, array in arrays.items()}
    for name, array in arrays.items():
        assert torch.equal(file.read(name), torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape))


def test_a_large_array_is_streamed_whole(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(1 << 11, 1 << 11)).astype(np.float64)
    np.savez(tmp_path / "x.npz", array=array)
    assert torch.equal(NpzFile.open(File.at(tmp_path / "x.npz")).read("array"), torch.from_numpy(array))


def test_pickled_objects_are_never_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([{"k": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataLoss, match=r"array 'a.npy' holds pickled objects, which are never read"):
        NpzFile.open(File.at(tmp_path / "x.npz"))


def test_bombs_do_not_go_off(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", {"a.npy": npy(np.zeros(10**6, np.float32))}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    with pytest.raises(DataLoss, match="claims to unpack to more than its"):
        NpzFile.open(File.at(path))
    random = np.random.default_rng(0).normal(size=100).astype(np.float32)
    archive(path, {"a.npy": npy(random), "b.npy": npy(np.zeros(20, np.float32))}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataLoss, match=r"is compressed|claims to unpack"):
        NpzFile.open(File.at(path))
    archive(path, {f"{i}.npy": npy(np.zeros(1)) for i in range(1001)})
    with pytest.raises(DataLoss, match="has 1001 members"):
        NpzFile.open(File.at(path))


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"a.npy": npy([1.0, 2.0], shape=(10**12,))}, "needs 4000000000000 bytes and has"),
        ({"a.npy": npy([1.0, 2.0], shape=(3,))}, "needs 12 bytes and has 16"),
        ({"a.npy": npy(np.array([1.0, 2.0], np.float32), descr=">f4")}, "unsupported element type >f4"),
        ({"a.npy": npy(np.array(["a"]))}, "unsupported element type <U1"),
        ({"a.npy": b"no array at all"}, "is truncated, or no npz archive"),
        ({"a.npy": b""}, "is truncated, or no npz archive"),
        ({"a.npy": npy([1.0]).replace(b"\x93NUMPY\x01", b"\x93NUMPY\x03", 1)}, "in version \\(3, 0\\)"),
        ({"a.txt": b"hello"}, "holds 'a.txt', which is no array"),
    ],
)
def test_forged_members_are_named(tmp_path: Path, members: dict[str, bytes], problem: str) -> None:
    with pytest.raises(DataLoss, match=f"x.npz: .*{problem}"):
        NpzFile.open(File.at(archive(tmp_path / "x.npz", members)))


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(1000, dtype=np.float32))
    whole = path.read_bytes()
    for length in (0, 3, 100, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(DataLoss, match=r"x.npz: is truncated, or no npz archive"):
            NpzFile.open(File.at(path))
    # A bit that is not the one that was written is told by the archive's checksum, when the array is read.
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    path.write_bytes(damaged)
    file = NpzFile.open(File.at(path))
    with pytest.raises(DataLoss, match="array 'a' cannot be read: Bad CRC-32"):
        file.read("a")
    with pytest.raises(DataLoss, match="array 'b' cannot be read"):
        file.read("b")


def test_an_archive_with_a_long_list_of_members_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as target:
        for i in range(20_000):
            target.writestr(f"{i:010}.npy", b"")
    with pytest.raises(DataLoss, match="list of members is too long"):
        NpzFile.open(File.at(tmp_path / "x.npz"))


def test_no_other_archive_is_read_than_the_one_that_was_opened(tmp_path: Path) -> None:
    path, new = tmp_path / "x.npz", tmp_path / "new.npz"
    for one in (path, new):
        np.savez(one, a=np.ones(3, np.float32))
    file = NpzFile.open(File.at(path))
    assert NpzFile.open(File(path, file.file.identity)).read("a").sum() == 3
    new.replace(path)
    for read in (lambda: file.read("a"), lambda: NpzFile.open(File(path, file.file.identity))):
        with pytest.raises(DataLoss, match="changed since") as caught:
            read()
        assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(DataLoss, match="is not a regular file"):
        NpzFile.open(File.at(tmp_path / "x.npz"))
