"""Origins: the scalars of a run that gradient passes start from, in one form (specification, sections 6 and 8).

An origin names the taps that it reads and computes its scalar; the code that runs it needs nothing else. A new kind of
origin is a new class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from dst_grpc.domain.components import LossFnName
from dst_grpc.scalars.recompute import trace_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.domain.origins import LossFnConfig
    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.topology import Residual, Topology


class ForwardPass(Protocol):
    """The results of one prompt's forward pass that an origin's scalar is computed from."""

    def logits(self) -> torch.Tensor:
        """Logits [V] at the prompt's last token, for an origin that needs them."""

    def value(self, site: Site) -> torch.Tensor:
        """The value at one of the origin's `values`, a constant."""

    def attached(self, site: Site) -> torch.Tensor:
        """The value at one of the origin's `attached`, in the graph if gradients are wanted."""

    def model(self, topology: Topology, autoencoders: Sequence[str]) -> ExplainedModel:
        """The model with the named autoencoders, which *topology* is of."""


class Origin(Protocol):
    """A scalar of a run. Equal ones are the same scalar."""

    @property
    def needs_logits(self) -> bool:
        """Whether it reads the logits at the last token."""

    @property
    def values(self) -> frozenset[Site]:
        """Taps that it reads the values of."""

    @property
    def attached(self) -> frozenset[Site]:
        """Those of them that gradients flow through."""

    def depends_on(self, site: Site) -> bool:
        """Whether its gradient reaches *site*."""

    def scalar(self, run: ForwardPass) -> torch.Tensor:
        """The scalar."""


@dataclass(frozen=True, slots=True)
class LossOrigin:
    """A loss: a scalar of the logits at the last token."""

    config: LossFnConfig
    """The loss; its tokens are ids."""

    @property
    def needs_logits(self) -> bool:
        """True."""
        return True

    @property
    def values(self) -> frozenset[Site]:
        """None: it reads only logits."""
        return frozenset()

    @property
    def attached(self) -> frozenset[Site]:
        """None."""
        return frozenset()

    def depends_on(self, site: Site) -> bool:
        """Always."""
        del site
        return True

    def scalar(self, run: ForwardPass) -> torch.Tensor:
        """The loss of the last token's logits."""
        return self(run.logits())

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The loss of one token's *logits* [V]; a scalar."""
        name, targets = self.config.name, list(self.config.target_token_ids)
        if name is LossFnName.ZERO:
            return 0.0 * logits.sum()
        if name is LossFnName.PROBS:
            return logits.softmax(dim=-1)[targets].sum()
        raised = logits[targets].mean()
        if name is LossFnName.LOGIT_MINUS_MEAN:
            return raised - logits.mean()
        distractors = list(self.config.distractor_token_ids)
        return raised - logits[distractors].mean() if distractors else raised


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOrigin:
    """A traced activation, recomputed from the residual before its node."""

    trace: TraceConfig
    """The trace."""
    loss: LossOrigin | None
    """The loss whose gradient a trace through V without downstream node uses."""
    autoencoders: tuple[str, ...]
    """Names of the autoencoders that traced latents belong to."""
    topology: Topology = field(compare=False, repr=False)
    """The topology of the model with those autoencoders."""

    @property
    def needs_logits(self) -> bool:
        """False: the activation is recomputed from the residual."""
        return False

    @property
    def values(self) -> frozenset[Site]:
        """The residual before the node, and the other residuals that a trace through V reads."""
        return frozenset({self._rho.site, *self.topology.residuals_of_trace_value(self.trace)})

    @property
    def attached(self) -> frozenset[Site]:
        """The residual before the node."""
        return frozenset({self._rho.site})

    @property
    def _rho(self) -> Residual:
        return self.topology.residual_of_trace(self.trace)

    def depends_on(self, site: Site) -> bool:
        """Whether *site* precedes the residual before the node."""
        return self._rho.depends_on(site)

    def scalar(self, run: ForwardPass) -> torch.Tensor:
        """The activation."""
        rho = run.attached(self._rho.site)
        return trace_value(run.model(self.topology, self.autoencoders), self.trace, rho, run.value, self.loss)
