"""One row of facts per derived scalar type as the input of an autoencoder, and one for transcoders.

The input of an autoencoder determines the type of its latents, where it can be spliced into a run, and what its
reconstruction replaces (section 7 of the specification). Every derived scalar type has a row; most can only be read
offline, from recorded taps, and some not at all: their `width` is None. A transcoder reads one tap and reconstructs
another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.components import Component, Dimension, LocationWithinLayer, NodeType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.scalar_facts import ScalarFacts
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.tables import one_row_each
from dst_grpc.errors import require

if TYPE_CHECKING:
    from dst_grpc.domain.architecture import ModelDimensions


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AutoencoderInput:
    """A derived scalar type as the input of an autoencoder."""

    type: DerivedScalarType
    """The derived scalar that is read."""
    output: DerivedScalarType | None = None
    """For transcoders, the derived scalar that they predict; None if the input is reconstructed."""
    node_type: NodeType = NodeType.AUTOENCODER_LATENT
    """Type of the latents: that of the MLPs, that of attention, or, for any other input, the generic one."""
    location: LocationWithinLayer = LocationWithinLayer.MLP
    """Place of the latents, and of the reconstruction error, within the layer."""
    is_spliceable: bool = False
    """Whether the autoencoder can be spliced into a run; if not, it only reads recorded taps."""
    is_traced: bool = False
    """Whether its latents can be traced and be ends of edges: it reads the output of the layer's attention or MLP, or
    predicts it, or it reads the residual stream."""
    error_tap: ActivationLocationType | None = None
    """Tap of its reconstruction error in a run; None if it cannot be spliced in."""
    output_tap: ActivationLocationType | None = None
    """Tap of what takes the place of its input, if that is the residual stream: all that comes later reads it there.
    None for any other input."""
    written_as: Component | None = None
    """Component that its reconstruction replaces, and writes as; None if the input is a vector of the residual
    stream."""
    offline_component: Component | None = None
    """Component whose writes make up its offline input; None if that is a tap as it is."""
    same_as: DerivedScalarType | None = None
    """Another type that the same autoencoders may read instead; None if there is none."""

    @property
    def facts(self) -> ScalarFacts:
        """The row of the derived scalar."""
        return FACTS[self.type]

    @property
    def latent_tap(self) -> ActivationLocationType:
        """Tap of its latents in a run that it is spliced into."""
        return require(NODES[self.node_type].tap)

    @property
    def tap(self) -> ActivationLocationType:
        """The tap that is read; raises Internal for a type that is not a tap."""
        return require(FACTS[self.type].tap)

    @property
    def spliced_at(self) -> ActivationLocationType:
        """The tap that is reconstructed: that which is read, unless it is a transcoder's; raises Internal likewise."""
        return require(FACTS[self.output or self.type].tap)

    @property
    def words(self) -> str:
        """What is read, and what is predicted if that is something else, in messages."""
        return self.type.value if self.output is None else f"{self.type.value} to predict {self.output.value}"

    @property
    def splice_taps(self) -> tuple[ActivationLocationType, ...]:
        """Taps that exist because it is spliced in: its latents', its error's and, of the residual stream, its
        output's."""
        latents = self.latent_tap if self.is_spliceable else None
        return tuple(tap for tap in (latents, self.error_tap, self.output_tap) if tap is not None)

    @property
    def is_of_stream(self) -> bool:
        """Whether it reads the residual stream itself and can be spliced in: its latents say again what was written
        before, rather than add to it."""
        return self.output_tap is not None

    @property
    def is_residual(self) -> bool:
        """Whether it is a tapped residual, or a tapped vector that is added to the residual stream."""
        return self.facts.is_raw and self.facts.dimensions[-1] is Dimension.RESIDUAL_STREAM_CHANNELS

    @property
    def is_of_mlp(self) -> bool:
        """Whether it is an autoencoder of the MLPs, and so computed from what the MLP reads."""
        return NODES[self.node_type].reads is LocationWithinLayer.RESID_POST_ATTN

    @property
    def is_of_attention_write(self) -> bool:
        """Whether it is a traced autoencoder of what attention adds to the residual."""
        return self.is_traced and self.node_type is NodeType.ATTENTION_AUTOENCODER_LATENT

    @property
    def writes_to_residual(self) -> bool:
        """Whether its reconstruction is added to the residual stream, as it is or through an output matrix."""
        return self.written_as is not None or self.facts.dimensions[-1] is Dimension.RESIDUAL_STREAM_CHANNELS

    @property
    def reads_head_pairs(self) -> bool:
        """Whether it reads the writes of single heads, one row for each pair of tokens and each head."""
        return self.offline_component is Component.HEAD_PAIR

    def width(self, dimensions: ModelDimensions) -> int | None:
        """Width of the input in a model of *dimensions*; None if no autoencoder can read the type.

        Its rows run over tokens, token pairs or pairs and heads, and its columns over the last axis; only heads at a
        token are read together, [T, H, c] as [T, H c].
        """
        axes = self.facts.dimensions
        is_of_pairs = Dimension.ATTENDED_TO_SEQUENCE_TOKENS in axes
        merged = axes[-1:] if is_of_pairs else axes[1:]
        if axes[0] is not Dimension.SEQUENCE_TOKENS or not all(axis.is_of_channels for axis in merged):
            return None
        width = 1
        for axis in merged:
            width *= dimensions.size_of(axis, n_tokens=0)
        return width


