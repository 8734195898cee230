"""The file of a transcoder whose encoder and decoder stay there: what is loaded of it, and what is read when needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from dst_grpc.engine.element_types import is_finite, moved
from dst_grpc.engine.families.config_values import UNKNOWN
from dst_grpc.engine.files import corrupt
from dst_grpc.engine.formats.weights import AutoencoderFile, Role
from dst_grpc.engine.safetensors_file import SafetensorsFile
from dst_grpc.engine.stored_matrix import StoredMatrix
from dst_grpc.engine.stored_transcoder import StoredTranscoder
from dst_grpc.errors import require

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dst_grpc.engine.formats.header import AutoencoderHeader
    from dst_grpc.engine.formats.layouts import FileGroup
    from dst_grpc.engine.formats.sources import TensorSource
    from dst_grpc.engine.formats.weights import StoredTensor

_LOADED = (Role.LATENT_BIAS, Role.DECODER_BIAS, Role.THRESHOLD, Role.SKIP)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTranscoderFile:
    """The features of one layer, opened and checked."""

    files: FileGroup
    """The file of the encoder, and those beside it."""
    header: AutoencoderHeader
    """Their header."""
    source: TensorSource
    """The tensors beside the encoder."""
    parts: Mapping[Role, StoredTensor]
    """The tensors by role, the decoder's excepted."""
    encoder: StoredMatrix
    """Wenc, not held open."""
    decoder: StoredMatrix
    """The decoder, not held open, with the rows that `StoredTranscoder.decoder` describes."""
    first_stored: int
    """The layer of a feature's first row of the decoder."""

    @classmethod
    def of(
        cls,
        *,
        files: FileGroup,
        header: AutoencoderHeader,
        source: TensorSource,
        parts: Mapping[Role, StoredTensor],
        decoder: tuple[SafetensorsFile, str],
        first_stored: int,
    ) -> StoredTranscoderFile:
        """Complete *header* with what the decoder, a tensor [F, layers from *first_stored* to the last, d], says.

        Raises:
            DataLoss: if the decoder is missing or misshapen.
        """
        encoder = parts[Role.ENCODER]
        layer = require(header.layer_index)
        n_stored = _n_stored(*decoder, header, others=decoder[0].path != files.path)
        if first_stored + n_stored <= layer:
            raise corrupt(
                decoder[0].path, f"{decoder[1]!r} has {n_stored} layers, and so none that layer {layer} writes to"
            )
        tensors = SafetensorsFile.open(files.weights)
        found = cls(
            files=files,
            header=header,
            source=source,
            parts=parts,
            encoder=StoredMatrix(
                file=tensors, name=encoder.key, n_columns=header.n_inputs, is_swapped=encoder.is_swapped
            ),
            decoder=StoredMatrix(file=decoder[0], name=decoder[1], n_columns=header.n_outputs),
            first_stored=first_stored,
        )
        written = range(layer, first_stored + n_stored)
        file_bytes = found.encoder.n_bytes + found.decoder.n_bytes
        return replace(found, header=replace(header, written=written, file_bytes=file_bytes))

    @property
    def path(self) -> Path:
        """Path of the encoder's file."""
        return self.files.path

    def load(self, device: torch.device | str) -> StoredTranscoder:
        """Read all but encoder and decoder to *device*, as float32, and hold the files open.

        Raises:
            DataLoss: if a weight is not finite; (DIGEST_MISMATCH) if a file was replaced.
        """
        header = self.header
        weights: dict[Role, torch.Tensor] = {}
        with self.source.opened() as read:
            for role in _LOADED:
                if role in self.parts:
                    part = self.parts[role]
                    loaded = moved(read(part.key), device, torch.float32)
                    if not is_finite(loaded):
                        problem = f"tensor {part.key!r} has values that are NaN or infinite as float32"
                        raise corrupt(self.source.path, problem)
                    weights[role] = loaded.t() if part.is_swapped else loaded
        layer = require(header.layer_index)
        encoder, decoder = self.encoder.file, self.decoder.file
        held = encoder.held()
        return StoredTranscoder(
            written=header.written or range(layer, layer + 1),
            encoder=replace(self.encoder, file=held),
            latent_bias=weights[Role.LATENT_BIAS],
            decoder=replace(self.decoder, file=held if decoder.path == encoder.path else decoder.held()),
            first_stored=self.first_stored,
            decoder_bias=weights[Role.DECODER_BIAS],
            threshold=weights.get(Role.THRESHOLD),
            skip=weights.get(Role.SKIP),
            activation=header.activation,
            k=header.k,
            postact=header.postact,
            input_norm=header.interpretations[0].input_norm,
        )


def stored(file: AutoencoderFile, layer: int | None) -> StoredTranscoderFile:
    """The transcoder of *layer* in *file*, its encoder and decoder left there.

    Raises:
        DataLoss: if it is no transcoder of an MLP, or something else is computed with than the file holds.
    """
    if problem := _why_not_stored(file):
        raise corrupt(file.path, f"cannot stay in its files, as is registered: {problem}")
    tensors, header = SafetensorsFile.open(file.files.weights), file.header
    encoder, decoder = (
        StoredMatrix(
            file=tensors, name=part.key, n_columns=n_columns, is_swapped=part.is_swapped is not is_stored_by_columns
        )
        for part, n_columns, is_stored_by_columns in (
            (file.parts[Role.ENCODER], header.n_inputs, False),
            (file.parts[Role.DECODER], header.n_outputs, True),
        )
    )
    file_bytes = encoder.n_bytes + decoder.n_bytes
    return StoredTranscoderFile(
        files=file.files,
        header=replace(header, layer_index=layer, file_bytes=file_bytes),
        source=file.source,
        parts={role: part for role, part in file.parts.items() if role is not Role.DECODER},
        encoder=encoder,
        decoder=decoder,
        first_stored=require(layer),
    )


def _why_not_stored(file: AutoencoderFile) -> str:
    """Why the encoder and decoder of *file* have to be loaded; empty if they need not be."""
    header = file.header
    if not header.is_transcoder:
        return "only transcoders of MLPs do, which attribution graphs are made of"
    if file.path.suffix != ".safetensors":
        return f"rows can be read of .safetensors, not of {file.path.suffix}"
    if header.folded or file.threshold is not None or set(file.parts) - {*_LOADED, Role.ENCODER, Role.DECODER}:
        return "its weights are computed from what it holds"
    if len(header.interpretations) > 1:
        return "it leaves open how it is meant, which loading decides"
    return ""


LayerFile = AutoencoderFile | StoredTranscoderFile
"""The opened files of one layer."""


def _n_stored(file: SafetensorsFile, key: str, header: AutoencoderHeader, *, others: bool) -> int:
    """Layers of the decoder *key* in *file*; with *others*, no other tensor may be in it."""
    tensor = file.tensors.get(key)
    if tensor is None or not tensor.is_float:
        raise corrupt(file.path, f"lacks the float tensor {key!r}")
    unknown = sorted(file.tensors.keys() - {key}) if others else []
    if unknown:
        raise corrupt(file.path, f"its tensor {unknown[0]!r} {UNKNOWN}")
    match tensor.shape:
        case (header.n_latents, n_stored, header.n_outputs):
            return n_stored
    wanted = f"[{header.n_latents}, layers, {header.n_outputs}]"
    raise corrupt(file.path, f"{key!r} has shape {list(tensor.shape)}, but its encoder needs {wanted}")
