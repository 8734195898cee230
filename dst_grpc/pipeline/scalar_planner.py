"""Planning of one derived scalar: its tensors, if it conforms to the rules of its type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.components import Component, PassType
from dst_grpc.domain.scalar_facts import Backward, Direction
from dst_grpc.domain.scalars import FACTS
from dst_grpc.errors import Reason
from dst_grpc.pipeline.checks import check_layer
from dst_grpc.pipeline.plan import PlannedScalar
from dst_grpc.pipeline.scalar_rules import check_scalar

if TYPE_CHECKING:
    from dst_grpc.pipeline.asked_scalar import AskedScalar


def plan_scalar(asked: AskedScalar) -> PlannedScalar | None:
    """The derived scalar; None if anything is wrong or missing, which is noted."""
    before = asked.findings.count
    passes = _passes(asked)
    check_scalar(asked)
    layers = _layers(asked)
    if asked.findings.count != before:
        return None
    planned = PlannedScalar(
        spec_index=asked.spec_index,
        facts=asked.facts,
        layers=layers,
        passes=passes,
        axes=asked.sizes.axes(asked.facts, asked.sets),
        sets=asked.sets,
        topology=asked.topology,
        trace=asked.trace,
        loss=asked.loss,
        node=asked.config.node_index_for_attribution,
        detach_scale=asked.config.detach_layer_norm_scale_for_attribution,
        fake_grad=asked.config.activation_index_for_fake_grad,
    )
    _check_origin(asked, planned)
    return planned


def _passes(asked: AskedScalar) -> tuple[PassType, ...]:
    """Rule 27 and 33: which passes the type yields."""
    if not asked.config.derive_gradients:
        return (PassType.FORWARD,)
    if asked.facts.backward is Backward.REFUSED:
        asked.findings.add(f"{asked.path}.derive_gradients", f"must be false: {asked.name} has no gradient")
    if asked.facts.backward in {Backward.GRADIENT, Backward.RATIO}:
        return (PassType.FORWARD, PassType.BACKWARD)
    return (PassType.FORWARD,)


def _layers(asked: AskedScalar) -> tuple[int | None, ...]:
    """Layers of the result (specification, 9.1), restricted to those of the config."""
    facts, wanted, path = asked.facts, asked.config.layer_indices or (), f"{asked.path}.layer_indices"
    for i, layer in enumerate(wanted):
        check_layer(asked.findings, layer, f"{path}.layer_indices[{i}]", asked.sizes.n_layers)
    if facts.single_layer:
        return _single_layer(asked, wanted, path)
    if facts.once:
        return (None,)
    node = asked.config.node_index_for_attribution
    one_layer = facts.component is Component.SINGLE_NODE
    if one_layer and node is not None:
        covered: tuple[int, ...] = (node.layer_index or 0,)
    else:
        entry = asked.own_set
        if entry is not None and FACTS[entry.dst].once:
            asked.findings.check(
                not wanted, path, f"must be empty: {entry.name} reads {entry.dst}, which has no layers"
            )
            return (None,)
        covered = entry.layer_indices if entry is not None else tuple(range(asked.sizes.n_layers))
    uncovered = [layer for layer in wanted if layer not in covered and layer < asked.sizes.n_layers]
    if uncovered and not one_layer:
        asked.findings.add(path, f"{asked.name}: no autoencoder is configured for layers {uncovered}")
    return tuple(layer for layer in covered if not wanted or layer in wanted)


def _single_layer(asked: AskedScalar, wanted: tuple[int, ...], path: str) -> tuple[int | None, ...]:
    """Rule 34."""
    if len(wanted) != 1:
        asked.findings.lack(path, f"{asked.name} needs exactly one layer, not {len(wanted) or 'every one'}")
    entry = asked.own_set
    if entry is not None and wanted and wanted[0] not in entry.layer_indices:
        asked.findings.add(path, f"{entry.name} does not cover layer {wanted[0]}")
    return wanted


def _check_origin(asked: AskedScalar, planned: PlannedScalar) -> None:
    """Rule 29."""
    if planned.requires_grad and not asked.request.has_origin:
        asked.findings.lack(
            "loss_fn_config",
            f"{asked.name} reads gradients, and the request has no origin: give loss_fn_config or trace_config",
            Reason.ORIGIN_REQUIRED,
        )
    tap = None if asked.loss is None or asked.request.trace_config is not None else asked.loss.config.tap
    is_before_the_end = tap is not None and not tap.at.activation_location_type.facts.is_after_layers
    if is_before_the_end and planned.facts.direction is Direction.FINAL_RESIDUAL_GRAD:
        asked.findings.add(
            f"{asked.spec_path}.dst",
            f"{asked.name} projects on the gradient at the last residual, which a loss of a tap before it has none of",
        )
