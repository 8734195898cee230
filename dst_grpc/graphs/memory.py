"""How much memory a graph and its computation take, known before: what does not fit is refused, not tried.

How many units are active is only known after the pass, but of neurons and heads. What is sure is checked before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.engine.transcoders import ACTIVATIONS_AT_ONCE
from dst_grpc.errors import Exhausted, Reason
from dst_grpc.graphs.frozen_layer import PATTERN_BYTES
from dst_grpc.graphs.units import WRITES_AT_ONCE, Stage

if TYPE_CHECKING:
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.decoder_config import DecoderConfig
    from dst_grpc.graphs.question import GraphQuestion
    from dst_grpc.graphs.sources import Sources

_FLOAT32 = 4
_BLOCK_PLACES = 2048
"""Targets of a block times tokens: products of more rows are no faster, and smaller blocks end nearer to the tokens of
their targets."""
_BLOCK_TARGETS = 64
"""But at least so many targets: patterns are made, and writes are read, for each block."""
_MOST_BLOCK_TARGETS = 256
"""And at most so many: each has a row of all candidates."""
_BYTES_OF_UNIT = 52
"""Of the layer, token, number, kind and activation of an active unit, where they are found and where they are told."""
_PATTERNS_AT_ONCE = 4
"""Tensors of the size of a pattern: scores, with and without their mask, probabilities, and these by their scales."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphMemory:
    """Estimated bytes of one graph, beside weights."""

    limit: int
    """What it may take."""
    n_tokens: int
    """Tokens of the prompt."""
    n_active: int
    """Active units; as long as they are not known, those that surely are."""
    recording: int
    """What is recorded of the pass, and what its computation takes besides."""
    rows: int
    """The rows of the adjacency as they are computed, and the graph that becomes of them."""
    layers: int
    """Frozen layers, if all are kept."""
    one_layer: int
    """What one takes if none is kept."""
    of_target: int
    """For each target of a block."""
    of_place: int
    """For each token, of each target of a block."""
    most_targets: int
    """Targets that there are to put into blocks."""
    is_made_at_once: bool
    """Whether the pattern of a layer is made for all heads at once."""

    @classmethod
    def of(
        cls, question: GraphQuestion, decoder: Decoder, sources: Sources, *, n_active: int, n_targets: int
    ) -> GraphMemory:
        """That of the graph of *question*, with so many active units and targets."""
        config, n_tokens = decoder.config, len(question.token_ids)
        item = torch.promote_types(decoder.dtype, torch.float32).itemsize
        n_nodes = n_active + (_error_places(config, sources) + 1) * n_tokens + n_targets
        n_features = n_active if question.max_feature_nodes is None else min(question.max_feature_nodes, n_active)
        rows = (n_features + n_targets) * n_nodes
        if n_features < n_active:  # those columns of them that the graph has are copied
            rows += (n_features + n_targets) * (n_nodes - n_active + n_features)
        heads, values = config.n_heads * config.d_head, config.n_key_value_heads * config.d_head
        weights = (heads + values + config.d_model) * config.d_model * item
        pattern = config.n_heads * n_tokens**2 * item
        chunk = max(min(pattern, PATTERN_BYTES), pattern // config.n_key_value_heads)
        return cls(
            limit=question.memory_bytes,
            n_tokens=n_tokens,
            n_active=n_active,
            recording=_recording_bytes(config, sources, n_tokens, item) + n_active * _BYTES_OF_UNIT,
            rows=rows * _FLOAT32,
            layers=config.n_layers * (weights + pattern) + _PATTERNS_AT_ONCE * chunk,
            one_layer=weights + _PATTERNS_AT_ONCE * chunk,
            of_target=n_nodes * (item + _FLOAT32)
            + (heads * config.d_model // config.d_head + _read_numbers(config, sources)) * item,
            of_place=_place_numbers(config, sources, chunk / pattern) * item,
            most_targets=max(n_features, n_targets, 1),
            is_made_at_once=chunk == pattern,
        )

    @property
    def needed(self) -> int:
        """The least that the graph can be computed with."""
        return self._fixed + self.one_layer + self.of_target + self.n_tokens * self.of_place

    @property
    def _fixed(self) -> int:
        return self.recording + self.rows

    @property
    def peak(self) -> int:
        """What is taken at most, with blocks as large as `block_size` makes them."""
        ends = range(1, self.n_tokens + 1)
        block = max(self.block_size(end) * (self.of_target + end * self.of_place) for end in ends)
        return self._fixed + (self.layers if self.keeps_layers else self.one_layer) + block

    @property
    def keeps_layers(self) -> bool:
        """Whether all frozen layers are kept: if they are not large, and take at most half of what is left."""
        return self.is_made_at_once and self.layers <= (self.limit - self._fixed) // 2

    def block_size(self, n_tokens: int) -> int:
        """How many targets are in a block that ends after *n_tokens*."""
        left = self.limit - self._fixed - (self.layers if self.keeps_layers else self.one_layer)
        fitting = left // (self.of_target + n_tokens * self.of_place)
        wanted = min(max(_BLOCK_PLACES // n_tokens, _BLOCK_TARGETS), _MOST_BLOCK_TARGETS)
        return max(min(wanted, fitting, self.most_targets), 1)

    def check(self) -> None:
        """Check that the graph fits.

        Raises:
            Exhausted: (MEMORY_BUDGET_EXCEEDED) if not; says how much it takes.
        """
        if self.needed <= self.limit:
            return
        if self.n_active:
            what = f"{self.n_tokens} tokens with {self.n_active} active units"
            share, fewer = f", {self.rows} of them for its rows,", "nodes or tokens"
        else:
            what, share, fewer = f"{self.n_tokens} tokens", " even without units", "tokens"
        raise Exhausted(
            f"the graph of {what} needs about {self.needed} bytes{share} and may have {self.limit}; ask for fewer"
            f" {fewer}",
            reason=Reason.MEMORY_BUDGET_EXCEEDED,
            metadata={
                "needed_bytes": str(self.needed),
                "limit_bytes": str(self.limit),
                "row_bytes": str(self.rows),
                "active_features": str(self.n_active),
            },
        )


def probe_bytes(config: DecoderConfig, n_tokens: int, n_active: int, n_error_places: int) -> int:
    """What questions about a graph take that run the model again, beside its pass: one frozen layer at a time, changes
    of the residual at all layers, gradients through each head, and effects on each channel of a head."""
    heads, values = config.n_heads * config.d_head, config.n_key_value_heads * config.d_head
    pattern = config.n_heads * n_tokens**2
    layer = (heads + values + config.d_model) * config.d_model + _PATTERNS_AT_ONCE * pattern
    residual = n_tokens * config.d_model
    of_heads = 2 * config.n_heads * residual
    n_nodes = n_active + (n_error_places + 1) * n_tokens
    effects = config.d_head * (2 * n_nodes + 2 * residual)
    recorded = 4 * config.n_layers * residual
    return (layer + 6 * config.n_layers * residual + recorded + max(of_heads, effects)) * _FLOAT32


def _error_places(config: DecoderConfig, sources: Sources) -> int:
    """In how many places there are errors."""
    of_latents = sum(map(len, sources.autoencoders.values()))
    at_mlps = sum(sources.autoencoder(layer, Stage.MLP) is None for layer in range(config.n_layers))
    return of_latents + (0 if sources.has_neurons else at_mlps)


def _read_numbers(config: DecoderConfig, sources: Sources) -> int:
    """Numbers that are held for each target while what it reads is found: of neurons, and of channels of heads."""
    of_neurons = 6 * config.d_mlp if sources.has_neurons or sources.autoencoders else 0
    of_heads = 2 * config.n_heads * config.d_head if sources.has_heads or sources.autoencoders else 0
    return of_neurons + of_heads


def _recording_bytes(config: DecoderConfig, sources: Sources, n_tokens: int, item: int) -> int:
    """What a pass records, and what it and the sources compute besides."""
    recorded = (4 * config.n_layers + 8) * config.d_model
    of_mlp = (4 if config.gated else 2) * config.d_mlp
    recorded += sources.has_heads * config.n_layers * config.n_heads * (config.d_head + 1) + config.d_mlp
    widths = [one.n_inputs for by_layer in sources.autoencoders.values() for one in by_layer.values()]
    latents = [one.n_latents for by_layer in sources.autoencoders.values() for one in by_layer.values()]
    recorded += sum(widths) + len(widths) * config.d_model
    transcoders, indices = sources.transcoders, range(config.n_layers)
    features = 0 if transcoders is None else max(map(transcoders.n_features, indices), default=0)
    encoded = min(n_tokens * features, max(ACTIVATIONS_AT_ONCE, features)) * item
    others = max(*latents, sources.has_neurons * config.d_mlp, 0)
    encoded = max(encoded, n_tokens * others * item)
    return n_tokens * (recorded + of_mlp) * item + 3 * encoded + WRITES_AT_ONCE * config.d_model * item * 2


def _place_numbers(config: DecoderConfig, sources: Sources, share: float) -> int:
    """Numbers that are held for each token, of each target of a block, where a *share* of all heads is taken at once:
    gradients, at the residual, behind skip connections, and of heads before and after the pattern."""
    has_skip = any(sources.skip(layer) is not None for layer in range(config.n_layers))
    of_heads = (config.n_heads + config.n_key_value_heads) * config.d_head
    return math.ceil((1 + 2 * has_skip) * config.d_model + (1 + share) * of_heads)
