"""Looks up the autoencoder sets that a request names by name, handle or path, and checks that they fit its model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.errors import InvalidRequest, NotFound, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dst_grpc.contexts.entries import AutoencoderEntry, ModelEntry
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.components import NodeType
    from dst_grpc.domain.config import AutoencoderConfig, DstConfig
    from dst_grpc.pipeline.findings import Findings


class Lookup:
    """Lookups for one request: bad fields are noted, unknown names raise NotFound."""

    def __init__(self, registry: Registry, model: ModelEntry, findings: Findings) -> None:
        """*model* is the request's; *findings* collects what is wrong."""
        self._registry, self._model, self._findings = registry, model, findings
        self.handles: dict[str, None] = {}
        """Handles that the request used: only loading shows whether their revisions are current."""
        # The same files are read once for a request, however many of its types read latents of them.
        self._by_path: dict[AutoencoderConfig, AutoencoderEntry] = {}

    def sets(self, refs: Sequence[str], path: str) -> dict[str, AutoencoderEntry]:
        """The sets of *refs*, by their path in the request; without those of another model.

        Notes rule 18: at most one set per node type.
        """
        found = {}
        for i, ref in enumerate(refs):
            if self._findings.holds_stand_in(f"{path}[{i}]"):
                continue
            try:
                found[f"{path}[{i}]"] = self._autoencoder(ref)
            except InvalidRequest as error:
                self._findings.extend(error, f"{path}[{i}]")
        self._check_node_types(found)
        return found

    def sets_of(
        self, config: DstConfig, path: str, spliced: tuple[AutoencoderEntry, ...]
    ) -> tuple[AutoencoderEntry, ...]:
        """The autoencoders that *config* names, in the reference's precedence; the spliced ones if it names none."""
        by_path = self._set_by_path(config, path)
        if config.autoencoder_context is not None:
            if self._findings.holds_stand_in(f"{path}.autoencoder_context"):
                return ()
            try:
                entry = self._autoencoder(config.autoencoder_context)
            except InvalidRequest as error:
                self._findings.extend(error, f"{path}.autoencoder_context")
                return ()
            if by_path is not None and (by_path.dst, by_path.layer_indices) != (entry.dst, entry.layer_indices):
                self._findings.add(f"{path}.autoencoder_config", f"differs from {entry.name}, the autoencoder_context")
            return (entry,)
        if config.multi_autoencoder_context is not None:
            field = f"{path}.multi_autoencoder_context.autoencoder_contexts"
            return tuple(self.sets(config.multi_autoencoder_context, field).values())
        return (by_path,) if by_path is not None else spliced

    def named(self, ref: str, path: str) -> AutoencoderEntry | None:
        """The set that *ref* names at *path*; None if it is bad."""
        if self._findings.holds_stand_in(path):
            return None
        try:
            return self._autoencoder(ref)
        except InvalidRequest as error:
            self._findings.extend(error, path)
            return None

    def transcoders(self, ref: str | None, path: str) -> AutoencoderEntry | None:
        """The set of transcoders that *ref* names at *path*, or the only one of the model; None if it is bad."""
        if self._findings.holds_stand_in(path):
            return None
        if ref is None:
            return self._only_transcoders(path)
        self.note_handle(ref)
        try:
            entry = self._registry.autoencoder_entry(ref, self._model.name)
        except InvalidRequest as error:
            self._findings.extend(error, path)
            return None
        if entry.is_of_transcoders:
            return entry
        description = f"{entry.name} is no set of transcoders: its autoencoders do not predict what MLPs write"
        self._findings.add(path, description, Reason.IMPOSSIBLE_COMBINATION)
        return None

    def _only_transcoders(self, path: str) -> AutoencoderEntry | None:
        found = [entry for entry in self._registry.sets_of(self._model) if entry.is_of_transcoders]
        if len(found) == 1:
            return found[0]
        names = ", ".join(entry.name for entry in found)
        which = f"several sets of transcoders, one of which it must name: {names}" if found else "no set of transcoders"
        self._findings.add(path, f"is required, as {self._model.name} has {which}")
        return None

    def _autoencoder(self, ref: str) -> AutoencoderEntry:
        self.note_handle(ref)
        return self._registry.autoencoder_entry(ref, self._model.name)

    def note_handle(self, ref: str) -> None:
        """Remember *ref* if it is a handle rather than a name."""
        if "@" in ref:
            self.handles[ref] = None

    def _set_by_path(self, config: DstConfig, path: str) -> AutoencoderEntry | None:
        wanted = config.autoencoder_config
        if wanted is None or wanted in self._by_path:
            return None if wanted is None else self._by_path[wanted]
        try:
            entry = self._registry.autoencoder_by_config(wanted, self._model.name)
            return self._by_path.setdefault(wanted, entry)
        except InvalidRequest as error:
            self._findings.extend(error, f"{path}.autoencoder_config")
            return None

    def _check_node_types(self, sets: Mapping[str, AutoencoderEntry]) -> None:
        """Rule 18: at most one autoencoder per node type."""
        seen: dict[NodeType, str] = {}
        for path, entry in sets.items():
            if entry.node_type in seen:
                other = seen[entry.node_type]
                self._findings.add(path, f"{entry.name} and {other} both have latents of {entry.node_type}")
            seen[entry.node_type] = entry.name

    def check_model(self, config: DstConfig, path: str) -> None:
        """Note where *config* names another model, or another device, than the request's."""
        for field in ("model_context", "model_name"):
            ref = getattr(config, field)
            if ref is None:
                continue
            self.note_handle(ref)
            try:
                other = self._registry.model_entry(ref).name
            except NotFound as error:
                self._findings.add(f"{path}.{field}", error.message)
                continue
            if other != self._model.name:
                self._findings.add(f"{path}.{field}", f"is {other!r}, but the request's model is {self._model.name!r}")
        device, own = config.device_for_raw_activations, self._model.device
        if device not in {None, own, own.removesuffix(":0")}:
            self._findings.add(f"{path}.device_for_raw_activations", f"is {device!r}, but the model is on {own!r}")
