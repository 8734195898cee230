"""The answer to ProbeGraph: the prompt of a kept graph is run again, then each thing that is asked is a step."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from dst_grpc.domain.graph_node_table import GraphNode, GraphNodeKind
from dst_grpc.domain.graph_probe_answers import (
    CONSTANT,
    GraphAttentionScore,
    GraphChange,
    GraphChanges,
    GraphHeadLoading,
    GraphHeadLoadings,
    GraphNodePair,
    GraphProbePart,
    GraphProbePartKind,
    GraphScoredFeature,
    GraphTokenScore,
    GraphVerifiedFeature,
)
from dst_grpc.domain.graph_probes import (
    GraphAttention,
    GraphEdgeHeads,
    GraphFeatureTokens,
    GraphIntervention,
    GraphInterventions,
    GraphVerification,
)
from dst_grpc.errors import OutOfRange, require
from dst_grpc.graphs.attention import attention_score
from dst_grpc.graphs.head_loadings import head_loadings
from dst_grpc.graphs.interventions import measured, predicted
from dst_grpc.graphs.local_model import LocalModel
from dst_grpc.graphs.nodes import AttributionGraph
from dst_grpc.graphs.recording import record
from dst_grpc.pipeline.graph_probe_planner import ProbePlan
from dst_grpc.pipeline.graph_sources import loaded_sources
from dst_grpc.pipeline.stepped_answer import SteppedAnswer
from dst_grpc.scalars.token_scoring import extreme_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dst_grpc.graphs.nodes import Floats

_P = GraphProbePartKind
_FEATURES_AT_ONCE = 256
"""Features whose tokens are scored in one step."""
Parts = list[GraphProbePart]


class ProbeAnswer(SteppedAnswer[ProbePlan, GraphProbePart]):
    """The answer to one request, computed in steps."""

    _n_runs = 0
    """Runs so far, without the first."""

    @property
    def _n_passes(self) -> tuple[int, int]:
        return self._n_runs, 0

    @property
    def _batch_size(self) -> int:
        return 1

    def _work(self) -> Iterator[Parts]:
        """The parts of each step, in order."""
        yield []  # the first step runs with the pass, and is timed with it
        match self._asked.request.probe:
            case GraphInterventions() as asked:
                for i, one in enumerate(asked.interventions):
                    yield [GraphProbePart(kind=_P.CHANGES, value=self._changes(i, one))]
            case GraphVerification() as asked:
                for node in drawn(self._graph, asked.count, asked.seed):
                    yield [GraphProbePart(kind=_P.VERIFIED, value=self._verified(node))]
            case GraphEdgeHeads() as asked:
                yield [GraphProbePart(kind=_P.EDGE_HEADS, value=self._edge_heads(asked))]
            case GraphAttention() as asked:
                yield [GraphProbePart(kind=_P.ATTENTION, value=self._attention(asked))]
            case GraphFeatureTokens() as asked:
                for first in range(0, len(asked.nodes), _FEATURES_AT_ONCE):
                    some = asked.nodes[first : first + _FEATURES_AT_ONCE]
                    yield [GraphProbePart(kind=_P.SCORED, value=one) for one in self._scored(some, asked.top_k)]

    @cached_property
    def _local(self) -> LocalModel:
        """The local replacement model of the prompt, whose layers are made when they are needed."""
        asked, decoder, check = self._asked, self._model.decoder, self._first.check
        sources = loaded_sources(asked.graph.sources, asked.transcoders, asked.autoencoders, self._sets)
        self._n_runs += 1
        recording = record(decoder, sources, asked.plan.token_ids, asked.n_zeroed, check)
        return LocalModel(decoder, sources, recording, keeps_layers=False, check=check)

    @cached_property
    def _graph(self) -> AttributionGraph:
        whole = self._asked.graph
        effects = whole.edges.matrix(len(whole.nodes), whole.nodes.readers)
        return AttributionGraph(nodes=whole.nodes, effects=effects)

    def _changes(self, index: int, asked: GraphIntervention) -> GraphChanges:
        """What one intervention changes."""
        nodes, table = self._graph.nodes, self._asked.graph.table
        before, wanted = nodes.activations[nodes.selected], dict[int, float]()
        for setting in asked.settings:
            for node in map(table.place, setting.nodes):
                to = setting.activation
                wanted[node] = require(setting.factor) * float(before[node]) if to is None else to
        expected = predicted(self._graph, wanted, asked.first_free_layer)
        found = self._measured(wanted, asked.first_free_layer)
        if not (np.isfinite(expected).all() and np.isfinite(found).all()):
            raise OutOfRange(f"the run of intervention {index} has values that are not finite: set features to less")
        sent = [*(range(nodes.n_features) if asked.with_features else ()), *range(nodes.first_target, len(nodes))]
        return GraphChanges(
            index=index,
            name=asked.name,
            changes=tuple(
                GraphChange(node=table.names[node], predicted=float(expected[node]), measured=float(found[node]))
                for node in sent
            ),
        )

    def _verified(self, node: int) -> GraphVerifiedFeature:
        """What is found when *node* is switched off."""
        off, targets = {node: 0.0}, slice(self._graph.nodes.first_target, None)
        expected, found = predicted(self._graph, off), self._measured(off, None)
        free_expected, free = (one[targets] for one in (predicted(self._graph, off, 0), self._measured(off, 0)))
        return GraphVerifiedFeature(
            node=self._asked.graph.table.names[node],
            size=_largest(expected),
            held_deviation=_largest(found - expected),
            free_size=_largest(free),
            free_deviation=_largest(free - free_expected),
        )

    def _measured(self, activations: dict[int, float], first_free: int | None) -> Floats:
        self._n_runs += 1
        return measured(self._local, self._graph.nodes, activations, first_free)

    def _edge_heads(self, asked: GraphEdgeHeads) -> GraphHeadLoadings:
        table = self._asked.graph.table
        found = head_loadings(self._local, self._graph.nodes, table.place(asked.source), table.place(asked.target))
        carrying = np.argwhere(found.through != 0)
        order = np.argsort(-np.abs(found.through[tuple(carrying.T)]), kind="stable")
        return GraphHeadLoadings(
            weight=found.weight,
            without_heads=found.without_heads,
            heads=tuple(
                GraphHeadLoading(
                    layer=layer,
                    head=head,
                    through=float(found.through[layer, head]),
                    last=float(found.last[layer, head]),
                    first=float(found.first[layer, head]),
                    only=float(found.only[layer, head]),
                )
                for layer, head in carrying[order].tolist()
            ),
        )

    def _attention(self, asked: GraphAttention) -> GraphAttentionScore:
        found = attention_score(self._local, asked.layer, asked.head, asked.query, asked.key, asked.top_k)
        queries, keys = (map(self._name, places.tolist()) for places in (found.queries, found.keys))
        return GraphAttentionScore(
            score=found.score,
            capped_score=found.capped,
            probability=found.probability,
            pairs=tuple(
                GraphNodePair(query=query, key=key, contribution=contribution)
                for query, key, contribution in zip(queries, keys, found.contributions.tolist(), strict=True)
            ),
            remainder=found.remainder,
        )

    def _scored(self, names: Sequence[str], top_k: int) -> Iterator[GraphScoredFeature]:
        """The tokens of the features of these *names*."""
        decoder, table, check = self._model.decoder, self._asked.graph.table, self._first.check
        written, read = (
            torch.stack(rows) for rows in zip(*(self._directions(table.place(name)) for name in names), strict=True)
        )
        of_logits = extreme_tokens(written.to(decoder.dtype), decoder.unembedding, top_k, check=check)
        mean = (written @ decoder.mean_unembedding.to(written.dtype)).float()
        of_logits = of_logits.minus(mean)
        lengths, embeddings = decoder.embedding_lengths, decoder.embedding.t()
        of_embeddings = extreme_tokens(read.to(decoder.dtype), embeddings, top_k, lengths=lengths, check=check)
        for i, name in enumerate(names):
            yield GraphScoredFeature(
                node=name,
                promoted=self._tokens(of_logits.top[i], of_logits.top_ids[i]),
                suppressed=self._tokens(of_logits.bottom[i], of_logits.bottom_ids[i]),
                read=self._tokens(of_embeddings.top[i], of_embeddings.top_ids[i]) if bool(read[i].any()) else (),
            )

    def _directions(self, node: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What a unit writes, through the final norm at scale 1, and what it projects the residual on, its norm at
        scale 1, [d] each; 0 if it reads no residual."""
        model = self._local
        units, one = model.recording.unit(int(self._graph.nodes.selected[node]))
        rows = (units.writes(one, to)[0] for to in units.written)
        written = model.decoder.final_norm.unit(torch.stack(list(rows)).sum(dim=0))
        return written, units.read_direction(one)[0]

    def _tokens(self, scores: torch.Tensor, ids: torch.Tensor) -> tuple[GraphTokenScore, ...]:
        texts = self._model.tokenizer.token_strings(ids.tolist())
        return tuple(
            GraphTokenScore(token_id=token, token=text, score=score)
            for token, text, score in zip(ids.tolist(), texts, scores.tolist(), strict=True)
        )

    def _name(self, place: int) -> str:
        """The name of a node by its *place* among all active units, errors and embeddings; or of the constants."""
        nodes = self._graph.nodes
        if place < 0:
            return CONSTANT
        if place < len(nodes.active):
            kind = GraphNodeKind.numbered(int(nodes.kinds[place]))
            return str(GraphNode(kind, *nodes.active[place].tolist()))
        of_errors, token = divmod(place - len(nodes.active), nodes.n_tokens)
        if of_errors == len(nodes.errors):
            return str(GraphNode(GraphNodeKind.EMBEDDING, token=token))
        kind, layer = nodes.errors[of_errors]
        return str(GraphNode(kind, layer, token))


def drawn(graph: AttributionGraph, count: int, seed: int) -> list[int]:
    """At most *count* features of *graph*, each once, with chances in proportion to the sums of the magnitudes of their
    outgoing edges; those without edges last."""
    sizes = np.abs(graph.effects[:, : graph.nodes.n_features]).sum(axis=0, dtype=np.float64)
    # The order of -log(u) / size is that of drawing one by one without putting back (Efraimidis and Spirakis 2006).
    waits = np.random.default_rng(seed).exponential(size=len(sizes)) / np.maximum(sizes, np.finfo(np.float32).tiny)
    found: list[int] = np.argsort(waits, kind="stable")[:count].tolist()
    return found


def _largest(changes: Floats) -> float:
    return float(np.abs(changes).max(initial=0.0))
