"""Registry: the models and autoencoder sets that may be loaded, by name.

The headers of all registered files are read once, when the registry is built, so that a corrupt checkpoint is found at
the start rather than by a request. No weights are read here; only the cache knows what is loaded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from dst_grpc.contexts.dead_latents import without_dead_latents
from dst_grpc.contexts.device import pick_device
from dst_grpc.contexts.entries import AutoencoderEntry, ContextEntry, ModelEntry
from dst_grpc.contexts.failed import Attempts, FailedEntry, MissingSource
from dst_grpc.contexts.opening import Opener
from dst_grpc.contexts.path_sets import set_of_config
from dst_grpc.contexts.paths import AllowedRoots
from dst_grpc.domain.components import TensorElementType
from dst_grpc.domain.handles import ContextRef
from dst_grpc.domain.resolution import ContextKind, RegistryChange
from dst_grpc.engine.element_types import TORCH_TYPES
from dst_grpc.errors import DataLoss, InvalidRequest, NotFound, Reason, Violations
from dst_grpc.sources import EmbeddedSource, FolderSource, HubCache, ModelSpec, default_folder
from dst_grpc.sources.specs import field_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from dst_grpc.domain.config import AutoencoderConfig
    from dst_grpc.domain.resolution import AutoencoderInfo, ModelInfo
    from dst_grpc.engine.tokenizer import Tokenizer

EMBEDDED = "embedded"
"""Name of the model that ships with the package."""
_MAX_SETS_BY_PATH = 256
_MAX_HELD_FILES = 256
_E = TypeVar("_E", bound=ContextEntry)


class Registry:
    """The models and sets that may be loaded. Immutable, except for the sets that clients name by path; a reload makes
    another one."""

    def __init__(
        self,
        models: Iterable[ModelEntry],
        autoencoders: Iterable[AutoencoderEntry],
        *,
        roots: AllowedRoots,
        default_model: str,
        preload: Iterable[str] = (),
        omit_dead_latents: bool = False,
        failed: Iterable[FailedEntry] = (),
    ) -> None:
        """Use `build`, unless the entries exist already."""
        self._failed = {entry.name: entry for entry in sorted(failed, key=lambda entry: entry.name)}
        self._omit_dead_latents = omit_dead_latents
        self._models = {entry.name: entry for entry in sorted(models, key=lambda entry: entry.name)}
        self._autoencoders = {entry.name: entry for entry in sorted(autoencoders, key=lambda entry: entry.name)}
        self._sets_by_path: OrderedDict[str, AutoencoderEntry] = OrderedDict()
        self._lock = threading.Lock()
        self._roots = roots
        self.default_model = default_model
        self.preload = tuple(preload)

    @classmethod
    def build(
        cls,
        *,
        models: Mapping[str, Path] = MappingProxyType({}),
        specs: Sequence[ModelSpec] = (),
        hub: HubCache | None = None,
        pull_command: str = "dst-grpc pull",
        autoencoder_roots: Sequence[Path] = (),
        device: str = "auto",
        element_type: TensorElementType = TensorElementType.FLOAT32,
        include_embedded: bool = True,
        default_model: str | None = None,
        omit_dead_latents: bool = False,
        previous: Registry | None = None,
    ) -> Registry:
        """Read the headers of all models and of the autoencoders beside them.

        Models and sets that cannot be opened are in `failed`; the others are not affected.

        Args:
            models: the folders of models without a registry file, by name.
            specs: models of a registry file.
            hub: the cache of pulled files; None = in the platform's folder for caches.
            pull_command: the command that pulls a model, without its name, for messages.
            autoencoder_roots: folders below which clients may name autoencoder files.
            device: default device of models: auto, cpu, cuda, cuda:N or mps.
            element_type: default element type of models.
            include_embedded: whether to offer the model that ships with the package, under its own name.
            default_model: name of the model for requests without one; None = the default of *specs*, else the embedded
                one, else the first by name.
            omit_dead_latents: whether autoencoders are loaded without their dead latents.
            previous: another registry, whose entries are reused if their files are the same and unchanged, and they are
                loaded in the same way; and with them the sets that clients named by path.

        Raises:
            InvalidRequest: if a setting is wrong; lists everything.
        """
        folders = [ModelSpec(name=name, source=FolderSource(folder=folder)) for name, folder in models.items()]
        shipped = [ModelSpec(name=EMBEDDED, source=EmbeddedSource())] if include_embedded else []
        wanted = [*folders, *specs, *shipped]
        _check_settings(models, specs, element_type, default_model, include_embedded=include_embedded)
        opener = Opener(
            device=pick_device(device),
            element_type=element_type,
            hub=hub or HubCache(default_folder()),
            pull_command=pull_command,
            omit_dead_latents=omit_dead_latents,
            known={} if previous is None else previous.registered(),
        )
        attempts = Attempts()
        entries = [entry for spec in wanted for entry in opener.open(spec, attempts)]
        served = {entry.name for entry in entries}
        registry = cls(
            [entry for entry in entries if isinstance(entry, ModelEntry)],
            [entry for entry in entries if isinstance(entry, AutoencoderEntry)],
            roots=AllowedRoots(autoencoder_roots),
            default_model=default_model or _default(wanted, served),
            preload=[name for name in _preloaded(specs) if name in served],
            omit_dead_latents=omit_dead_latents,
            failed=attempts.failed,
        )
        if previous is not None:
            registry._adopt_sets_by_path(previous)
        return registry

    def _adopt_sets_by_path(self, previous: Registry) -> None:
        with previous._lock:
            known = list(previous._sets_by_path.values())
        self._sets_by_path.update((entry.name, entry) for entry in known if self.holds(entry.model))

    def holds(self, entry: ContextEntry) -> bool:
        """Whether *entry* is one of this registry's, not merely of the same name."""
        with self._lock:
            return entry in {
                self._models.get(entry.name), self._autoencoders.get(entry.name), self._sets_by_path.get(entry.name)
            }  # fmt: skip

    def registered(self) -> dict[str, ContextEntry]:
        """The entry of every model and set by name, without the sets that clients named by path."""
        return {**self._models, **self._autoencoders}

    def change_from(self, previous: Registry) -> RegistryChange:
        """The difference from *previous*, without sets that clients named by path."""
        before, now = previous.registered(), self.registered()
        return RegistryChange(
            added=tuple(sorted(now.keys() - before.keys())),
            removed=tuple(sorted(before.keys() - now.keys())),
            changed=tuple(sorted(name for name in now.keys() & before.keys() if now[name] is not before[name])),
        )

    @property
    def failed(self) -> tuple[FailedEntry, ...]:
        """The models and sets that are registered, or in a model's `autoencoders` folder, but cannot be served."""
        return tuple(self._failed.values())

    def check_served(self, previous: Registry | None = None) -> None:
        """Raise unless all of them can be served; those that failed in *previous* too are ignored, and the error is
        fit to be told to a caller.

        Raises:
            InvalidRequest: if only the registry is wrong; lists everything.
            DataLoss: otherwise; lists everything.
        """
        known = set() if previous is None else {one.name for one in previous.failed}
        failed = [one for one in self.failed if one.name not in known]
        problems = Violations()
        for one in failed:
            if isinstance(one.error, MissingSource) and previous is not None:
                problems.extend(one.error.told)
            elif isinstance(one.error, InvalidRequest):
                problems.extend(one.error)
            else:
                problems.add("", str(one))
        if any(not isinstance(one.error, InvalidRequest) for one in failed):
            reasons = {one.error.reason for one in failed if isinstance(one.error, DataLoss)}
            reason = reasons.pop() if len(reasons) == 1 else DataLoss.default_reason
            raise DataLoss(problems.error().message, reason=reason)
        problems.raise_if_any()

    def models(self) -> list[ModelInfo]:
        """Every model, failed ones too, by name, described as not loaded: only the cache knows its state."""
        found = [self._info(entry) for entry in self._models.values()]
        found += [self._failed_info(one) for one in self.failed if one.kind is ContextKind.MODEL]
        return sorted(found, key=lambda info: info.name)

    def autoencoders(self, model: str | None = None) -> list[AutoencoderInfo]:
        """Every registered autoencoder set, by name, those that failed too.

        Those of one *model*, if it is given; raises NotFound if that is unknown.
        """
        owner = None if model is None else self.model(model).name
        found = [entry.info() for entry in self._autoencoders.values() if owner in {None, entry.model.name}]
        failed = [one for one in self.failed if one.kind is ContextKind.AUTOENCODER and owner in {None, one.model}]
        return sorted([*found, *(one.autoencoder_info() for one in failed)], key=lambda info: info.name)

    def model(self, ref: str) -> ModelInfo:
        """The model of a name or handle, "" meaning the default; raises NotFound with the nearest names."""
        failed = self.failure(ref or self.default_model)
        if failed is not None and failed.kind is ContextKind.MODEL:
            return self._failed_info(failed)
        return self._info(self.model_entry(ref))

    def failure(self, ref: str) -> FailedEntry | None:
        """The model or set of a name or handle, if it is one that failed."""
        return self._failed.get(ContextRef.parse(ref).name)

    def autoencoder_by_config(self, config: AutoencoderConfig, model: str) -> AutoencoderEntry:
        """The set whose files *config* names by path; afterwards its name can be used like a registered one.

        Raises:
            NotAllowed: for a path outside the allowed roots, or to something other than a regular file.
            NotFound: for a path that does not exist, or an unknown *model*.
            InvalidRequest: if layers or files do not fit the model.
            DataLoss: for a corrupt file.
        """
        entry = set_of_config(config, self.model_entry(model), self._roots)
        entry = without_dead_latents(entry) if self._omit_dead_latents else entry
        with self._lock:
            entry = self._sets_by_path.setdefault(entry.name, entry)
            self._sets_by_path.move_to_end(entry.name)
            if len(self._sets_by_path) > _MAX_SETS_BY_PATH:
                self._sets_by_path.popitem(last=False)[1].files.let_go()
            self._let_go_of_old_files()
        entry.digest_if_small()  # once for the same files, however often they are named
        return entry

    def _let_go_of_old_files(self) -> None:
        """Keep at most `_MAX_HELD_FILES` files open for sets that are planned but not loaded: those of the newest."""
        n_held = 0
        for i, entry in enumerate(reversed(self._sets_by_path.values())):
            n_held += len(entry.files.names)
            if i and n_held > _MAX_HELD_FILES:
                entry.files.let_go()

    def tokenizer(self, ref: str) -> Tokenizer:
        """The tokenizer of a model, read once; raises NotFound, or DataLoss if it is unreadable."""
        return self.model_entry(ref).tokenizer()

    def model_name(self, ref: str) -> str:
        """The name of a model, without opening a file; raises NotFound."""
        return self.model_entry(ref).name

    def model_entry(self, ref: str) -> ModelEntry:
        """As `model`, but the entry, which has all that loading needs."""
        return self._find(ref or self.default_model, self._models, "model", Reason.MODEL_NOT_FOUND)

    def sets_of(self, model: ModelEntry) -> list[AutoencoderEntry]:
        """The registered autoencoder sets of *model*, by name, without those that clients named by path."""
        return [entry for entry in self._autoencoders.values() if entry.model is model]

    def autoencoder_entry(self, ref: str, model: str) -> AutoencoderEntry:
        """The autoencoder set of a name or handle.

        Raises:
            NotFound: if it, or *model*, is unknown.
            InvalidRequest: (IMPOSSIBLE_COMBINATION, field "") if it belongs to another model.
        """
        entry = self._find(ref, self._sets(), "autoencoder", Reason.AUTOENCODER_NOT_FOUND)
        owner = self.model_entry(model)
        if entry.model is not owner:
            problem = f"{entry.name!r} belongs to the model {entry.model.name!r}, not to {owner.name!r}"
            raise InvalidRequest.of("", problem, reason=Reason.IMPOSSIBLE_COMBINATION)
        return entry

    def entry(self, ref: str) -> ContextEntry:
        """A model or an autoencoder set of a name or handle; raises NotFound (CONTEXT_NOT_FOUND)."""
        entries: dict[str, ContextEntry] = {**self._models, **self._sets()}
        return self._find(ref, entries, "context", Reason.CONTEXT_NOT_FOUND)

    def _find(self, ref: str, entries: Mapping[str, _E], resource_type: str, reason: Reason) -> _E:
        name = ContextRef.parse(ref).name
        entry = entries.get(name)
        if entry is not None:
            entry.check_answers_to(ref, resource_type, reason)
            return entry
        failed = self._failed.get(name) or self._failed.get(name.partition("/")[0])
        raise failed.told() if failed is not None else NotFound.unknown(resource_type, ref, entries, reason=reason)

    def _sets(self) -> dict[str, AutoencoderEntry]:
        with self._lock:
            return {**self._autoencoders, **self._sets_by_path}

    def _info(self, entry: ModelEntry) -> ModelInfo:
        autoencoders = tuple(one.name for one in self.sets_of(entry))
        return entry.info(default_model=entry.name == self.default_model, autoencoders=autoencoders)

    def _failed_info(self, failed: FailedEntry) -> ModelInfo:
        return failed.model_info(default_model=failed.name == self.default_model)

    def __repr__(self) -> str:
        """Its models and sets, by name."""
        return f"Registry({', '.join([*self._models, *self._autoencoders])})"


