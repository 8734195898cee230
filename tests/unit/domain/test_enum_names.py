"""Fields that hold an enum are complained about by the names that JSON clients send."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

import pytest

from dst_grpc.domain.components import NodeType, PassType, TensorElementType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.enum_names import json_name, json_names
from dst_grpc.domain.explain import NodeAblation, TopKGroup
from dst_grpc.domain.indices import AttnSubNodeIndex, NodeIndex
from dst_grpc.domain.interventions import DetachGradient, Intervention
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.put_tensors import TensorDescription
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.selections import TapSelection
from dst_grpc.errors import InvalidRequest, Reason
from dst_grpc.wire.enums import enum_codec
from dst_grpc.wire.messages import ENUMS

LAYER = NodeIndex(node_type=NodeType.LAYER, layer_index=0, pass_type=PassType.BACKWARD)
BAD: dict[str, Callable[[], object]] = {
    "ablation": lambda: NodeAblation(node_index=LAYER),
    "intervention": lambda: Intervention(
        at=TapSelection(activation_location_type=ActivationLocationType.MLP_POST_ACT), action=DetachGradient()
    ),
    "element type": lambda: DeriveRequest(prompt=None, element_type=TensorElementType.INT32),
    "tensor": lambda: TensorDescription(element_type=TensorElementType.INT32),
    "subnode": lambda: AttnSubNodeIndex(node_type=NodeType.LAYER, q_k_or_v=ActivationLocationType.LOGITS),
    "write": lambda: DstConfig(node_index_for_attention_write=LAYER),
    "group": lambda: TopKGroup(group_id="a", dsts=(DerivedScalarType.ATTN_QUERY, DerivedScalarType.ATTN_QUERY)),
}
BARE = re.compile(
    r"\b(?:attention_head|mlp_neuron|layer|forward|backward|float32|int32|attn\.q|logits|LAYER|FORWARD)\b"
)


def enums() -> list[type[Enum]]:
    """Every enum of the domain that a message carries under its own name."""
    found: list[type[Enum]] = [NodeType, PassType, TensorElementType, ActivationLocationType, DerivedScalarType]
    return [each for each in found if each.__name__ in ENUMS]


@pytest.mark.parametrize("members", enums())
def test_names_are_those_of_the_protocol(members: type[Enum]) -> None:
    assert [json_name(member) for member in members] == [enum_codec(members).name(member) for member in members]


def test_alternatives_end_in_or() -> None:
    assert json_names([PassType.FORWARD]) == "PASS_TYPE_FORWARD"
    assert json_names(PassType) == "PASS_TYPE_FORWARD or PASS_TYPE_BACKWARD"
    assert json_names([Reason.INTERNAL, *PassType]) == "REASON_INTERNAL, PASS_TYPE_FORWARD or PASS_TYPE_BACKWARD"


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_a_field_of_an_enum_is_described_by_no_bare_member(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make()
    about = [v for v in caught.value.violations if re.search(r"(type|_v|dsts\[1\])$", v.field)]
    assert about
    for violation in about:
        assert not BARE.search(violation.description.partition(":")[0]), violation
