"""Reloading the registry: the new one is read and checked in the background, then replaces the old one, or none of it
does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import aclosing

from dst_grpc.domain.resolution import RegistryChange
from dst_grpc.errors import failure_of
from dst_grpc.rpc.errors import as_dst_error
from dst_grpc.rpc.health import Health
from dst_grpc.rpc.ports import CachePort, NewRegistry

_log = logging.getLogger(__name__)


class Reloader:
    """Replaces the registry of a cache, one reload at a time."""

    def __init__(self, build: Callable[[], NewRegistry], cache: CachePort, health: Health) -> None:
        """Replace the registry of *cache* by that of *build*, which runs on a thread; the models of *health* follow."""
        self._build, self._cache, self._health = build, cache, health
        self._lock = asyncio.Lock()
        self._preloading: set[asyncio.Task[None]] = set()

    async def reload(self) -> RegistryChange:
        """Read the registry again and put it in use; returns what changed.

        New contexts to preload begin to load in the background.

        Raises:
            InvalidRequest: if it is wrong, listing everything; the old one stays in use.
            DataLoss: if a file of it is corrupt, or has another digest; likewise.
        """
        async with self._lock:
            new = await asyncio.to_thread(self._build)
            models = await asyncio.to_thread(new.registry.models)
            change = new.adopt()
            self._health.set_models((model.name for model in models), self._cache)
        facts = {"added": change.added, "removed": change.removed, "changed": change.changed}
        _log.info("registry reloaded", extra={name: ",".join(names) for name, names in facts.items()})
        changed = {*change.added, *change.changed}
        self._preload(name for name in new.registry.preload if name in changed)
        return change

    async def reload_if_sound(self) -> None:
        """As `reload`, but errors are logged."""
        try:
            await self.reload()
        except BaseException as error:  # noqa: BLE001  nobody else would hear of it
            known = as_dst_error(failure_of(error), method="SIGHUP")
            _log.error("registry not reloaded, the old one is served on: %s", known.message)

    async def close(self) -> None:
        """Stop waiting for contexts that are being preloaded."""
        for task in self._preloading:
            task.cancel()
        await asyncio.gather(*self._preloading, return_exceptions=True)

    def _preload(self, names: Iterable[str]) -> None:
        for name in names:
            task = asyncio.create_task(self._load(name))
            self._preloading.add(task)
            task.add_done_callback(self._preloading.discard)

    async def _load(self, name: str) -> None:
        try:
            async with aclosing(self._cache.load(name)) as statuses:
                async for _ in statuses:
                    pass
        except BaseException as error:  # noqa: BLE001  likewise
            known = as_dst_error(failure_of(error), method="preload")
            _log.error("preload failed context=%s: %s", name, known.message)
