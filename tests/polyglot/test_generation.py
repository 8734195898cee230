"""The stubs that `docs/clients.md` generates with one command."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.lacking import skip_for_want_of
from tests.polyglot.toolchains import CLIENTS

PLUGINS = ("protoc", "protoc-gen-go", "protoc-gen-go-grpc", "grpc_java_plugin", "grpc_cpp_plugin", "grpc_ruby_plugin")
STUBS = (
    "go/dst/v1/derived_scalar_service_grpc.pb.go",
    "java/io/dstgrpc/v1/DerivedScalarServiceGrpc.java",
    "java/com/google/rpc/Status.java",
    "cpp/dst/v1/derived_scalar_service.grpc.pb.h",
    "cpp/google/rpc/status.pb.h",
    "ruby/dst/v1/derived_scalar_service_services_pb.rb",
)


def test_buf_generates_stubs_where_the_page_says(tmp_path: Path) -> None:
    skip_for_want_of([plugin for plugin in PLUGINS if shutil.which(plugin) is None])
    buf = str(Path(sys.executable).parent / "buf")
    command = [buf, "generate", "--template", str(CLIENTS / "buf.gen.yaml"), "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=CLIENTS.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / stub).is_file() for stub in STUBS)


def test_cpp_takes_an_optional_field_beside_each_field_that_was_named_has(tmp_path: Path) -> None:
    """What later versions may add: a presence accessor `has_X` must collide with no field of today."""
    skip_for_want_of([tool for tool in ("protoc", "g++") if shutil.which(tool) is None])
    protos = CLIENTS.parents[1] / "protos"
    shutil.copytree(protos, tmp_path / "protos")
    catalog = tmp_path / "protos/dst/v1/catalog.proto"
    added = {
        "Architecture": "optional uint32 qk_norms = 501; optional uint32 post_norm = 502;",
        "DerivedScalarTypeInfo": "optional uint32 no_layers = 501;",
    }
    text = catalog.read_text()
    for message, fields in added.items():
        text, count = re.subn(rf"(message {message} {{)", rf"\1 {fields}", text)
        assert count == 1
    catalog.write_text(text)
    sources = [*tmp_path.glob("protos/dst/v1/*.proto"), *tmp_path.glob("protos/third_party/google/rpc/*.proto")]
    includes = [f"-I{tmp_path}/protos/third_party", f"-I{tmp_path}/protos"]
    subprocess.run(["protoc", *includes, f"--cpp_out={tmp_path}", *map(str, sources)], check=True)
    (tmp_path / "all.cc").write_text('#include "dst/v1/catalog.pb.h"\n')
    subprocess.run(["g++", "-std=c++17", "-fsyntax-only", f"-I{tmp_path}", str(tmp_path / "all.cc")], check=True)
