"""The differences of `differences.toml` that the stored rows do not show, and those that are refusals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dst_grpc.domain.components import AttentionTraceType, NodeType, PassType, PreOrPostAct
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.requests import DerivedScalarSpec
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.errors import InvalidRequest, PreconditionFailed
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.run import run
from tests.parity.cases import CASES, Case, load_case, load_refused
from tests.parity.comparison import DIFFERENCES, Tensors, compare, rule_of

if TYPE_CHECKING:
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.requests import DeriveRequest
    from dst_grpc.scalars.explained_model import AutoencoderSet

ROOT = Path(__file__).parents[2]
ALL_CASES = {name: load_case(name, "golden") for name in CASES}
_F, _B = PassType.FORWARD, PassType.BACKWARD


@dataclass(frozen=True)
class Golden:
    """The reference's model and autoencoders."""

    registry: Registry
    model: ModelContext
    sets: dict[str, AutoencoderSet]

    def derive(self, request: DeriveRequest) -> list[Tensors]:
        """The tensors of each derived scalar of *request*."""
        (outcome,) = run([make_plan(request, self.registry)], self.model.decoder, self.sets)
        return [
            {
                (pass_type, layer): tensor.numpy()
                for layer in scalar.layers
                for pass_type, tensor in outcome.derivation(scalar).at(layer).items()
            }
            for scalar in outcome.plan.scalars
        ]


@pytest.fixture(scope="module")
def golden(registry: Registry, model: ModelContext, sets: dict[str, AutoencoderSet]) -> Golden:
    return Golden(registry, model, sets)


def with_config(request: DeriveRequest, spec: DerivedScalarSpec, **fields: Any) -> DeriveRequest:
    """*request* for the one derived scalar *spec*, some fields of its config replaced."""
    config = replace(spec.config or DstConfig(), **fields)
    return replace(request, derived_scalars=(replace(spec, config=config),))


def types_by(rule: str) -> list[str]:
    return [dst for entry in DIFFERENCES["stored"] if entry["rule"] == rule for dst in entry["dst"]]


def test_every_difference_of_stored_rows_is_of_some_row() -> None:
    used = {rule_of(row) for case in ALL_CASES.values() for row in case.rows} - {None}
    assert used == {entry["rule"] for entry in DIFFERENCES["stored"]}


@pytest.mark.parametrize("dst", types_by("no_backward"))
def test_copies_are_not_sent(dst: str, golden: Golden) -> None:
    """Asked for gradients, a type that is a copy in the reference gives its forward tensors alone."""
    case, row = next(
        (case, row) for case in ALL_CASES.values() for row in case.rows if row.spec.dst is DerivedScalarType(dst)
    )
    (found,) = golden.derive(with_config(case.request, row.spec, derive_gradients=True))
    assert {pass_type for pass_type, _ in found} == {_F}
    assert not compare(case, row, found, row.loss, row.activation_value)


def test_gradients_that_reach_no_layer_are_zeros_of_full_shape(golden: Golden) -> None:
    """A head of layer 0 reads the embedding, which no layered tap comes before."""
    node = NodeIndex(node_type=NodeType.ATTENTION_HEAD, tensor_indices=(4, 2, 1), layer_index=0)
    origin = TraceConfig(
        node_index=node,
        pre_or_post_act=PreOrPostAct.PRE,
        detach_layer_norm_scale=True,
        attention_trace_type=AttentionTraceType.QK,
    )
    types = [DerivedScalarType(dst) for dst in types_by("backward_is_zeros_of_full_shape")]
    config = DstConfig(derive_gradients=True)
    request = replace(
        ALL_CASES["forward_only"].request,
        trace_config=origin,
        derived_scalars=tuple(
            DerivedScalarSpec(dst=dst, config=config) for dst in (*types, DerivedScalarType.RESID_POST_EMBEDDING)
        ),
    )
    *layered, embedding = golden.derive(request)
    assert embedding[_B, None].any()
    for found in layered:
        for layer in {layer for _, layer in found}:
            np.testing.assert_array_equal(found[_B, layer], np.zeros_like(found[_F, layer]))


def has_two_autoencoders(case: Case) -> bool:
    return len(case.request.autoencoders) == 2


def is_traced_through_v(case: Case) -> bool:
    origin = case.request.trace_config
    return origin is not None and origin.attention_trace_type is AttentionTraceType.V


ANSWERED_WHEN = {"two_autoencoders": has_two_autoencoders, "traced_through_v": is_traced_through_v}


def listed_as_answered(case: Case) -> set[str]:
    return {dst for entry in DIFFERENCES["answered"] if ANSWERED_WHEN[entry["when"]](case) for dst in entry["dst"]}


def test_what_the_reference_refused_is_refused_or_listed(registry: Registry) -> None:
    answered = set()
    for name, case in ALL_CASES.items():
        own = {"trace_config": case.request.trace_config}
        for dst in load_refused(name):
            try:
                make_plan(with_config(case.request, DerivedScalarSpec(dst=dst), **own), registry)
            except (InvalidRequest, PreconditionFailed):
                continue
            answered.add((name, dst.value))
            assert dst in listed_as_answered(case), name
    assert {dst for _, dst in answered} == {dst for entry in DIFFERENCES["answered"] for dst in entry["dst"]}


def test_a_second_trace_is_refused_where_gradients_are_read(registry: Registry) -> None:
    """And only there: other types may have a trace of their own, which names a node and starts nothing."""
    case, other = ALL_CASES["trace_neuron_post"], ALL_CASES["trace_head_qk_post"].request.trace_config
    for row in case.rows:
        request = with_config(case.request, row.spec, trace_config=other)
        reads_origin = FACTS[row.spec.dst].requires_grad_for_forward_pass or any(key[0] is _B for key in row.expected)
        if not reads_origin or rule_of(row) == "no_backward":
            make_plan(request, registry)
            continue
        with pytest.raises(InvalidRequest) as error:
            make_plan(request, registry)
        assert [violation.field for violation in error.value.violations] == ["derived_scalars[0].config.trace_config"]


def test_what_no_case_shows_is_shown_by_a_test() -> None:
    for entry in DIFFERENCES["elsewhere"]:
        path, name = entry["shown_by"].split("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), entry["quirk"]
