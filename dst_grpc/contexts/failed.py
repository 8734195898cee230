"""Models and autoencoder sets that cannot be served, because their files are missing or invalid.

One that fails does not affect the others. It stays known by name, so that requests for it get the reason.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dst_grpc.domain.architecture import ModelDimensions
from dst_grpc.domain.resolution import AutoencoderInfo, ContextKind, ContextState, ContextStatus, ModelInfo
from dst_grpc.engine.files import CorruptFile
from dst_grpc.errors import DataLoss, DstError, FieldViolation, Internal, InvalidRequest
from dst_grpc.failures import failure_of, raise_if_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)
_NO_SIZES = ModelDimensions(
    n_layers=0, d_model=0, n_heads=0, n_key_value_heads=0, d_head=0, d_mlp=0, vocab_size=0, context_window=0
)


class MissingSource(InvalidRequest):
    """A source of the registry that is not there."""

    def __init__(self, field: str, description: str, *, told: str) -> None:
        """The source at *field* of the registry: *description* is for the operator, *told* for callers, whom folders
        and commands of this machine do not concern."""
        super().__init__([FieldViolation(field, description)])
        self.told = InvalidRequest.of(field, told)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedEntry:
    """A model or an autoencoder set that cannot be served."""

    name: str
    """Name that it is registered under, or would be."""
    model: str
    """Name of the model: its own, or that of the one that a set is for."""
    source: str
    """Where it comes from, for humans."""
    error: DstError
    """The reason; a file is named by its path below the folder of the model or the set."""

    @property
    def kind(self) -> ContextKind:
        """What it is."""
        return ContextKind.MODEL if self.name == self.model else ContextKind.AUTOENCODER

    def told(self) -> DstError:
        """The error of requests for it."""
        if isinstance(self.error, Internal):
            return Internal(self.error.message, error_id=self.error.error_id, metadata=self.error.metadata)
        reason = self.error.reason if isinstance(self.error, DataLoss) else DataLoss.default_reason
        told = self.error.told if isinstance(self.error, MissingSource) else self.error
        message = f"{self.name!r} cannot be served: {told.message}"
        return DataLoss(message, reason=reason, metadata={**self.error.metadata, "context": self.name})

    def model_info(self, *, default_model: bool) -> ModelInfo:
        """What the catalogue says of a model."""
        return ModelInfo(
            name=self.name,
            handle="",
            family="",
            dimensions=_NO_SIZES,
            element_type=None,
            device="",
            digest="",
            parameter_bytes=0,
            source=self.source,
            default_model=default_model,
            state=ContextState.FAILED,
            autoencoders=(),
            error=self.told(),
        )

    def autoencoder_info(self) -> AutoencoderInfo:
        """What the catalogue says of an autoencoder set."""
        return AutoencoderInfo(
            name=self.name,
            handle="",
            model=self.model,
            dst=None,
            node_type=None,
            layer_indices=(),
            n_latents=0,
            activations=(),
            spliceable=False,
            parameter_bytes=0,
            digest="",
            state=ContextState.FAILED,
            normalizations=(),
            input_norms=(),
            source=self.source,
            error=self.told(),
        )

    def status(self) -> ContextStatus:
        """What operators see."""
        return ContextStatus(
            handle=self.name,
            kind=self.kind,
            state=ContextState.FAILED,
            bytes_total=0,
            bytes_loaded=0,
            device="",
            pins=0,
            hits=0,
            idle_duration=0.0,
            error=self.told(),
        )

    def __str__(self) -> str:
        """One line: its name and the reason."""
        return f"{self.name}: {self.error.message}"


@dataclass(slots=True)
class Attempt:
    """One attempt at opening a model or a set."""

    root: Path | None = None
    """Its folder, for names of files; None as long as it is not known."""


class Attempts:
    """Attempts at opening models and sets: each that fails is noted, and the next goes on."""

    def __init__(self) -> None:
        """Start without failures."""
        self.failed: list[FailedEntry] = []
        """Those that failed, in order."""

    @contextmanager
    def at(self, name: str, model: str, source: str) -> Iterator[Attempt]:
        """An attempt to open *name*, of the *model* of that name; errors raised in the block are noted."""
        attempt = Attempt()
        try:
            yield attempt
        except BaseException as error:  # noqa: BLE001  one that fails, in whatever way, keeps no other from being offered
            raise_if_out_of_memory(error)  # which is no fault of this one
            problem = _problem(failure_of(error), name, attempt.root)
            self.failed.append(FailedEntry(name=name, model=model, source=source, error=problem))


def _problem(error: Exception, name: str, root: Path | None) -> DstError:
    """The DstError to report for *name*; any other error is a bug of the server, and logged."""
    match error:
        case CorruptFile():
            return error if root is None else error.below(root)
        case DstError():
            return error
        case OSError():
            return DataLoss(f"{Path(str(error.filename)).name} cannot be read: {error.strerror}")
        case _:
            error_id = secrets.token_hex(8)
            _log.error("internal error", exc_info=error, extra={"error_id": error_id, "context": name})
            text = f"a fault of the server, which its log has under the id {error_id}"
            return Internal(text, error_id=error_id, metadata={"error_id": error_id})
