"""The order of computation in a model, and the residual that each node is computed from.

A `Topology` is a model's architecture together with the inputs of a config's autoencoders. It tells the planner and the
components where a node is in that order and what it is computed from, so that neither depends on the kind of model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dst_grpc.domain.architecture import Architecture
from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
from dst_grpc.domain.components import AttentionTraceType, LocationWithinLayer, NodeType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.engine.autoencoder_input import input_site
from dst_grpc.engine.taps import Site, site_entering
from dst_grpc.errors import require

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.domain.trace import TraceConfig

_L = ActivationLocationType


class AutoencoderKind(Protocol):
    """What planning needs of an autoencoder set: its row of the catalogue, or the loaded set."""

    @property
    def input(self) -> AutoencoderInput:
        """The row of facts of their input."""

    @property
    def has_write_scale(self) -> bool:
        """Whether a latent's write depends on its token's input too."""


@dataclass(frozen=True, slots=True)
class AutoencoderInputs:
    """The inputs of a config's autoencoders, by the type of their latents."""

    mlp: AutoencoderInput | None = None
    """Input of the autoencoder of the MLPs; None if there is none."""
    attention: AutoencoderInput | None = None
    """Input of the autoencoder of attention; None if there is none."""
    other: AutoencoderInput | None = None
    """Input of any other autoencoder, such as one of the residual stream or of heads' values; None if there is none."""
    scaled: frozenset[AutoencoderInput] = frozenset()
    """Those of the inputs whose autoencoders scale their output by the token's input."""

    @classmethod
    def of_sets(cls, sets: Iterable[AutoencoderKind]) -> AutoencoderInputs:
        """The inputs of *sets*, at most one of them per node type."""
        present = tuple(sets)
        by_type = {one.input.node_type: one.input for one in present}
        return cls(
            by_type.get(NodeType.MLP_AUTOENCODER_LATENT),
            by_type.get(NodeType.ATTENTION_AUTOENCODER_LATENT),
            by_type.get(NodeType.AUTOENCODER_LATENT),
            frozenset(one.input for one in present if one.has_write_scale),
        )

    def of(self, node_type: NodeType) -> AutoencoderInput | None:
        """Input of the autoencoder whose latents are *node_type*; for a generic latent, and for an error, that of the
        only one or, of several, of the one that is neither of the MLPs nor of attention."""
        if node_type is NodeType.MLP_AUTOENCODER_LATENT:
            return self.mlp
        if node_type is NodeType.ATTENTION_AUTOENCODER_LATENT:
            return self.attention
        present = self._present
        return present[0] if len(present) == 1 else self.other

    @property
    def _present(self) -> tuple[AutoencoderInput, ...]:
        return tuple(kind for kind in (self.mlp, self.attention, self.other) if kind is not None)

    def with_tap(self, location: ActivationLocationType) -> AutoencoderInput | None:
        """The input of the autoencoder that has the tap *location* because it is spliced in; None if none has."""
        return next((kind for kind in self._present if location in kind.splice_taps), None)

    def place_of(self, location: ActivationLocationType) -> LocationWithinLayer | None:
        """The place of what is tapped within its layer; None if unknown."""
        kind = self.with_tap(location)
        return location.location_within_layer if kind is None else kind.location

    def step(self, location: ActivationLocationType) -> float:
        """The order of computation of *location* among those of its layer."""
        kind = self.with_tap(location)
        if kind is None:
            return location.facts.step
        return kind.spliced_at.facts.step + (0.5 if location is kind.output_tap else 0.25)


@dataclass(frozen=True, slots=True)
class Residual:
    """A residual, one vector per token, that a node is computed from."""

    site: Site
    """The tap."""
    location: LocationWithinLayer
    """Its place in the order within *layer*."""
    layer: int
    """The layer whose attention or MLP reads it."""

    def is_after(self, location: LocationWithinLayer | None, layer: int | None) -> bool:
        """Whether a component at (*location*, *layer*) precedes this residual; one without a layer always does."""
        if layer is None or layer < self.layer:
            return True
        return layer == self.layer and location is not None and location < self.location


