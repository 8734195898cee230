"""Looking up what a request names: autoencoder sets by name, handle or path, and whether all of it is of one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from dst_grpc.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dst_grpc.domain.components import NodeType
    from dst_grpc.domain.config import AutoencoderConfig, DstConfig
    from dst_grpc.domain.resolution import AutoencoderInfo, ModelInfo
    from dst_grpc.engine.tokenizer import Tokenizer
    from dst_grpc.pipeline.findings import Findings


class Catalogue(Protocol):
    """What can be loaded, known without loading it."""

    def model(self, ref: str) -> ModelInfo:
        """The model of a name or handle; raises NotFound."""

    def autoencoder(self, ref: str, model: str) -> AutoencoderInfo:
        """The autoencoder set of a name or handle, for a model; raises NotFound."""

    def autoencoder_by_config(self, config: AutoencoderConfig, model: str) -> AutoencoderInfo:
        """The autoencoder set at given paths; raises NotAllowed outside the allowed roots."""

    def tokenizer(self, ref: str) -> Tokenizer:
        """The tokenizer of a model."""


class Lookup:
    """Looks up for one request; what is wrong with its fields is noted, what is unknown raises NotFound."""

    def __init__(self, catalogue: Catalogue, model: ModelInfo, findings: Findings) -> None:
        """*model* is the request's; *findings* takes what is wrong."""
        self._catalogue, self._model, self._findings = catalogue, model, findings
        # The same files are read once for a request, however many of its types read latents of them.
        self._by_path: dict[AutoencoderConfig, AutoencoderInfo] = {}

    def sets(self, refs: Sequence[str], path: str) -> dict[str, AutoencoderInfo]:
        """The sets of *refs*, by their path in the request; without those of another model.

        Notes rule 18: at most one set per node type.
        """
        found = {}
        for i, ref in enumerate(refs):
            if self._findings.holds_stand_in(f"{path}[{i}]"):
                continue
            try:
                found[f"{path}[{i}]"] = self._catalogue.autoencoder(ref, self._model.name)
            except InvalidRequest as error:
                self._findings.extend(error, f"{path}[{i}]")
        self._check_node_types(found)
        return found

    def sets_of(
        self, config: DstConfig, path: str, spliced: tuple[AutoencoderInfo, ...]
    ) -> tuple[AutoencoderInfo, ...]:
        """The autoencoders that *config* names, in the reference's precedence; the spliced ones if it names none."""
        by_path = self._set_by_path(config, path)
        if config.autoencoder_context is not None:
            if self._findings.holds_stand_in(f"{path}.autoencoder_context"):
                return ()
            try:
                info = self._catalogue.autoencoder(config.autoencoder_context, self._model.name)
            except InvalidRequest as error:
                self._findings.extend(error, f"{path}.autoencoder_context")
                return ()
            if by_path is not None and (by_path.dst, by_path.layer_indices) != (info.dst, info.layer_indices):
                self._findings.add(f"{path}.autoencoder_config", f"differs from {info.name}, the autoencoder_context")
            return (info,)
        if config.multi_autoencoder_context is not None:
            field = f"{path}.multi_autoencoder_context.autoencoder_contexts"
            return tuple(self.sets(config.multi_autoencoder_context, field).values())
        return (by_path,) if by_path is not None else spliced

    def _set_by_path(self, config: DstConfig, path: str) -> AutoencoderInfo | None:
        wanted = config.autoencoder_config
        if wanted is None or wanted in self._by_path:
            return None if wanted is None else self._by_path[wanted]
        try:
            return self._by_path.setdefault(wanted, self._catalogue.autoencoder_by_config(wanted, self._model.name))
        except InvalidRequest as error:
            self._findings.extend(error, f"{path}.autoencoder_config")
            return None

    def _check_node_types(self, sets: Mapping[str, AutoencoderInfo]) -> None:
        """Rule 18: at most one autoencoder per node type."""
        seen: dict[NodeType, str] = {}
        for path, info in sets.items():
            if info.node_type in seen:
                other = seen[info.node_type]
                self._findings.add(path, f"{info.name} and {other} both have latents of {info.node_type}")
            seen[info.node_type] = info.name

    def check_model(self, config: DstConfig, path: str) -> None:
        """Note where *config* names another model, or another device, than the request's."""
        for field in ("model_context", "model_name"):
            ref = getattr(config, field)
            if ref is None:
                continue
            try:
                other = self._catalogue.model(ref).name
            except NotFound as error:
                self._findings.add(f"{path}.{field}", error.message)
                continue
            if other != self._model.name:
                self._findings.add(f"{path}.{field}", f"is {other!r}, but the request's model is {self._model.name!r}")
        device, own = config.device_for_raw_activations, self._model.device
        if device not in {None, own, own.removesuffix(":0")}:
            self._findings.add(f"{path}.device_for_raw_activations", f"is {device!r}, but the model is on {own!r}")
