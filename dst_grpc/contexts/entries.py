"""Entries: everything known of a model or an autoencoder set before it is loaded. Holds no weights."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from dst_grpc.domain.architecture import Architecture, ModelDimensions, unsupported_types
from dst_grpc.domain.autoencoder_inputs import AutoencoderInput, input_of
from dst_grpc.domain.handles import DIGEST_CHARACTERS, ContextRef
from dst_grpc.domain.resolution import (
    AutoencoderInfo,
    ContextKind,
    ContextState,
    LayerCheck,
    ModelInfo,
)
from dst_grpc.engine.element_types import TORCH_TYPES
from dst_grpc.engine.special_tokens import SpecialTokens
from dst_grpc.engine.tokenizer import Tokenizer
from dst_grpc.errors import DataLoss, NotFound, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from dst_grpc.domain.components import NodeType, TensorElementType
    from dst_grpc.domain.scalar_types import DerivedScalarType
    from dst_grpc.engine.checkpoint import Checkpoint
    from dst_grpc.engine.files import FileSet
    from dst_grpc.engine.formats.header import AutoencoderHeader
    from dst_grpc.engine.formats.stored_file import LayerFile

EAGER_DIGEST_BYTES = 1 << 26
"""Files up to this size are digested on registration, larger ones when they are first loaded."""
_LIVE = "-live"
_W = TypeVar("_W", bound=str)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What the operator's registry says of a model or an autoencoder set."""

    source: str = "folder"
    """Where it comes from, for humans."""
    revision: str = ""
    """Commit that it was pulled at; empty unless it is from the hub."""
    digest: str = ""
    """SHA-256 that all its files must have together; empty = any."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 that single files must have, by name."""
    is_pinned: bool = False
    """Whether it is pinned: not evicted to make room for others."""
    allows_failed_checks: bool = False
    """Whether it may be served even if its self-check fails."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContextEntry(ABC):
    """Base of models and autoencoder sets. The cache distinguishes entries by identity."""

    name: str
    """Registered name."""
    element_type: TensorElementType
    """Element type of its weights once loaded."""
    device: str
    """Device of its weights once loaded."""
    files: FileSet
    """The files that it consists of."""
    registered: Registered = Registered()
    """What the registry says of it."""

    @property
    @abstractmethod
    def kind(self) -> ContextKind:
        """Its kind."""

    @property
    @abstractmethod
    def parameter_bytes(self) -> int:
        """Bytes of its weights."""

    @property
    def handle(self) -> str:
        """Its handle; the empty string if its digest is not known yet."""
        digest = self.files.known_digest
        return self.handle_of(digest) if digest else ""

    def handle_of(self, digest: str) -> str:
        """Its handle, given its *digest*."""
        revision = self.revision_of(digest)
        ref = ContextRef(name=self.name, revision=revision, element_type=self.element_type, device=self.device)
        return str(ref)

    def revision_of(self, digest: str) -> str:
        """The revision in its handle, given its *digest*."""
        return digest[:DIGEST_CHARACTERS] + self.variant

    @property
    def variant(self) -> str:
        """Suffix of its revision, which distinguishes it from another entry of the same files; empty if they are loaded
        whole."""
        return ""

    def check_answers_to(self, ref: str, resource_type: str, reason: Reason) -> None:
        """Raise NotFound, with *resource_type* and *reason*, unless the name or handle *ref* means this entry."""
        if not self.answers_to(ContextRef.parse(ref)):
            raise NotFound.unknown(resource_type, ref, [self.handle or self.name], reason=reason)

    def answers_to(self, ref: ContextRef) -> bool:
        """Whether *ref* means this entry; its revision is only checked if the digest is known."""
        if ref.name != self.name:
            return False
        if not ref.is_handle:
            return True
        digest = self.files.known_digest
        same_revision = not digest or ref.revision == self.revision_of(digest)
        return same_revision and ref.element_type is self.element_type and ref.device == self.device

    def digest(self) -> str:
        """The digest of its files, once it is known to be the registered one; reads them, the first time.

        Raises:
            DataLoss: (DIGEST_MISMATCH) if the files changed, or have another digest than the operator registered.
        """
        for name, expected in self.registered.digests.items():
            found = self.files.digest_of(name)
            if found != expected:
                raise self._mismatch(name, f"its SHA-256 is {found}, but {expected} is registered")
        digest = self.files.digest()
        if self.registered.digest not in {"", digest}:
            names = ", ".join(self.files.names)
            raise self._mismatch(names, f"their digest is {digest}, but {self.registered.digest} is registered")
        return digest

    def _mismatch(self, files: str, problem: str) -> DataLoss:
        message = f"{self.name}: {files}: {problem}"
        return DataLoss(message, reason=Reason.DIGEST_MISMATCH, metadata={"context": self.name, "file": files})

    def digest_if_small(self) -> None:
        """Compute the digest now if the files are small; raises as `digest` does."""
        if self.files.total_bytes <= EAGER_DIGEST_BYTES:
            self.digest()

    @property
    def load_facts(self) -> tuple[object, ...]:
        """A value that is equal for two entries of the same unchanged files that are loaded in the same way."""
        return self.kind, self.name, self.element_type, self.device, self.files.identity(), self.registered


class _ReadOnce(Generic[T]):
    """Reads something when it is first needed, on the thread that needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.found: T | None = None

    def get(self, read: Callable[[Path, int], T], checkpoint: Checkpoint) -> T:
        with self._lock:
            if self.found is None:
                self.found = read(checkpoint.folder, checkpoint.config.vocab_size)
            return self.found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelEntry(ContextEntry):
    """A model that can be loaded."""

    checkpoint: Checkpoint
    """Its config and headers."""
    _tokenizer: _ReadOnce[Tokenizer] = field(default_factory=_ReadOnce, repr=False)
    _special: _ReadOnce[SpecialTokens] = field(default_factory=_ReadOnce, repr=False)

    @property
    def kind(self) -> ContextKind:
        """A model."""
        return ContextKind.MODEL

    @property
    def parameter_bytes(self) -> int:
        """Bytes of its weights in its element type."""
        return self.checkpoint.bytes_as(TORCH_TYPES[self.element_type])

    @property
    def dimensions(self) -> ModelDimensions:
        """Its sizes."""
        return self.checkpoint.config.dimensions

    @property
    def architecture(self) -> Architecture:
        """Its architecture."""
        return self.checkpoint.config.architecture

    @property
    def has_quick_tokenizer(self) -> bool:
        """Whether its tokenizer is read, and runs in this process, so that asking it does not block."""
        found = self._tokenizer.found
        return found is not None and not found.is_confined

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, read once; raises DataLoss if it is unreadable or has more tokens than the model."""
        return self._tokenizer.get(Tokenizer.from_folder, self.checkpoint)

    def special_tokens(self) -> SpecialTokens:
        """Its special tokens, read once; raises DataLoss if its files are unreadable."""
        return self._special.get(SpecialTokens.from_folder, self.checkpoint)

    def info(self, *, default_model: bool, autoencoders: tuple[str, ...]) -> ModelInfo:
        """Its catalogue entry while it is not loaded."""
        return ModelInfo(
            name=self.name,
            handle=self.handle,
            family=self.checkpoint.family,
            dimensions=self.dimensions,
            element_type=self.element_type,
            device=self.device,
            digest=self.files.known_digest,
            parameter_bytes=self.parameter_bytes,
            source=self.registered.source,
            revision=self.registered.revision,
            default_model=default_model,
            state=ContextState.NOT_LOADED,
            autoencoders=autoencoders,
            architecture=self.architecture,
            unsupported=unsupported_types(self.architecture),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AutoencoderEntry(ContextEntry):
    """An autoencoder set that can be loaded."""

    model: ModelEntry
    """The model that it belongs to."""
    dst: DerivedScalarType
    """The derived scalar that it reads."""
    by_layer: Mapping[int | None, LayerFile]
    """Its autoencoders by layer, in order; the layer is None for one that exists once per model."""
    declared: tuple[LayerCheck, ...] = ()
    """The declared figures."""
    is_named_by_path: bool = False
    """Whether a client named its files by path."""

    @property
    def kind(self) -> ContextKind:
        """An autoencoder set."""
        return ContextKind.AUTOENCODER

    @property
    def parameter_bytes(self) -> int:
        """Bytes of its weights in memory, in its element type."""
        return sum(header.bytes_as(TORCH_TYPES[self.element_type]) for header in self.headers)

    @property
    def headers(self) -> list[AutoencoderHeader]:
        """The headers of its layers' files, in order; all have equally many latents."""
        return [file.header for file in self.by_layer.values()]

    @property
    def input(self) -> AutoencoderInput:
        """The row of facts of its input."""
        return input_of(self.dst, self.output)

    @property
    def output(self) -> DerivedScalarType | None:
        """For transcoders, the derived scalar that they predict; None if the input is reconstructed."""
        return next((header.output for header in self.headers if header.output is not None), None)

    @property
    def node_type(self) -> NodeType:
        """Type of its latents."""
        return self.input.node_type

    @property
    def layer_indices(self) -> tuple[int, ...]:
        """Layers that it covers."""
        return tuple(layer for layer in self.by_layer if layer is not None)

    @property
    def n_latents(self) -> int:
        """Latents at each layer."""
        return self.headers[0].n_latents

    @property
    def has_write_scale(self) -> bool:
        """Whether a latent's write depends on its token's input too."""
        return any(one.normalization.scales for header in self.headers for one in header.interpretations)

    @property
    def reads_rows_of_encoder(self) -> bool:
        """Whether the read direction of an active latent is its row of the encoder, at every layer."""
        return all(header.reads_rows_of_encoder for header in self.headers)

    @property
    def spliceable(self) -> bool:
        """Whether it can be spliced into a run: what it reconstructs, at every layer, is a tap of a run."""
        kind = self.input
        return kind.is_spliceable and all(header.output is kind.output for header in self.headers)

    @property
    def is_cross_layer(self) -> bool:
        """Whether it is a cross-layer transcoder."""
        return any(header.written is not None for header in self.headers)

    @property
    def stays_in_files(self) -> bool:
        """Whether encoders and decoders are not loaded, but read as they are needed."""
        return any(header.file_bytes for header in self.headers)

    @property
    def is_of_transcoders(self) -> bool:
        """Whether its autoencoders are transcoders of the model's MLPs, as attribution graphs are made of."""
        return all(header.is_transcoder for header in self.headers)

    @property
    def load_facts(self) -> tuple[object, ...]:
        """As for every entry, with those of the model, as the sets of a changed model must be checked again."""
        dropped = tuple(header.n_dropped for header in self.headers)
        # super() without arguments would refer to the class before dataclass gave it slots.
        facts = super(AutoencoderEntry, self).load_facts
        return (*facts, id(self.model), self.dst, dropped, self.stays_in_files)

    @property
    def variant(self) -> str:
        """The suffix -live if latents are left out. A set without dead latents is the full set, with its handle."""
        return _LIVE if any(header.n_dropped for header in self.headers) else ""

    def info(self) -> AutoencoderInfo:
        """Its catalogue entry while it is not loaded."""
        headers = self.headers
        interpretations = [one for header in headers for one in header.interpretations]
        return AutoencoderInfo(
            name=self.name,
            handle=self.handle,
            model=self.model.name,
            dst=self.dst,
            node_type=self.node_type,
            layer_indices=self.layer_indices,
            n_latents=self.n_latents,
            activations=_distinct(header.activation for header in headers),
            spliceable=self.spliceable,
            parameter_bytes=self.parameter_bytes,
            digest=self.files.known_digest,
            state=ContextState.NOT_LOADED,
            declared=self.declared,
            formats=_distinct(header.format for header in headers),
            output=self.output,
            normalizations=_distinct(one.normalization for one in interpretations),
            input_norms=_distinct(one.input_norm for one in interpretations),
            folded=tuple(dict.fromkeys(text for header in headers for text in header.folded)),
            source=self.registered.source,
            revision=self.registered.revision,
            makes_graphs=self.is_of_transcoders,
            cross_layer=self.is_cross_layer,
            file_bytes=sum(header.file_bytes for header in headers),
        )


def _distinct(words: Iterable[_W]) -> tuple[_W, ...]:
    """*words* without repetition, in alphabetical order."""
    return tuple(sorted(set(words)))
