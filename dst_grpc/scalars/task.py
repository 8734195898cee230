"""A task: one derived scalar of one request, with everything resolved that does not need weights.

Built by the planner. `derive` says which taps it is computed from, and computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    """Keys of its tensors: layers, or a lone None."""
    passes: tuple[PassType, ...]
    """Passes that it yields."""
    topology: Topology
    """The model, with the config's autoencoders."""
    trace: TraceConfig | None = None
    """Where the backward pass started, or the latent to read; None = the loss."""
    loss: LossOrigin | None = None
    """The request's loss, which a trace through V reads."""
    node: NodeIndex | None = None
    """The one node at the fixed end of an edge."""
    detach_scale: bool = False
    """Whether edge attributions pass no gradient through layer-norm scales."""
    fake_grad: ActivationIndex | None = None
    """The node whose reads of the vocabulary are asked for."""
