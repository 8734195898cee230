"""Directions of interventions: finds what they name, checks that they fit a tap, and makes their vectors of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dst_grpc.domain.components import Dimension
from dst_grpc.domain.enum_names import json_name
from dst_grpc.domain.interventions import DecoderRow, DifferenceOfMeans, EncoderRow, UnembeddingRow
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.engine.interventions import NoDirection
from dst_grpc.errors import InvalidRequest, require
from dst_grpc.pipeline.checks import check_covered

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dst_grpc.contexts.entries import AutoencoderEntry
    from dst_grpc.domain.interventions import Direction, Intervention
    from dst_grpc.domain.selections import TapSelection
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.taps import Site
    from dst_grpc.engine.tokenizer import Tokenizer
    from dst_grpc.pipeline.findings import Findings
    from dst_grpc.pipeline.lookup import Lookup
    from dst_grpc.scalars.explained_model import AutoencoderSet

Paths = Mapping[tuple["Site", "Direction"], str]
"""Paths of directions of interventions, by site."""


@contextmanager
def naming(paths: Paths) -> Iterator[None]:
    """Say of a vector that is no direction, found by a run inside, where the request has it."""
    try:
        yield
    except NoDirection as error:
        path = paths.get((error.site, error.direction))
        raise (error if path is None else error.at(path)) from None


WeightRow = UnembeddingRow | EncoderRow | DecoderRow
"""Directions that are rows of weights."""


class Directions:
    """Finds what the directions of one request name."""

    def __init__(self, findings: Findings, lookup: Lookup, tokenizer: Tokenizer, vocab_size: int) -> None:
        """*findings* collects what is wrong, *lookup* finds autoencoders, and *tokenizer* tokens below *vocab_size*."""
        self._findings, self._lookup, self._tokenizer, self._vocab_size = findings, lookup, tokenizer, vocab_size
        self.sets: dict[AutoencoderEntry, None] = {}
        """The autoencoder sets that are named."""
        self.paths: dict[tuple[Site, Direction], str] = {}
        """The path, in the message that was sent, of each direction of an intervention at a site; of equal ones the
        first."""

    def resolved(self, one: Intervention, path: str, width: int | None) -> Intervention:
        """An intervention at one layer with tokens by id, and sets and layers of latents by name; notes what does not
        exist or does not fit.

        Args:
            one: the intervention.
            path: its path.
            width: size of the last axis of its tap; None if it is not known.
        """
        found: dict[str, Any] = {}
        for field, direction in one.action.directions.items():
            at = f"{path}.{one.action.arm}.{field}"
            found[field] = self.found(direction, one.at, at, width)
            self.paths.setdefault((one.at.site, found[field]), self._findings.source.path_sent(at))
        return replace(one, action=replace(one.action, **found)) if found else one

    def found(self, direction: Direction, at: TapSelection, path: str, width: int | None) -> Direction:
        """As `resolved`, for one direction at a selection of one layer."""
        if self._findings.holds_stand_in(path):
            return direction
        match direction.direction:
            case RequestTensor() as vector:
                reason = why_no_vector(vector, width)
                self._findings.check(not reason, f"{path}.vector.tensor", reason)
            case UnembeddingRow() as row:
                return replace(direction, direction=self._token(row, at, f"{path}.unembedding_row"))
            case EncoderRow() as row:
                return replace(direction, direction=self._latent(row, at, f"{path}.encoder_row", width))
            case DecoderRow() as row:
                return replace(direction, direction=self._latent(row, at, f"{path}.decoder_row", width))
        return direction

    def _token(self, row: UnembeddingRow, at: TapSelection, path: str) -> UnembeddingRow:
        location = at.activation_location_type
        if location.dimensions[-1] is not Dimension.RESIDUAL_STREAM_CHANNELS:
            description = f"is a vector of the residual stream, but those of {json_name(location)} are not"
            self._findings.add(path, description)
        if row.token is None:
            fits = require(row.token_id) < self._vocab_size
            self._findings.check(fits, f"{path}.token_id", f"must be below the vocabulary size {self._vocab_size}")
            return row
        try:
            return UnembeddingRow(token_id=self._tokenizer.single_token(row.token, f"{path}.token"))
        except InvalidRequest as error:
            self._findings.extend(error)
            return row

    def _latent(
        self, row: EncoderRow | DecoderRow, at: TapSelection, path: str, width: int | None
    ) -> EncoderRow | DecoderRow:
        entry = self._lookup.named(row.autoencoder, f"{path}.autoencoder")
        if entry is None:
            return row
        self.sets[entry] = None
        layer = at.layer_index if row.layer_index is None else row.layer_index
        layer = None if None in entry.by_layer else layer
        if layer is None and None not in entry.by_layer:
            self._findings.add(f"{path}.layer_index", f"is required: {entry.name} has an autoencoder for each layer")
        check_covered(self._findings, entry, layer, f"{path}.layer_index")
        count = entry.n_latents
        outside = f"must be below {count}, the number of latents of {entry.name}, not {row.latent}"
        self._findings.check(row.latent < count, f"{path}.latent", outside)
        header = entry.headers[0]
        own = header.n_inputs if isinstance(row, EncoderRow) else header.n_outputs
        what = "reads" if isinstance(row, EncoderRow) else "writes"
        location = at.activation_location_type
        unlike = f"{entry.name} {what} vectors of {own} entries, but those of {json_name(location)} have {width}"
        self._findings.check(width in {None, own}, f"{path}.autoencoder", unlike)
        return replace(row, autoencoder=entry.name, layer_index=layer)


def why_no_vector(vector: RequestTensor, width: int | None) -> str:
    """Why a tensor of a request is no direction of vectors of *width* entries; empty if it is one, or not known yet."""
    if vector.tensor is None:
        return ""
    if vector.tensor.shape != (width,) and width is not None:
        return f"has shape {list(vector.tensor.shape)}, but must have [{width}], the size of the tap's last axis"
    return "" if np.any(vector.tensor) else "is 0, which is no direction"


def why_no_subspace(rows: RequestTensor, width: int | None) -> str:
    """Why a tensor of a request spans no subspace of vectors of *width* entries; empty if it does, or is not known
    yet."""
    if rows.tensor is None:
        return ""
    shape = rows.tensor.shape
    if len(shape) != 2 or (width is not None and shape[1] != width):
        return f"has shape {list(shape)}, but must have [k, {width}], whose last is the size of the tap's last axis"
    return "" if np.any(rows.tensor) else "is 0, and spans nothing"


def vectors_of(
    interventions: Iterable[Intervention], decoder: Decoder, sets: Mapping[str, AutoencoderSet]
) -> dict[WeightRow, torch.Tensor]:
    """The vectors [n] of the rows of weights that *interventions* name, on the device, as float32 or wider."""
    wide = torch.promote_types(decoder.dtype, torch.float32)
    rows = dict.fromkeys(_weight_rows(interventions))
    return {row: vector_of(row, decoder, sets).to(decoder.device, wide) for row in rows}


def _weight_rows(interventions: Iterable[Intervention]) -> Iterator[WeightRow]:
    """The rows of weights that *interventions* name."""
    for one in interventions:
        for direction in one.action.directions.values():
            if not isinstance(direction.direction, RequestTensor | DifferenceOfMeans):
                yield direction.direction


def vector_of(row: WeightRow, decoder: Decoder, sets: Mapping[str, AutoencoderSet]) -> torch.Tensor:
    """The vector [n] of a row that planning has resolved."""
    if isinstance(row, UnembeddingRow):
        return decoder.unembedding[:, require(row.token_id)]
    autoencoder = sets[row.autoencoder].coders[row.layer_index]
    is_read = isinstance(row, EncoderRow)
    return autoencoder.encoder_row(row.latent) if is_read else autoencoder.decoder_row(row.latent)
