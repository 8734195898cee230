"""Sizes of tensors, and from them what a request will cost. Estimates for admission, not measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.architecture import Architecture, ModelDimensions
from dst_grpc.domain.components import Dimension
from dst_grpc.domain.resolution import AutoencoderInfo, CostEstimate
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


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's sizes and a prompt's length."""

    model: ModelDimensions
    n_tokens: int
    architecture: Architecture
    """What the sizes are of."""

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.model.n_layers

    def of(self, dimension: Dimension, n_latents: int = 0) -> int:
        """Size of an axis; *n_latents* for an autoencoder's."""
        return self.model.size_of(dimension, n_tokens=self.n_tokens, n_latents=n_latents)

    def axes(self, task: Task, sets: Sequence[AutoencoderInfo]) -> tuple[Axis, ...]:
        """Axes, with sizes, of one layer's tensor of *task*."""
        facts = task.facts
        latents = set_of(sets, facts.autoencoder).n_latents if facts.autoencoder else 0
        axes = [Axis(dimension, self.of(dimension, latents)) for dimension in facts.dimensions]
        pairs = self.n_tokens * (self.n_tokens + 1) // 2
        if facts.is_flattened:
            axes[0] = Axis(axes[0].dimension, pairs)
        elif facts.component is Component.OFFLINE_LATENT and reads_head_pairs(task.topology.inputs.of(facts.node_type)):
            axes[0] = Axis(axes[0].dimension, pairs * self.model.n_heads)
        return tuple(axes)

    def site_bytes(self, site: Site, latents: int) -> int:
        """Bytes of the tensor at a tap."""
        return _BYTES * math.prod(self.of(dimension, latents) for dimension in site[0].dimensions)


def set_of(sets: Sequence[AutoencoderInfo], node_type: NodeType) -> AutoencoderInfo:
    """The set whose latents are *node_type*; for a generic latent the only, or first, of *sets*, which has some."""
    return next((info for info in sets if info.node_type is node_type), sets[0])


def parameters_of_blocks(model: ModelDimensions, architecture: Architecture) -> int:
    """Weights of all blocks."""
    attention = model.d_model * model.d_head * (2 * model.n_heads + 2 * model.n_key_value_heads)
    matrices_of_mlp = 3 if architecture.gated else 2
    return model.n_layers * (attention + matrices_of_mlp * model.d_model * model.d_mlp)


def _graph_bytes(sizes: Sizes) -> int:
    """What autograd keeps of all layers, counted in the code of the decoder.

    Residuals and what the norms make of them; queries, keys, values and their mix; the neurons before and after the
    nonlinearity and, of gated ones, both factors of the product; where scores are capped, what the kernel that keeps
    no attention matrix cannot do: the capped scores and the probabilities.
    """
    model, architecture = sizes.model, sizes.architecture
    residual = model.d_model * (6 if architecture.post_norms else 4)
    heads = model.n_heads * model.d_head * (6 if architecture.qk_norm else 4)
    neurons = model.d_mlp * (4 if architecture.gated else 2)
    matrices = 0 if architecture.attn_softcap is None else 2 * sizes.n_tokens * model.n_heads
    return _BYTES * sizes.n_tokens * model.n_layers * (residual + heads + neurons + matrices)


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
    largest = max((scalar.output_bytes // max(len(scalar.task.layers), 1) for scalar in scalars), default=0)
    passes = 1 + (1 if gradient_sites else 0)
    head = model.vocab_size * model.d_model if needs_logits else 0
    flops = 2 * passes * (tokens * parameters_of_blocks(model, sizes.architecture) + head)
    outputs = sum(scalar.output_bytes for scalar in scalars)
    return CostEstimate(
        sequence_tokens=tokens,
        forward_passes=1,
        backward_passes=passes - 1,
        floating_point_operations=flops + outputs // _BYTES,
        peak_bytes=recorded + (_graph_bytes(sizes) if gradient_sites else 0) + largest,
        output_bytes=outputs,
    )
