"""Sizes of tensors, from a model's sizes and a prompt's length."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

from dst_grpc.contexts.entries import AutoencoderEntry
from dst_grpc.domain.architecture import Architecture, ModelDimensions
from dst_grpc.domain.components import Component, Dimension
from dst_grpc.domain.results import Axis

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dst_grpc.contexts.entries import ModelEntry
    from dst_grpc.domain.components import NodeType
    from dst_grpc.domain.scalar_facts import ScalarFacts
    from dst_grpc.engine.taps import Site

BYTES_OF_FLOAT32 = 4


@dataclass(frozen=True)
class Sizes:
    """A model's sizes and a prompt's length."""

    model: ModelDimensions
    n_tokens: int
    architecture: Architecture
    """The model's architecture."""
    item_bytes: int = BYTES_OF_FLOAT32
    """Bytes of an element of its weights, and of what they compute."""

    @classmethod
    def of_prompt(cls, model: ModelEntry, n_tokens: int) -> Self:
        """Those of *model* and a prompt of *n_tokens*; of a full context window if they are 0."""
        dimensions = model.dimensions
        return cls(dimensions, n_tokens or dimensions.context_window, model.architecture, model.element_type.byte_width)

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.model.n_layers

    def of(self, dimension: Dimension, n_latents: int = 0) -> int:
        """Size of an axis; *n_latents* for that of latents."""
        return n_latents if dimension.is_parameterized_dimension else self._of_axes[dimension]

    @cached_property
    def _of_axes(self) -> dict[Dimension, int]:
        return self.model.sizes(self.n_tokens)

    def axes(self, facts: ScalarFacts, sets: Sequence[AutoencoderEntry]) -> tuple[Axis, ...]:
        """Axes, with sizes, of one layer's tensor of a derived scalar type, with the autoencoders of its config."""
        latents = set_of(sets, facts.autoencoder).n_latents if facts.autoencoder else 0
        axes = [Axis(dimension, self.of(dimension, latents)) for dimension in facts.dimensions]
        pairs = self.n_tokens * (self.n_tokens + 1) // 2
        if facts.is_flattened:
            axes[0] = Axis(axes[0].dimension, pairs)
        elif facts.component is Component.OFFLINE_LATENT and set_of(sets, facts.node_type).input.reads_head_pairs:
            axes[0] = Axis(axes[0].dimension, pairs * self.model.n_heads)
        return tuple(axes)

    def recorded_bytes(self, sites: Iterable[Site], n_latents: int) -> int:
        """Bytes of the tensors at taps, together."""
        counts = Counter(location for location, _ in sites)
        return self.item_bytes * sum(
            count * math.prod(self.of(dimension, n_latents) for dimension in location.dimensions)
            for location, count in counts.items()
        )


def most_latents(sets: Iterable[AutoencoderEntry]) -> int:
    """Latents of the widest of *sets*; 0 if there are none."""
    return max((entry.n_latents for entry in sets), default=0)


def set_of(sets: Sequence[AutoencoderEntry], node_type: NodeType) -> AutoencoderEntry:
    """The set whose latents are *node_type*; for a generic latent the first of *sets*, which is not empty."""
    return next((entry for entry in sets if entry.node_type is node_type), sets[0])
