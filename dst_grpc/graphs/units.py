"""What the nodes of a graph between tokens and targets are: units. Each is read and written at one place.

A unit has an activation, a write, which is what it adds to the residual stream, and a read: a vector whose product with
what is there, less constants, is its activation or pre-activation.

    feature   a transcoder's encoder row, at what the transcoder reads      activation times decoder row
    neuron    its input weights, times `Layer.neuron_ratios`                activation times output weights
    head      the direction of its own write, at that write                 its write; the activation is its length
    latent    an autoencoder's encoder row, at what it reconstructs         activation times decoder row (`latents`)

Units at attention, and at a residual, take the place of what they reconstruct: no path leads through it then.

Shapes: a unit of one kind and layer, n some of them, T token, d residual channel, H head, c channel of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.layer import unit_write
from dst_grpc.engine.norm import wide
from dst_grpc.engine.transcoders import ActiveFeatures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dst_grpc.engine.layer import Layer
    from dst_grpc.engine.transcoders import Transcoders
    from dst_grpc.graphs.frozen_layer import FrozenInput, FrozenMlp

_L = ActivationLocationType
WRITES_AT_ONCE = 4096
"""Most writes of units that are read at once, unless those of one token are more."""


class Stage(IntEnum):
    """A place in a layer at which units read and write, in the order of a pass."""

    ATTENTION = 0
    """What attention adds to the residual."""
    POST_ATTENTION = 1
    """The residual between attention and MLP."""
    MLP = 2
    """What the MLP adds to the residual."""
    END = 3
    """The residual after the layer."""


Place = tuple[int, Stage]
"""A layer, and where in it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Units(ABC):
    """The active units of one kind in one layer, in order of token, then number."""

    kind: GraphNodeKind
    """Their kind."""
    layer: int
    """Their layer."""
    stage: Stage
    """Where they read and write."""
    active: ActiveFeatures
    """Tokens, numbers and activations [a]."""
    first: int
    """The place of the first among the active units of all layers."""
    n_tokens: int
    """T."""

    def __len__(self) -> int:
        """A."""
        return len(self.active)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where those of each token begin, [T + 1]; the last is a."""
        tokens = self.active.tokens
        bounds = torch.arange(self.n_tokens + 1, device=tokens.device)
        return tuple(torch.searchsorted(tokens, bounds).tolist())

    @property
    def written(self) -> range:
        """The layers that they write to."""
        return range(self.layer, self.layer + 1)

    @abstractmethod
    def gradients(self, own: torch.Tensor) -> torch.Tensor:
        """The reads of units *own* [n]: gradients [n, d] at attention's write, the MLP's input, or the residual."""

    @abstractmethod
    def writes(self, own: torch.Tensor, written: int) -> torch.Tensor:
        """What units *own* [n] write to layer *written* at an activation of 1: [n, d]."""

    def read_direction(self, own: torch.Tensor) -> torch.Tensor:
        """What units *own* [n] project the residual on, whatever the prompt, a norm between being at scale 1: [n, d]; 0
        of those that read no residual."""
        return torch.zeros_like(self.writes(own, self.layer))

    def add_effects(self, written: int, gradients: torch.Tensor, effects: torch.Tensor) -> None:
        """Add what units do at layer *written*, at an activation of 1, to *effects* [m, all active units or more].

        Args:
            written: one of the layers that they write to.
            gradients: there, [m, T, d], of the first T tokens.
            effects: where it is added.
        """
        for tokens in _runs(self.starts, gradients.shape[1]):
            begin, end = self.starts[tokens.start], self.starts[tokens.stop]
            own = torch.arange(begin, end, device=gradients.device)
            writes = self.writes(own, written).t()
            for token in tokens:
                some = slice(self.starts[token], self.starts[token + 1])
                columns = slice(self.first + some.start, self.first + some.stop)
                effects[:, columns].addmm_(gradients[:, token], writes[:, some.start - begin : some.stop - begin])


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureUnits(Units):
    """The active features of a transcoder."""

    transcoders: Transcoders
    """The transcoders of all layers."""
    input: FrozenInput
    """What the transcoder reads."""

    @property
    def written(self) -> range:
        """The layers whose MLP's write they reconstruct."""
        return self.transcoders.written_layers(self.layer)

    def gradients(self, own: torch.Tensor) -> torch.Tensor:
        """Encoder rows, through the norm that the transcoder reads through."""
        rows = self.transcoders.encoder_rows(self.layer, self.active.features[own])
        return self.input.read(rows, self.active.tokens[own])

    def read_direction(self, own: torch.Tensor) -> torch.Tensor:
        """Encoder rows."""
        return self.input.at_unit_scale(self.transcoders.encoder_rows(self.layer, self.active.features[own]))

    def writes(self, own: torch.Tensor, written: int) -> torch.Tensor:
        """Decoder rows."""
        return self.transcoders.decoder_rows(self.layer, self.active.features[own], written)


