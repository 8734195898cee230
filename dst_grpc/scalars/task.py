"""A task: one derived scalar of one request, with everything resolved that does not need weights.

Made by the planner. `derive` names the taps that it is computed from, and computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
    from dst_grpc.domain.components import PassType
    from dst_grpc.domain.indices import ActivationIndex, NodeIndex
    from dst_grpc.domain.scalar_facts import ScalarFacts
    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.scalars.origins import LossOrigin
    from dst_grpc.scalars.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One derived scalar of one request."""

    facts: ScalarFacts
    """Its row of facts."""
    layers: tuple[int | None, ...]
    """The layers of its tensors; a single None for a type that exists once per model."""
    passes: tuple[PassType, ...]
    """Passes that it yields."""
    topology: Topology
    """The model, with the config's autoencoders."""
    trace: TraceConfig | None = None
    """The trace that the backward pass started from, or the latent to read; None = the loss."""
    loss: LossOrigin | None = None
    """The request's loss, which a trace through V may use."""
    node: NodeIndex | None = None
    """The node at the fixed end of the edges."""
    detach_scale: bool = False
    """Whether edge attributions hold the scales of layer norms constant."""
    fake_grad: ActivationIndex | None = None
    """The node that VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION is about."""

    @property
    def autoencoder_input(self) -> AutoencoderInput | None:
        """The input of the autoencoder that its type is about; None if it is about none."""
        return None if self.facts.autoencoder is None else self.topology.inputs.of(self.facts.autoencoder)

    @property
    def says_again(self) -> bool:
        """Whether it is about latents or errors of the residual stream, which say again what was written before."""
        kind = self.autoencoder_input
        return kind is not None and kind.is_of_stream and self.facts.component.is_of_autoencoder
