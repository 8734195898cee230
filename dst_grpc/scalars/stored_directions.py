"""Write directions of transcoders that stay in their files, for the few latents that are active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.engine.stored_products import active_columns, written
from dst_grpc.scalars.write_directions import WriteDirections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.engine.stored_transcoder import StoredTranscoder


@dataclass(frozen=True)
class StoredDirections(WriteDirections):
    """D [Z, d] (specification, 7.4): what latents write to some layers, summed over these."""

    transcoder: StoredTranscoder
    layers: tuple[int, ...]
    """The layers, each one that the transcoder writes to."""

    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        """[..., d]. Reads the rows of latents whose coefficient is not 0."""
        found = coefficients.new_zeros(*coefficients.shape[:-1], len(self.transcoder.decoder_bias))
        for layer in self.layers:
            (of_layer,) = written(self.transcoder, layer, coefficients)
            found = found + of_layer
        return found

    def rows(self, latents: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Some of *latents* [n] at a time, and their directions [n, d], float32."""
        first, *others = self.layers or (None,)
        if first is None:
            yield latents, torch.zeros(len(latents), len(self.transcoder.decoder_bias), device=latents.device)
            return
        for some, rows in self.transcoder.rows_of_decoder(latents, first):
            for layer in others:
                rows.add_(self.transcoder.decoder_rows(some, layer))
            yield some, rows

    def active(self, coefficients: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`rows` of the latents that have a coefficient other than 0 at some token, of *coefficients* [T, Z]."""
        return self.rows(active_columns(coefficients))

    def matrix(self) -> torch.Tensor:
        """[Z, d]. Reads the decoder whole, as `project` does."""
        return self.at(self._everything.unsqueeze(1))

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        """[T, Z]."""
        return torch.cat([direction @ rows.to(direction.dtype).t() for _, rows in self.rows(self._everything)], dim=1)

    def at(self, entries: torch.Tensor) -> torch.Tensor:
        """Of some latents [m, 1], [m, d]."""
        return torch.cat([rows for _, rows in self.rows(entries[:, 0])])

    def norms(self) -> torch.Tensor:
        """[Z]."""
        return torch.cat([torch.linalg.vector_norm(rows, dim=1) for _, rows in self.rows(self._everything)])

    @property
    def _everything(self) -> torch.Tensor:
        return torch.arange(self.transcoder.n_latents, device=self.transcoder.decoder_bias.device)
