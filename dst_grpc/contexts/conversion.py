"""Converting pickled files to safetensors: offline, on an operator's command, in a process of its own.

The process is a script that imports nothing of this package (`unpickle_process`): it has limits on memory, time and
output size, an empty environment, and rebuilds tensors and plain containers only. Its output is checked here like any
untrusted file before it gets its final name.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dst_grpc.contexts import unpickle_process
from dst_grpc.engine.files import File, corrupt, regular_file_status
from dst_grpc.engine.safetensors_file import SafetensorsFile
from dst_grpc.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCRIPT = Path(unpickle_process.__file__)
_MAX_MESSAGE = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A file that was converted."""

    n_tensors: int
    """Number of tensors."""
    byte_count: int
    """Bytes of the file."""
    texts: Mapping[str, str]
    """The other content of the file: strings as they are, numbers and containers as JSON."""


def convert_pickle(source: Path, target: Path, *, timeout_seconds: float = 600.0) -> Converted:
    """Write the tensors and plain values of *source*, a file of torch.save, to *target*, a safetensors file.

    Raises:
        InvalidRequest: if *target* has a wrong name, exists, or its folder does not exist.
        DataLoss: if *source* is corrupt, holds anything but tensors and plain values (all of it is named), or needs
            more time or memory than is allowed.
    """
    if target.suffix != ".safetensors":
        raise InvalidRequest.of("OUT", "must end in .safetensors")
    if target.exists():
        raise InvalidRequest.of("OUT", f"{target} exists already")
    if not target.parent.is_dir():
        raise InvalidRequest.of("OUT", f"there is no folder {target.parent}")
    size = regular_file_status(source).st_size
    # Beside its target, so that it can be renamed; in a folder of its own, so that nothing is overwritten.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as folder:
        written = Path(folder) / "converted.safetensors"
        _run(source, written, size, timeout_seconds)
        file = SafetensorsFile.open(File.at(written))
        converted = Converted(
            n_tensors=len(file.tensors), byte_count=written.stat().st_size, texts=dict(sorted(file.metadata.items()))
        )
        # A hard link rather than a rename, which would replace a file created there meanwhile.
        try:
            target.hardlink_to(written)
        except FileExistsError:
            raise InvalidRequest.of("OUT", f"{target} exists already") from None
    return converted


def _run(source: Path, written: Path, size: int, timeout_seconds: float) -> None:
    """Run the process; raises DataLoss with its message if it fails."""
    command = [sys.executable, "-I", str(_SCRIPT), str(source.resolve()), str(written), str(size), str(timeout_seconds)]
    try:
        process = subprocess.run(  # noqa: S603  our own script, with paths as arguments and no shell
            command, env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise corrupt(source, f"could not be read within {timeout_seconds:g} seconds") from error
    if process.returncode:
        said = process.stdout.decode(errors="replace")[:_MAX_MESSAGE].strip()
        raise corrupt(source, said or f"ended the process that read it (exit code {process.returncode})")