_T = DerivedScalarType
_L = ActivationLocationType
_M, _A = NodeType.MLP_AUTOENCODER_LATENT, NodeType.ATTENTION_AUTOENCODER_LATENT
_ATTN = LocationWithinLayer.ATTN

# fmt: off
_ROWS = (
    AutoencoderInput(type=_T.MLP_POST_ACT, node_type=_M, is_spliceable=True, is_traced=True,
                     error_tap=_L.ONLINE_MLP_AUTOENCODER_ERROR, written_as=Component.NEURON),
    # Read offline, the MLP's write is rebuilt from its neurons, without the bias (Q5).
    AutoencoderInput(type=_T.RESID_DELTA_MLP, node_type=_M, is_spliceable=True, is_traced=True,
                     error_tap=_L.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR, offline_component=Component.NEURON,
                     same_as=_T.RESID_DELTA_MLP_FROM_MLP_POST_ACT),
    AutoencoderInput(type=_T.RESID_DELTA_MLP_FROM_MLP_POST_ACT, node_type=_M, offline_component=Component.NEURON,
                     same_as=_T.RESID_DELTA_MLP),
    AutoencoderInput(type=_T.RESID_DELTA_ATTN, node_type=_A, location=_ATTN, is_spliceable=True, is_traced=True,
                     error_tap=_L.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR),
    AutoencoderInput(type=_T.ATTN_WRITE, node_type=_A, location=_ATTN, offline_component=Component.HEAD_PAIR),
    AutoencoderInput(type=_T.ATTN_WEIGHTED_SUM_OF_VALUES, location=_ATTN, written_as=Component.HEAD_AT_TOKEN),
    AutoencoderInput(type=_T.RESID_POST_ATTN, location=LocationWithinLayer.LATENTS_OF_RESID_POST_ATTN,
                     is_spliceable=True, is_traced=True, error_tap=_L.ONLINE_RESIDUAL_AUTOENCODER_ERROR,
                     output_tap=_L.ONLINE_RESIDUAL_AUTOENCODER_OUTPUT),
    AutoencoderInput(type=_T.RESID_POST_MLP, location=LocationWithinLayer.LATENTS_OF_RESID_POST_MLP,
                     is_spliceable=True, is_traced=True, error_tap=_L.ONLINE_RESIDUAL_AUTOENCODER_ERROR,
                     output_tap=_L.ONLINE_RESIDUAL_AUTOENCODER_OUTPUT),
)
# fmt: on

_OFFLINE_ONLY = (AutoencoderInput(type=dst) for dst in DerivedScalarType if dst not in {row.type for row in _ROWS})
AUTOENCODER_INPUTS = one_row_each(DerivedScalarType, (*_ROWS, *_OFFLINE_ONLY))
"""The table."""

# fmt: off
MLP_TRANSCODER = AutoencoderInput(
    type=_T.RESID_POST_ATTN, output=_T.RESID_DELTA_MLP, node_type=_M, is_spliceable=True, is_traced=True,
    error_tap=_L.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR,
)
"""Transcoders, which read what an MLP reads and predict what it writes. Their latents stand for the MLP's."""
# fmt: on

_ALL = (*AUTOENCODER_INPUTS.values(), MLP_TRANSCODER)
TRACED_INPUTS = tuple(row for row in _ALL if row.is_traced)
"""Inputs whose latents can be traced."""


def traced_words(node_type: NodeType) -> str:
    """What autoencoders read whose latents are nodes of *node_type* and can be traced, in messages."""
    of_any = node_type is NodeType.AUTOENCODER_LATENT
    return " or ".join(row.words for row in TRACED_INPUTS if of_any or row.node_type is node_type)


def input_of(dst: DerivedScalarType, output: DerivedScalarType | None) -> AutoencoderInput:
    """The row of autoencoders that read *dst*, and predict *output* rather than reconstruct it if that is not None."""
    is_of_mlp = (dst, output) == (MLP_TRANSCODER.type, MLP_TRANSCODER.output)
    return MLP_TRANSCODER if is_of_mlp else AUTOENCODER_INPUTS[dst]


def accepted_inputs(facts: ScalarFacts) -> tuple[AutoencoderInput, ...] | None:
    """Inputs that the autoencoder of a type may have; None if they follow from the type of its latents."""
    if facts.inputs:
        return tuple(row for row in _ALL if row.type in facts.inputs)
    if facts.component in {Component.NEURON_ERROR, Component.RESIDUAL_ERROR}:
        return tuple(row for row in _ALL if row.error_tap is facts.tap)
    if facts.component is Component.LATENT and facts.quantity.is_of_in_edges:
        return TRACED_INPUTS
    return None
