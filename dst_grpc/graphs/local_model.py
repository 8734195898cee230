"""The local replacement model of a prompt: which nodes act on a target, and how much, for a block of targets at once.

A target is a vector v that the residual is projected on, at one place. Its gradient starts there as v, is carried back
layer by layer through what is linear (`frozen_layer`), and wherever a source writes on the way, the direct effect is
the gradient there times what is written. No automatic differentiation is involved.

Shapes: n target, N node (all active features, errors, embeddings, targets), T token, d residual channel, a active
feature of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.engine.norm import wide
from dst_grpc.graphs.frozen_layer import FrozenLayer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dst_grpc.engine.cancellation import Check
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.transcoders import Transcoders
    from dst_grpc.graphs.recording import Recording

WRITES_AT_ONCE = 4096
"""Most writes of features that are read at once, unless those of one token are more."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Targets whose gradients are carried back together, those of later layers first."""

    layers: Sequence[int]
    """The layer of each, [n], descending."""
    tokens: torch.Tensor
    """The token of each, [n]."""
    vectors: torch.Tensor
    """The gradient of each at the residual, [n, d]: where its layer's transcoder reads it, or where it enters."""
    n_tokens: int
    """Tokens up to the last of `tokens`: no later one acts on any."""
    enters: bool = False
    """Whether that is the residual which enters their layer, the same of all; else the one which its transcoder reads.
    The last residual enters the layer after the last one."""


