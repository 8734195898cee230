"""`dst-grpc pull` and `reload`, and what `models --registry` shows: the registry file, with or without a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import TaskID

from dst_grpc.cli._console import (
    JsonOption,
    ServerOption,
    TimeoutOption,
    connect,
    console,
    fail,
    print_json,
)
from dst_grpc.cli._progress import progress_bar
from dst_grpc.cli._tables import human_bytes, human_count, print_rows
from dst_grpc.client import DEFAULT_TARGET
from dst_grpc.domain.handles import DIGEST_CHARACTERS
from dst_grpc.errors import DataLoss, NotFound, Reason

if TYPE_CHECKING:
    from dst_grpc.rpc.settings import Settings
    from dst_grpc.sources import HubCache, ModelSpec, Source
    from dst_grpc.sources.pull import PullReport

HubCacheOption = Annotated[
    Path | None,
    typer.Option("--hub-cache", metavar="FOLDER", help="Where pulled files are. [env var: DST_HUB_CACHE]"),
]


def pull(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these models of the file, with their sets.")
    ] = None,
    registry: Annotated[
        Path | None,
        typer.Option("--registry", metavar="FILE", help="The file that names the models. [env var: DST_REGISTRY]"),
    ] = None,
    hub_cache: HubCacheOption = None,
    hub_endpoint: Annotated[
        str | None,
        typer.Option("--hub-endpoint", metavar="URL", help="Server to fetch from. [env var: DST_HUB_ENDPOINT]"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings. [env var: DST_CONFIG]")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read again what is there already, and check it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch what a registry file names on the Hugging Face hub; servers download nothing themselves."""
    settings = _settings(config, registry=registry, hub_cache=hub_cache, hub_endpoint=hub_endpoint)
    try:
        from dst_grpc.sources.pull import Puller
    except ModuleNotFoundError as error:
        fail(f"dst-grpc pull needs {error.name}; install it with: pip install 'dst-grpc[server,hub]'", code=1)
    specs, cache = _wanted(settings, names or []), _cache(settings)
    puller = Puller(cache, endpoint=settings.hub_endpoint, verify=verify)
    reports: list[PullReport] = []
    try:
        with _progress() as on_file:
            for spec in specs:
                reports += puller.pull(spec, on_file)
    except OSError as error:  # a full disk, a folder that may not be written to
        fail(f"{error.filename or cache.folder}: {error.strerror or error}", code=1)
    if as_json:
        print_json([_facts(report) for report in reports])
    elif not reports:
        console().print("nothing to pull: no model here comes from the hub")
    else:
        print_rows(console(), ("pulled", "from", "commit", "files", "size", "fetched"), map(_row, reports))


def reload(server: ServerOption = DEFAULT_TARGET, timeout: TimeoutOption = None, as_json: JsonOption = False) -> None:
    """Have the server read its registry file, tokens, callers and certificates again; if anything is wrong, all stays
    as it was."""
    with connect(server) as client:
        change = client.reload_registry(timeout=timeout)
    if as_json:
        print_json(dataclasses.asdict(change))
        return
    told = [(name, what) for what, names in dataclasses.asdict(change).items() for name in names]
    if told:
        print_rows(console(), ("context", "is"), sorted(told))
    else:
        # The answer does not say whether tokens, callers or certificates changed: the server's log does.
        console().print("reloaded; the registry offers what it did")


