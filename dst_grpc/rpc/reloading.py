"""Reloading what the operator wrote, the registry and the files beside it: all of it is read and checked in the
background, then replaces what was in use, or none of it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from dst_grpc.domain.resolution import ModelInfo, RegistryChange
from dst_grpc.errors import InvalidRequest, Violations
from dst_grpc.failures import failure_of
from dst_grpc.rpc.errors import as_dst_error
from dst_grpc.rpc.health import Health
from dst_grpc.rpc.ports import CachePort, NewRegistry
from dst_grpc.rpc.watching import Watch

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewContent:
    """The content of a file that was read and checked, but is not in use yet."""

    adopt: Callable[[], None]
    """Puts it in use. Called on the event loop; does not fail."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the log says of it."""
    warning: str = ""
    """What its operator is to know of it, though it can be used; empty = nothing."""

    def put_in_use(self) -> None:
        """Adopt it, and log the warning, if there is one."""
        self.adopt()
        if self.warning:
            _log.warning(self.warning)


ReadFile = Callable[[], NewContent]
"""Reads a file again, on a thread; raises one of our errors if anything is wrong with it."""


class Reloader:
    """Replaces the registry of a cache and the contents of other files together, one reload at a time."""

    def __init__(
        self,
        build: Callable[[], NewRegistry],
        cache: CachePort,
        health: Health,
        files: Sequence[ReadFile] = (),
        watch: Watch | None = None,
    ) -> None:
        """Reload a registry and *files*.

        Args:
            build: builds the registry, on a thread.
            cache: what the registry is put in use by.
            health: its models follow those of the registry.
            files: what else is read.
            watch: the files of all that, for `follow`.
        """
        self._build, self._cache, self._health, self._files = build, cache, health, tuple(files)
        self._watch = watch or Watch(())
        self._lock = asyncio.Lock()
        self._preloading: set[asyncio.Task[None]] = set()

    async def reload(self) -> RegistryChange:
        """Read the registry and the other files again and put them in use; returns what changed in the registry.

        New contexts to preload begin to load in the background.

        Raises:
            InvalidRequest: if they are wrong, listing everything; nothing is put in use.
            DataLoss: if a file of the registry is corrupt, or has another digest; likewise.
        """
        async with self._lock:
            new, models, contents = await asyncio.to_thread(self._read)
            change = new.adopt()
            for content in contents:
                content.put_in_use()
            self._health.set_models((model.name for model in models), self._cache)
        names = {"added": change.added, "removed": change.removed, "changed": change.changed}
        facts: dict[str, object] = {name: ",".join(changed) for name, changed in names.items()}
        for content in contents:
            facts |= content.facts
        _log.info("reloaded", extra=facts)
        changed = {*change.added, *change.changed}
        self._preload(name for name in new.registry.preload if name in changed)
        return change

    async def reload_if_sound(self) -> None:
        """As `reload`, but errors are logged."""
        try:
            await self.reload()
        except BaseException as error:  # noqa: BLE001  nobody else would hear of it
            known = as_dst_error(failure_of(error), method="reload")
            _log.error("nothing reloaded, all is served as before: %s", known.message)

    async def follow(self, period: float) -> None:
        """Reload as `reload_if_sound` does, whenever the files were changed, until cancelled; look at them every
        *period* seconds."""
        await self._watch.follow(period, self.reload_if_sound)

    async def close(self) -> None:
        """Stop waiting for contexts that are being preloaded."""
        for task in self._preloading:
            task.cancel()
        await asyncio.gather(*self._preloading, return_exceptions=True)

    def _read(self) -> tuple[NewRegistry, Sequence[ModelInfo], Sequence[NewContent]]:
        """Everything, read again; raises what is wrong with any of it."""
        self._watch.note()
        problems, contents = Violations(), []
        for read in self._files:
            try:
                contents.append(read())
            except InvalidRequest as error:
                problems.extend(error)
        try:
            new = self._build()
            models = new.registry.models()
        except InvalidRequest as error:
            problems.extend(error)
            raise problems.error() from None
        problems.raise_if_any()
        return new, models, contents

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
            _log.error("preload failed: %s", known.message, extra={"context": name})
