"""Headers of safetensors files are checked by hand: each way to be corrupt has a message of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dst_grpc.engine.files import File
from dst_grpc.engine.safetensors_file import SafetensorsFile
from dst_grpc.errors import DataLoss, Reason

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(path: Path, header: Any, data: bytes = b"\0" * 8, *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def test_a_sound_file_is_described_and_read(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    save_file({"a": tensor, "b": tensor.half()}, tmp_path / "x.safetensors", metadata={"k": "v"})
    file = SafetensorsFile.open(File.at(tmp_path / "x.safetensors"))
    assert file.metadata == {"k": "v"}
    assert {name: (header.shape, header.element_type) for name, header in file.tensors.items()} == {
        "a": ((2, 3), "F32"),
        "b": ((2, 3), "F16"),
    }
    assert torch.equal(file.read("a"), tensor)


BAD_HEADERS: list[tuple[Any, bytes, str]] = [
    (b"{", b"", "no sound JSON"),
    (b"\xff\xff", b"", "no sound JSON"),
    (b"[" * 100_000, b"", "no sound JSON"),
    (b'{"a": 1, "a": 2}', b"", "occurs twice"),
    ([], b"", "no JSON object"),
    ({"__metadata__": {"k": 1}}, b"", "metadata are not texts"),
    ({"a": 3}, b"", "lacks dtype, shape or data_offsets"),
    ({"a": {**ENTRY, "dtype": "F8_E8M0"}}, b"\0" * 8, "unsupported element type 'F8_E8M0'"),
    ({"a": {**ENTRY, "shape": [-2]}}, b"\0" * 8, "no sound shape"),
    ({"a": {**ENTRY, "shape": [2**64]}}, b"\0" * 8, "no sound shape"),
    ({"a": {**ENTRY, "shape": [1] * 65}}, b"\0" * 8, "no sound shape"),
    ({"a": {**ENTRY, "shape": [2**40, 2**40]}}, b"\0" * 8, "needs 4835703278458516698824704 bytes and has 8"),
    ({"a": {**ENTRY, "data_offsets": [8, 0]}}, b"\0" * 8, "needs 8 bytes and has -8"),
    ({"a": ENTRY, "b": ENTRY}, b"\0" * 8, "a gap or an overlap"),
    ({"a": {**ENTRY, "data_offsets": [8, 16]}}, b"\0" * 16, "a gap or an overlap"),
    ({"a": ENTRY}, b"\0" * 7, "is truncated: tensor 'a' ends 1 bytes behind the file's end"),
    ({"a": ENTRY}, b"\0" * 9, "has 1 bytes behind its last tensor"),
]


@pytest.mark.parametrize(("header", "data", "problem"), BAD_HEADERS, ids=lambda value: str(value)[:30])
def test_a_bad_header_is_named(tmp_path: Path, header: Any, data: bytes, problem: str) -> None:
    path = written(tmp_path / "x.safetensors", header, data)
    with pytest.raises(DataLoss, match=problem) as caught:
        SafetensorsFile.open(File.at(path))
    assert caught.value.metadata == {"file": f"{tmp_path.name}/x.safetensors"}


@pytest.mark.parametrize(
    ("length", "problem"),
    [(10**10, "claims a header of 10000000000 bytes"), (10**6, "longer than the file"), (2**64 - 1, "claims a header")],
)
def test_a_header_that_is_too_long_is_not_read(tmp_path: Path, length: int, problem: str) -> None:
    with pytest.raises(DataLoss, match=problem):
        SafetensorsFile.open(File.at(written(tmp_path / "x.safetensors", {}, length=length)))


def test_a_file_shorter_than_its_length_field_is_truncated(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\0\0")
    with pytest.raises(DataLoss, match="is truncated: 2 bytes"):
        SafetensorsFile.open(File.at(tmp_path / "x.safetensors"))


def test_a_missing_file_a_folder_and_a_fifo_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, problem in (("nothing", "No such file"), ("", "not a regular file"), ("fifo", "not a regular file")):
        with pytest.raises(DataLoss, match=problem):
            SafetensorsFile.open(File.at(tmp_path / name))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def written_over(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def swapped(path: Path) -> None:
    other = path.with_name("other")
    save_file({"a": torch.ones(2)}, other)
    other.replace(path)


@pytest.mark.parametrize("change", [cut, written_over, swapped])
def test_no_other_file_is_read_than_the_one_whose_header_was(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path)
    file = SafetensorsFile.open(File.at(path))
    change(path)
    for read in (lambda: file.read("a"), lambda: list(file.blocks("a"))):
        with pytest.raises(DataLoss, match="changed since") as caught:
            read()
        assert caught.value.reason is Reason.DIGEST_MISMATCH
    with pytest.raises(DataLoss, match="changed since"):
        SafetensorsFile.open(File(path, file.file.identity))


def test_what_is_read_belongs_to_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    tensor = SafetensorsFile.open(File.at(path)).read("a")
    path.write_bytes(b"")
    assert torch.equal(tensor, torch.zeros(2))


def test_a_large_tensor_comes_in_blocks_too(tmp_path: Path) -> None:
    tensor = torch.arange(3_000_001, dtype=torch.float32)
    save_file({"small": torch.ones(3), "large": tensor}, tmp_path / "x.safetensors")
    file = SafetensorsFile.open(File.at(tmp_path / "x.safetensors"))
    blocks = list(file.blocks("large"))
    assert len(blocks) > 1
    assert torch.equal(torch.cat(blocks), tensor)
    assert torch.equal(torch.cat(list(file.blocks("small"))), torch.ones(3))


def test_a_tensor_is_filled_in_wherever_and_as_whatever_it_is_wanted(tmp_path: Path) -> None:
    tensor = torch.randn(1500, 1001)
    save_file({"a": tensor, "one": torch.tensor(3.0), "none": torch.empty(0, 2)}, tmp_path / "x.safetensors")
    file = SafetensorsFile.open(File.at(tmp_path / "x.safetensors"))
    contiguous, transposed = torch.empty(1500, 1001, dtype=torch.float16), torch.empty(1001, 1500).t()
    split = torch.empty(3, 1001, 500).permute(0, 2, 1)
    for place in (contiguous, transposed, split):
        file.fill("a", place)
        assert torch.equal(place.reshape(1500, 1001), tensor.to(place.dtype))
    one, none = torch.empty(()), torch.empty(0, 2)
    file.fill("one", one)
    file.fill("none", none)
    assert one == 3
