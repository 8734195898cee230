"""Questions about kept graphs that the model answers: ProbeGraph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from dst_grpc.client._graph import GraphCalls, GraphLike, handle_of
from dst_grpc.client._inference import answer_of
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.graph_probe_answers import (
    GraphAttentionScore,
    GraphChanges,
    GraphHeadLoadings,
    GraphProbePart,
    GraphProbePartKind,
    GraphScoredFeature,
    GraphVerifiedFeature,
)
from dst_grpc.domain.graph_probes import (
    DEFAULT_PAIRS,
    DEFAULT_TOKENS,
    DEFAULT_VERIFIED,
    GraphAttention,
    GraphEdgeHeads,
    GraphFeatureSetting,
    GraphFeatureTokens,
    GraphIntervention,
    GraphInterventions,
    GraphProbe,
    GraphVerification,
    ProbeGraphRequest,
)
from dst_grpc.errors import DataLoss, InvalidRequest, Reason
from dst_grpc.wire.assembly import ValueReader
from dst_grpc.wire.codec import to_wire
from dst_grpc.wire.pieces import corrupt

if TYPE_CHECKING:
    from dst_grpc._gen.dst.v1.graph_probe_pb2 import ProbeGraphResponse

T = TypeVar("T")
NodesLike: TypeAlias = str | Iterable[str]
"""A feature by its name, or several."""
_CLASSES = (GraphChanges, GraphVerifiedFeature, GraphHeadLoadings, GraphAttentionScore, GraphScoredFeature, RunsTrailer)


class GraphProbeCalls(GraphCalls):
    """GraphService's questions to the model."""

    async def probe_graph(
        self, request: ProbeGraphRequest, *, timeout: float | None = None
    ) -> tuple[GraphProbePart, ...]:
        """The parts of the answer to one request of ProbeGraph, the trailer last.

        Raises:
            NotFound: If this caller has no graph of that handle, or its model is not served any more as it was.
            InvalidRequest: If a field is bad, or the graph has no such node.
            DstError: Any other failure of a call, or a damaged answer.
        """
        responses = self._responses(self._graph_stub.ProbeGraph, to_wire(request), timeout)
        return await answer_of(responses, _Collector())

    async def intervene_on_graph(
        self,
        graph: GraphLike,
        interventions: GraphIntervention | Iterable[GraphIntervention],
        *,
        timeout: float | None = None,
    ) -> tuple[GraphChanges, ...]:
        """What changes when features of a kept graph are set to other activations, beside what the graph predicts.

        Args:
            graph: The graph.
            interventions: One or several, each a run of its own; see `make_graph_intervention`.
            timeout: Seconds; None = no limit.

        Returns:
            The changes of each intervention.

        Raises:
            DstError: As `probe_graph`.
        """
        given = (interventions,) if isinstance(interventions, GraphIntervention) else tuple(interventions)
        return await self._probed(graph, GraphInterventions(interventions=given), GraphChanges, timeout)

    async def verify_graph(
        self, graph: GraphLike, count: int = DEFAULT_VERIFIED, *, seed: int = 0, timeout: float | None = None
    ) -> tuple[GraphVerifiedFeature, ...]:
        """How far a kept graph is from runs in which *count* of its features are switched off, one by one.

        They are drawn with chances in proportion to the sums of the magnitudes of their outgoing edges.

        Raises:
            DstError: As `probe_graph`.
        """
        return await self._probed(graph, GraphVerification(count=count, seed=seed), GraphVerifiedFeature, timeout)

    async def edge_heads(
        self, graph: GraphLike, source: str, target: str, *, timeout: float | None = None
    ) -> GraphHeadLoadings:
        """Which heads carry the edge from *source* to *target* of a kept graph.

        Raises:
            DstError: As `probe_graph`.
        """
        (found,) = await self._probed(graph, GraphEdgeHeads(source=source, target=target), GraphHeadLoadings, timeout)
        return found

    async def attention_pairs(
        self,
        graph: GraphLike,
        layer: int,
        head: int,
        query: int,
        key: int,
        *,
        k: int = DEFAULT_PAIRS,
        timeout: float | None = None,
    ) -> GraphAttentionScore:
        """Why *head* of *layer* looks from position *query* at *key*: the *k* pairs of nodes that its score is most of.

        Raises:
            DstError: As `probe_graph`.
        """
        asked = GraphAttention(layer=layer, head=head, query=query, key=key, top_k=k)
        (found,) = await self._probed(graph, asked, GraphAttentionScore, timeout)
        return found

    async def feature_tokens(
        self, graph: GraphLike, nodes: NodesLike, *, k: int = DEFAULT_TOKENS, timeout: float | None = None
    ) -> tuple[GraphScoredFeature, ...]:
        """The *k* tokens that features of a kept graph read most, and those that they raise and lower most.

        Raises:
            DstError: As `probe_graph`.
        """
        names = (nodes,) if isinstance(nodes, str) else tuple(nodes)
        return await self._probed(graph, GraphFeatureTokens(nodes=names, top_k=k), GraphScoredFeature, timeout)

    async def _probed(self, graph: GraphLike, probe: GraphProbe, kind: type[T], timeout: float | None) -> tuple[T, ...]:
        request = ProbeGraphRequest(graph=handle_of(graph), probe=probe)
        parts = await self.probe_graph(request, timeout=timeout)
        return tuple(part.value for part in parts if isinstance(part.value, kind))


