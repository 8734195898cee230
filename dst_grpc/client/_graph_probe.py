"""Questions about kept graphs that the model answers: ProbeGraph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from dst_grpc.client._given import given, text, tuple_of
from dst_grpc.client._graph import GraphCalls, GraphLike, handle_of
from dst_grpc.client._inference import answer_of
from dst_grpc.client._requests import names_of
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.graph_node_table import UNIT_KINDS
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
from dst_grpc.domain.graph_queries import check_node
from dst_grpc.errors import DataLoss, InvalidRequest, Reason, Violations
from dst_grpc.wire.assembly import ValueReader
from dst_grpc.wire.codec import to_wire
from dst_grpc.wire.pieces import corrupt

if TYPE_CHECKING:
    from dst_grpc._gen.dst.v1.graph_probe_pb2 import ProbeGraphResponse

T = TypeVar("T")
NodesLike: TypeAlias = str | Iterable[str]
"""A feature, neuron, head or latent by its name, or several."""
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
        message = to_wire(request)
        model = self._models_of_kept.get(message.graph)
        responses = self._responses(self._graph_stub.ProbeGraph, message, timeout, model=model)
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
        runs = (interventions,) if isinstance(interventions, GraphIntervention) else interventions
        asked = given("interventions", GraphInterventions, interventions=tuple_of("interventions", runs))
        return await self._probed(graph, asked, GraphChanges, timeout)

    async def verify_graph(
        self, graph: GraphLike, count: int = DEFAULT_VERIFIED, *, seed: int = 0, timeout: float | None = None
    ) -> tuple[GraphVerifiedFeature, ...]:
        """How far a kept graph is from runs in which *count* of its features are switched off, one by one.

        They are drawn with chances in proportion to the sums of the magnitudes of their outgoing edges.

        Raises:
            DstError: As `probe_graph`.
        """
        asked = given("verification", GraphVerification, count=count, seed=seed)
        return await self._probed(graph, asked, GraphVerifiedFeature, timeout)

    async def edge_heads(
        self, graph: GraphLike, source: str, target: str, *, timeout: float | None = None
    ) -> GraphHeadLoadings:
        """Which heads carry the edge from *source* to *target* of a kept graph.

        Raises:
            DstError: As `probe_graph`.
        """
        asked = given("edge_heads", GraphEdgeHeads, source=source, target=target)
        (found,) = await self._probed(graph, asked, GraphHeadLoadings, timeout)
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
        asked = given("attention", GraphAttention, layer=layer, head=head, query=query, key=key, top_k=k)
        (found,) = await self._probed(graph, asked, GraphAttentionScore, timeout)
        return found

    async def feature_tokens(
        self, graph: GraphLike, nodes: NodesLike, *, k: int = DEFAULT_TOKENS, timeout: float | None = None
    ) -> tuple[GraphScoredFeature, ...]:
        """The *k* tokens that features of a kept graph read most, and those that they raise and lower most.

        Raises:
            DstError: As `probe_graph`.
        """
        asked = given("feature_tokens", GraphFeatureTokens, nodes=names_of(nodes, "feature_tokens.nodes"), top_k=k)
        return await self._probed(graph, asked, GraphScoredFeature, timeout)

    async def _probed(self, graph: GraphLike, probe: GraphProbe, kind: type[T], timeout: float | None) -> tuple[T, ...]:
        request = given("", ProbeGraphRequest, graph=handle_of(graph), probe=probe)
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
    """A run of a graph's prompt in which features are set, or its neurons, heads or latents; here all go by features.

    Args:
        activations: Features by name, and the activations to set them to.
        factors: Features by name, and how many times their own activations.
        off: Features to switch off.
        first_free_layer: The first layer that the model computes anew; those before it are held. 0 = all are computed,
            None = none is, so that changes are what edges say.
        with_features: Whether to send the changes of features, not of targets only.
        name: What the answer calls it.

    Raises:
        TypeError: If an argument is of a wrong type.
        InvalidRequest: If no feature is named, one is named twice, or a name is not that of a feature.
    """
    to_activations, by_factors = _by_path("activations", activations), _by_path("factors", factors)
    to_nothing = names_of(off, "off")
    _check_features(
        [
            *((path, node) for path, node, _ in (*to_activations, *by_factors)),
            *((f"off[{i}]", node) for i, node in enumerate(to_nothing)),
        ]
    )
    settings = [
        *(given(path, GraphFeatureSetting, nodes=(node,), activation=value) for path, node, value in to_activations),
        *(given(path, GraphFeatureSetting, nodes=(node,), factor=value) for path, node, value in by_factors),
        *([GraphFeatureSetting(nodes=to_nothing, factor=0.0)] if to_nothing else []),
    ]
    return given(
        "",
        GraphIntervention,
        settings=tuple(settings),
        name=name,
        first_free_layer=first_free_layer,
        with_features=with_features,
    )


def _by_path(argument: str, values: Mapping[str, float] | None) -> list[tuple[str, str, float]]:
    """For each feature of an *argument*: its path, its name and its value; raises TypeError."""
    if not isinstance(values, Mapping | None):
        raise TypeError(f"{argument} must be a mapping from names of features to numbers, not {values!r}")
    return [(f"{argument}[{node!r}]", node, value) for node, value in (values or {}).items()]


def _check_features(named: Sequence[tuple[str, str]]) -> None:
    """Check features by path and name; raises TypeError, or InvalidRequest with all that is wrong."""
    if not named:
        raise InvalidRequest.of("activations", "names no feature, and neither do factors and off")
    problems = Violations()
    seen: dict[str, str] = {}
    for path, node in named:
        check_node(problems, path, text(path, node), UNIT_KINDS)
        first = seen.setdefault(node, path)
        problems.check(first == path, path, f"is set by {first} too")
    problems.raise_if_any()


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
