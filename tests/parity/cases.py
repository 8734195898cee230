"""The stored cases of the reference as requests, and the comparison of answers with what it stored.

Not here: running them (in process and over the wire; see the tests) and the list of what we do differently on purpose
(`differences.toml`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from dst_grpc.domain.components import AttentionTraceType, LossFnName, NodeType, PassType, PreOrPostAct
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex, AttnSubNodeIndex, NodeIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.trace import TraceConfig

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name for path in (GOLDEN / "cases").iterdir())

Key = tuple[PassType, int | None]
"""Pass and layer of a tensor of one derived scalar."""


@dataclass(frozen=True)
class Row:
    """One derived scalar of a case, as the reference stored it."""

    case: str
    spec: DerivedScalarSpec
    loss: float | None
    activation_value: float | None
    expected: dict[Key, np.ndarray[Any, Any]]

    @property
    def name(self) -> str:
        """For reports: case and type."""
        return f"{self.case}/{self.spec.dst}"


@dataclass(frozen=True)
class Case:
    """A run of the reference and everything derived from it."""

    request: DeriveRequest
    rows: tuple[Row, ...]

    def stored(self, dst: DerivedScalarType) -> dict[Key, np.ndarray[Any, Any]]:
        """The tensors of *dst*; empty if the case has none."""
        return next((row.expected for row in self.rows if row.spec.dst is dst), {})


def load_case(name: str, model: str) -> Case:
    """Read the case *name* as a request to *model*, whose autoencoder sets are named MODEL/KIND."""
    folder = GOLDEN / "cases" / name
    stored = json.loads((folder / "case.json").read_text())
    tensors = load_file(folder / "expected.safetensors")
    rows = tuple(_row(name, row, tensors) for row in stored["derived_scalars"])
    request = DeriveRequest(
        request_id=name,
        model=model,
        prompt=Prompt(token_ids=tuple(stored["prompt_tokens"])),
        loss_fn_config=_loss(stored["loss"]),
        trace_config=_trace(stored["trace_config"]),
        ablation_specs=tuple(_ablation(spec) for spec in stored["ablations"]),
        autoencoders=tuple(f"{model}/{kind}" for kind in stored["autoencoders"]),
        derived_scalars=tuple(row.spec for row in rows),
    )
    return Case(request, rows)


def load_refused(name: str) -> list[DerivedScalarType]:
    """The types that the reference would not derive in the case *name*."""
    return [
        DerivedScalarType(dst) for dst in json.loads((GOLDEN / "cases" / name / "case.json").read_text())["refused"]
    ]


def _row(case: str, stored: dict[str, Any], tensors: dict[str, np.ndarray[Any, Any]]) -> Row:
    dst = DerivedScalarType(stored["dst"])
    expected = {}
    for key, tensor in tensors.items():
        name, pass_type, layer = key.split("/")
        if name == dst.value:
            expected[PassType(pass_type), None if layer == "none" else int(layer)] = tensor
    spec = DerivedScalarSpec(dst=dst, config=_config(stored["config"]))
    return Row(case, spec, stored["loss_value"], stored["activation_value"], expected)


def _config(stored: dict[str, Any]) -> DstConfig:
    layers = stored["layer_indices"]
    return DstConfig(
        derive_gradients=stored["derive_gradients"],
        layer_indices=None if layers is None else tuple(layers),
        trace_config=_trace(stored["trace_config"]),
        node_index_for_attention_write=_node(stored["node_index_for_attention_write"]),
        activation_index_for_fake_grad=_activation(stored["activation_index_for_fake_grad"]),
        node_index_for_attribution=_node(stored["node_index_for_attribution"]),
        detach_layer_norm_scale_for_attribution=stored["detach_layer_norm_scale_for_attribution"],
    )


def _indices(stored: list[Any]) -> tuple[int | None, ...]:
    return tuple(index if isinstance(index, int) else None for index in stored)


def _node(stored: dict[str, Any] | None) -> NodeIndex | None:
    if stored is None:
        return None
    fields: dict[str, Any] = {
        "node_type": NodeType(stored["node_type"]),
        "tensor_indices": _indices(stored["tensor_indices"]),
        "layer_index": stored["layer_index"],
        "pass_type": PassType(stored["pass_type"]),
    }
    part = stored.get("q_k_or_v")
    return AttnSubNodeIndex(**fields, q_k_or_v=ActivationLocationType(part)) if part else NodeIndex(**fields)


def _activation(stored: dict[str, Any] | None) -> ActivationIndex | None:
    if stored is None:
        return None
    return ActivationIndex(
        activation_location_type=ActivationLocationType(stored["activation_location_type"]),
        tensor_indices=_indices(stored["tensor_indices"]),
        layer_index=stored["layer_index"],
        pass_type=PassType(stored["pass_type"]),
    )


def _trace(stored: dict[str, Any] | None) -> TraceConfig | None:
    if stored is None:
        return None
    through = stored["attention_trace_type"]
    node = _node(stored["node_index"])
    assert node is not None
    return TraceConfig(
        node_index=node,
        pre_or_post_act=PreOrPostAct(stored["pre_or_post_act"]),
        detach_layer_norm_scale=stored["detach_layer_norm_scale"],
        attention_trace_type=AttentionTraceType(through) if through else None,
        downstream_trace_config=_trace(stored["downstream_trace_config"]),
    )


def _loss(stored: dict[str, Any] | None) -> LossFnConfig | None:
    if stored is None:
        return None
    return LossFnConfig(
        name=LossFnName(stored["name"]),
        target_token_ids=tuple(stored["target_tokens"] or ()),
        distractor_token_ids=tuple(stored["distractor_tokens"] or ()),
    )


def _ablation(stored: dict[str, Any]) -> AblationSpec:
    index = _activation(stored)
    assert index is not None
    return AblationSpec(index=index, value=stored["value"])
