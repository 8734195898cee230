"""Removes stand-ins from a request whose message had bad fields, so that the rest can be planned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dst_grpc.domain.config import DstConfig
    from dst_grpc.domain.requests import DeriveRequest
    from dst_grpc.pipeline.findings import Findings


def without_stand_ins(request: DeriveRequest, findings: Findings) -> DeriveRequest:
    """*request* without the optional fields that hold stand-ins and would mislead the rules about other fields."""
    if not findings.known:
        return request
    optional: dict[str, Any] = {
        name: None for name in ("prompt", "loss_fn_config", "trace_config") if findings.holds_stand_in(name)
    }
    specs = tuple(
        spec
        if spec.config is None
        else replace(spec, config=_config_without(spec.config, f"derived_scalars[{i}].config", findings))
        for i, spec in enumerate(request.derived_scalars)
    )
    config = _config_without(request.config, "config", findings)
    return replace(request, **optional, config=config, derived_scalars=specs)


def _config_without(config: DstConfig, path: str, findings: Findings) -> DstConfig:
    names = ("autoencoder_config", "trace_config", "activation_index_for_fake_grad", "node_index_for_attribution")
    optional: dict[str, Any] = {name: None for name in names if findings.holds_stand_in(f"{path}.{name}")}
    return replace(config, **optional)
