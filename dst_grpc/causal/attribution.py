"""Attribution patching of nodes and edges: by how much a metric would change, to first order, if an activation of one
run had the value that it has in another.

A score is the difference of an activation between two runs times the gradient of the metric, taken in one run, or as a
mean over several. Formulas: docs/attribution.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from dst_grpc.causal.compared import ComparedRuns, GradientRuns
from dst_grpc.causal.edges import EdgeScores, changes_of, reads_of, sites_of_changes, sites_of_reads
from dst_grpc.causal.graph import Graph
from dst_grpc.causal.nodes import Nodes, NodeScores, nodes_of
from dst_grpc.causal.passes import Batch, Ran, points_at_once, run
from dst_grpc.causal.paths import points
from dst_grpc.causal.read_logits import diverges_from_source, positions_read
from dst_grpc.domain.attribute import (
    AttributedNode,
    AttributionMethod,
    PathGroups,
    PathRule,
    PostNormJacobian,
)
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.propagation import PLAIN, Propagation
from dst_grpc.engine.taps import site_entering

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.origins import Origin

_L = ActivationLocationType
_EMBEDDING = site_entering(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What scores are asked for, and how they are computed."""

    method: AttributionMethod = AttributionMethod.ATTRIBUTION_PATCHING
    """Where gradients are taken."""
    nodes: tuple[AttributedNode, ...] = ()
    """Kinds of nodes."""
    edges: bool = False
    """Whether of all edges too."""
    by_position: bool = False
    """Whether there is a score for each position, instead of their sum; all prompts are then equally long."""
    propagation: Propagation = PLAIN
    """The propagation rule of gradients."""
    rule: PathRule = PathRule.RIGHT
    """For methods with paths: their points."""
    steps: int = 5
    """For methods with paths: their steps."""
    groups: PathGroups = PathGroups.OWN_LAYER
    """For paths between activations: the groups that gradients are averaged over."""
    post_norms: PostNormJacobian = PostNormJacobian.EXACT
    """For edges: how writes of heads pass post-norms."""
    fixes_qk: bool = False
    """For queries and keys: whether their effect goes through recomputed patterns."""
    drops_gradients: bool = False
    """For nodes: whether scores are the mean of magnitudes over passes that each drop one layer (GradDrop)."""
    magnitudes: bool = False
    """For nodes: whether the mean over pairs is one of magnitudes."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two prompts of the same length, and the metric of both."""

    base: tuple[int, ...]
    """The prompt that is run."""
    source: tuple[int, ...]
    """The prompt that values are taken from."""
    metric: Origin
    """A divergence is one from the unchanged run of the base prompt (UNCHANGED), or of the other (SOURCE)."""

    @property
    def read_at(self) -> tuple[int, ...]:
        """The positions whose logits are read of both runs, as of `read_logits.positions_read`."""
        return positions_read(self.metric, len(self.base))


