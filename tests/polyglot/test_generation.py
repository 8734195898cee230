"""The stubs that `docs/clients.md` generates with one command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.polyglot.conftest import skip_for_want_of
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
