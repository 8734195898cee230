"""`make release`: everything that a release consists of, in dist/.

The sdist and the wheel, the protos as a tarball for builds without Python, a bill of materials, and SHA256SUMS of all.
The same tree gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import dst_grpc
from scripts.bill_of_materials import bill_of_materials

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
SUMS = "SHA256SUMS"
EPOCH = 1_577_836_800
"""Date of everything in the archives, which zip cannot hold before 1980: 2020-01-01, as hatchling's own default."""
MADE_AT = datetime.fromtimestamp(EPOCH, UTC)


def proto_files() -> dict[str, Path]:
    """Every proto by its path as `import` names it, sorted."""
    roots = (PROTOS, PROTOS / "third_party")
    found = {
        path.relative_to(root).as_posix(): path
        for root in roots
        for path in root.rglob("*.proto")
        if root != PROTOS or "third_party" not in path.relative_to(root).parts
    }
    return dict(sorted(found.items()))


def write_protos(folder: Path) -> Path:
    """Write the tarball of the protos into *folder*; answers its path."""
    name = f"dst-protos-{dst_grpc.__version__}"
    tar_bytes = io.BytesIO()
    with tarfile.open(fileobj=tar_bytes, mode="w") as tar:
        for inside, path in {"LICENSE": ROOT / "LICENSE", **proto_files()}.items():
            entry = tarfile.TarInfo(f"{name}/{inside}")
            data = path.read_bytes()
            entry.size, entry.mtime, entry.mode = len(data), EPOCH, 0o644
            tar.addfile(entry, io.BytesIO(data))
    target = folder / f"{name}.tar.gz"
    target.write_bytes(gzip.compress(tar_bytes.getvalue(), mtime=EPOCH))
    return target


def release(folder: Path) -> list[Path]:
    """Build everything into *folder*, which must be empty or not there; answers the files, the checksums last."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"release: {folder} is not empty")
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)}
    command = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--directory",
        str(folder.resolve()),
        "-t",
        "sdist",
        "-t",
        "wheel",
    ]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    write_protos(folder)
    (folder / f"dst-grpc-{dst_grpc.__version__}.cdx.json").write_text(bill_of_materials(MADE_AT), encoding="utf-8")
    files = sorted(folder.iterdir())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    sums = folder / SUMS
    sums.write_text("".join(lines), encoding="utf-8")
    return [*files, sums]


def main() -> None:
    """Build, and say what was built."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="an empty folder, or one to be made")
    for path in release(parser.parse_args().output):
        print(path)


if __name__ == "__main__":
    main()
