"""Opens registered models and sets: from a spec to an entry. Reads headers, and no weights.

A model or set that cannot be opened is noted as failed, and does not affect the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from dst_grpc import embedded
from dst_grpc.contexts.dead_latents import without_dead_latents
from dst_grpc.contexts.device import pick_device
from dst_grpc.contexts.discovery import open_set, set_folders, sets_in
from dst_grpc.contexts.entries import ModelEntry, Registered
from dst_grpc.contexts.failed import MissingSource
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.files import corrupt
from dst_grpc.errors import InvalidRequest
from dst_grpc.sources.selections import layer_files, model_key, set_key
from dst_grpc.sources.specs import (
    AUTOENCODERS,
    TRANSCODERS,
    AutoencoderSpec,
    EmbeddedSource,
    FolderSource,
    HubSource,
    field_of,
    toml_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from dst_grpc.contexts.entries import AutoencoderEntry, ContextEntry
    from dst_grpc.contexts.failed import Attempts
    from dst_grpc.domain.components import TensorElementType
    from dst_grpc.sources.hub_cache import HubCache
    from dst_grpc.sources.specs import ModelSpec, Source

_E = TypeVar("_E", bound="ContextEntry")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLocation:
    """The location of a source's files."""

    folder: Path
    """The folder that it names."""
    names: tuple[str, ...] | None = None
    """The names of its files below the folder; None = all files there."""
    commit: str = ""
    """The commit that they were pulled at; empty if they were not pulled."""

    def below(self) -> Iterable[str]:
        """Names of all its files."""
        if self.names is not None:
            return self.names
        return (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())