def _default(specs: Sequence[ModelSpec], served: Collection[str]) -> str:
    """The default model if no setting names one: if possible, one of those that are *served*."""
    said = [spec.name for spec in specs if spec.is_default]
    shipped = [spec.name for spec in specs if isinstance(spec.source, EmbeddedSource)]
    names = sorted(spec.name for spec in specs)
    return (said or shipped or [name for name in names if name in served] or names)[0]


def _preloaded(specs: Iterable[ModelSpec]) -> Iterator[str]:
    for spec in specs:
        if spec.preload:
            yield spec.name
        for one in spec.autoencoders:
            if one.preload:
                yield f"{spec.name}/{one.name}"


def _check_settings(
    models: Iterable[str],
    specs: Iterable[ModelSpec],
    element_type: TensorElementType,
    default_model: str | None,
    *,
    include_embedded: bool,
) -> None:
    """Raise InvalidRequest unless the names are valid and distinct, and the other settings valid."""
    problems = Violations()
    given = set(models)
    for name in models:
        try:
            plain = not ContextRef.parse(name).is_handle
        except InvalidRequest as error:
            problems.extend(error, f"models[{name}]")
            continue
        problems.check(plain, f"models[{name}]", f"{name!r} is a handle, not a name")
        problems.check("/" not in name, f"models[{name}]", "must not hold a slash: that is for autoencoder sets")
        if include_embedded:
            problems.check(name != EMBEDDED, f"models[{name}]", "is the name of the model that ships with the package")
    for spec in specs:
        problems.check(spec.name not in given, field_of(spec.name), "is the name of a model in the settings too")
        if include_embedded:
            problems.check(spec.name != EMBEDDED, field_of(spec.name), "is the name of the model that ships")
    known = sorted({*given, *(spec.name for spec in specs), *([EMBEDDED] if include_embedded else [])})
    problems.check(bool(known), "models", "must name a model, as the embedded one is left out")
    if default_model is not None:
        problems.check(default_model in known, "default_model", f"{default_model!r} is none of {', '.join(known)}")
    supported = ", ".join(TORCH_TYPES)
    problems.check(element_type in TORCH_TYPES, "element_type", f"must be one of {supported}, not {element_type}")
    problems.raise_if_any()