def make_graph_intervention(
    activations: Mapping[str, float] | None = None,
    *,
    factors: Mapping[str, float] | None = None,
    off: NodesLike = (),
    first_free_layer: int | None = None,
    with_features: bool = False,
    name: str = "",
) -> GraphIntervention:
    """A run of a graph's prompt in which features are set.

    Args:
        activations: Features by name, and the activations to set them to.
        factors: Features by name, and how many times their own activations.
        off: Features to switch off.
        first_free_layer: The first layer that the model computes anew; those before it are held. 0 = all are computed,
            None = none is, so that changes are what edges say.
        with_features: Whether to send the changes of features, not of targets only.
        name: What the answer calls it.

    Raises:
        InvalidRequest: If no feature is named, one is named twice, or a name is not that of a feature.
    """
    names = (off,) if isinstance(off, str) else tuple(off)
    settings = [
        *(GraphFeatureSetting(nodes=(node,), activation=value) for node, value in (activations or {}).items()),
        *(GraphFeatureSetting(nodes=(node,), factor=value) for node, value in (factors or {}).items()),
        *([GraphFeatureSetting(nodes=names, factor=0.0)] if names else []),
    ]
    if not settings:
        raise InvalidRequest.of("activations", "names no feature, and neither do factors and off")
    return GraphIntervention(
        settings=tuple(settings), name=name, first_free_layer=first_free_layer, with_features=with_features
    )


class _Collector:
    """From messages to all parts, checked: none is missing."""

    def __init__(self) -> None:
        self._reader = ValueReader(_CLASSES)
        self._parts: list[GraphProbePart] = []

    def add(self, message: ProbeGraphResponse) -> tuple[GraphProbePart, ...] | None:
        """Take the next message; see Collector."""
        for frame in message.frames:
            found = self._reader.read(frame)
            if found is not None:
                kind, value = found
                self._parts.append(GraphProbePart(kind=GraphProbePartKind(kind), value=value))
                if isinstance(value, RunsTrailer):
                    return self._finished(value)
        return None

    def _finished(self, trailer: RunsTrailer) -> tuple[GraphProbePart, ...]:
        if trailer.frame_count != self._reader.count:
            counts = f"the trailer counts {trailer.frame_count} frames, and {self._reader.count} came"
            raise DataLoss(f"the answer is truncated: {counts}", reason=Reason.ANSWER_TRUNCATED)
        changes = [part.value.index for part in self._parts if isinstance(part.value, GraphChanges)]
        if changes != [*range(len(changes))]:
            raise corrupt("the changes of interventions are not in order")
        return tuple(self._parts)
