"""Converting pickles: what is plain arrives, what is not is named, and nothing in a file ever runs."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("legacy", [False, True])
def test_a_payload_does_not_run_and_is_named(tmp_path: Path, legacy: bool) -> None:
    entries = {
        **checkpoints.state_dict(),
        "attack": Attack(tmp_path / "attacked"),
        "config": argparse.Namespace(k=3),
        "where": pathlib.PurePosixPath("/somewhere"),
    }
    torch.save(entries, tmp_path / "0.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataLoss, match="was not run") as caught:
        convert_pickle(tmp_path / "0.pt", tmp_path / "0.safetensors")
    for name in ("mkdir", "argparse.Namespace", "PurePosixPath"):
        assert name in caught.value.message
    assert not (tmp_path / "attacked").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.pt"]


def opcodes(tmp_path: Path, program: bytes) -> Path:
    """A torch file whose pickle is *program*."""
    checkpoints.write_state_dict(tmp_path / "sound.pt")
    with zipfile.ZipFile(tmp_path / "sound.pt") as source, zipfile.ZipFile(tmp_path / "0.pt", "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, program if entry.filename.endswith("data.pkl") else source.read(entry))
    return tmp_path / "0.pt"


ATTACKS = {
    "posix.system": b"cposix\nsystem\n(S'touch %b'\ntR",
    "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n(C\x03abctR",
    "torch.os.system": b"\x8c\x05torch\x8c\x09os.system\x93\x8c\x04true\x85R",
    "__builtin__.eval": b"c__builtin__\neval\n(S'1'\ntR",
    "builtins.object": b"cbuiltins\nobject\n)\x81}b",
}
"""Of a function, of a nested load, of a name with a dot, of an object of builtins, of a state."""


def test_programs_of_every_kind_do_not_run_and_are_named(tmp_path: Path) -> None:
    victim = tmp_path / "attacked"
    program = b"\x80\x04" + b"0".join(ATTACKS.values()).replace(b"%b", str(victim).encode()) + b"."
    with pytest.raises(DataLoss, match="was not run") as caught:
        convert_pickle(opcodes(tmp_path, program), tmp_path / "0.safetensors")
    assert [name for name in ATTACKS if name not in caught.value.message] == []
    assert not victim.exists()
    assert not (tmp_path / "0.safetensors").exists()


def test_a_codec_is_a_program_too(tmp_path: Path) -> None:
    program = b"c_codecs\nencode\n(Vabc\nVrot13\ntR."
    with pytest.raises(DataLoss, match="cannot be converted: UnpicklingError: it encodes text as rot13"):
        convert_pickle(opcodes(tmp_path, program), tmp_path / "0.safetensors")


def test_files_that_ask_for_all_memory_are_refused(tmp_path: Path) -> None:
    # A tuple doubled forty times over: a hundred bytes that would be a million million entries.
    program = b"\x80\x02}(X\x01\x00\x00\x00aK\x01" + b"2\x86" * 40 + b"u."
    with pytest.raises(DataLoss, match="more than 1000000 values"):
        convert_pickle(opcodes(tmp_path, program), tmp_path / "0.safetensors")
    # Four bytes that pose as four million million.
    path = checkpoints.write_state_dict(tmp_path / "1.pt", {"large": torch.zeros(1).expand(10**12)})
    with pytest.raises(DataLoss, match="memory"):
        convert_pickle(path, tmp_path / "1.safetensors")


def test_a_conversion_has_an_end(tmp_path: Path) -> None:
    source = checkpoints.write_state_dict(tmp_path / "0.pt")
    with pytest.raises(DataLoss, match=r"could not be read within 0\.001 seconds"):
        convert_pickle(source, tmp_path / "0.safetensors", timeout_seconds=0.001)


@pytest.mark.parametrize("content", [b"garbage" * 30, pickle.dumps({"a": 1})], ids=["garbage", "a bare pickle"])
def test_files_that_are_none_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.pt").write_bytes(content)
    with pytest.raises(DataLoss, match="cannot be converted"):
        convert_pickle(tmp_path / "0.pt", tmp_path / "0.safetensors")


def test_lists_and_objects_are_no_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "0.pt")
    with pytest.raises(DataLoss, match="holds a list rather than a dictionary"):
        convert_pickle(tmp_path / "0.pt", tmp_path / "0.safetensors")


def test_programs_and_archives_are_not_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(checkpoints.write_state_dict(tmp_path / "0.pt"), "a") as archive:
        archive.writestr("0/constants.pkl", b"")
    (tmp_path / "storages").write_bytes(bytes(100))
    with tarfile.open(tmp_path / "1.pt", "w") as tar:
        tar.add(tmp_path / "storages", "storages")
    for name, problem in (("0.pt", "is a TorchScript program"), ("1.pt", "is a tar archive")):
        with pytest.raises(DataLoss, match=problem):
            convert_pickle(tmp_path / name, tmp_path / "0.safetensors")


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
