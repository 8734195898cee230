"""Estimates of what a request costs, for admission: what its passes record and keep, and what its answer takes."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from dst_grpc.domain.architecture import Architecture, ModelDimensions
from dst_grpc.domain.components import Dimension, TensorEncoding
from dst_grpc.domain.resolution import CostEstimate
from dst_grpc.pipeline.answer_memory import MESSAGE_BYTES, derive_bytes, sparse_bytes
from dst_grpc.pipeline.interventions import tensor_bytes
from dst_grpc.pipeline.pass_memory import pass_bytes
from dst_grpc.pipeline.plan import last_layer_of
from dst_grpc.pipeline.sizes import BYTES_OF_FLOAT32, Sizes
from dst_grpc.pipeline.store import widened_sites

if TYPE_CHECKING:
    from dst_grpc.pipeline.plan import Plan


_pass_bytes = lru_cache(128)(pass_bytes)
"""The same of recent kinds of runs: programs ask the same of many prompts, and to count takes longer than the rest of
planning."""


def parameters_of_blocks(model: ModelDimensions, architecture: Architecture) -> int:
    """Weights of all layers."""
    attention = model.d_model * model.d_head * (2 * model.n_heads + 2 * model.n_key_value_heads)
    matrices_of_mlp = 3 if architecture.gated else 2
    return model.n_layers * (attention + matrices_of_mlp * model.d_model * model.d_mlp)


def costed(plan: Plan, store_bytes: int = 0) -> Plan:
    """*plan* with its cost, if a store of *store_bytes* keeps its recording."""
    model, run, scalars = plan.model, plan.run, plan.scalars
    sizes = Sizes.of_prompt(model, len(run.token_ids))
    values, gradients = widened_sites(plan, store_bytes)
    needed = plan.values | run.values
    logit_count = max(len(run.logit_positions), int(last_layer_of(needed) is None))
    n_passes = len(run.passes) if plan.gradients else 0
    passes = _pass_bytes(
        sizes,
        values | run.values,
        gradients | run.attached if gradients else gradients,
        n_gradient_passes=max(n_passes, 1),
        logit_count=logit_count,
        spliced=plan.spliced,
    )
    if plan.request.encoding is TensorEncoding.DENSE:
        answer = derive_bytes(sizes, scalars)
    else:
        latents = [scalar for scalar in scalars if scalar.facts.dimensions[-1] is Dimension.AUTOENCODER_LATENTS]
        answer = sparse_bytes(latents) + derive_bytes(sizes, [one for one in scalars if one not in latents])
    read_tokens = read_bytes = 0
    # Of a batch, what each row recorded is copied, so that no answer holds the tensors of all.
    of_row = max(passes.peak, 2 * passes.kept)
    for source in run.all_read:
        of_source = Sizes.of_prompt(model, len(source.token_ids))
        read_tokens += of_source.n_tokens
        # It runs in the same batch, whose rows all have the same tensors.
        read_bytes += of_row * of_source.n_tokens // sizes.n_tokens
        read_bytes += tensor_bytes(source.interventions, of_source, plan.spliced)
    blocks = parameters_of_blocks(model.dimensions, model.architecture)
    head = logit_count * model.dimensions.vocab_size * model.dimensions.d_model
    ways = 1 + bool(plan.gradients)
    outputs = sum(scalar.output_bytes for scalar in scalars)
    cost = CostEstimate(
        sequence_tokens=sizes.n_tokens,
        forward_passes=1,
        backward_passes=ways - 1,
        floating_point_operations=2 * ways * (sizes.n_tokens * blocks + head)
        + 2 * read_tokens * blocks
        + outputs // BYTES_OF_FLOAT32,
        peak_bytes=max(of_row if run.all_read else passes.peak, passes.kept + answer)
        + MESSAGE_BYTES
        + read_bytes
        + tensor_bytes(run.interventions, sizes, plan.spliced),
        output_bytes=outputs,
    )
    return replace(plan, cost=cost, held_bytes=passes.kept + answer + MESSAGE_BYTES)