def show_registry(registry: Path, hub_cache: Path | None, *, as_json: bool) -> None:
    """Show what *registry* names, and whether it was pulled, without a server; fails for what could not be served."""
    from dst_grpc.rpc.registering import build_registry

    settings = _settings(None, registry=registry, hub_cache=hub_cache)
    rows = list(_listed(_wanted(settings, []), _cache(settings)))
    failed = {one.name: one for one in build_registry(settings).failed}
    named = {row["name"] for row in rows}
    rows += [_here(one.name, one.source) for one in failed.values() if one.name not in named]
    for row in rows:
        row["failure"] = failed[row["name"]].error.message if row["name"] in failed else ""
    if as_json:
        print_json(rows)
    else:
        table = [(row["name"], row["source"], _revision(row), _yes_or_no(row["pulled"]), row["digest"]) for row in rows]
        print_rows(console(), ("model", "source", "revision", "pulled", "registered digest"), table)
    if failed:
        fail("\n  ".join(["not all of it can be served:", *map(str, failed.values())]), code=1)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each file while it is fetched; none where stderr is not a terminal."""
    with progress_bar() as bar:
        tasks: dict[str, TaskID] = {}

        def on_file(name: str, bytes_done: int, bytes_total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(escape(name), total=bytes_total)
            bar.update(tasks[name], completed=bytes_done, visible=bytes_done < bytes_total)

        yield on_file


def _settings(config: Path | None, **flags: Any) -> Settings:
    from dst_grpc.rpc.settings_sources import SettingsError, load_settings

    try:
        return load_settings(flags, file=config)
    except SettingsError as error:
        fail(str(error), code=2)


def _wanted(settings: Settings, names: list[str]) -> list[ModelSpec]:
    """The models of the registry file, or those of *names*."""
    from dst_grpc.sources import read_registry

    if settings.registry is None:
        fail("which registry file? Give --registry FILE, or set DST_REGISTRY", code=2)
    specs = {spec.name: spec for spec in read_registry(settings.registry)}
    for name in names:
        if name not in specs:
            raise NotFound.unknown("model", name, specs, reason=Reason.MODEL_NOT_FOUND)
    return [spec for name, spec in specs.items() if not names or name in names]


def _cache(settings: Settings) -> HubCache:
    from dst_grpc.sources import HubCache, default_folder

    return HubCache(settings.hub_cache or default_folder())


def _listed(specs: list[ModelSpec], cache: HubCache) -> Iterator[dict[str, Any]]:
    from dst_grpc.sources.selections import model_key, set_key

    def facts(name: str, source: Source, key: Callable[[str], str], digest: str) -> dict[str, Any]:
        from dst_grpc.sources import HubSource

        row = _here(name, str(source), digest)
        if not isinstance(source, HubSource):
            return row
        try:
            pulled = cache.find(source, key(source.path))
        except DataLoss:  # pulled, but damaged since: it cannot be served
            pulled = None
        commit = "" if pulled is None else pulled.commit
        return row | {"revision": source.revision, "commit": commit, "pulled": pulled is not None}

    for spec in specs:
        yield facts(spec.name, spec.source, model_key, spec.digest)
        for one in spec.autoencoders:
            source = spec.source_of(one)
            yield facts(f"{spec.name}/{one.name}", source, lambda path, one=one: set_key(path, one), one.digest)  # type: ignore[misc]  # mypy sees no default


def _here(name: str, source: str, digest: str = "") -> dict[str, Any]:
    """The row of a model or set that is not on the hub."""
    return {"name": name, "source": source, "digest": digest, "revision": "", "commit": "", "pulled": None}


def _revision(row: dict[str, Any]) -> str:
    commit: str = row["commit"][:DIGEST_CHARACTERS]
    revision: str = row["revision"]
    if not commit:
        return revision
    return commit if revision == row["commit"] else f"{revision} ({commit})"


def _yes_or_no(pulled: bool | None) -> str:
    return "" if pulled is None else "yes" if pulled else "no"


def _row(report: PullReport) -> tuple[str, ...]:
    return (
        report.name,
        report.source.repository + (f"/{report.source.path}" if report.source.path else ""),
        report.commit[:DIGEST_CHARACTERS],
        human_count(report.n_files, "file"),
        human_bytes(report.total_bytes),
        human_bytes(report.fetched_bytes),
    )


def _facts(report: PullReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "repository": report.source.repository,
        "path": report.source.path,
        "revision": report.source.revision,
        "commit": report.commit,
        "folder": str(report.folder),
        "files": report.n_files,
        "total_bytes": report.total_bytes,
        "fetched_bytes": report.fetched_bytes,
    }
