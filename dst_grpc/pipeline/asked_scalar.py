"""One derived scalar of a request, with all that the rules of its type check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.scalars import FACTS

if TYPE_CHECKING:
    from dst_grpc.contexts.entries import AutoencoderEntry, ModelEntry
    from dst_grpc.domain.config import DstConfig
    from dst_grpc.domain.requests import DeriveRequest
    from dst_grpc.domain.scalar_facts import ScalarFacts
    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.pipeline.findings import Findings
    from dst_grpc.pipeline.sizes import Sizes
    from dst_grpc.scalars.origins import LossOrigin
    from dst_grpc.scalars.topology import AutoencoderInputs, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedScalar:
    """One derived scalar that a request asks for."""

    request: DeriveRequest
    spec_index: int
    """Its position in the request."""
    config: DstConfig
    """Its config."""
    path: str
    """Path of its config in the request."""
    spec_path: str
    """Its own path in the request."""
    model: ModelEntry
    sizes: Sizes
    topology: Topology
    """The model, with these autoencoders."""
    sets: tuple[AutoencoderEntry, ...]
    """The autoencoders that its config names."""
    spliced: tuple[AutoencoderEntry, ...]
    """The autoencoders spliced into the run."""
    loss: LossOrigin | None
    findings: Findings
    """Collects what is wrong with it, and what it lacks."""

    @property
    def facts(self) -> ScalarFacts:
        """The row of facts of its type."""
        return FACTS[self.request.derived_scalars[self.spec_index].dst]

    @property
    def name(self) -> str:
        """Its type, in messages."""
        return self.facts.type.value

    @property
    def inputs(self) -> AutoencoderInputs:
        """The inputs of the config's autoencoders."""
        return self.topology.inputs

    @property
    def trace(self) -> TraceConfig | None:
        """The trace that it is about: its config's, else the request's."""
        return self.config.trace_config or self.request.trace_config

    @property
    def own_set(self) -> AutoencoderEntry | None:
        """The autoencoder that its type is about; None if there is none, or the type is about none."""
        wanted = self.facts.autoencoder
        kind = self.inputs.of(wanted) if wanted is not None else None
        return None if kind is None else next((entry for entry in self.sets if entry.input is kind), None)
