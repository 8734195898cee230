"""The answer to Graph: a header, rows block by block, then nodes, their scores, edges and a summary; last the graph
itself, to be kept."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from dst_grpc.domain.graph import GraphEdgeSelection
from dst_grpc.domain.graph_answers import (
    GraphHeader,
    GraphPart,
    GraphPartKind,
    GraphPhase,
    GraphProgress,
    GraphTargetInfo,
)
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.graphs import building
from dst_grpc.graphs.influence import scores
from dst_grpc.pipeline.graph_parts import EDGES_AT_ONCE, edge_parts, node_parts, part, score_parts
from dst_grpc.pipeline.graph_planner import GraphPlan
from dst_grpc.pipeline.graph_sources import loaded_sources
from dst_grpc.pipeline.stepped_answer import SteppedAnswer
from dst_grpc.pipeline.whole_graph import WholeGraph, check_finishing, finishing_bytes, most_bytes, pruned, table_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.graphs.building import GraphStep
    from dst_grpc.graphs.nodes import AttributionGraph, GraphNodes
    from dst_grpc.pipeline.run import RunResult

_P = GraphPartKind
Parts = list[GraphPart | WholeGraph]


class GraphAnswer(SteppedAnswer[GraphPlan, GraphPart | WholeGraph]):
    """The answer to one request, computed in steps."""

    def __init__(
        self,
        asked: GraphPlan,
        results: Sequence[RunResult],
        model: ModelContext,
        sets: Mapping[str, AutoencoderContext],
        *,
        check_room: Callable[[int], None],
    ) -> None:
        """As of any stepped answer; *check_room* raises Exhausted if a graph of so many bytes can never be kept."""
        super().__init__(asked, results, model, sets)
        self._transcoders = "" if asked.transcoders is None else sets[asked.transcoders.name].handle
        self._autoencoders = tuple(sets[entry.name].handle for entry in asked.autoencoders)
        self._check_room = check_room
        self._n_blocks = 0
        self._sends_rows = False
        """Whether rows are sent as they are known: if all units are nodes, else nodes have no numbers yet."""

    @property
    def _n_passes(self) -> tuple[int, int]:
        """Forward passes so far, without the first run, and blocks of targets carried back."""
        return int(self._n_blocks > 0), self._n_blocks

    @property
    def _batch_size(self) -> int:
        """One prompt."""
        return 1

    def _work(self) -> Iterator[Parts]:
        """The parts of each step, in order."""
        yield []  # the first step runs with the pass, and is timed as a part of it
        graph = yield from self._built()
        yield from self._finished(graph)

    def _built(self) -> Generator[Parts, None, AttributionGraph]:
        """The graph; yields the parts of each step."""
        asked = self._asked
        sources = loaded_sources(asked.request.chosen_sources, asked.transcoders, asked.autoencoders, self._sets)
        work = building.build(asked.question, self._model.decoder, sources, self._first.check)
        while True:
            try:
                step = next(work)
            except StopIteration as end:
                return cast("AttributionGraph", end.value)
            yield self._begun(step) if step.phase is GraphPhase.RECORDING else self._added(step)

    def _begun(self, step: GraphStep) -> Parts:
        """The parts of the step after which it is known which units are active."""
        request, header = self._asked.request, self._header(step.candidates)
        if request.keep:
            self._check_room(header.byte_count)
        finishing = finishing_bytes(header.feature_count + len(header.targets), header.node_count)
        check_finishing(finishing, self._asked.limit_bytes)
        self.held_bytes = max(step.peak_bytes, finishing)
        is_whole = header.feature_count == header.active_feature_count
        self._sends_rows = is_whole and request.edges is GraphEdgeSelection.WHOLE
        return [
            part(_P.HEADER, header),
            part(_P.PROGRESS, GraphProgress(phase=step.phase, done=step.done, total=step.total)),
            *(node_parts(table_of(step.candidates)) if self._sends_rows else ()),
        ]

    def _added(self, step: GraphStep) -> Parts:
        """The parts of a step that computes rows."""
        self._n_blocks += 1
        rows = edge_parts(GraphEdges.of_matrix(step.rows, step.nodes)) if self._sends_rows else []
        return [*rows, part(_P.PROGRESS, GraphProgress(phase=step.phase, done=step.done, total=step.total))]

    def _header(self, candidates: GraphNodes) -> GraphHeader:
        """The start of the answer, given the nodes that there would be if all active units were."""
        asked, tokenizer = self._asked, self._model.tokenizer
        n_active, most = len(candidates.active), asked.request.most_feature_nodes
        n_features = n_active if most is None else min(most, n_active)
        return GraphHeader(
            model=self._model.handle,
            transcoders=self._transcoders,
            autoencoders=self._autoencoders,
            sources=asked.request.chosen_sources,
            token_ids=asked.plan.token_ids,
            token_strings=asked.plan.token_strings,
            is_begin_token_added=asked.is_begin_token_added,
            zeroed_token_count=min(asked.n_zeroed, len(asked.plan.token_ids)),
            layer_count=candidates.n_layers,
            targets=_targets(candidates, tokenizer.token_strings),
            active_feature_count=n_active,
            feature_count=n_features,
            node_count=len(candidates) - n_active + n_features,
            byte_count=most_bytes(candidates, n_features),
        )

    def _finished(self, graph: AttributionGraph) -> Iterator[Parts]:
        """The parts of a graph whose edges are known."""
        request = self._asked.request
        progress = partial(GraphProgress, phase=GraphPhase.PRUNING, total=3)
        edges = GraphEdges.of_matrix(graph.effects, graph.nodes.readers)
        yield [part(_P.PROGRESS, progress(done=1))]
        of_graph = scores(graph)
        yield [part(_P.PROGRESS, progress(done=2))]
        left = pruned(graph, of_graph, len(edges), request.node_threshold, request.edge_threshold)
        sent = {GraphEdgeSelection.PRUNED: left.edges, GraphEdgeSelection.WHOLE: edges}.get(request.edges)
        nodes = [] if self._sends_rows else node_parts(table_of(graph.nodes))
        yield [part(_P.PROGRESS, progress(done=3)), *nodes, *score_parts(left.scores)]
        if sent is not None and not self._sends_rows:
            for piece in sent.pieces(EDGES_AT_ONCE):
                yield [part(_P.EDGES, piece)]
        summary = part(_P.SUMMARY, left.summary)
        if request.keep is False:
            yield [summary]
            return
        whole = WholeGraph(
            model=self._model.handle,
            transcoders=self._transcoders,
            autoencoders=self._autoencoders,
            sources=self._asked.request.chosen_sources,
            token_strings=self._asked.plan.token_strings,
            nodes=graph.nodes,
            edges=edges,
            of_graph=of_graph,
            scores=left.scores,
            provenance=self.summary().provenance,
        )
        yield [summary, whole]


def _targets(nodes: GraphNodes, texts_of: Callable[[Sequence[int]], Sequence[str]]) -> tuple[GraphTargetInfo, ...]:
    """The targets of *nodes*; *texts_of* gives the text of each token."""
    targets = nodes.targets
    is_token = targets.token_ids >= 0
    texts = iter(texts_of(targets.token_ids[is_token].tolist()))
    return tuple(
        GraphTargetInfo(name=next(texts), token_id=int(token), weight=float(weight))
        if token >= 0
        else GraphTargetInfo(name=name, weight=float(weight))
        for token, name, weight in zip(targets.token_ids, targets.names, targets.weights, strict=True)
    )
