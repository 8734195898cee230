from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dst_grpc.rpc.watching import Watch


@asynccontextmanager
async def followed(watch: Watch) -> AsyncIterator[asyncio.Queue[None]]:
    """What gets an item for each change that is told."""
    told: asyncio.Queue[None] = asyncio.Queue()

    async def on_change() -> None:
        watch.note()
        told.put_nowait(None)

    following = asyncio.create_task(watch.follow(0.001, on_change))
    yield told
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


def rewrite(file: Path) -> None:
    file.write_text("other")


def replace(file: Path) -> None:
    new = file.with_name("new")
    new.write_text("other")
    new.rename(file)


def remove(file: Path) -> None:
    file.unlink()


def repoint(file: Path) -> None:
    """As Kubernetes replaces the files of a secret: the link to their folder is to another one at once."""
    (file.parent / "..2").mkdir()
    (file.parent / "..2" / "file").write_text("other")
    (file.parent / "..new").symlink_to("..2")
    (file.parent / "..new").rename(file.parent / "..data")


@pytest.mark.parametrize("change", [rewrite, replace, remove, repoint])
async def test_every_kind_of_change_is_told_once(change: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "..1").mkdir()
    (tmp_path / "..1" / "file").write_text("first")
    (tmp_path / "..data").symlink_to("..1")
    file, beside = tmp_path / "file", tmp_path / "beside"
    file.symlink_to("..data/file")
    beside.write_text("first")
    async with followed(Watch([file, beside])) as told:
        change(file)
        await told.get()
        beside.write_text("second")
        await told.get()
        assert told.empty()


async def test_a_change_before_it_is_followed_is_told_and_the_same_content_is_none(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("first")
    watch = Watch([file])
    file.write_text("second")
    async with followed(watch) as told:
        await told.get()
        replace(file)
        await told.get()
        file.write_text("other")
        file.touch()
        (tmp_path / "file2").write_text("")
        file.write_text("last")
        await told.get()
        assert told.empty()
