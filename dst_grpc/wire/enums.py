"""Enums of the wire and of the domain, converted by name; there are no tables by hand.

A wire value's name is its enum's prefix and the domain member's: `NODE_TYPE_MLP_NEURON` is `NodeType.MLP_NEURON`.
What an unspecified or unknown number means depends on the field, so `_reader` decides about both.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dst_grpc._gen.dst.v1 import (
    catalog_pb2,
    component_pb2,
    context_pb2,
    derived_scalar_type_pb2,
    error_pb2,
    explain_pb2,
    tensor_pb2,
)
from dst_grpc.domain import components as domain
from dst_grpc.domain.architecture import ActivationFunction, NormKind, PositionKind
from dst_grpc.domain.explain import NodeScope, TopKSelection
from dst_grpc.domain.explanations import ExplainPart
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.resolution import ContextKind, ContextState
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.errors import Reason

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

E = TypeVar("E", bound=Enum)

_MAX_NAMES_SHOWN = 13
_UNSPECIFIED = "_UNSPECIFIED"


class EnumCodec(Generic[E]):
    """One enum, both ways."""

    def __init__(self, members: type[E], wrapper: EnumTypeWrapper) -> None:
        """Pair the members by name; raises ValueError if the wire lacks one of the domain's."""
        zero: str = wrapper.Name(0)
        prefix = zero.removesuffix(_UNSPECIFIED) + "_"
        self.members = members
        self.wrapper = wrapper
        self._numbers: dict[E, int] = {member: wrapper.Value(prefix + member.name) for member in members}
        self._members: dict[int, E] = {number: member for member, number in self._numbers.items()}

    def __repr__(self) -> str:
        """Name the enum."""
        return f"EnumCodec({self.members.__name__})"

    def to_wire(self, member: E) -> Any:
        """The wire's number of *member*; typed Any because generated stubs want their own nominal int."""
        return self._numbers[member]

    def from_wire(self, number: int) -> E | None:
        """The member of *number*; None for 0 (unspecified) and for numbers this version does not know."""
        return self._members.get(number)

    @property
    def choices(self) -> str:
        """The members' names for a message, cut short where there are many."""
        names = [member.name for member in self.members]
        if len(names) <= _MAX_NAMES_SHOWN:
            return "one of " + ", ".join(names)
        return f"one of {', '.join(names[:_MAX_NAMES_SHOWN])}, ... ({len(names)} in all)"

    def complaint(self, number: int) -> str:
        """What is wrong with *number*, which `from_wire` did not accept, where a member is required."""
        if number == 0:
            return f"is required: {self.choices}"
        nearest = min(self._members, key=lambda known: (abs(known - number), known))
        return (
            f"{number} is no {self.members.__name__} that is known here; "
            f"the nearest is {nearest}, {self._members[nearest].name}"
        )


DIMENSION = EnumCodec(domain.Dimension, component_pb2.Dimension)
PASS_TYPE = EnumCodec(domain.PassType, component_pb2.PassType)
NODE_TYPE = EnumCodec(domain.NodeType, component_pb2.NodeType)
ATTENTION_TRACE_TYPE = EnumCodec(domain.AttentionTraceType, component_pb2.AttentionTraceType)
PRE_OR_POST_ACT = EnumCodec(domain.PreOrPostAct, component_pb2.PreOrPostAct)
INFERENCE_ENGINE_TYPE = EnumCodec(domain.InferenceEngineType, component_pb2.InferenceEngineType)
LOSS_FN_NAME = EnumCodec(domain.LossFnName, component_pb2.LossFnName)
ACTIVATION_LOCATION_TYPE = EnumCodec(ActivationLocationType, component_pb2.ActivationLocationType)
DERIVED_SCALAR_TYPE = EnumCodec(DerivedScalarType, derived_scalar_type_pb2.DerivedScalarType)
TENSOR_ELEMENT_TYPE = EnumCodec(domain.TensorElementType, tensor_pb2.TensorElementType)
TENSOR_ENCODING = EnumCodec(domain.TensorEncoding, tensor_pb2.TensorEncoding)
NORM_KIND = EnumCodec(NormKind, catalog_pb2.NormKind)
POSITION_KIND = EnumCodec(PositionKind, catalog_pb2.PositionKind)
ACTIVATION_FUNCTION = EnumCodec(ActivationFunction, catalog_pb2.ActivationFunction)
CONTEXT_STATE = EnumCodec(ContextState, context_pb2.ContextState)
CONTEXT_KIND = EnumCodec(ContextKind, context_pb2.ContextKind)
ERROR_REASON = EnumCodec(Reason, error_pb2.ErrorReason)
TOP_K_SELECTION = EnumCodec(TopKSelection, explain_pb2.TopKSelection)
NODE_SCOPE = EnumCodec(NodeScope, explain_pb2.NodeScope)
COMPONENT_TYPE_FOR_MLP = EnumCodec(domain.ComponentTypeForMlp, explain_pb2.ComponentTypeForMlp)
COMPONENT_TYPE_FOR_ATTENTION = EnumCodec(domain.ComponentTypeForAttention, explain_pb2.ComponentTypeForAttention)
EXPLAIN_PART = EnumCodec(ExplainPart, explain_pb2.ExplainPart)
