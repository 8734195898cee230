"""Runs of circuits of nodes: what is not kept is set to its alternative where it is, and all after it recomputed.

Shapes: b row, T token, d residual channel, H head, c channel of a head, Z latent, N node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dst_grpc.causal.circuit_runs import BATCH_BYTES, BATCH_TOKENS, LateRuns
from dst_grpc.causal.cut_edges import CircuitTaps
from dst_grpc.causal.node_space import EMBEDDING
from dst_grpc.causal.writes import at, changed_rows, real_tokens, zero_at_pads
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.cancellation import Check, never_cancelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dst_grpc.causal.circuits import Mask
    from dst_grpc.causal.node_space import NodeSpace
    from dst_grpc.causal.writes import RecordedRuns, Writes
    from dst_grpc.domain.architecture import ModelDimensions
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Site

_L = ActivationLocationType
_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False)
class NodeRow:
    """One row of a pass: a prompt with some nodes at their alternatives."""

    prompt: int
    """Its place among the prompts."""
    cut: Mask
    """Which nodes, [N]."""


def node_row_bytes(dimensions: ModelDimensions, n_tokens: int, n_latents: int) -> int:
    """About the memory that a row of a pass takes, where the widest autoencoder has so many latents."""
    d = dimensions
    return _BYTES * (n_tokens * (8 * d.d_model + 3 * d.d_mlp + 4 * n_latents) + 2 * d.vocab_size)


def values_at(site: Site, writes: Writes) -> torch.Tensor:
    """What *writes* has at the site of nodes, [p, T, ...]: of the embedding, without positions."""
    location, layer = site
    if site == EMBEDDING:
        return writes.embedding
    if layer is not None and location is _L.ATTN_WEIGHTED_SUM_OF_VALUES:
        return writes.heads[layer]
    if layer is not None and location is _L.RESID_DELTA_MLP:
        return writes.mlps[layer]
    return writes.parts[site]


class CutNodes(CircuitTaps):
    """Taps of a pass in which nodes are at their alternatives. Used for one pass, without gradients."""

    def __init__(
        self,
        cut: Mapping[Site, tuple[torch.Tensor, torch.Tensor]],
        base: RecordedRuns,
        rows: Sequence[NodeRow],
        first_layer: int,
        *,
        splices: Mapping[Site, Splice] | None,
        check: Check,
    ) -> None:
        """Plan the pass: at each site, which entries are *cut* in each row, and what they are instead."""
        lengths = (base.last + 1).tolist()
        changed = changed_rows(base.changes, (lengths[row.prompt] for row in rows), first_layer)
        super().__init__(interventions=changed, splices=splices, check=check)
        self._cut = cut

    def touches(self, location: ActivationLocationType, layer: int | None) -> bool:
        """As of any taps."""
        return (location, layer) in self._cut or super().touches(location, layer)

    def visit(self, location: ActivationLocationType, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        """Put alternatives where nodes are cut, before anything reads what is there."""
        found = self._cut.get((location, layer))
        if found is not None:
            mask, alternative = found
            x = torch.where(mask, alternative, x)
        return super().visit(location, layer, x)

    def final_input(self, x: torch.Tensor) -> torch.Tensor:
        """What the logits read, [b, T, d]; kept as `final`."""
        self.final = x
        return x


class NodeRuns(LateRuns[NodeRow]):
    """Runs rows with cut nodes."""

    def __init__(
        self,
        decoder: Decoder,
        space: NodeSpace,
        base: RecordedRuns,
        alternative: Writes,
        *,
        splices: Mapping[Site, Splice] | None = None,
        check: Check = never_cancelled,
    ) -> None:
        """As of any rows.

        Args:
            decoder: the model.
            space: its nodes.
            base: the runs of the prompts, with what latents and errors are.
            alternative: what cut nodes are instead, for the same prompts.
            splices: the autoencoders, by the site that each reconstructs.
            check: raises Cancelled to end a pass.
        """
        super().__init__(decoder, base, splices=splices, check=check)
        self._space = space
        self._alternative = alternative.each(lambda x: x[:, : base.tokens.shape[1]])

    def differs(self) -> Mask:
        """Which nodes are, in some prompt and at some token, not as their alternatives, [N]."""
        found = np.zeros(self._space.count, dtype=bool)
        real = real_tokens(self._base.last, self._base.tokens.shape[1])
        for group in self._space.groups:
            own, other = (values_at(group.site, writes) for writes in (self._base.writes, self._alternative))
            unlike = zero_at_pads(own != other, real).any(dim=0).any(dim=0)
            found[group.places] = unlike.reshape(group.count, -1).any(dim=1).cpu().numpy()
        return found

    def _first_layer(self, row: NodeRow) -> int:
        changed = (group.layer for group in self._space.groups if row.cut[group.places].any())
        return min(changed, default=self._decoder.config.n_layers)

    def _split(self, places: Sequence[int], rows: Sequence[NodeRow], first_layer: int) -> Iterator[list[int]]:
        del rows, first_layer
        n_tokens = self._base.tokens.shape[1]
        widest = max((one.n_latents for one in self._space.spliced), default=0)
        per_row = node_row_bytes(self._decoder.config.dimensions, n_tokens, widest)
        step = max(min(BATCH_BYTES // per_row, BATCH_TOKENS // n_tokens), 1)
        for start in range(0, len(places), step):
            yield list(places[start : start + step])

    def _taps(self, rows: Sequence[NodeRow], first_layer: int) -> CutNodes:
        prompts = torch.tensor([row.prompt for row in rows], device=self._decoder.device)
        cut = {}
        for group in self._space.groups:
            mask = np.stack([row.cut[group.places] for row in rows])
            if mask.any() and group.site != EMBEDDING:
                alternative = at(values_at(group.site, self._alternative), prompts)
                of_entries = torch.from_numpy(mask).to(self._decoder.device)[:, None]
                # The entries of heads have channels; those of latents are the channels.
                is_of_heads = group.site[0] is _L.ATTN_WEIGHTED_SUM_OF_VALUES
                cut[group.site] = (of_entries[..., None] if is_of_heads else of_entries, alternative)
        return CutNodes(cut, self._base, rows, first_layer, splices=self._splices, check=self._check)

    def _entering(self, rows: Sequence[NodeRow], prompts: torch.Tensor, first_layer: int) -> torch.Tensor:
        x = super()._entering(rows, prompts, first_layer)
        if first_layer:
            return x
        (group,) = (group for group in self._space.groups if group.site == EMBEDDING)
        mask = torch.tensor([bool(row.cut[group.first]) for row in rows], device=x.device)
        embedding = at(self._alternative.embedding, prompts)
        positions = self._decoder.position_embedding
        if positions is not None:
            embedding = embedding + positions[: x.shape[1]]
        return torch.where(mask[:, None, None], embedding, x)
