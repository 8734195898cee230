"""A pass in which edges are cut: what a reader reads of a source that it is cut from is the source's alternative.

A reader reads x + sum over its cut sources of (a_s - w_s), where x is the residual of this very pass, w_s what the
source writes in it, which edges cut before may have changed, and a_s the alternative. Where most sources are cut, the
same is computed as x' - sum over the kept sources of (a_s - w_s), with x' the residual that all alternatives make: it
holds less, and is exactly 0 where all that is kept is. Under a post-norm P the heads of a layer act together: their
part is P(A + sum (a_s - w_s)) - P(A), A being the sum of all heads with its bias, or P(A' - ...) - P(A').

What is written before the first layer that runs is that of the base run, and is shared by the rows of a prompt; what
is written later is held by row. Both are held only of the sources that such a sum has in some row, and only readers
that have a cut edge get inputs of their own: all else is the decoder's own pass, to the bit.

Shapes: b row, u prompt of the pass, T token, d residual channel, H head, c channel of a head, S source, D reader, K
source that is held, N reader of a row that has an input of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dst_grpc.causal.circuits import live_readers
from dst_grpc.causal.graph import PARTS
from dst_grpc.causal.writes import at, changed_rows
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.norm import wide, wide_type
from dst_grpc.engine.taps import Taps
from dst_grpc.errors import require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dst_grpc.causal.circuits import Mask
    from dst_grpc.causal.graph import Graph
    from dst_grpc.causal.writes import Alternative, RecordedRuns
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.layer import Layer
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Qkv, Site

_L = ActivationLocationType
Places = np.ndarray[Any, np.dtype[np.intp]]


@dataclass(frozen=True, slots=True, eq=False)
class CutRow:
    """One row of a pass: a prompt with cut edges, as the sums that its readers read. Sparse."""

    prompt: int
    """Its place among the prompts."""
    readers: Places
    """Readers with an input of their own, ascending."""
    from_alternative: Mask
    """Which of them start from the residual of the alternatives."""
    terms: tuple[Places, Places]
    """Source and reader of each term a_s - w_s of their sums: of cut edges, or of kept ones, which are subtracted."""

    @classmethod
    def of_edges(cls, edges: tuple[Places, Places], prompt: int) -> CutRow:
        """The row in which a few *edges*, by their sources and readers, are cut."""
        readers = np.unique(edges[1])
        return cls(prompt, readers, np.zeros(len(readers), dtype=bool), edges)

    @classmethod
    def of_circuit(cls, graph: Graph, kept: Mask, prompt: int, *, is_zero: bool = False) -> CutRow:
        """The row in which all edges are cut but those *kept* [S, D], as far as it makes a difference.

        With *is_zero*, no sum is of cut edges: what remains of a sum that cancels is all that an RMS norm would see.
        """
        cut = graph.mask & ~kept & live_readers(graph, kept)
        n_cut = cut.sum(axis=0)
        readers = np.flatnonzero(n_cut)
        from_alternative = (n_cut * 2 > graph.mask.sum(axis=0))[readers] | is_zero
        turned = readers[from_alternative]
        cut[:, turned] = graph.mask[:, turned] & kept[:, turned]
        sources, of = np.nonzero(cut)
        return cls(prompt, readers, from_alternative, (sources, of))


class CircuitTaps(Taps):
    """Taps of a pass of circuits, which keep what the logits read."""

    final: torch.Tensor | None = None
    """What the logits read, [b, T, d], once the pass has come there."""


class CutEdges(CircuitTaps):
    """Taps of a pass of rows, each a prompt with cut edges. Used for one pass, without gradients."""

    def __init__(
        self,
        decoder: Decoder,
        graph: Graph,
        rows: Sequence[CutRow],
        *,
        base: RecordedRuns,
        alternative: Alternative,
        first_layer: int,
        splices: Mapping[Site, Splice] | None = None,
        check: Check = never_cancelled,
    ) -> None:
        """Plan the pass.

        Args:
            decoder: the model.
            graph: its graph.
            rows: the rows, by ascending prompt.
            base: the runs of the prompts without cut edges; what is changed in them is changed here too.
            alternative: what a cut edge carries instead, for the same prompts.
            first_layer: the first layer of the pass; no reader before it has an input of its own.
            splices: autoencoders to splice in, by the site that each reconstructs.
            check: raises Cancelled to end the pass.
        """
        lengths = (base.last + 1).tolist()
        changed = changed_rows(base.changes, (lengths[row.prompt] for row in rows), first_layer)
        super().__init__(interventions=changed, splices=splices, check=check)
        self._decoder, self._graph, self._alternative = decoder, graph, alternative
        self._held = np.unique(np.concatenate([row.terms[0] for row in rows]))
        self._n_shared = int(np.searchsorted(self._held, graph.sources_before(first_layer)))
        size = (len(rows), len(graph.readers))
        self._has_own_input, self._from_alternative = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
        weights = np.zeros((*size, len(self._held)), dtype=np.int8)
        for i, row in enumerate(rows):
            self._has_own_input[i, row.readers] = True
            self._from_alternative[i, row.readers] = row.from_alternative
            sources, readers = row.terms
            signs = np.where(self._from_alternative[i, readers], -1, 1)
            weights[i, readers, np.searchsorted(self._held, sources)] = signs
        self._weights = torch.from_numpy(weights).to(decoder.device)  # [b, D, K]
        self._prompts = torch.tensor([row.prompt for row in rows], device=decoder.device)
        places, of_row = self._prompts.unique_consecutive(return_inverse=True)
        self._ends = [0, *(of_row.bincount().cumsum(0).tolist())]
        """Where the rows of each prompt of the pass begin, and where those of the last one end."""
        shape = (base.tokens.shape[1], decoder.config.d_model)
        changes = decoder.embedding.new_empty(0, dtype=wide_type(decoder.embedding))
        self._shared = changes.new_empty(len(places), self._n_shared, *shape)
        self._own = changes.new_empty(len(rows), len(self._held) - self._n_shared, *shape)
        self._sums: dict[int, torch.Tensor] = {}
        """By layer, where heads are held and there is a post-norm, the sum of all heads [b, T, d]."""
        self._hold_before(first_layer, places, of_row, base)

    # Sources

    def _hold_before(self, first_layer: int, places: torch.Tensor, of_row: torch.Tensor, base: RecordedRuns) -> None:
        """Hold what the base run writes before the first layer."""
        writes, alternative = base.writes, self._alternative.writes
        if 0 in self._held:
            self._shared[:, 0] = at(alternative.embedding, places) - at(writes.embedding, places)
        for layer in range(first_layer):
            self._hold_heads(layer, at(writes.heads[layer], places), places)
            if layer in self._sums:
                self._sums[layer] = self._sums[layer][of_row]
            self._hold_mlp(layer, at(writes.mlps[layer], places), places)

    def visit(self, location: ActivationLocationType, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        """Splice, and hold what sources write."""
        x = super().visit(location, layer, x)
        if location is _L.ATTN_WEIGHTED_SUM_OF_VALUES and layer is not None:
            self._hold_heads(layer, x, self._prompts)
        elif location is _L.RESID_DELTA_MLP and layer is not None:
            self._hold_mlp(layer, x, self._prompts)
        return x

    def _hold_heads(self, layer: int, mixed: torch.Tensor, prompts: torch.Tensor) -> None:
        """Hold the change from *mixed* [n, T, H, c] to the alternative of *prompts* [n], of the heads that are held."""
        columns = self._columns_of_heads(layer)
        if not columns:
            return
        first = self._graph.sources_before(layer)
        heads = torch.from_numpy(self._held[columns.start : columns.stop] - first).to(mixed.device)
        alternative = at(self._alternative.writes.heads[layer], prompts)
        change = wide(alternative.index_select(2, heads)) - wide(mixed.index_select(2, heads))
        weights = wide(self._decoder.layers[layer].attn_out[heads])
        self._place(columns).copy_(torch.einsum("nthc,hcd->nhtd", change, weights))
        if self._decoder.config.post_norms:
            self._sums[layer] = self._decoder.layers[layer].attn_project(mixed)

    def _hold_mlp(self, layer: int, write: torch.Tensor, prompts: torch.Tensor) -> None:
        """Hold the change from *write* [n, T, d] to the alternative of *prompts* [n], if the MLP is held."""
        source = self._graph.sources_before(layer + 1) - 1
        column = int(np.searchsorted(self._held, source))
        if column < len(self._held) and self._held[column] == source:
            change = wide(at(self._alternative.writes.mlps[layer], prompts)) - wide(write)
            self._place(range(column, column + 1))[:, 0] = change

    def _columns_of_heads(self, layer: int) -> range:
        """The columns, among those that are held, of the heads of *layer*."""
        first = self._graph.sources_before(layer)
        start, stop = np.searchsorted(self._held, (first, first + self._graph.n_heads))
        return range(int(start), int(stop))

    def _place(self, columns: range) -> torch.Tensor:
        """Where the changes of *columns* are held, [u or b, len(columns), T, d]."""
        if columns.stop <= self._n_shared:
            return self._shared[:, columns.start : columns.stop]
        return self._own[:, columns.start - self._n_shared : columns.stop - self._n_shared]

    # Readers

    def qkv(self, index: int, layer: Layer, x: torch.Tensor, qkv: Qkv) -> Qkv:
        """Queries, keys and values, those of heads with inputs of their own replaced."""
        first = self._graph.first_reader_of(index)
        n_heads = self._graph.n_heads
        rows, readers = np.nonzero(self._has_own_input[:, first : first + len(PARTS) * n_heads])
        if not len(rows):
            return qkv
        alternative = self._alternative.residuals[index]
        inputs = self._inputs(x, alternative, rows, first + readers, self._graph.sources_before(index))
        normed = self.propagation.normed(layer.attn_norm, inputs)
        parts = [layer.for_each_head(part).clone() for part in qkv]
        for reader in np.unique(readers):
            (chosen,) = np.nonzero(readers == reader)
            part, head = divmod(int(reader), n_heads)
            parts[part][rows[chosen], :, head] = layer.head_input(PARTS[part], head, normed[chosen])
        return parts[0], parts[1], parts[2]

    def mlp_input(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """What the MLP of a layer reads, [b, T, d]."""
        alternative = self._alternative.residuals if self._graph.is_parallel else self._alternative.after_attention
        return self._read(x, alternative[index], self._graph.first_reader_of(index + 1) - 1)

    def final_input(self, x: torch.Tensor) -> torch.Tensor:
        """What the logits read, [b, T, d]; kept as `final`."""
        self.final = self._read(x, self._alternative.residuals[-1], len(self._graph.readers) - 1)
        return self.final

    def _read(self, x: torch.Tensor, alternative: torch.Tensor, reader: int) -> torch.Tensor:
        """What one reader reads, [b, T, d], where the residual is *x*, and that of the *alternative*s [p, T, d]."""
        (rows,) = np.nonzero(self._has_own_input[:, reader])
        if not len(rows):
            return x
        n_sources = self._graph.sources_read_by(self._graph.readers[reader])
        x = x.clone()
        x[rows] = self._inputs(x, alternative, rows, np.full_like(rows, reader), n_sources)
        return x

    def _inputs(
        self, x: torch.Tensor, alternative: torch.Tensor, rows: Places, readers: Places, n_sources: int
    ) -> torch.Tensor:
        """The inputs [N, T, d] of *readers* [N], which read the first *n_sources*, in *rows* [N], ascending.

        *x* [b, T, d] is the residual, and *alternative* [p, T, d] that of the alternatives.
        """
        weights = self._weights[rows, readers].to(self._own.dtype)
        (turned,) = np.nonzero(self._from_alternative[rows, readers])
        prompts = self._prompts[rows[turned]]

        def begun(own: torch.Tensor, alternatives: torch.Tensor) -> torch.Tensor:
            found = wide(own[rows])
            if len(turned):
                found[turned] = wide(at(alternatives, prompts)).expand(len(turned), *found.shape[1:])
            return found

        inputs = begun(x, alternative)
        linear = weights.clone() if self._sums else weights
        for layer, own in self._sums.items():
            heads = self._columns_of_heads(layer)
            linear[:, heads.start : heads.stop] = 0
            norm = require(self._decoder.layers[layer].attn_post_norm)
            before = begun(own, self._alternative.sums[layer])
            after = before.clone()
            self._add_changes(after, weights, rows, heads)
            inputs += wide(norm(after.to(x.dtype))) - wide(norm(before.to(x.dtype)))
        self._add_changes(inputs, linear, rows, range(int(np.searchsorted(self._held, n_sources))))
        return inputs.to(x.dtype)

    def _add_changes(self, inputs: torch.Tensor, weights: torch.Tensor, rows: Places, columns: range) -> None:
        """Add to *inputs* [N, T, d], in place, the changes held in *columns* by their *weights* [N, K]."""
        flat = inputs.flatten(1)
        shared = slice(columns.start, min(columns.stop, self._n_shared))
        own = slice(max(columns.start, self._n_shared), columns.stop)
        if shared.start < shared.stop:
            for prompt, (start, stop) in enumerate(pairwise(np.searchsorted(rows, self._ends).tolist())):
                flat[start:stop] += weights[start:stop, shared] @ self._shared[prompt, shared].flatten(1)
        if own.start < own.stop:
            held = slice(own.start - self._n_shared, own.stop - self._n_shared)
            starts = np.flatnonzero(np.diff(rows, prepend=-1)).tolist()
            for start, stop in pairwise([*starts, len(rows)]):
                flat[start:stop] += weights[start:stop, own] @ self._own[rows[start], held].flatten(1)
