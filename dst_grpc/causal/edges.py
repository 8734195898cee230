"""Scores of all edges of a graph at once: the change of what a source writes times the gradient at what a reader reads.

    score[s, r] = sum over t, d of (w_s' - w_s) . g_r        (edge attribution patching, https://arxiv.org/abs/2310.10348)

Gradients at the private input of each head are never taken by the backward pass, which would need a copy of the
residual for each. They are computed from those at queries, keys and values, which heads do not share:
g = J^T (W_h g_h), with the Jacobian J of the layer's norm in closed form. The rest is a product of two matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.causal.graph import HEAD_INPUTS, PARTS, Graph
from dst_grpc.domain.attribute import PostNormJacobian
from dst_grpc.domain.components import AttentionTraceType
from dst_grpc.domain.graph_nodes import Reader, Source
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.norm import wide
from dst_grpc.engine.taps import Site, site_entering

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dst_grpc.causal.compared import ComparedRuns, GradientRuns
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.norm import Norm
    from dst_grpc.engine.propagation import Propagation

_L = ActivationLocationType
_EMBEDDING = site_entering(0)
_BYTES_OF_CHANGES = 1 << 22
"""Bytes of the changes of all sources at the positions that are computed together, unless those are too few."""
_FEWEST_POSITIONS = 8
"""Below which products of matrices are slow."""


@dataclass(frozen=True, eq=False)
class Changes:
    """By how much the outputs of sources differ between the runs of n pairs of prompts."""

    embedding: torch.Tensor
    """[n, T, d]."""
    heads: Mapping[int, torch.Tensor]
    """Of the outputs z of heads, by layer [n, T, H, c]."""
    mlps: Mapping[int, torch.Tensor]
    """Of what MLPs write, by layer [n, T, d]."""
    base_heads: Mapping[int, torch.Tensor]
    """The outputs z of heads in the base runs, by layer [n, T, H, c]; read if post-norms are frozen."""


@dataclass(frozen=True, eq=False)
class Reads:
    """Gradients of the metric at what readers read, in m runs for each of n pairs."""

    weights: Sequence[float]
    """Weight of each of the m runs."""
    residuals: Mapping[int, torch.Tensor]
    """The residual that enters each layer [m, n, T, d]."""
    head_inputs: Mapping[int, Mapping[AttentionTraceType, torch.Tensor]]
    """Gradients at queries, keys and values, by layer [m, n, T, H, c]."""
    mlps: Mapping[int, torch.Tensor]
    """Gradients at the residual as the MLP of a layer reads it [m, n, T, d]."""
    final: torch.Tensor
    """Gradient at the last residual [m, n, T, d]."""
    heads: Mapping[int, torch.Tensor]
    """Outputs z of heads, by layer [m, n, T, H, c]; read if the model has post-norms."""


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """Computes the scores of all edges of a model."""

    decoder: Decoder
    graph: Graph
    propagation: Propagation
    """The rule by which gradients pass norms."""
    post_norms: PostNormJacobian = PostNormJacobian.EXACT

    def of(self, changes: Changes, reads: Reads, *, by_position: bool = False) -> torch.Tensor:
        """Scores [S, D], summed over positions and pairs; 0 where there is no edge.

        Args:
            changes: of the outputs of sources.
            reads: gradients at the inputs of readers.
            by_position: return [T, S, D], summed over pairs only.
        """
        n_pairs, n_tokens, width = changes.embedding.shape
        n_sources, n_readers = len(self.graph.sources), len(self.graph.readers)
        size = changes.embedding.element_size() * n_sources * n_pairs * width
        step = max(_BYTES_OF_CHANGES // size, _FEWEST_POSITIONS // n_pairs, 1)
        shape = (n_tokens, n_sources, n_readers) if by_position else (n_sources, n_readers)
        scores = changes.embedding.new_zeros(shape)
        for start in range(0, n_tokens, step):
            at = slice(start, min(start + step, n_tokens))
            _Positions(self, changes, reads, at).add_to(scores[at] if by_position else scores)
        return scores

    @property
    def differs_between_runs(self) -> bool:
        """Whether the change of what heads write depends on the run whose post-norms it passes."""
        return self.decoder.config.post_norms and self.post_norms is PostNormJacobian.EXACT

    def pushed(self, norm: Norm, written: torch.Tensor, changes: torch.Tensor) -> torch.Tensor:
        """The *changes* of terms of *written*, the input of a post-norm, as changes of its output."""
        is_constant = self.propagation.detaches_scales or self.post_norms is PostNormJacobian.FROZEN
        return norm.pushed(written, changes, detach_scale=is_constant)


@dataclass(frozen=True, eq=False)
class _Positions:
    """The edges at some positions."""

    scores: EdgeScores
    changes: Changes
    reads: Reads
    at: slice
    """The positions."""

    @property
    def _graph(self) -> Graph:
        return self.scores.graph

    def add_to(self, found: torch.Tensor) -> None:
        """Add the scores to *found* [S, D], or [n, S, D] by position."""
        weights = dict(enumerate(self.reads.weights))
        if self.scores.differs_between_runs:
            for run, weight in weights.items():
                heads = {layer: z[run] for layer, z in self.reads.heads.items()}
                self._add(found, self._written(heads), {run: weight})
        else:
            self._add(found, self._written(self.changes.base_heads), weights)

    def _written(self, z: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """The change of what each source writes [S, n, T, d]; through post-norms in a run with outputs of heads *z*."""
        changes, graph, at = self.changes, self._graph, self.at
        first = changes.embedding[:, at]
        found = first.new_empty((len(graph.sources), *first.shape))
        found[0] = first
        for layer in range(graph.n_layers):
            weights = self.scores.decoder.layers[layer]
            start = graph.sources_before(layer)
            heads = torch.einsum("nthc,hcd->hntd", changes.heads[layer][:, at], wide(weights.attn_out))
            if weights.attn_post_norm is not None and self.scores.post_norms is not PostNormJacobian.RAW:
                written = wide(weights.attn_project(z[layer][:, at].to(weights.attn_out.dtype)))
                heads = self.scores.pushed(weights.attn_post_norm, written, heads)
            found[start : start + graph.n_heads] = heads
            found[graph.index_of_source(Source(layer))] = changes.mlps[layer][:, at]
        return found

    def _add(self, found: torch.Tensor, written: torch.Tensor, runs: Mapping[int, float]) -> None:
        """Add the scores with gradients of some *runs*, times their weights."""
        graph = self._graph
        for layer in range(graph.n_layers):
            read = torch.cat([self._read_by_heads(layer, part, runs) for part in PARTS])
            self._contract(found, written, read, graph.first_reader_of(layer), graph.sources_before(layer))
            reader = Reader(layer)
            read = sum_of((weight, self.reads.mlps[layer][run][None, :, self.at]) for run, weight in runs.items())
            self._contract(found, written, read, graph.index_of_reader(reader), graph.sources_read_by(reader))
        read = sum_of((weight, self.reads.final[run][None, :, self.at]) for run, weight in runs.items())
        self._contract(found, written, read, len(graph.readers) - 1, len(graph.sources))

    def _read_by_heads(self, layer: int, part: AttentionTraceType, runs: Mapping[int, float]) -> torch.Tensor:
        """The gradient at the private input of the query, key or value of each head [H, n, T, d]."""
        weights, is_constant = self.scores.decoder.layers[layer], self.scores.propagation.detaches_scales

        def read(run: int) -> torch.Tensor:
            gradient = weights.head_input_read(part, self.reads.head_inputs[layer][part][run][:, self.at])
            residual = wide(self.reads.residuals[layer][run][:, self.at])
            return weights.attn_norm.pulled_back(residual, gradient, detach_scale=is_constant)

        return sum_of((weight, read(run)) for run, weight in runs.items())

    def _contract(
        self, found: torch.Tensor, written: torch.Tensor, read: torch.Tensor, first_reader: int, n_sources: int
    ) -> None:
        """Add the scores of the edges from the first sources to consecutive readers, which *read* [R, n, T, d]."""
        columns = slice(first_reader, first_reader + len(read))
        sources = written[:n_sources]
        if found.dim() == 2:
            found[:n_sources, columns] += sources.flatten(1) @ read.flatten(1).t()
        else:
            found[:, :n_sources, columns] += torch.einsum("sntd,rntd->tsr", sources, read)


def sum_of(terms: Iterator[tuple[float, torch.Tensor]]) -> torch.Tensor:
    """The weighted sum of *terms*, which are not empty, in float32 at least."""
    weight, tensor = next(terms)
    total = wide(tensor) if weight == 1 else weight * wide(tensor)
    for weight, tensor in terms:
        total = total.add(wide(tensor), alpha=weight)
    return total


def sites_of_changes(graph: Graph) -> frozenset[Site]:
    """The sites whose values `Changes` are differences of."""
    layers = range(graph.n_layers)
    of_layers = {(tap, layer) for tap in (_L.ATTN_WEIGHTED_SUM_OF_VALUES, _L.RESID_DELTA_MLP) for layer in layers}
    return frozenset({_EMBEDDING, *of_layers})


def changes_of(graph: Graph, compared: ComparedRuns) -> Changes:
    """The changes of the outputs of sources."""
    layers = range(graph.n_layers)
    return Changes(
        compared.change(_EMBEDDING),
        {layer: compared.change((_L.ATTN_WEIGHTED_SUM_OF_VALUES, layer)) for layer in layers},
        {layer: compared.change((_L.RESID_DELTA_MLP, layer)) for layer in layers},
        {layer: compared.base((_L.ATTN_WEIGHTED_SUM_OF_VALUES, layer)) for layer in layers},
    )


def sites_of_reads(graph: Graph, *, has_post_norms: bool) -> tuple[frozenset[Site], frozenset[Site]]:
    """The sites whose values, and those whose gradients, `Reads` are made of, besides the inputs of MLPs."""
    layers = range(graph.n_layers)
    values = {site_entering(layer) for layer in layers}
    if has_post_norms:
        values |= {(_L.ATTN_WEIGHTED_SUM_OF_VALUES, layer) for layer in layers}
    gradients = {(tap, layer) for tap in HEAD_INPUTS.values() for layer in layers}
    return frozenset(values), frozenset({*gradients, site_entering(graph.n_layers)})


def reads_of(decoder: Decoder, runs: GradientRuns, propagation: Propagation) -> Reads:
    """Gradients at what readers read in *runs*; *propagation* says how they pass the norms of queries and keys."""
    residuals = {layer: runs.value(site_entering(layer)) for layer in range(decoder.config.n_layers)}
    head_inputs = {}
    for index, layer in enumerate(decoder.layers):
        normed = layer.attn_norm(residuals[index].to(decoder.dtype)) if decoder.config.qk_norm else residuals[index]
        head_inputs[index] = {
            part: layer.head_input_gradient(part, runs.gradient((tap, index)), normed, propagation)
            for part, tap in HEAD_INPUTS.items()
        }
    has_post_norms = decoder.config.post_norms
    return Reads(
        weights=runs.weights,
        residuals=residuals,
        head_inputs=head_inputs,
        mlps={layer: runs.gradient_at_mlp(layer) for layer in residuals},
        final=runs.gradient(site_entering(decoder.config.n_layers)),
        heads={layer: runs.value((_L.ATTN_WEIGHTED_SUM_OF_VALUES, layer)) for layer in residuals if has_post_norms},
    )
