"""Sizes of tensors, and from them what a request will cost. Estimates for admission, not measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.components import Dimension
from dst_grpc.domain.resolution import AutoencoderInfo, CostEstimate, ModelDimensions
from dst_grpc.domain.results import Axis
from dst_grpc.domain.scalar_facts import Component
from dst_grpc.scalars.reads import reads_head_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dst_grpc.domain.components import NodeType
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.plan import PlannedScalar
    from dst_grpc.scalars.task import Task

_BYTES = 4
_ONE_COPY_IN_GRAPH = 8
"""Tensors of a layer's width that autograd keeps per layer, counted in the code of the decoder."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's sizes and a prompt's length."""

    model: ModelDimensions
    n_tokens: int

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.model.n_layers

    def of(self, dimension: Dimension, n_latents: int = 0) -> int:
        """Size of an axis; *n_latents* for an autoencoder's."""
        m = self.model
        return {
            Dimension.SEQUENCE_TOKENS: self.n_tokens,
            Dimension.ATTENDED_TO_SEQUENCE_TOKENS: self.n_tokens,
            Dimension.MAX_CONTEXT_LENGTH: m.context_window,
            Dimension.RESIDUAL_STREAM_CHANNELS: m.d_model,
            Dimension.VOCAB_SIZE: m.vocab_size,
            Dimension.ATTN_HEADS: m.n_heads,
            Dimension.QUERY_AND_KEY_CHANNELS: m.d_head,
            Dimension.VALUE_CHANNELS: m.d_head,
            Dimension.MLP_ACTS: m.d_mlp,
            Dimension.LAYERS: m.n_layers,
            Dimension.SINGLETON: 1,
            Dimension.AUTOENCODER_LATENTS: n_latents,
        }[dimension]

    def axes(self, task: Task, sets: Sequence[AutoencoderInfo]) -> tuple[Axis, ...]:
        """Axes, with sizes, of one layer's tensor of *task*."""
        facts = task.facts
        latents = set_of(sets, facts.autoencoder).n_latents if facts.autoencoder else 0
        axes = [Axis(dimension, self.of(dimension, latents)) for dimension in facts.dimensions]
        pairs = self.n_tokens * (self.n_tokens + 1) // 2
        if facts.is_flattened:
            axes[0] = Axis(axes[0].dimension, pairs)
        elif facts.component is Component.OFFLINE_LATENT and reads_head_pairs(task.kinds.of(facts.node_type)):
            axes[0] = Axis(axes[0].dimension, pairs * self.model.n_heads)
        return tuple(axes)

    def site_bytes(self, site: Site, latents: int) -> int:
        """Bytes of the tensor at a tap."""
        return _BYTES * math.prod(self.of(dimension, latents) for dimension in site[0].dimensions)


def set_of(sets: Sequence[AutoencoderInfo], node_type: NodeType) -> AutoencoderInfo:
    """The set whose latents are *node_type*; for a generic latent the only, or first, of *sets*, which has some."""
    return next((info for info in sets if info.node_type is node_type), sets[0])


def parameters_of_blocks(model: ModelDimensions) -> int:
    """Weights of all blocks."""
    attention = model.d_model * model.d_head * (2 * model.n_heads + 2 * model.n_key_value_heads)
    return model.n_layers * (attention + 2 * model.d_model * model.d_mlp)


def estimate_cost(
    sizes: Sizes,
    values: Iterable[Site],
    gradients: Iterable[Site],
    scalars: Sequence[PlannedScalar],
    *,
    needs_logits: bool,
) -> CostEstimate:
    """What recording *values* and *gradients* and deriving *scalars* will take."""
    model, tokens = sizes.model, sizes.n_tokens
    gradient_sites = list(gradients)
    latents = max((info.n_latents for scalar in scalars for info in scalar.sets), default=0)
    recorded = sum(sizes.site_bytes(site, latents) for site in [*values, *gradient_sites])
    graph = _BYTES * tokens * model.n_layers * (_ONE_COPY_IN_GRAPH * model.d_model + 2 * model.d_mlp)
    largest = max((scalar.output_bytes // max(len(scalar.task.layers), 1) for scalar in scalars), default=0)
    passes = 1 + (1 if gradient_sites else 0)
    head = model.vocab_size * model.d_model if needs_logits else 0
    flops = 2 * passes * (tokens * parameters_of_blocks(model) + head)
    outputs = sum(scalar.output_bytes for scalar in scalars)
    return CostEstimate(
        sequence_tokens=tokens,
        forward_passes=1,
        backward_passes=passes - 1,
        floating_point_operations=flops + outputs // _BYTES,
        peak_bytes=recorded + (graph if gradient_sites else 0) + largest,
        output_bytes=outputs,
    )
