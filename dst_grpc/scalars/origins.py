"""Origins: the scalars of a run that gradient passes start from, in one form (specification, sections 6 and 8).

An origin names the taps that it reads and computes its scalar; the code that runs it needs nothing else. A new kind of
origin is a new class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from dst_grpc.domain.components import LossFnName
from dst_grpc.engine.interventions import entries
from dst_grpc.errors import Internal
from dst_grpc.scalars.recompute import trace_value
from dst_grpc.scalars.topology import AutoencoderInputs, precedes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.domain.directions import Direction
    from dst_grpc.domain.origins import LossFnConfig
    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.topology import Residual, Topology


class ForwardPass(Protocol):
    """The results of one prompt's forward pass that an origin's scalar is computed from."""

    def logits(self, positions: Sequence[int] = ()) -> torch.Tensor:
        """Logits [n, V] at *positions*, for an origin that reads them; [V] at the prompt's last token without."""

    def logits_of(self, run: str, position: int) -> torch.Tensor:
        """Logits [V] of another run at a position, constants."""

    def value(self, site: Site) -> torch.Tensor:
        """The value at one of the origin's `values`, a constant."""

    def attached(self, site: Site) -> torch.Tensor:
        """The value at one of the origin's `attached`, in the graph if gradients are wanted."""

    def vector(self, direction: Direction) -> torch.Tensor:
        """The vector [n] of a direction that is one of numbers or a row of weights."""

    def model(self, topology: Topology, autoencoders: Sequence[str]) -> ExplainedModel:
        """The model with the named autoencoders, which *topology* is of."""


@dataclass(frozen=True, slots=True, eq=False)
class LastLogits:
    """The results of a forward pass of which only the last token's logits are known."""

    last: torch.Tensor
    """Logits [V]."""

    def logits(self, positions: Sequence[int] = ()) -> torch.Tensor:
        """The logits [V]."""
        if positions:
            raise Internal(f"an origin reads logits at {positions}, not at the last token")
        return self.last

    def logits_of(self, run: str, position: int) -> torch.Tensor:
        """There are none."""
        raise Internal(f"an origin reads logits of {run!r} at {position}")

    def value(self, site: Site) -> torch.Tensor:
        """There is none."""
        raise Internal(f"an origin reads {site}, which is not recorded")

    def attached(self, site: Site) -> torch.Tensor:
        """There is none."""
        raise Internal(f"an origin reads {site}, which is not recorded")

    def vector(self, direction: Direction) -> torch.Tensor:
        """There is none."""
        raise Internal(f"an origin reads {direction}")

    def model(self, topology: Topology, autoencoders: Sequence[str]) -> ExplainedModel:
        """There is none."""
        raise Internal(f"an origin reads the model with {autoencoders}, {topology}")


class Origin(Protocol):
    """A scalar of a run. Equal ones are the same scalar."""

    @property
    def needs_logits(self) -> bool:
        """Whether it reads logits."""

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions that it reads logits at; none means the prompt's last token, if it reads any."""

    @property
    def reference(self) -> tuple[str, int] | None:
        """The run whose logits it reads too, by name, and at which position; None if there is none."""

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
    """A loss: a scalar of logits, or of a tap."""

    config: LossFnConfig
    """The loss; its tokens are ids."""
    positions: tuple[int, ...] = ()
    """Where it reads logits, from 0; none means at the prompt's last token, if it reads any."""
    answers: tuple[int, ...] = ()
    """For several positions: the token that is to be predicted at each."""
    reference: tuple[str, int] | None = None
    """The run that a divergence is from, and the position there."""
    inputs: AutoencoderInputs = field(default=AutoencoderInputs(), compare=False, repr=False)
    """The inputs of the spliced autoencoders."""

    @property
    def needs_logits(self) -> bool:
        """Whether it is of logits."""
        return self.config.tap is None

    @property
    def values(self) -> frozenset[Site]:
        """The tap that it is of, if it is of one."""
        tap = self.config.tap
        return frozenset() if tap is None else frozenset({tap.at.site})

    @property
    def attached(self) -> frozenset[Site]:
        """The same."""
        return self.values

    @property
    def is_of_last_logits(self) -> bool:
        """Whether it is computed from one prompt's logits at its last token alone."""
        return self.needs_logits and not (self.positions or self.answers or self.reference)

    def depends_on(self, site: Site) -> bool:
        """Whether *site* precedes what it reads: any site does precede logits."""
        return all(precedes(site, own, self.inputs) for own in self.values)

    def scalar(self, run: ForwardPass) -> torch.Tensor:
        """The loss."""
        tap = self.config.tap
        if tap is not None:
            (site,) = self.values
            x = run.attached(site)
            x = x[entries(tap.at, x.shape)]
            return (x if tap.direction is None else x * run.vector(tap.direction)).sum()
        logits = run.logits(self.positions) if self.positions else run.logits().unsqueeze(0)
        if self.answers:
            found = logits.log_softmax(dim=-1).gather(1, torch.tensor(self.answers, device=logits.device).unsqueeze(1))
            return -found.mean() if self.config.name is LossFnName.CROSS_ENTROPY else found.sum()
        if self.reference is not None:
            log_p = run.logits_of(*self.reference).log_softmax(dim=-1)
            return (log_p.exp() * (log_p - logits[0].log_softmax(dim=-1))).sum()
        return self(logits[0])

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The loss of one position's *logits* [V], for one that reads no others; a scalar."""
        name, targets, distractors = self.config.name, *map(list, self._tokens)
        match name:
            case LossFnName.ZERO:
                return 0.0 * logits.sum()
            case LossFnName.ENTROPY:
                log_p = logits.log_softmax(dim=-1)
                return -(log_p.exp() * log_p).sum()
            case LossFnName.PROBS:
                probs = logits.softmax(dim=-1)
                return probs[targets].sum() - probs[distractors].sum() if distractors else probs[targets].sum()
            case LossFnName.LOG_PROB:
                of_targets = logits.log_softmax(dim=-1)[targets].logsumexp(dim=0)
                return (
                    of_targets - logits.log_softmax(dim=-1)[distractors].logsumexp(dim=0) if distractors else of_targets
                )
        raised = logits[targets].mean()
        if name is LossFnName.LOGIT_MINUS_MEAN:
            return raised - logits.mean()
        return raised - logits[distractors].mean() if distractors else raised

    @property
    def _tokens(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.config.target_token_ids, self.config.distractor_token_ids


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
    def positions(self) -> tuple[int, ...]:
        """None."""
        return ()

    @property
    def reference(self) -> None:
        """None."""
        return

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
        return precedes(site, self._rho.site, self.topology.inputs)

    def scalar(self, run: ForwardPass) -> torch.Tensor:
        """The activation."""
        rho = run.attached(self._rho.site)
        return trace_value(run.model(self.topology, self.autoencoders), self.trace, rho, run.value, self.loss)