def references_of(pairs: Sequence[Pair]) -> list[int]:
    """Where the run is that each pair's metric, if it is a divergence, is from: in a batch of all base runs, then all
    source runs."""
    return [len(pairs) + i if diverges_from_source(pair.metric) else i for i, pair in enumerate(pairs)]


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metric of both prompts of a pair."""

    base: float
    source: float


class Attribution:
    """Scores, summed up over pairs block by block."""

    def __init__(
        self,
        decoder: Decoder,
        question: Question,
        splices: Mapping[Site, Splice] | None = None,
        check: Check = never_cancelled,
    ) -> None:
        """Begin without pairs.

        Args:
            decoder: the model.
            question: the question.
            splices: autoencoders to splice in, by the site that each reconstructs.
            check: raises Cancelled to end a block.
        """
        self._decoder, self._question, self._splices, self._check = decoder, question, splices or {}, check
        config = decoder.config
        self.graph = Graph.of(config.dimensions, config.architecture)
        """The graph of the model."""
        self.n_pairs = self.n_forward_passes = self.n_backward_passes = 0
        self.kinds = tuple(nodes for kind in question.nodes for nodes in nodes_of(kind, config.n_layers, self._splices))
        """The nodes that are scored."""
        self._node_scores = NodeScores(decoder, question.fixes_qk)
        self._edge_scores = EdgeScores(decoder, self.graph, question.propagation, question.post_norms)
        self._compared: frozenset[Site] = frozenset().union(*map(self._node_scores.sites, self.kinds))
        self._differentiated = self._compared
        self._read: frozenset[Site] = frozenset()
        if question.edges:
            self._read, differentiated = sites_of_reads(self.graph, has_post_norms=config.post_norms)
            self._compared |= sites_of_changes(self.graph)
            self._differentiated |= differentiated
        self._compared |= frozenset(self._groups)
        self._nodes: dict[Nodes, torch.Tensor] = {}
        self._edges: torch.Tensor | None = None

    @property
    def nodes(self) -> Mapping[Nodes, torch.Tensor]:
        """Mean scores of nodes over pairs: as of `NodeScores.of`, without the axis of pairs and, unless they are by
        position, that of tokens."""
        return {nodes: total / self.n_pairs for nodes, total in self._nodes.items()}

    @property
    def edges(self) -> torch.Tensor | None:
        """Mean scores of edges over pairs, [S, D] or by position [T, S, D]; None if they are not asked for."""
        return None if self._edges is None else self._edges / self.n_pairs

    def add(self, pairs: Sequence[Pair]) -> tuple[Metrics, ...]:
        """Add the scores of *pairs*, and return their metrics. Prompts are padded on the right."""
        compared = self._compare(pairs)
        found: dict[Nodes, torch.Tensor] = {}
        for runs in self._gradients(pairs, compared):
            self._add_nodes(found, compared, runs)
            if self._question.edges:
                self._add_edges(compared, runs)
            del runs  # before the next ones run
        for nodes, scores in found.items():
            total = (scores.abs() if self._question.magnitudes else scores).sum(dim=0)
            self._nodes[nodes] = self._nodes[nodes] + total if nodes in self._nodes else total
        self.n_pairs += len(pairs)
        metrics = compared.ran.metrics
        return tuple(map(Metrics, metrics[: len(pairs)], metrics[len(pairs) :]))

    @property
    def _groups(self) -> list[Site]:
        """The sites between whose values, in both runs, there are paths."""
        match self._question.method:
            case AttributionMethod.INTEGRATED_INPUTS:
                return [_EMBEDDING]
            case AttributionMethod.INTEGRATED_ACTIVATIONS:
                layers = range(self._decoder.config.n_layers)
                taps = (_L.ATTN_WEIGHTED_SUM_OF_VALUES, _L.RESID_DELTA_MLP)
                return [_EMBEDDING, *((tap, layer) for layer in layers for tap in taps)]
        return []

    # Runs

    def _run(self, batch: Batch) -> Ran:
        ran = run(
            batch, self._decoder, splices=self._splices, propagation=self._question.propagation, check=self._check
        )
        self.n_forward_passes += 1
        self.n_backward_passes += len(ran.passes)
        return ran

    def _compare(self, pairs: Sequence[Pair]) -> ComparedRuns:
        """Both runs of each pair, with gradients if they are taken there."""
        n, method = len(pairs), self._question.method
        at_base = method in {AttributionMethod.ATTRIBUTION_PATCHING, AttributionMethod.CLEAN_CORRUPT}
        at_source = method is AttributionMethod.CLEAN_CORRUPT
        batch = Batch(
            tokens=[*(pair.base for pair in pairs), *(pair.source for pair in pairs)],
            metrics=[pair.metric for pair in pairs] * 2,
            differentiated=[at_base] * n + [at_source] * n,
            references=references_of(pairs) * 2,
            values=self._compared | (self._read if at_base else frozenset()),
            gradients=self._differentiated if at_base else frozenset(),
            reads_mlps=at_base and self._question.edges,
            dropped_layers=range(self._decoder.config.n_layers) if self._question.drops_gradients else (None,),
        )
        return ComparedRuns(self._run(batch), n)

    def _gradients(self, pairs: Sequence[Pair], compared: ComparedRuns) -> Iterator[GradientRuns]:
        """The runs in which gradients are taken, as many at a time as fit."""
        n = len(pairs)
        match self._question.method:
            case AttributionMethod.ATTRIBUTION_PATCHING:
                yield GradientRuns(compared.ran, n, (1.0,))
            case AttributionMethod.CLEAN_CORRUPT:
                yield GradientRuns(compared.ran, n, (0.5, 0.5))
            case AttributionMethod.INTEGRATED_INPUTS:
                yield from self._path(pairs, compared, _EMBEDDING)
            case AttributionMethod.INTEGRATED_ACTIVATIONS:
                groups = self._groups
                is_own = self._question.groups is PathGroups.OWN_LAYER
                for group in groups:
                    yield from self._path(pairs, compared, group, 1.0 if is_own else 1 / len(groups), is_own=is_own)

    def _path(
        self, pairs: Sequence[Pair], compared: ComparedRuns, site: Site, weight: float = 1.0, *, is_own: bool = False
    ) -> Iterator[GradientRuns]:
        """Runs along the path of the values at *site* from those of the source run to those of the base run."""
        change = compared.change(site)
        all_points = points(self._question.rule, self._question.steps)
        step = points_at_once(change.device, len(pairs) * change.shape[1])
        for start in range(0, len(all_points), step):
            block = all_points[start : start + step]
            shifts = torch.cat([(1 - alpha) * change for alpha, _ in block]).to(self._decoder.dtype)
            batch = Batch(
                tokens=[pair.base for pair in pairs] * len(block),
                metrics=[pair.metric for pair in pairs] * len(block),
                differentiated=[True] * (len(pairs) * len(block)),
                references=[compared.ran.references[row] for row in references_of(pairs)] * len(block),
                values=self._read,
                gradients=self._differentiated,
                reads_mlps=self._question.edges,
                shifts={site: shifts},
            )
            yield GradientRuns(
                self._run(batch), len(pairs), tuple(weight * each for _, each in block), site if is_own else None
            )

    # Scores

    def _add_nodes(self, found: dict[Nodes, torch.Tensor], compared: ComparedRuns, runs: GradientRuns) -> None:
        """Add the scores of nodes of each pair to *found*."""
        for nodes in self.kinds:
            for number in range(len(runs.ran.passes)):
                gradient = partial(runs.mean_gradient, number)
                scores = self._node_scores.of(nodes, compared.base, compared.source, gradient)
                if not self._question.by_position:
                    scores = scores.sum(dim=1 + bool(nodes.layers))
                if self._question.drops_gradients:
                    scores = scores.abs() / (self._decoder.config.n_layers - 1)
                if runs.group is not None:
                    scores = _only(scores, nodes, runs.group)
                found[nodes] = found[nodes] + scores if nodes in found else scores

    def _add_edges(self, compared: ComparedRuns, runs: GradientRuns) -> None:
        changes = changes_of(self.graph, compared)
        reads = reads_of(self._decoder, runs, self._question.propagation)
        scores = self._edge_scores.of(changes, reads, by_position=self._question.by_position)
        if self._edges is None:
            self._edges = torch.zeros_like(scores)
        own = self._sources_at(runs.group)
        self._edges[..., own, :] += scores[..., own, :]

    def _sources_at(self, site: Site | None) -> slice:
        """The sources whose outputs are at *site*; None for all."""
        if site is None:
            return slice(None)
        tap, layer = site
        if layer is None:
            return slice(0, 1)
        start, n_heads = self.graph.sources_before(layer), self.graph.n_heads
        is_heads = tap is _L.ATTN_WEIGHTED_SUM_OF_VALUES
        return slice(start, start + n_heads) if is_heads else slice(start + n_heads, start + n_heads + 1)


def _only(scores: torch.Tensor, nodes: Nodes, site: Site) -> torch.Tensor:
    """The *scores* of the nodes at *site*, and 0 for others."""
    if not nodes.layers:
        return scores * (site in nodes.sites)
    is_there = torch.tensor([each == site for each in nodes.sites], device=scores.device)
    return scores * is_there.reshape(1, -1, *(1,) * (scores.dim() - 2))
