"""Registry: which models and autoencoder sets there are, under which names.

Headers of all that the operator names are read once, when the registry is built, so that a corrupt checkpoint stops the
server at its start and not a request later. No weights are touched here; what is loaded is the cache's to know.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dst_grpc import embedded
from dst_grpc.contexts.dead_latents import without_dead_latents
from dst_grpc.contexts.device import pick_device
from dst_grpc.contexts.discovery import set_of_config, sets_beside
from dst_grpc.contexts.entries import AutoencoderEntry, Entry, ModelEntry
from dst_grpc.contexts.paths import AllowedRoots
from dst_grpc.domain.components import TensorElementType
from dst_grpc.domain.handles import ContextRef
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.element_types import TORCH_TYPES
from dst_grpc.errors import InvalidRequest, NotFound, Reason, Violations

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dst_grpc.domain.config import AutoencoderConfig
    from dst_grpc.domain.resolution import AutoencoderInfo, ModelInfo
    from dst_grpc.engine.tokenizer import Tokenizer

EMBEDDED = "embedded"
"""Name of the model that ships with the package."""
_MAX_ANONYMOUS = 256
_E = TypeVar("_E", bound=Entry)


class Registry:
    """What may be loaded. Fixed once built, but for the sets that clients name by path."""

    def __init__(
        self,
        models: Iterable[ModelEntry],
        autoencoders: Iterable[AutoencoderEntry],
        *,
        roots: AllowedRoots,
        default_model: str,
        omit_dead_latents: bool = False,
    ) -> None:
        """Use `build`, unless the entries are at hand already."""
        self._omit_dead_latents = omit_dead_latents
        offered = [self._offered(entry) for entry in autoencoders]
        self._models = {entry.name: entry for entry in sorted(models, key=lambda entry: entry.name)}
        self._autoencoders = {entry.name: entry for entry in sorted(offered, key=lambda entry: entry.name)}
        self._anonymous: OrderedDict[str, AutoencoderEntry] = OrderedDict()
        self._lock = threading.Lock()
        self._roots = roots
        self.default_model = default_model

    @classmethod
    def build(
        cls,
        *,
        models: Mapping[str, Path],
        autoencoder_roots: Sequence[Path] = (),
        device: str = "auto",
        element_type: TensorElementType = TensorElementType.FLOAT32,
        include_embedded: bool = True,
        default_model: str | None = None,
        omit_dead_latents: bool = False,
    ) -> Registry:
        """Read the headers of all models and of the autoencoders beside them.

        Args:
            models: folder of each model, by name.
            autoencoder_roots: folders below which clients may name autoencoder files.
            device: auto, cpu, cuda, cuda:N or mps.
            element_type: what weights are loaded as.
            include_embedded: whether to offer the model that ships with the package.
            default_model: name of the model for requests without one; None = the embedded one, else the first by name.
            omit_dead_latents: whether autoencoders are loaded without their dead latents.

        Raises:
            InvalidRequest: if a setting is wrong; names it.
            DataLoss: if a checkpoint is corrupt or not supported; names the file.
        """
        folders = {name: (folder, "folder", folder / "autoencoders") for name, folder in models.items()}
        if include_embedded:
            folders.setdefault(EMBEDDED, (embedded.MODEL_FOLDER, EMBEDDED, embedded.AUTOENCODERS_FOLDER))
        _check_settings(models, folders.keys(), element_type, default_model, include_embedded=include_embedded)
        picked = pick_device(device)
        entries: list[ModelEntry] = []
        sets: list[AutoencoderEntry] = []
        for name, (folder, source, beside) in folders.items():
            entries.append(_open(name, folder, source, element_type, picked))
            sets += sets_beside(entries[-1], beside)
        default = default_model or (EMBEDDED if EMBEDDED in folders else min(folders))
        return cls(
            entries,
            sets,
            roots=AllowedRoots(autoencoder_roots),
            default_model=default,
            omit_dead_latents=omit_dead_latents,
        )

    def models(self) -> list[ModelInfo]:
        """Every model, by name; none of them as loaded, which only the cache can tell."""
        return [self._info(entry) for entry in self._models.values()]

    def autoencoders(self, model: str | None = None) -> list[AutoencoderInfo]:
        """Every registered autoencoder set, by name, or those of one *model*; raises NotFound if that is unknown."""
        owner = None if model is None else self.model_entry(model)
        return [entry.info() for entry in self._autoencoders.values() if owner in {None, entry.model}]

    def model(self, ref: str) -> ModelInfo:
        """The model of a name or handle, "" meaning the default; raises NotFound with the nearest names."""
        return self._info(self.model_entry(ref))

    def autoencoder(self, ref: str, model: str) -> AutoencoderInfo:
        """The autoencoder set of a name or handle.

        Raises:
            NotFound: if it, or *model*, is unknown.
            InvalidRequest: (IMPOSSIBLE_COMBINATION, field "") if it belongs to another model.
        """
        return self.autoencoder_entry(ref, model).info()

    def autoencoder_by_config(self, config: AutoencoderConfig, model: str) -> AutoencoderInfo:
        """The set whose files *config* names; afterwards its name can be used like a registered one.

        Raises:
            NotAllowed: for a path outside the allowed roots, or to something other than a regular file.
            NotFound: for a path that leads nowhere, or an unknown *model*.
            InvalidRequest: if layers or files do not fit the model.
            DataLoss: for a corrupt file.
        """
        entry = self._offered(set_of_config(config, self.model_entry(model), self._roots))
        with self._lock:
            entry = self._anonymous.setdefault(entry.name, entry)
            self._anonymous.move_to_end(entry.name)
            if len(self._anonymous) > _MAX_ANONYMOUS:
                self._anonymous.popitem(last=False)
        return entry.info()

    def tokenizer(self, ref: str) -> Tokenizer:
        """The tokenizer of a model, read once; raises NotFound, or DataLoss if it is unreadable."""
        return self.model_entry(ref).tokenizer()

    def model_entry(self, ref: str) -> ModelEntry:
        """As `model`, with all that loading needs."""
        return _find(ref or self.default_model, self._models, "model", Reason.MODEL_NOT_FOUND)

    def autoencoder_entry(self, ref: str, model: str) -> AutoencoderEntry:
        """As `autoencoder`, with all that loading needs."""
        entry = _find(ref, self._sets(), "autoencoder", Reason.AUTOENCODER_NOT_FOUND)
        owner = self.model_entry(model)
        if entry.model is not owner:
            problem = f"{entry.name!r} belongs to the model {entry.model.name!r}, not to {owner.name!r}"
            raise InvalidRequest.of("", problem, reason=Reason.IMPOSSIBLE_COMBINATION)
        return entry

    def entry(self, ref: str) -> Entry:
        """A model or an autoencoder set of a name or handle; raises NotFound (CONTEXT_NOT_FOUND)."""
        entries: dict[str, Entry] = {**self._models, **self._sets()}
        return _find(ref, entries, "context", Reason.CONTEXT_NOT_FOUND)

    def _offered(self, entry: AutoencoderEntry) -> AutoencoderEntry:
        return without_dead_latents(entry) if self._omit_dead_latents else entry

    def _sets(self) -> dict[str, AutoencoderEntry]:
        with self._lock:
            return {**self._autoencoders, **self._anonymous}

    def _info(self, entry: ModelEntry) -> ModelInfo:
        autoencoders = tuple(one.name for one in self._autoencoders.values() if one.model is entry)
        return entry.info(is_default=entry.name == self.default_model, autoencoders=autoencoders)

    def __repr__(self) -> str:
        """What it knows, by name."""
        return f"Registry({', '.join([*self._models, *self._autoencoders])})"


def _find(ref: str, entries: Mapping[str, _E], resource_type: str, reason: Reason) -> _E:
    parsed = ContextRef.parse(ref)
    entry = entries.get(parsed.name)
    if entry is None:
        raise NotFound.unknown(resource_type, ref, entries, reason=reason)
    if not entry.answers_to(parsed):
        raise NotFound.unknown(resource_type, ref, [entry.handle or entry.name], reason=reason)
    return entry


def _open(name: str, folder: Path, source: str, element_type: TensorElementType, device: str) -> ModelEntry:
    checkpoint = open_checkpoint(folder)
    entry = ModelEntry(
        name=name,
        element_type=element_type,
        device=device,
        files=checkpoint.files,
        source=source,
        checkpoint=checkpoint,
    )
    entry.digest_if_small()
    return entry


def _check_settings(
    models: Iterable[str],
    names: Iterable[str],
    element_type: TensorElementType,
    default_model: str | None,
    *,
    include_embedded: bool,
) -> None:
    """Names must be names, and tell everything apart: models share theirs with the sets beside them."""
    problems = Violations()
    known = sorted(names)
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
    problems.check(bool(known), "models", "must name a model, as the embedded one is left out")
    if default_model is not None:
        problems.check(default_model in known, "default_model", f"{default_model!r} is none of {', '.join(known)}")
    supported = ", ".join(TORCH_TYPES)
    problems.check(element_type in TORCH_TYPES, "element_type", f"must be one of {supported}, not {element_type}")
    problems.raise_if_any()
