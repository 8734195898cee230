"""Converting pickles: what is plain arrives, what is not is named, and nothing in a file ever runs."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.contexts import unpickle_process
from dst_grpc.contexts.conversion import convert_pickle
from dst_grpc.engine.files import File
from dst_grpc.engine.safetensors_file import SafetensorsFile
from dst_grpc.errors import DataLoss, InvalidRequest
from tests import checkpoints
from tests.checkpoints import read_header


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_file_of_the_reference_implementation_is_the_same_autoencoder_afterwards(tmp_path: Path) -> None:
    entries = {"activation": "TopK", "activation_state_dict": OrderedDict(k=2, postact_fn="ReLU"), "activation.k": 2}
    source = checkpoints.write_state_dict(tmp_path / "3.pt", entries)
    converted = convert_pickle(source, tmp_path / "out.safetensors")
    assert converted.n_tensors == len(checkpoints.state_dict())
    assert json.loads(converted.texts["activation_state_dict"]) == {"k": 2, "postact_fn": "ReLU"}
    before = checkpoints.load_autoencoder(source, "cpu", torch.float32)
    after = checkpoints.load_autoencoder(tmp_path / "out.safetensors", "cpu", torch.float32)
    assert torch.equal(before.encoder, after.encoder)
    assert torch.equal(before.decoder, after.decoder)
    assert (after.activation, after.k) == (before.activation, before.k)
    assert [r.name for r in read_header(source).interpretations] == [
        r.name for r in read_header(tmp_path / "out.safetensors").interpretations
    ]


def test_legacy_files_parameters_and_arrays_arrive(tmp_path: Path) -> None:
    """The format before torch 1.6, which the server does not read at all."""
    entries = {
        "weight": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t()),
        "nested": {"bias": np.arange(3, dtype=np.float32), "note": "kept"},
        "half": torch.ones(2, dtype=torch.bfloat16),
        "scalar": np.float64(2.5),
        "flags": {"a", "b"},
        "nothing": None,
    }
    torch.save(entries, tmp_path / "0.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(DataLoss, match="dst-grpc convert"):
        read_header(tmp_path / "0.pt")
    converted = convert_pickle(tmp_path / "0.pt", tmp_path / "0.safetensors")
    file = SafetensorsFile.open(File.at(tmp_path / "0.safetensors"))
    assert set(file.tensors) == {"weight", "nested.bias", "half"}
    assert torch.equal(file.read("weight"), torch.arange(6.0).reshape(2, 3).t())
    assert torch.equal(file.read("nested.bias"), torch.arange(3.0))
    assert converted.texts == {"flags": '["a", "b"]', "nested.note": "kept", "nothing": "null", "scalar": "2.5"}


def test_a_payload_does_not_run_and_is_named(tmp_path: Path) -> None:
    write_payload(tmp_path / "0.pt", tmp_path / "attacked")
    with pytest.raises(DataLoss, match=r"0\.pt: names what is neither .* and was not run") as caught:
        convert_pickle(tmp_path / "0.pt", tmp_path / "0.safetensors")
    for name in PAYLOAD:
        assert name in caught.value.message
    assert not (tmp_path / "attacked").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.pt"]


PAYLOAD = ("mkdir", "argparse.Namespace", "PurePosixPath")


def write_payload(path: Path, attacked: Path, *, legacy: bool = False) -> None:
    entries = {
        **checkpoints.state_dict(),
        "attack": Attack(attacked),
        "config": argparse.Namespace(k=3),
        "where": pathlib.PurePosixPath("/somewhere"),
    }
    torch.save(entries, path, _use_new_zipfile_serialization=not legacy)


def write_opcodes(path: Path, program: bytes) -> None:
    """A torch file whose pickle is *program*."""
    sound = checkpoints.write_state_dict(path.with_suffix(".sound.pt"))
    with zipfile.ZipFile(sound) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, program if entry.filename.endswith("data.pkl") else source.read(entry))


ATTACKS = {
    "posix.system": b"cposix\nsystem\n(S'touch %b'\ntR",
    "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n(C\x03abctR",
    "torch.os.system": b"\x8c\x05torch\x8c\x09os.system\x93\x8c\x04true\x85R",
    "__builtin__.eval": b"c__builtin__\neval\n(S'1'\ntR",
    "builtins.object": b"cbuiltins\nobject\n)\x81}b",
}
"""Of a function, of a nested load, of a name with a dot, of an object of builtins, of a state."""
CODEC = b"c_codecs\nencode\n(Vabc\nVrot13\ntR."
DOUBLED = b"\x80\x02}(X\x01\x00\x00\x00aK\x01" + b"2\x86" * 40 + b"u."
"""A tuple doubled forty times over: a hundred bytes that would be a million million entries."""


def write_program(path: Path) -> None:
    """A TorchScript program."""
    with zipfile.ZipFile(checkpoints.write_state_dict(path), "a") as archive:
        archive.writestr("0/constants.pkl", b"")


def write_archive(path: Path) -> None:
    """A file of torch before 0.2."""
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))


ATTACKED = "attacked"
"""What none of the files below leaves behind."""
REFUSED: dict[str, tuple[Callable[[Path], object], Sequence[str]]] = {
    "an old payload": (
        lambda path: write_payload(path, path.with_name(ATTACKED), legacy=True),
        (*PAYLOAD, "was not run"),
    ),
    "programs of every kind": (
        lambda path: write_opcodes(
            path,
            b"\x80\x04" + b"0".join(ATTACKS.values()).replace(b"%b", str(path.with_name(ATTACKED)).encode()) + b".",
        ),
        (*ATTACKS, "was not run"),
    ),
    "a codec": (
        lambda path: write_opcodes(path, CODEC),
        ("cannot be converted: UnpicklingError: it encodes text as rot13",),
    ),
    "all memory, by doubling": (lambda path: write_opcodes(path, DOUBLED), ("more than 1000000 values",)),
    "all memory, by a shape": (
        # Four bytes that pose as four million million.
        lambda path: checkpoints.write_state_dict(path, {"large": torch.zeros(1).expand(10**12)}),
        ("memory",),
    ),
    "garbage": (lambda path: path.write_bytes(b"garbage" * 30), ("cannot be converted",)),
    "a bare pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), ("cannot be converted",)),
    "a list": (lambda path: torch.save([1, 2], path), ("holds a list rather than a dictionary",)),
    "a TorchScript program": (write_program, ("is a TorchScript program",)),
    "a tar archive": (write_archive, ("is a tar archive",)),
}
"""What is written, and what is said of it."""
EACH_IN_A_FORK = """
import os, sys
import unpickle_process
for source in sys.argv[1:]:
    print(end="\\0", flush=True)
    child = os.fork()
    if not child:
        status = unpickle_process._main(source, source + ".safetensors", str(os.path.getsize(source)), "60")
        sys.stdout.flush()
        os._exit(status)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != unpickle_process._REFUSED:
        sys.exit(f"{source} was not refused")
