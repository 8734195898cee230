"""Estimates of a request's cost, for admission."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.architecture import Architecture, ModelDimensions
from dst_grpc.domain.resolution import CostEstimate
from dst_grpc.pipeline.sizes import BYTES_OF_FLOAT32, most_latents

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.plan import PlannedScalar
    from dst_grpc.pipeline.sizes import Sizes


def parameters_of_blocks(model: ModelDimensions, architecture: Architecture) -> int:
    """Weights of all layers."""
    attention = model.d_model * model.d_head * (2 * model.n_heads + 2 * model.n_key_value_heads)
    matrices_of_mlp = 3 if architecture.gated else 2
    return model.n_layers * (attention + matrices_of_mlp * model.d_model * model.d_mlp)


def _graph_bytes(sizes: Sizes) -> int:
    """Bytes that autograd keeps of all layers, counted from the code of the decoder.

    Residuals and their normed copies; queries, keys, values and their weighted sums; the neurons before and after the
    nonlinearity and, in gated MLPs, both factors of the product; where scores are capped, which the fused kernel does
    not support, the capped scores and the probabilities.
    """
    model, architecture = sizes.model, sizes.architecture
    residual = model.d_model * (6 if architecture.post_norms else 4)
    heads = model.n_heads * model.d_head * (6 if architecture.qk_norm else 4)
    neurons = model.d_mlp * (4 if architecture.gated else 2)
    matrices = 0 if architecture.attn_softcap is None else 2 * sizes.n_tokens * model.n_heads
    return BYTES_OF_FLOAT32 * sizes.n_tokens * model.n_layers * (residual + heads + neurons + matrices)


def estimate_cost(
    sizes: Sizes,
    values: Iterable[Site],
    gradients: Iterable[Site],
    scalars: Sequence[PlannedScalar],
    *,
    logit_count: int,
    tensor_bytes: int = 0,
    read: Iterable[tuple[int, int]] = (),
) -> CostEstimate:
    """The cost of recording *values* and *gradients* and deriving *scalars*.

    Args:
        sizes: of the model and prompt.
        values: sites whose value is recorded.
        gradients: sites whose gradient is.
        scalars: the derived scalars.
        logit_count: tokens whose logits are computed.
        tensor_bytes: bytes of the request's tensors.
        read: tokens of each run that is read, and bytes that it takes.
    """
    model, tokens = sizes.model, sizes.n_tokens
    gradient_sites = list(gradients)
    latents = most_latents(info for scalar in scalars for info in scalar.sets)
    recorded = sizes.recorded_bytes([*values, *gradient_sites], latents)
    largest = max((scalar.output_bytes // max(len(scalar.layers), 1) for scalar in scalars), default=0)
    passes = 1 + (1 if gradient_sites else 0)
    head = logit_count * model.vocab_size * model.d_model
    read_tokens, read_bytes = (sum(each) for each in zip((0, 0), *read, strict=True))
    blocks = parameters_of_blocks(model, sizes.architecture)
    flops = 2 * passes * (tokens * blocks + head) + 2 * read_tokens * blocks
    # Of a single token they are little beside the rest; of many, their probabilities and gradients are needed too.
    of_logits = 3 * BYTES_OF_FLOAT32 * model.vocab_size * (logit_count if logit_count > 1 else 0)
    outputs = sum(scalar.output_bytes for scalar in scalars)
    graph = _graph_bytes(sizes) if gradient_sites else 0
    return CostEstimate(
        sequence_tokens=tokens,
        forward_passes=1,
        backward_passes=passes - 1,
        floating_point_operations=flops + outputs // BYTES_OF_FLOAT32,
        peak_bytes=recorded + read_bytes + tensor_bytes + of_logits + graph + largest,
        output_bytes=outputs,
    )