@dataclass(frozen=True, slots=True, kw_only=True)
class Opener:
    """Opens specs."""

    device: str
    """Default device of models: auto, cpu, cuda, cuda:N or mps."""
    element_type: TensorElementType
    """Default element type of models."""
    hub: HubCache
    """The cache of pulled files."""
    pull_command: str
    """The command that pulls a model, without the model's name."""
    omit_dead_latents: bool = False
    """Whether autoencoders are loaded without their dead latents."""
    known: Mapping[str, ContextEntry] = field(default_factory=dict)
    """Entries of another registry, by name, which are reused if their files are the same and unchanged."""

    def open(self, spec: ModelSpec, attempts: Attempts) -> list[ContextEntry]:
        """The model of *spec*, and its sets: registered ones, and those in its `autoencoders` folder.

        Those that cannot be opened are noted in *attempts* and left out: a missing source, a device that this machine
        lacks, a file that is corrupt, does not fit, or has another digest than registered.
        """
        found: list[ModelEntry] = []
        sets: list[AutoencoderEntry] = []
        with attempts.at(spec.name, spec.name, str(spec.source)) as attempt:
            place = self._place(spec, spec.source, model_key(_path(spec.source)), embedded.MODEL_FOLDER)
            attempt.root = place.folder
            model = self._kept(self._model(spec, place))
            found.append(model)
            sets += self._beside(spec, place, model, attempts)
        sets += self._named(spec, found[0] if found else None, attempts)
        return [*found, *sets]

    def _device(self, spec: ModelSpec) -> str:
        if spec.device is None:
            return pick_device(self.device)
        try:
            return pick_device(spec.device)
        except InvalidRequest as error:
            raise error.under(field_of(spec.name)) from None

    def _place(
        self, model: ModelSpec, source: Source, key: str, shipped: Path, autoencoders: str = ""
    ) -> SourceLocation:
        """The location of *source*; *shipped* is that of an embedded one. Raises InvalidRequest if it does not
        exist."""
        where = f"{field_of(model.name, autoencoders)}.source"
        if isinstance(source, HubSource):
            pulled = self.hub.find(source, key)
            if pulled is not None:
                return SourceLocation(folder=pulled.folder, names=pulled.names, commit=pulled.commit)
            command = f"{self.pull_command} {model.name}"
            told = f"{source.repository} at {source.revision} is not pulled"
            raise MissingSource(where, f"{told}; run: {command}", told=told)
        folder = source.folder if isinstance(source, FolderSource) else shipped
        if folder.is_file():
            gguf = ": make one of it with dst-grpc convert" if folder.suffix == ".gguf" else ""
            problem = f"is a file and no folder{gguf}"
            raise MissingSource(where, f"{str(folder)!r} {problem}", told=f"{folder.name!r} {problem}")
        if not folder.is_dir():
            told = f"there is no folder {folder.name!r}"
            raise MissingSource(where, f"there is no folder {str(folder)!r}", told=told)
        return SourceLocation(folder=folder)

    def _model(self, spec: ModelSpec, place: SourceLocation) -> ModelEntry:
        checkpoint = open_checkpoint(place.folder)
        return _checked(
            ModelEntry(
                name=spec.name,
                element_type=spec.element_type or self.element_type,
                device=self._device(spec),
                files=checkpoint.files,
                registered=_registered(spec, spec.source, place),
                checkpoint=checkpoint,
            ),
            field_of(spec.name),
        )

    def _beside(
        self, spec: ModelSpec, place: SourceLocation, model: ModelEntry, attempts: Attempts
    ) -> Iterator[AutoencoderEntry]:
        """The unregistered sets in the `autoencoders` and `transcoders` folders of *model*."""
        if isinstance(spec.source, HubSource):  # other files in the cache were pulled for other models
            return
        is_embedded = isinstance(spec.source, EmbeddedSource)
        shipped = (embedded.AUTOENCODERS_FOLDER, embedded.TRANSCODERS_FOLDER)
        places = shipped if is_embedded else (place.folder / AUTOENCODERS, place.folder / TRANSCODERS)
        registered = Registered(source=str(spec.source))
        named = {one.name for one in spec.autoencoders}
        others: dict[str, Path] = {}
        for folder in (one for beside in places for one in set_folders(beside, besides=named)):
            with attempts.at(f"{model.name}/{folder.name}", model.name, str(spec.source)) as attempt:
                attempt.root = folder
                other = others.setdefault(folder.name, folder)
                if other is not folder:
                    problem = f"has the name of {other.parent.name}/{other.name}: rename one of them"
                    raise corrupt(folder, problem)
                yield from map(self._offered, sets_in(folder, model, registered))

    def _named(self, spec: ModelSpec, model: ModelEntry | None, attempts: Attempts) -> Iterator[AutoencoderEntry]:
        """The registered sets of *model*; none if it failed to open, but missing sources are noted even so."""
        for one in spec.autoencoders:
            source = _source_of(spec, one)
            with attempts.at(f"{spec.name}/{one.name}", spec.name, str(source)) as attempt:
                shipped = _one_of(embedded.AUTOENCODERS_FOLDER / one.name, embedded.TRANSCODERS_FOLDER / one.name)
                place = self._place(spec, source, set_key(_path(source), one), shipped, one.name)
                attempt.root = place.folder
                if model is not None:
                    yield self._offered(self._set(one, place, model, _registered(one, source, place)))

    def _set(
        self, spec: AutoencoderSpec, place: SourceLocation, model: ModelEntry, registered: Registered
    ) -> AutoencoderEntry:
        where, name = field_of(model.name, spec.name), f"{model.name}/{spec.name}"
        if spec.pattern is None:
            found = open_set(
                place.folder, model, dst=spec.dst, layers=spec.layers, names=place.names, in_files=spec.in_files
            )
            lacking = sorted({*(spec.layers or ())} - found.by_layer.keys())
            if lacking:
                raise InvalidRequest.of(f"{where}.layers", f"there is no file for layer {', '.join(map(str, lacking))}")
            return _checked(replace(found, name=name, registered=registered), where)
        try:
            by_layer = layer_files(place.below(), spec.pattern, spec.layers)
        except InvalidRequest as error:
            raise error.under(where) from None
        files = {layer: place.folder / file for layer, file in by_layer.items()}
        found = open_set(place.folder, model, dst=spec.dst, files=files, names=place.names, in_files=spec.in_files)
        return _checked(replace(found, name=name, registered=registered), where)

    def _offered(self, entry: AutoencoderEntry) -> AutoencoderEntry:
        return self._kept(without_dead_latents(entry) if self.omit_dead_latents else entry)

    def _kept(self, entry: _E) -> _E:
        """The equal known entry if there is one, so that digest and tokenizer are not read again."""
        before = self.known.get(entry.name)
        return before if isinstance(before, type(entry)) and before.load_facts == entry.load_facts else entry


def _source_of(model: ModelSpec, spec: AutoencoderSpec) -> Source:
    """The source of the set *spec* of *model*; beside a model in a folder, it may be among the transcoders."""
    source = model.source_of(spec)
    if spec.source is None and isinstance(source, FolderSource) and isinstance(model.source, FolderSource):
        return FolderSource(folder=_one_of(source.folder, model.source.folder / TRANSCODERS / spec.name))
    return source


def _one_of(folder: Path, other: Path) -> Path:
    """*folder*, or *other* if only that is there."""
    return other if other.is_dir() and not folder.exists() else folder


def _path(source: Source) -> str:
    return source.path if isinstance(source, HubSource) else ""


def _registered(spec: ModelSpec | AutoencoderSpec, source: Source, place: SourceLocation) -> Registered:
    return Registered(
        source=str(source),
        revision=place.commit,
        digest=spec.digest,
        digests=spec.digests,
        is_pinned=spec.pin,
        allows_failed_checks=isinstance(spec, AutoencoderSpec) and spec.allow_failed_checks,
    )


def _checked(entry: _E, where: str) -> _E:
    """*entry*, after checking that its registered digests are for its files, and match as far as is quickly known."""
    for name in entry.registered.digests:
        if name not in entry.files.names:
            known = ", ".join(entry.files.names)
            raise InvalidRequest.of(f"{where}.digests.{toml_key(name)}", f"is none of its files, which are {known}")
    entry.digest_if_small()
    return entry