class LocalModel:
    """The local replacement model of one prompt."""

    def __init__(
        self, decoder: Decoder, transcoders: Transcoders, recording: Recording, *, keeps_layers: bool, check: Check
    ) -> None:
        """Take what is constant.

        Args:
            decoder: the model.
            transcoders: its transcoders.
            recording: of the prompt.
            keeps_layers: whether frozen layers, with their patterns, are kept once they are made.
            check: raises Cancelled to end the work.
        """
        self.decoder = decoder
        """The model."""
        self.transcoders = transcoders
        """Its transcoders."""
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
        self._embeddings = wide(decoder.embed(recording.tokens))
        self._activations = torch.cat([one.features.active.values for one in recording.layers])
        self._first_error = recording.n_active
        self._first_embedding = self._first_error + len(recording.layers) * recording.n_tokens
        self.n_sources = self._first_embedding + recording.n_tokens
        """Nodes that may act on others: all but targets."""

    @torch.no_grad()
    def block_of_targets(self, vectors: torch.Tensor) -> Block:
        """The block of the targets that project the residual after the final norm, at the last token, on *vectors*."""
        recording, n = self.recording, len(vectors)
        last = torch.full((n,), recording.n_tokens - 1, device=vectors.device)
        gradients = self.target_gradients(vectors)
        return Block([len(recording.layers)] * n, last, gradients, recording.n_tokens, enters=True)

    @torch.no_grad()
    def block_of_features(self, places: torch.Tensor) -> Block:
        """The block of the features at *places* [n] among all active ones, which are of descending layers."""
        layers, tokens, vectors = [], [], []
        for layer, recorded in reversed([*enumerate(self.recording.layers)]):
            features = recorded.features
            own = places - features.first
            own = own[(own >= 0) & (own < len(features.active))]
            if len(own):
                at = features.active.tokens[own]
                vectors.append(self.feature_gradients(layer, at, features.active.features[own]))
                tokens.append(at)
                layers += [layer] * len(own)
        at = torch.cat(tokens)
        return Block(layers, at, torch.cat(vectors), int(at.max()) + 1)

    @property
    def nothing(self) -> torch.Tensor:
        """Zeros, [T, d]: no change of the residual."""
        return torch.zeros(self.recording.n_tokens, self.decoder.config.d_model, device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def feature_gradients(self, layer: int, tokens: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """The gradients of pre-activations of *features* [n] at *tokens* [n], at the residual that the transcoder of
        *layer* reads: [n, d]."""
        return self.layer(layer).through_input(self.transcoders.encoder_rows(layer, features), tokens)

    @torch.no_grad()
    def target_gradients(self, vectors: torch.Tensor) -> torch.Tensor:
        """The gradients [n, d] of projections on *vectors* [n, d] after the final norm at the last token, before it."""
        return self.decoder.final_norm.unit_transposed(vectors) / self.recording.final_scale

    @torch.no_grad()
    def effects(self, block: Block) -> torch.Tensor:
        """The direct effect of every node that is not a target on each target of *block*, [n, N - targets]."""
        width = block.vectors.shape[1]
        effects = block.vectors.new_zeros(len(block.layers), self.n_sources)
        gradients = block.vectors.new_zeros(len(block.layers), block.n_tokens, width)
        n_dense, first = 0, block.layers[0]
        n = self._begin(block, gradients, 0, first) if block.enters else 0
        for layer in reversed(range(first if block.enters else first + 1)):
            self.check()
            frozen, begun = self.layer(layer), gradients[:n]
            if n:
                self._add_effects(layer, begun, effects[:n])
            skipped = frozen.through_skip(begun) if n else None
            if self.is_parallel:
                frozen.through_attention(begun, n_dense, block.tokens[n_dense:n])
                n_dense = n
            if skipped is not None:
                begun += skipped
            n = self._begin(block, gradients, n, layer)
            if not self.is_parallel:
                frozen.through_attention(gradients[:n], n_dense, block.tokens[n_dense:n])
                n_dense = n
        tokens = slice(self._first_embedding, self._first_embedding + block.n_tokens)
        effects[:, tokens] = _along(gradients, self._embeddings[: block.n_tokens])
        effects[:, : self._first_error] *= self._activations
        return effects

    def _begin(self, block: Block, gradients: torch.Tensor, n: int, layer: int) -> int:
        """Let the targets of *layer* begin, after the *n* that have; returns how many then have."""
        end = n + block.layers[n:].count(layer)
        gradients[torch.arange(n, end, device=gradients.device), block.tokens[n:end]] = block.vectors[n:end]
        return end

    def _add_effects(self, layer: int, gradients: torch.Tensor, effects: torch.Tensor) -> None:
        """Add the effects of what is written at *layer* to *effects* [n, ...], given *gradients* [n, T, d] there.

        Those of features are at an activation of 1.
        """
        n_tokens = gradients.shape[1]
        first = self._first_error + layer * self.recording.n_tokens
        effects[:, first : first + n_tokens] = _along(gradients, self.recording.layers[layer].error[:n_tokens])
        for source, recorded in enumerate(self.recording.layers[: layer + 1]):
            features = recorded.features
            if not len(features.active) or layer not in self.transcoders.written_layers(source):
                continue
            for tokens in _runs(features.starts, n_tokens):
                begin, end = features.starts[tokens.start], features.starts[tokens.stop]
                writes = self.transcoders.decoder_rows(source, features.active.features[begin:end], layer).t()
                for token in tokens:
                    own = slice(features.starts[token], features.starts[token + 1])
                    columns = slice(features.first + own.start, features.first + own.stop)
                    effects[:, columns].addmm_(gradients[:, token], writes[:, own.start - begin : own.stop - begin])

    def layer(self, index: int) -> FrozenLayer:
        """A layer, made anew unless it is kept."""
        if index in self._kept:
            return self._kept[index]
        has_own = self.transcoders.has_layer(index)
        frozen = FrozenLayer(
            self.decoder.layers[index],
            self.recording.layers[index],
            self.transcoders.input_norm(index) if has_own else ModelNorm.NONE,
            self.transcoders.skip(index) if has_own else None,
            keeps=self._keeps,
        )
        if self._keeps:
            self._kept[index] = frozen
        return frozen


def _along(gradients: torch.Tensor, writes: torch.Tensor) -> torch.Tensor:
    """What *writes* [T, d] are along *gradients* [n, T, d], at each token: [n, T]."""
    return torch.einsum("ntd,td->nt", gradients, writes)


def _runs(starts: Sequence[int], n_tokens: int) -> Iterator[range]:
    """The first *n_tokens* in runs in which at most `WRITES_AT_ONCE` features are active, given where each begins."""
    first = 0
    for token in range(1, n_tokens + 1):
        if token == n_tokens or starts[token + 1] - starts[first] > WRITES_AT_ONCE:
            if starts[token] > starts[first]:
                yield range(first, token)
            first = token