def precedes(site: Site, other: Site, inputs: AutoencoderInputs) -> bool:
    """Whether the tensor at *other* is computed from that at *site*, or is the same.

    Within a layer, what is computed before it: in a parallel layer that is more than it is computed from. *inputs* are
    those of the spliced autoencoders.
    """
    (location, layer), (of_other, at_layer) = site, other
    if site == other or location is _L.RESID_POST_EMBEDDING or (layer is not None and at_layer is None):
        return of_other is not _L.RESID_POST_EMBEDDING or site == other
    if layer is None:  # after all layers
        return at_layer is None and location.facts.step < of_other.facts.step
    return at_layer is not None and (
        layer < at_layer or (layer == at_layer and inputs.step(location) < inputs.step(of_other))
    )


@dataclass(frozen=True, slots=True)
class Topology:
    """The order of computation in one model, with the autoencoders of one config."""

    n_layers: int
    """Layers of the model."""
    architecture: Architecture
    """The model's."""
    inputs: AutoencoderInputs
    """The inputs of the config's autoencoders."""
    spliced_residuals: frozenset[Site] = frozenset()
    """The residuals that autoencoders are spliced into in the run."""

    def as_read(self, residual: Site) -> Site:
        """The site of a residual as all that comes later reads it: behind the autoencoder that is spliced in there."""
        spliced = residual in self.spliced_residuals
        return (_L.ONLINE_RESIDUAL_AUTOENCODER_OUTPUT, residual[1]) if spliced else residual

    def input_site(self, kind: AutoencoderInput, layer: int | None) -> Site:
        """The site of what the autoencoders of an input read: of transcoders, the residual as the MLP reads it."""
        site = input_site(kind.type, layer, self.architecture)
        return site if kind.output is None else self.as_read(site)

    def residual_entering(self, layer: int) -> Residual:
        """The residual that the attention of *layer* reads."""
        return Residual(self.as_read(site_entering(layer)), LocationWithinLayer.END_OF_PREV_LAYER, layer)

    def residual_before_mlp(self, layer: int) -> Residual:
        """The residual that the MLP of *layer* reads: in a parallel layer the same as its attention."""
        if self.architecture.parallel:
            return self.residual_entering(layer)
        site = self.as_read((_L.RESID_POST_ATTN, layer))
        return Residual(site, LocationWithinLayer.RESID_POST_ATTN, layer)

    def residual_before(self, node_type: NodeType, layer: int) -> Residual:
        """The residual that a node is computed from: for neurons and latents of the MLPs, the one that the MLP
        reads; for latents of the residual stream, what their autoencoder reads."""
        facts = NODES[node_type]
        kind = self.inputs.of(node_type) if facts.is_autoencoder_latent else None
        if kind is not None and kind.is_of_stream:
            return Residual((kind.tap, layer), kind.location, layer)
        reads = facts.reads if kind is None else NODES[kind.node_type].reads
        of_mlp = reads is LocationWithinLayer.RESID_POST_ATTN
        return self.residual_before_mlp(layer) if of_mlp else self.residual_entering(layer)

    def location_of_latents(self, node_type: NodeType) -> LocationWithinLayer:
        """The place of the latents of *node_type* within a layer: that of their autoencoder's input."""
        return require(self.inputs.of(node_type)).location

    def location_of_node(self, node: NodeIndex) -> LocationWithinLayer:
        """The place of a node within its layer."""
        facts = NODES[node.node_type]
        return self.location_of_latents(node.node_type) if facts.is_autoencoder_latent else require(facts.location)

    def residual_of_trace(self, trace: TraceConfig) -> Residual:
        """The residual that a traced node is computed from; for V that of the upstream head (specification, 8.1)."""
        return self.residual_before(trace.node_index.node_type, require(trace.node_index.layer_index))

    def final_residual(self, trace: TraceConfig | None) -> Residual:
        """The last residual before the origin: before the traced node, or after the last layer."""
        if trace is None:
            last = self.n_layers - 1
            site = self.as_read((_L.RESID_POST_MLP, last))
            return Residual(site, LocationWithinLayer.RESID_POST_MLP, last)
        return self.residual_of_trace(trace)

    def residuals_of_trace_value(self, trace: TraceConfig) -> tuple[Site, ...]:
        """Recorded residuals, besides its own, that the value of *trace* depends on: V needs a downstream gradient."""
        if trace.attention_trace_type is not AttentionTraceType.V:
            return ()
        downstream = trace.downstream_trace_config
        further = () if downstream is None else self.residuals_of_trace_value(downstream)
        return (self.final_residual(downstream).site, *further)
