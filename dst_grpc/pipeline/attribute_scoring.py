"""What Attribute computes block by block of pairs: scores of nodes and edges, or attributions of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from dst_grpc.causal.attribution import Attribution
from dst_grpc.causal.integrated_gradients import IntegratedGradients
from dst_grpc.causal.rules import RULES
from dst_grpc.domain.attribute import ATTRIBUTED_NODES
from dst_grpc.domain.attribute_answers import PairMetrics, ScoredKind, ScoresInfo
from dst_grpc.domain.components import Dimension
from dst_grpc.domain.results import Axis

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from dst_grpc.causal.attribution import Pair
    from dst_grpc.causal.integrated_gradients import Completeness
    from dst_grpc.causal.nodes import Nodes
    from dst_grpc.domain.locations import ActivationLocationType
    from dst_grpc.engine.cancellation import Check
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.attribute_planner import AttributePlan

_D = Dimension


class Scoring(ABC):
    """Scores, summed up over blocks of pairs."""

    infos: tuple[ScoresInfo, ...]
    """The arrays of scores, known before any pair runs."""

    @abstractmethod
    def add(self, pairs: Sequence[Pair]) -> Sequence[PairMetrics]:
        """Add a block of pairs; returns their metrics."""

    @abstractmethod
    def arrays(self) -> Iterator[torch.Tensor]:
        """The arrays, in the order of `infos`."""

    @property
    @abstractmethod
    def n_passes(self) -> tuple[int, int]:
        """Forward and backward passes so far."""


class GraphScoring(Scoring):
    """Scores of nodes and edges."""

    def __init__(
        self,
        asked: AttributePlan,
        decoder: Decoder,
        splices: Mapping[Site, Splice],
        handles: Mapping[ActivationLocationType, str],
        check: Check,
    ) -> None:
        """Begin without pairs.

        Args:
            asked: the request.
            decoder: the model.
            splices: autoencoders to splice in, by the site that each reconstructs.
            handles: of their sets, by the tap that they reconstruct.
            check: raises Cancelled to end a block.
        """
        self._attribution = Attribution(decoder, asked.question, splices, check)
        self._sizes = decoder.config.dimensions.sizes(asked.longest)
        self._latents = {location: one.autoencoder.n_latents for (location, _), one in splices.items()}
        self._handles, self._by_position = handles, asked.request.by_position
        infos = [self._info(i, nodes) for i, nodes in enumerate(self._attribution.kinds)]
        if asked.request.edges:
            graph = self._attribution.graph
            ends = [Axis(_D.GRAPH_SOURCES, len(graph.sources)), Axis(_D.GRAPH_READERS, len(graph.readers))]
            infos.append(ScoresInfo(tensor_id=len(infos), kind=ScoredKind.EDGES, axes=(*self._positions, *ends)))
        self.infos = tuple(infos)

    @property
    def _positions(self) -> tuple[Axis, ...]:
        return (Axis(_D.SEQUENCE_TOKENS, self._sizes[_D.SEQUENCE_TOKENS]),) if self._by_position else ()

    def _info(self, i: int, nodes: Nodes) -> ScoresInfo:
        """The array of one kind of nodes: layers, heads, tokens, entries, as far as there are any."""
        layers = (Axis(_D.LAYERS, len(nodes.layers)),) if nodes.layers else ()
        heads = (Axis(_D.ATTN_HEADS, self._sizes[_D.ATTN_HEADS]),) if _has_heads(nodes) else ()
        entries: tuple[Axis, ...] = ()
        if ATTRIBUTED_NODES[nodes.kind].is_entry:
            dimension = nodes.sites[0][0].dimensions[-1]
            size = self._sizes[dimension] if nodes.spliced_at is None else self._latents[nodes.spliced_at]
            entries = (Axis(dimension, size),)
        return ScoresInfo(
            tensor_id=i,
            kind=ScoredKind.NODES,
            axes=(*layers, *heads, *self._positions, *entries),
            node=nodes.kind,
            layer_indices=nodes.layers,
            autoencoder="" if nodes.spliced_at is None else self._handles[nodes.spliced_at],
        )

    def add(self, pairs: Sequence[Pair]) -> Sequence[PairMetrics]:
        """Add a block of pairs; returns their metrics."""
        return [PairMetrics(base=one.base, source=one.source) for one in self._attribution.add(pairs)]

    def arrays(self) -> Iterator[torch.Tensor]:
        """The arrays, in the order of `infos`."""
        for nodes, scores in self._attribution.nodes.items():
            yield scores.transpose(-1, -2) if _has_heads(nodes) and self._by_position else scores
        if self._attribution.edges is not None:
            yield self._attribution.edges

    @property
    def n_passes(self) -> tuple[int, int]:
        """Forward and backward passes so far."""
        return self._attribution.n_forward_passes, self._attribution.n_backward_passes


def _has_heads(nodes: Nodes) -> bool:
    return _D.ATTN_HEADS in nodes.sites[0][0].dimensions


class TokenScoring(Scoring):
    """Attributions of tokens."""

    def __init__(self, asked: AttributePlan, decoder: Decoder, splices: Mapping[Site, Splice], check: Check) -> None:
        """Begin without pairs; arguments are those of `GraphScoring`."""
        request = asked.request
        self._by_channel = request.by_channel
        self._attributions = IntegratedGradients(
            decoder,
            rule=request.effective_path_rule,
            steps=request.effective_steps,
            baseline=request.effective_baseline,
            propagation=RULES[request.rule],
            splices=splices,
            check=check,
        )
        axes = [Axis(_D.SEQUENCE_TOKENS, asked.longest)]
        if request.by_channel:
            axes.append(Axis(_D.RESIDUAL_STREAM_CHANNELS, decoder.config.d_model))
        self.infos = (ScoresInfo(tensor_id=0, kind=ScoredKind.TOKENS, axes=tuple(axes)),)

    def add(self, pairs: Sequence[Pair]) -> Sequence[PairMetrics]:
        """Add a block of pairs; returns their metrics."""
        return [_metrics(one) for one in self._attributions.add(pairs)]

    def arrays(self) -> Iterator[torch.Tensor]:
        """The one array."""
        found = self._attributions.attributions
        yield found if self._by_channel else found.sum(dim=1)

    @property
    def n_passes(self) -> tuple[int, int]:
        """Forward and backward passes so far."""
        return self._attributions.n_forward_passes, self._attributions.n_backward_passes


def _metrics(found: Completeness) -> PairMetrics:
    change = found.metric - found.at_baseline
    return PairMetrics(
        base=found.metric,
        source=found.at_baseline,
        residual=found.residual,
        relative_residual=found.residual / change if change else None,
    )
