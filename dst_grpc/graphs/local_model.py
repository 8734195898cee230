"""The local replacement model of a prompt: which nodes act on a target, and how much, for a block of targets at once.

A target is a vector v that the residual is projected on, at one place. Its gradient starts there as v, is carried back
layer by layer through what is linear (`frozen_layer`), and wherever a source writes on the way, the direct effect is
the gradient there times what is written. Where units stand for what attention writes, or for the residual, no gradient
is carried on through it. No automatic differentiation is involved.

Shapes: n target, N node (all active units, errors, embeddings, targets), T token, d residual channel, H head, c channel
of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.engine.norm import wide
from dst_grpc.graphs.frozen_layer import FrozenLayer
from dst_grpc.graphs.units import HeadUnits, Place, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.engine.cancellation import Check
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.graphs.recording import Recording
    from dst_grpc.graphs.sources import Sources
    from dst_grpc.graphs.units import Units


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Targets whose gradients are carried back together, those of later places first."""

    places: Sequence[Place]
    """The place of each, [n], descending."""
    tokens: torch.Tensor
    """The token of each, [n]."""
    vectors: torch.Tensor
    """The gradient of each, [n, d]: at the residual that its layer's MLP reads, or where it enters, or at a residual
    that units stand for; 0 of those at attention."""
    n_tokens: int
    """Tokens up to the last of `tokens`: no later one acts on any."""
    enters: bool = False
    """Whether they are at the residual which enters their layer, the same of all, whatever their stage. The last
    residual enters the layer after the last one."""
    of_heads: torch.Tensor | None = None
    """The gradients of those at attention at the weighted sums of values of heads, [m, H, c], in order; None if there
    are none."""


