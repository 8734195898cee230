"""The generator's own logic: the import rewrite, what it drops and adds, and how it compares."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import generate

MESSAGES = """\
syntax = "proto3";
package dst.v1;
import "google/protobuf/duration.proto";
import "google/rpc/status.proto";
message Thing {
  google.rpc.Status error = 1;
  google.protobuf.Duration age = 2;
}
"""

SERVICE = """\
syntax = "proto3";
package dst.v1;
import "dst/v1/thing.proto";
service ThingService {
  rpc Watch(Thing) returns (stream Thing);
}
"""


@pytest.fixture(name="protos")
def _protos(tmp_path: Path) -> Path:
    folder = tmp_path / "protos"
    (folder / "dst" / "v1").mkdir(parents=True)
    (folder / "dst" / "v1" / "thing.proto").write_text(MESSAGES)
    (folder / "dst" / "v1" / "thing_service.proto").write_text(SERVICE)
    (folder / "third_party").symlink_to(generate.PROTOS / "third_party")
    return folder


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from dst.v1 import a_pb2 as _a_pb2", "from dst_grpc._gen.dst.v1 import a_pb2 as _a_pb2"),
        ("from dst.v1alpha1 import a_pb2", "from dst_grpc._gen.dst.v1alpha1 import a_pb2"),
        ("from google.rpc import status_pb2", "from google.rpc import status_pb2"),
        ("from dstx.v1 import a_pb2", "from dstx.v1 import a_pb2"),
        ("    '/dst.v1.ThingService/Watch',", "    '/dst.v1.ThingService/Watch',"),
        ("# source: dst/v1/a.proto", "# source: dst/v1/a.proto"),
        ("    from dst.v1 import a_pb2", "    from dst.v1 import a_pb2"),
    ],
)
def test_only_imports_of_our_protos_are_rewritten(line: str, expected: str) -> None:
    assert generate.rewrite_imports(f"import grpc\n{line}\n") == f"import grpc\n{expected}\n"


def test_rewriting_twice_changes_nothing_more() -> None:
    once = generate.rewrite_imports("from dst.v1 import a_pb2\n")
    assert generate.rewrite_imports(once) == once


def test_messages_and_stubs_are_generated_and_empty_stubs_dropped(protos: Path) -> None:
    assert list(generate.generate(protos)) == [
        "__init__.py",
        "dst/__init__.py",
        "dst/v1/__init__.py",
        "dst/v1/thing_pb2.py",
        "dst/v1/thing_pb2.pyi",
        "dst/v1/thing_service_pb2.py",
        "dst/v1/thing_service_pb2.pyi",
        "dst/v1/thing_service_pb2_grpc.py",
        "dst/v1/thing_service_pb2_grpc.pyi",
    ]


def test_no_generated_file_imports_from_outside_the_package(protos: Path) -> None:
    for content in generate.generate(protos).values():
        assert b"\nfrom dst." not in content


def test_generating_twice_gives_the_same_bytes(protos: Path) -> None:
    assert generate.generate(protos) == generate.generate(protos)


def test_the_compiler_s_complaint_is_the_error(protos: Path) -> None:
    (protos / "dst" / "v1" / "thing.proto").write_text(MESSAGES.replace("Duration age", "Nonsense age"))
    with pytest.raises(generate.GenerateError, match="Nonsense"):
        generate.generate(protos)


def test_a_folder_without_protos_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(generate.GenerateError, match=r"no \.proto file"):
        generate.generate(tmp_path)


def test_writing_leaves_exactly_the_files(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text("old")
    (tmp_path / "same.py").write_text("same")
    files = {"same.py": b"same", "deep/new.py": b"new"}
    generate.write(files, tmp_path)
    assert generate.stale(files, tmp_path) == []
    assert not (tmp_path / "old.py").exists()


def test_every_difference_is_listed(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text("old")
    (tmp_path / "edited.py").write_text("by hand")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "edited.pyc").write_text("ignored")
    files = {"edited.py": b"generated", "new.py": b"new"}
    assert generate.stale(files, tmp_path) == ["changed: edited.py", "missing: new.py", "left over: old.py"]


def test_check_fails_on_stale_code_and_writes_nothing(
    protos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--protos", str(protos), "--out", str(out)]
    assert generate.main([*arguments, "--check"]) == 1
    assert not out.exists()
    assert "missing: dst/v1/thing_pb2.py\n" in capsys.readouterr().out
    assert generate.main(arguments) == 0
    assert generate.main([*arguments, "--check"]) == 0