"""
"""The script of conversions, imported once, which takes longer than all files do."""


def test_what_is_no_state_dict_of_tensors_is_refused_and_not_run(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.pt" for i in range(len(REFUSED))]
    for path, (write, _) in zip(paths, REFUSED.values(), strict=True):
        write(path)
    done = subprocess.run(
        [sys.executable, "-c", EACH_IN_A_FORK, *map(str, paths)],
        cwd=Path(unpickle_process.__file__).parent,
        stdout=subprocess.PIPE,
        check=True,
    )
    _, *said = done.stdout.decode().split("\0")
    for text, (name, (_, expected)) in zip(said, REFUSED.items(), strict=True):
        assert [part for part in expected if part not in text] == [], name
    assert not (tmp_path / ATTACKED).exists()
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_file_in_this_folder_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pt").write_text("# no pickle")
    with pytest.raises(DataLoss, match=r"^text\.pt: cannot be converted"):
        convert_pickle(Path("text.pt"), tmp_path / "out.safetensors")


def test_a_conversion_has_an_end(tmp_path: Path) -> None:
    source = checkpoints.write_state_dict(tmp_path / "0.pt")
    with pytest.raises(DataLoss, match=r"could not be read within 0\.001 seconds"):
        convert_pickle(source, tmp_path / "0.safetensors", timeout_seconds=0.001)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = checkpoints.write_state_dict(tmp_path / "0.pt")
    (tmp_path / "there.safetensors").write_text("precious")
    for name, problem in (
        ("there.safetensors", "exists already"),
        ("there.txt", "must end in .safetensors"),
        ("none/there.safetensors", "there is no folder"),
    ):
        with pytest.raises(InvalidRequest, match=problem):
            convert_pickle(source, tmp_path / name)
    assert (tmp_path / "there.safetensors").read_text() == "precious"
