"""Which paths of a client are honoured: regular files below the operator's roots, after symlinks are resolved.

A path outside is refused in the same words whether or not it exists, so that nobody can explore the server's disk.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from dst_grpc.errors import InvalidRequest, NotAllowed, NotFound, Reason

if TYPE_CHECKING:
    from collections.abc import Sequence


class AllowedRoots:
    """The folders below which clients may name files."""

    def __init__(self, roots: Sequence[Path]) -> None:
        """Resolve *roots* once; raises InvalidRequest (field `autoencoder_roots[i]`) for one that is no folder."""
        for i, root in enumerate(roots):
            if not root.is_dir():
                raise InvalidRequest.of(f"autoencoder_roots[{i}]", f"{str(root)!r} is not a folder")
        self._roots = tuple(root.resolve(strict=True) for root in roots)

    def regular_file(self, text: str) -> Path:
        """The file that a client means by *text*, resolved; a relative path is looked up below each root in turn.

        Raises:
            NotAllowed: (PATH_NOT_ALLOWED) if it lies outside every root, or is a folder, a FIFO or a device.
            NotFound: if it would be allowed, but is not there.
        """
        if not self._roots:
            raise _refused(text, "paths are not allowed on this server: name a registered autoencoder instead")
        inside = self._inside(text)
        if not inside:
            raise _refused(text, f"{text!r} lies outside the folders that the operator allows")
        for path in inside:
            try:
                mode = path.stat().st_mode
            except OSError:
                continue
            if not stat.S_ISREG(mode):
                raise _refused(text, f"{text!r} is not a regular file")
            return path
        raise NotFound(
            f"there is no file {text!r}",
            resource_type="autoencoder",
            resource_name=text,
            reason=Reason.AUTOENCODER_NOT_FOUND,
            metadata={"resource_type": "autoencoder", "resource_name": text},
        )

    def _inside(self, text: str) -> list[Path]:
        """Where *text* may lead to below the roots."""
        try:
            candidates = [(root / text).resolve() for root in self._roots]
        except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, a loop of links
            return []
        unique = dict.fromkeys(candidates)
        return [path for path in unique if any(path.is_relative_to(root) for root in self._roots)]


def _refused(text: str, problem: str) -> NotAllowed:
    return NotAllowed(problem, reason=Reason.PATH_NOT_ALLOWED, metadata={"path": text})
