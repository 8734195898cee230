"""Watches: streams of changes of contexts, with a mailbox of unseen changes for each watcher."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from dst_grpc.contexts.entries import ContextEntry
    from dst_grpc.domain.resolution import ContextStatus


class Mailbox:
    """The unseen changes of one watcher: the latest status of each context, however slow the watcher is."""

    def __init__(self) -> None:
        """Start empty and open."""
        self._newest: dict[ContextEntry, ContextStatus] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, entry: ContextEntry, status: ContextStatus) -> None:
        """Put the latest status of the context *entry*."""
        self._newest.pop(entry, None)
        self._newest[entry] = status
        self._changed.set()

    def close(self) -> None:
        """End `take` once everything has been taken."""
        self._closed = True
        self._changed.set()

    async def take(self) -> AsyncGenerator[ContextStatus, None]:
        """Every status that is put, or the latest of each context, until it is closed."""
        while True:
            while self._newest:
                yield self._newest.pop(next(iter(self._newest)))
            if self._closed:
                return
            self._changed.clear()
            await self._changed.wait()


class Watches:
    """The mailboxes of all watchers."""

    def __init__(self) -> None:
        """Start without watchers."""
        self._mailboxes: set[Mailbox] = set()
        self._closed = False

    def __len__(self) -> int:
        """Number of watchers."""
        return len(self._mailboxes)

    def tell(self, entry: ContextEntry, status: ContextStatus) -> None:
        """Put *status* of the context *entry* into every mailbox."""
        for mailbox in self._mailboxes:
            mailbox.put(entry, status)

    async def watch(self, now: Iterable[tuple[ContextEntry, ContextStatus]]) -> AsyncGenerator[ContextStatus, None]:
        """The statuses *now*, then every change, until the watches are closed."""
        mailbox = Mailbox()
        for entry, status in now:
            mailbox.put(entry, status)
        if self._closed:
            mailbox.close()
        self._mailboxes.add(mailbox)
        try:
            async with aclosing(mailbox.take()) as statuses:
                async for status in statuses:
                    yield status
        finally:
            self._mailboxes.discard(mailbox)

    def close(self) -> None:
        """End every watch once its watcher has seen everything."""
        self._closed = True
        for mailbox in self._mailboxes:
            mailbox.close()