@dataclass(frozen=True, eq=False, kw_only=True)
class TappedUnits(Units):
    """Units that are computed from what a tap of their layer records, and are set there."""

    tap: ActivationLocationType
    """The tap."""

    @abstractmethod
    def values(self, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """What units *own* [n] read of the tap *x* [T, ...], but for constants: [n]."""

    @abstractmethod
    def with_set(self, x: torch.Tensor, activations: Mapping[int, float]) -> torch.Tensor:
        """The tap *x* [T, ...] with units set to *activations*."""


@dataclass(frozen=True, eq=False, kw_only=True)
class NeuronUnits(TappedUnits):
    """Neurons that are not 0."""

    mlp: FrozenMlp
    """The MLP."""

    def gradients(self, own: torch.Tensor) -> torch.Tensor:
        """Input weights, times constant ratios, through the norm."""
        return self.mlp.of_neurons(self.active.features[own], self.active.tokens[own])

    def read_direction(self, own: torch.Tensor) -> torch.Tensor:
        """Input weights before the nonlinearity, in a gated MLP the gate's."""
        read = self.mlp.input
        return read.at_unit_scale(read.layer.mlp_read_rows(self.active.features[own]))

    def writes(self, own: torch.Tensor, written: int) -> torch.Tensor:  # noqa: ARG002  their own layer
        """Output weights, through the norm of the output."""
        weights = self.mlp.input.layer.mlp_out
        return self.mlp.written(wide(weights[self.active.features[own]]), self.active.tokens[own])

    def values(self, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Activations."""
        return wide(x[self.active.tokens[own], self.active.features[own]])

    def with_set(self, x: torch.Tensor, activations: Mapping[int, float]) -> torch.Tensor:
        """Neurons at their activations."""
        x, own = x.clone(), torch.tensor([*activations], device=x.device)
        values = torch.tensor([*activations.values()], device=x.device, dtype=x.dtype)
        x[self.active.tokens[own], self.active.features[own]] = values
        return x


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadUnits(TappedUnits):
    """Heads: what each writes at a token, with the length of that for an activation."""

    weights: Layer
    """The layer."""
    mixed: torch.Tensor
    """Values weighted by the pattern, [T, H, c]."""
    scale: torch.Tensor | None
    """The scale of the norm of attention's output, [T, 1]; None if there is no such norm."""

    def gradients(self, own: torch.Tensor) -> torch.Tensor:
        """The directions of their writes."""
        return self.writes(own, self.layer)

    def writes(self, own: torch.Tensor, written: int) -> torch.Tensor:  # noqa: ARG002  their own layer
        """Their writes, at length 1."""
        rows = head_writes(self.weights, self.mixed, self.scale, self.active.tokens[own], self.active.features[own])
        return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)

    def of_heads(self, own: torch.Tensor) -> torch.Tensor:
        """Their reads as gradients [n, H, c] at the weighted sums of values, as if the scale of the norm of attention's
        output were 1: 0 but at each one's own head."""
        heads = self.active.features[own]
        gradients = self.gradients(own)
        found = gradients.new_zeros(len(own), *self.mixed.shape[1:])
        matrices = unit_write(wide(self.weights.attn_out), self.weights.attn_post_norm)
        for head in heads.unique().tolist():
            mine = heads == head
            found[mine, head] = gradients[mine] @ matrices[head].t()
        return found

    def values(self, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Projections of their writes on what these were, the scale of the norm being constant."""
        tokens = self.active.tokens[own]
        found = (wide(x[tokens]) * self.of_heads(own)).flatten(1).sum(dim=1)
        return found if self.scale is None else found / self.scale[tokens, 0]

    def with_set(self, x: torch.Tensor, activations: Mapping[int, float]) -> torch.Tensor:
        """Heads that write as they did, at another length."""
        x = x.clone()
        for place, activation in activations.items():
            token, head = int(self.active.tokens[place]), int(self.active.features[place])
            x[token, head] = self.mixed[token, head] * (activation / float(self.active.values[place]))
        return x


def head_writes(
    weights: Layer, mixed: torch.Tensor, scale: torch.Tensor | None, tokens: torch.Tensor, heads: torch.Tensor
) -> torch.Tensor:
    """What *heads* [n] at *tokens* [n] write, [n, d]: of the weighted sums of values *mixed* [T, H, c], through the
    norm of attention's output at *scale* [T, 1]."""
    rows = wide(mixed).new_zeros(len(tokens), weights.attn_out.shape[2])
    for head in heads.unique().tolist():
        mine = heads == head
        rows[mine] = wide(mixed[tokens[mine], head]) @ wide(weights.attn_out[head])
    rows = unit_write(rows, weights.attn_post_norm)
    return rows if scale is None else rows / scale[tokens]


def _runs(starts: tuple[int, ...], n_tokens: int) -> Iterator[range]:
    """The first *n_tokens* in runs in which at most `WRITES_AT_ONCE` units are active, given where each begins."""
    first = 0
    for token in range(1, n_tokens + 1):
        if token == n_tokens or starts[token + 1] - starts[first] > WRITES_AT_ONCE:
            if starts[token] > starts[first]:
                yield range(first, token)
            first = token
