"""What each client in `examples/clients` needs to be built, and which of it this machine has.

`python -m tests.polyglot.toolchains` prints the languages that can be built, one a line, and on stderr what the others
lack.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

CLIENTS = Path(__file__).resolve().parents[2] / "examples" / "clients"
NODE = "Node with zlib.crc32"

NEEDS = {
    "go": ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc", "/usr/share/gocode/src/google.golang.org/grpc"),
    "java": ("javac", "protoc", "grpc_java_plugin", "/usr/share/java/grpc-netty.jar", "/usr/share/java/gson.jar"),
    "cpp": (
        *("g++", "pkg-config", "protoc", "grpc_cpp_plugin"),
        *("/usr/include/grpcpp/grpcpp.h", "/usr/include/nlohmann/json.hpp", "/usr/include/zlib.h"),
    ),
    "node": (NODE, "npm"),
    "ruby": ("ruby", "grpc_tools_ruby_protoc"),
    "rust": (
        *("cargo", "protoc"),
        *(f"/usr/share/cargo/registry/{crate}-*" for crate in ("prost-build", "h2", "base64", "tokio-openssl")),
    ),
    "shell": ("bash", "jq"),
}
"""By language: programs on the PATH, and files by their patterns."""


def missing(language: str) -> list[str]:
    """What the client in *language* needs and this machine lacks."""
    return [need for need in NEEDS[language] if not _is_there(need)]


def _is_there(need: str) -> bool:
    if need == NODE:
        command = ["node", "-e", "require('zlib').crc32('')"]
        has_node = shutil.which("node") is not None
        return has_node and subprocess.run(command, capture_output=True, check=False).returncode == 0
    return any(Path("/").glob(need[1:])) if need.startswith("/") else shutil.which(need) is not None


def main() -> None:
    """Print the languages that can be built."""
    for language in NEEDS:
        if lacking := missing(language):
            sys.stderr.write(f"skipped: {language}, for want of {', '.join(lacking)}\n")
        else:
            sys.stdout.write(f"{language}\n")


if __name__ == "__main__":
    main()
