"""Whether files have changed: by what is in them, so that copies, renames and links to other files all count."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

_SETTLING_SECONDS = 1.0
"""How long files must stay as they are before they count as written to their ends."""


class Watch:
    """Remembers what was in *files* when they were last read."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Watch *files*, as they are now."""
        self._files = tuple(files)
        self.note()

    def note(self) -> None:
        """Remember what is in them now; call it before they are read, on any thread."""
        self._seen = self._contents()

    async def follow(self, period: float, on_change: Callable[[], Awaitable[None]]) -> None:
        """Look at the files every *period* seconds, until cancelled; once they have changed and seem to be written to
        their ends, await *on_change*, which is to `note` and to read them."""
        while True:
            await asyncio.sleep(period)
            now = await asyncio.to_thread(self._contents)
            while now != self._seen:
                await asyncio.sleep(min(period, _SETTLING_SECONDS))
                before, now = now, await asyncio.to_thread(self._contents)
                if now == before:
                    await on_change()
                    break

    def _contents(self) -> tuple[bytes, ...]:
        """A digest of each file; empty for one that cannot be read."""
        return tuple(map(_digest, self._files))


def _digest(file: Path) -> bytes:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError:
        return b""