class LocalModel:
    """The local replacement model of one prompt."""

    def __init__(
        self, decoder: Decoder, sources: Sources, recording: Recording, *, keeps_layers: bool, check: Check
    ) -> None:
        """Take what is constant.

        Args:
            decoder: the model.
            sources: what units are.
            recording: of the prompt.
            keeps_layers: whether frozen layers, with their patterns, are kept once they are made.
            check: raises Cancelled to end the work.
        """
        self.decoder = decoder
        """The model."""
        self.sources = sources
        """What units are."""
        self.recording = recording
        """The run of the prompt."""
        self.check = check
        """Raises Cancelled if the work is to end."""
        self._keeps, self._kept = keeps_layers, dict[int, FrozenLayer]()
        self.is_parallel = decoder.config.parallel
        """Whether the MLP of a layer reads the same residual as its attention."""
        self.device = decoder.device
        """Where gradients are."""
        self.dtype = torch.promote_types(decoder.dtype, torch.float32)
        """Their element type."""
        self.embeddings = wide(decoder.embed(recording.tokens))
        """Of the prompt, [T, d]."""
        none = self.embeddings.new_zeros(0)
        self.activations = torch.cat([none, *(one.active.values for one in recording.units)])
        """Of active units."""
        self.first_error = recording.n_active
        """The first node that is an error, if all active units are nodes."""
        self.first_embedding = self.first_error + recording.n_errors
        """The first node that is an embedding then."""
        self.n_sources = self.first_embedding + recording.n_tokens
        """Nodes that may act on others: all but targets."""

    @torch.no_grad()
    def block_of_targets(self, vectors: torch.Tensor) -> Block:
        """The block of the targets that project the residual after the final norm, at the last token, on *vectors*."""
        recording, n = self.recording, len(vectors)
        last = torch.full((n,), recording.n_tokens - 1, device=vectors.device)
        place = len(recording.layers), Stage.ATTENTION
        return Block([place] * n, last, self.target_gradients(vectors), recording.n_tokens, enters=True)

    @torch.no_grad()
    def block_of_units(self, places: torch.Tensor) -> Block:
        """The block of the units at *places* [n], descending, among all active ones."""
        at, tokens, vectors, of_heads = [], [], [], []
        for units in reversed(self.recording.units):
            own = places - units.first
            own = own[(own >= 0) & (own < len(units))]
            if len(own):
                at += [(units.layer, units.stage)] * len(own)
                tokens.append(units.active.tokens[own])
                gradients = units.gradients(own)
                if units.stage is Stage.ATTENTION:
                    of_heads.append(self.of_heads(units, own))
                    gradients = torch.zeros_like(gradients)
                vectors.append(gradients)
        every = torch.cat(tokens)
        heads = torch.cat(of_heads) if of_heads else None
        return Block(at, every, torch.cat(vectors), int(every.max()) + 1, of_heads=heads)

    def of_heads(self, units: Units, own: torch.Tensor) -> torch.Tensor:
        """The reads of units *own* [n] at attention as gradients [n, H, c] at the weighted sums of values of heads, the
        scale of the norm of attention's output taken for 1."""
        if isinstance(units, HeadUnits):
            return units.of_heads(own)
        return self.layer(units.layer).of_heads(units.gradients(own)).flatten(1, 2)

    @property
    def nothing(self) -> torch.Tensor:
        """Zeros, [T, d]: no change of the residual."""
        return torch.zeros(self.recording.n_tokens, self.decoder.config.d_model, device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def target_gradients(self, vectors: torch.Tensor) -> torch.Tensor:
        """The gradients [n, d] of projections on *vectors* [n, d] after the final norm at the last token, before it."""
        return self.decoder.final_norm.unit_transposed(vectors) / self.recording.final_scale

    @torch.no_grad()
    def effects(self, block: Block) -> torch.Tensor:
        """The direct effect of every node that is not a target on each target of *block*, [n, N - targets]."""
        carried = _Carried(self, block)
        first = block.places[0][0]
        for layer in reversed(range(first if block.enters else first + 1)):
            self.check()
            carried.through(layer)
        return carried.effects_on_targets()

    def layer(self, index: int) -> FrozenLayer:
        """A layer, made anew unless it is kept."""
        if index in self._kept:
            return self._kept[index]
        weights, recorded = self.decoder.layers[index], self.recording.layers[index]
        frozen = FrozenLayer(weights, recorded, self.sources.skip(index), keeps=self._keeps)
        if self._keeps:
            self._kept[index] = frozen
        return frozen


class _Carried:
    """A block's gradients as they are carried back, and the effects that are known."""

    def __init__(self, model: LocalModel, block: Block) -> None:
        """Begin after the last of the block's places."""
        self._model, self._block = model, block
        n, width = block.vectors.shape
        self._effects = block.vectors.new_zeros(n, model.n_sources)
        self._gradients = block.vectors.new_zeros(n, block.n_tokens, width)
        self._n = self._n_dense = self._n_of_heads = 0
        """Targets that have begun; those of them whose gradients may be other than 0 at any token; those that have
        begun at attention."""
        if block.enters:
            self._begin(block.places[0])

    def through(self, layer: int) -> None:
        """Carry all back through a layer."""
        self._residual((layer, Stage.END))
        begun, frozen = self._gradients[: self._n], self._model.layer(layer)
        self._add_effects((layer, Stage.MLP), begun)
        skipped = frozen.through_skip(begun) if len(begun) else None
        if self._model.is_parallel:
            self._add_effects((layer, Stage.ATTENTION), begun)
            self._attention(layer, frozen)
            if skipped is not None:
                begun += skipped
            self._begin((layer, Stage.MLP))
            self._begin_at_attention(layer, frozen)
            return
        if skipped is not None:
            begun += skipped
        self._begin((layer, Stage.MLP))
        self._residual((layer, Stage.POST_ATTENTION))
        self._add_effects((layer, Stage.ATTENTION), self._gradients[: self._n])
        self._attention(layer, frozen)
        self._begin_at_attention(layer, frozen)

    def effects_on_targets(self) -> torch.Tensor:
        """All effects, once everything is carried back."""
        model, n_tokens = self._model, self._block.n_tokens
        tokens = slice(model.first_embedding, model.first_embedding + n_tokens)
        self._effects[:, tokens] = _along(self._gradients, model.embeddings[:n_tokens])
        self._effects[:, : model.first_error] *= model.activations
        return self._effects

    def _attention(self, layer: int, frozen: FrozenLayer) -> None:
        """Carry back what has begun through attention, unless units stand for it."""
        if not self._model.sources.is_attention_replaced(layer):
            tokens = self._block.tokens[self._n_dense : self._n]
            frozen.through_attention(self._gradients[: self._n], self._n_dense, tokens)
            self._n_dense = self._n

    def _residual(self, place: Place) -> None:
        """Pass a residual, which units may stand for."""
        begun = self._gradients[: self._n]
        if self._model.recording.has_residual(*place):
            self._add_effects(place, begun)
            begun.zero_()
        self._begin(place)

    def _begin(self, place: Place) -> int:
        """Let the targets of *place* begin; returns how many."""
        block, first = self._block, self._n
        self._n += block.places[first:].count(place)
        own = torch.arange(first, self._n, device=self._gradients.device)
        self._gradients[own, block.tokens[first : self._n]] = block.vectors[first : self._n]
        return len(own)

    def _begin_at_attention(self, layer: int, frozen: FrozenLayer) -> None:
        """Let those begin that read what heads of *layer* write."""
        first, block = self._n, self._block
        count = self._begin((layer, Stage.ATTENTION))
        if not count or block.of_heads is None:
            return
        own = block.of_heads[self._n_of_heads : self._n_of_heads + count]
        self._n_of_heads += count
        tokens, groups = block.tokens[first : self._n], frozen.n_groups
        frozen.through_heads(self._gradients[first : self._n], 0, tokens, own.unflatten(1, (groups, -1)))
        self._n_dense = self._n

    def _add_effects(self, place: Place, gradients: torch.Tensor) -> None:
        """Add the effects of what is written at *place*, given *gradients* [m, T, d] there of the first m targets;
        those of units at an activation of 1."""
        recording, n_tokens = self._model.recording, gradients.shape[1]
        if not len(gradients):
            return
        effects = self._effects[: len(gradients)]
        missed = recording.missed_at(*place)
        if missed is not None:
            first = self._model.first_error + missed[0] * recording.n_tokens
            effects[:, first : first + n_tokens] = _along(gradients, missed[1].error[:n_tokens])
        for units in recording.writing(*place):
            units.add_effects(place[0], gradients, effects)


def _along(gradients: torch.Tensor, writes: torch.Tensor) -> torch.Tensor:
    """What *writes* [T, d] are along *gradients* [n, T, d], at each token: [n, T]."""
    return torch.einsum("ntd,td->nt", gradients, writes)
