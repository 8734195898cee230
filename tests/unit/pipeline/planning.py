"""Requests to a tiny world, and what planning says of them."""

from __future__ import annotations

from typing import Any

import pytest

from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import InvalidRequest, PreconditionFailed, Reason
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from tests import models, traces

MLP, ATTN = "tiny/mlp_post_act", "tiny/resid_delta_attn"
RESID_MLP, HEADS = "tiny/resid_delta_mlp", "tiny/attn_write"
OFFLINE = "tiny/resid_delta_mlp_from_mlp_post_act"
PARTIAL, TOPK = "partial", "topk"
WORLD = models.World(
    models.decoder(),
    {one.name: one for one in [models.autoencoders(kind) for kind in models.LATENTS]}
    | {
        PARTIAL: models.autoencoders(T.MLP_POST_ACT, layers=(1,), name=PARTIAL),
        TOPK: models.autoencoders(T.RESID_DELTA_ATTN, activation=AutoencoderActivation.TOP_K, name=TOPK),
    },
)
NEURON, HEAD, LATENT = traces.NEURON, traces.HEAD, traces.MLP_LATENT
LOSS: dict[str, Any] = {"loss_fn_config": models.LOSS}


def plan(*types: T, **fields: Any) -> Plan:
    return make_plan(models.request(*types, **fields), WORLD.registry)


def refusal(*types: T, **fields: Any) -> dict[str, str]:
    """What is said of each field of a request that can never succeed."""
    with pytest.raises(InvalidRequest) as caught:
        plan(*types, **fields)
    found = {violation.field: violation.description for violation in caught.value.violations}
    assert len(found) == len(caught.value.violations)
    return found


def lack(*types: T, **fields: Any) -> tuple[Reason, dict[str, str]]:
    """The reason, and what is said of each field that the request lacks."""
    with pytest.raises(PreconditionFailed) as caught:
        plan(*types, **fields)
    return caught.value.reason, {v.field: v.description for v in caught.value.violations}


def with_trace(trace: Any, **fields: Any) -> dict[str, Any]:
    return {"config": DstConfig(trace_config=trace, **fields)}


def edge(node: Any) -> dict[str, Any]:
    return {"config": DstConfig(node_index_for_attribution=node), **LOSS}


def ablate(location: L, layer: int | None, *indices: int | None) -> AblationSpec:
    index = ActivationIndex(activation_location_type=location, layer_index=layer, tensor_indices=indices)
    return AblationSpec(index=index, value=0.0)


def reading(location: L, layer: int | None, *indices: int | None) -> dict[str, Any]:
    index = ActivationIndex(activation_location_type=location, layer_index=layer, tensor_indices=indices)
    return {"config": DstConfig(activation_index_for_fake_grad=index)}
