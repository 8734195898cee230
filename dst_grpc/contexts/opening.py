"""Opening what is registered: from a spec to an entry. Reads headers, and no weights.

First every source is located, so that all that are missing are reported together; then the files are opened, and the
first corrupt one raises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from dst_grpc import embedded
from dst_grpc.contexts.device import pick_device
from dst_grpc.contexts.discovery import open_set, sets_beside
from dst_grpc.contexts.entries import ModelEntry, Registered
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.errors import InvalidRequest, Violations
from dst_grpc.sources.selections import layer_files, model_key, set_key
from dst_grpc.sources.specs import (
    AUTOENCODERS,
    AutoencoderSpec,
    EmbeddedSource,
    FolderSource,
    HubSource,
    field_of,
    toml_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from dst_grpc.contexts.entries import AutoencoderEntry, Entry
    from dst_grpc.domain.components import TensorElementType
    from dst_grpc.sources.hub_cache import HubCache
    from dst_grpc.sources.specs import ModelSpec, Source

_E = TypeVar("_E", bound="Entry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the files of a source are."""

    folder: Path
    """The folder that it names."""
    names: tuple[str, ...] | None = None
    """The files that are its own, by name below the folder; None = whatever is there."""
    commit: str = ""
    """The commit that they were pulled at, if they were."""

    def below(self) -> Iterable[str]:
        """Names of all its files."""
        if self.names is not None:
            return self.names
        return (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A model, with where everything of it is."""

    spec: ModelSpec
    device: str
    place: Place
    autoencoders: tuple[tuple[AutoencoderSpec, Place], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opener:
    """Opens specs."""

    device: str
    """Device of models that do not say: auto, cpu, cuda, cuda:N or mps."""
    element_type: TensorElementType
    """Element type of models that do not say."""
    hub: HubCache
    """What was pulled."""
    pull_command: str
    """The command that pulls a model, but for the model's name."""

    def located(self, specs: Sequence[ModelSpec]) -> list[Located]:
        """Where everything is that *specs* name.

        Raises:
            InvalidRequest: (fields as in the registry file) listing each folder that is not there, each source that was
                not pulled, and each device that this machine has not.
            DataLoss: if something was pulled and then damaged.
        """
        problems = Violations()
        found = []
        for spec in specs:
            field = field_of(spec.name)
            device = self._device(spec, field, problems)
            place = self._place(
                spec.source, model_key(_path(spec.source)), embedded.MODEL_FOLDER, field, problems, spec
            )
            sets = []
            for one in spec.autoencoders:
                source, own = spec.source_of(one), field_of(spec.name, one.name)
                shipped = embedded.AUTOENCODERS_FOLDER / one.name
                sets.append((one, self._place(source, set_key(_path(source), one), shipped, own, problems, spec)))
            present = [(one, where) for one, where in sets if where is not None]
            if place is not None:
                found.append(Located(spec=spec, device=device, place=place, autoencoders=tuple(present)))
        problems.raise_if_any()
        return found

    def _device(self, spec: ModelSpec, field: str, problems: Violations) -> str:
        if spec.device is None:
            return pick_device(self.device)
        try:
            return pick_device(spec.device)
        except InvalidRequest as error:
            problems.extend(error, field)
            return "cpu"

    def _place(
        self, source: Source, key: str, shipped: Path, field: str, problems: Violations, model: ModelSpec
    ) -> Place | None:
        """Where *source* is; None if it is not there, which is noted. *shipped* is where it is if it is embedded."""
        if isinstance(source, HubSource):
            pulled = self.hub.find(source, key)
            if pulled is not None:
                return Place(folder=pulled.folder, names=pulled.names, commit=pulled.commit)
            command = f"{self.pull_command} {model.name}"
            problems.add(f"{field}.source", f"{source.repository} at {source.revision} is not pulled; run: {command}")
            return None
        folder = source.folder if isinstance(source, FolderSource) else shipped
        if not folder.is_dir():
            problems.add(f"{field}.source", f"there is no folder {str(folder)!r}")
            return None
        return Place(folder=folder)

    def model(self, located: Located) -> ModelEntry:
        """The entry of a model; raises DataLoss if a file is corrupt or has another digest than is registered."""
        spec = located.spec
        checkpoint = open_checkpoint(located.place.folder)
        return _checked(
            ModelEntry(
                name=spec.name,
                element_type=spec.element_type or self.element_type,
                device=located.device,
                files=checkpoint.files,
                registered=_registered(spec, spec.source, located.place),
                checkpoint=checkpoint,
            ),
            field_of(spec.name),
        )

    def autoencoders(self, located: Located, model: ModelEntry) -> list[AutoencoderEntry]:
        """The entries of a model's sets: those that are registered, and those that lie beside it unregistered.

        Raises:
            InvalidRequest: for a pattern or layers that fit no files.
            DataLoss: if a file is corrupt, does not fit the model, or has another digest than is registered.
        """
        source, named = located.spec.source, {one.name for one, _ in located.autoencoders}
        found: list[AutoencoderEntry] = []
        if not isinstance(source, HubSource):  # whatever else is in the cache was pulled for somebody else
            is_embedded = isinstance(source, EmbeddedSource)
            beside = embedded.AUTOENCODERS_FOLDER if is_embedded else located.place.folder / AUTOENCODERS
            found += sets_beside(model, beside, besides=named, registered=Registered(source=str(source)))
        for spec, place in located.autoencoders:
            found.append(self._set(spec, place, model, _registered(spec, located.spec.source_of(spec), place)))
        return found

    def _set(self, spec: AutoencoderSpec, place: Place, model: ModelEntry, registered: Registered) -> AutoencoderEntry:
        field, name = field_of(model.name, spec.name), f"{model.name}/{spec.name}"
        if spec.pattern is None:
            found = open_set(place.folder, model, dst=spec.dst, layers=spec.layers, names=place.names)
            lacking = sorted({*(spec.layers or ())} - found.by_layer.keys())
            if lacking:
                raise InvalidRequest.of(f"{field}.layers", f"there is no file for layer {', '.join(map(str, lacking))}")
            return _checked(replace(found, name=name, registered=registered), field)
        try:
            by_layer = layer_files(place.below(), spec.pattern, spec.layers)
        except InvalidRequest as error:
            raise error.under(field) from None
        files = {layer: place.folder / file for layer, file in by_layer.items()}
        found = open_set(place.folder, model, dst=spec.dst, files=files, names=place.names)
        return _checked(replace(found, name=name, registered=registered), field)


def _path(source: Source) -> str:
    return source.path if isinstance(source, HubSource) else ""


def _registered(spec: ModelSpec | AutoencoderSpec, source: Source, place: Place) -> Registered:
    return Registered(
        source=str(source),
        revision=place.commit,
        digest=spec.digest,
        digests=spec.digests,
        is_pinned=spec.pin,
        allows_failed_checks=isinstance(spec, AutoencoderSpec) and spec.allow_failed_checks,
    )


def _checked(entry: _E, field: str) -> _E:
    """*entry*, if its registered digests are of files of it, and are theirs as far as that is quickly known."""
    for name in entry.registered.digests:
        if name not in entry.files.names:
            known = ", ".join(entry.files.names)
            raise InvalidRequest.of(f"{field}.digests.{toml_key(name)}", f"is none of its files, which are {known}")
    entry.digest_if_small()
    return entry
