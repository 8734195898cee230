"""index.proto: indices of nodes, of tapped tensors and of derived scalars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc._gen.dst.v1 import index_pb2 as pb
from dst_grpc.domain.components import NodeType, PassType
from dst_grpc.domain.indices import (
    ActivationIndex,
    AttnSubActivationIndex,
    AttnSubNodeIndex,
    DerivedScalarIndex,
    NodeIndex,
    TensorIndices,
)
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.wire._reader import Reader
from dst_grpc.wire.enums import ACTIVATION_LOCATION_TYPE, DERIVED_SCALAR_TYPE, NODE_TYPE, PASS_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterable


def tensor_indices_to_wire(indices: TensorIndices) -> list[pb.TensorIndex]:
    """One message per axis; None is `all`."""
    return [pb.TensorIndex(all=pb.AllPositions()) if i is None else pb.TensorIndex(at=i) for i in indices]


def _tensor_indices(reader: Reader, messages: Iterable[pb.TensorIndex]) -> TensorIndices:
    indices: list[int | None] = []
    for i, message in enumerate(messages):
        arm = message.WhichOneof("index")
        if arm is None:
            reader.note(f"tensor_indices[{i}]", "is required: set `at` to a position or `all` for the whole axis")
        indices.append(message.at if arm == "at" else None)
    return tuple(indices)


def node_index_to_wire(index: NodeIndex) -> pb.NodeIndex:
    """The message of a node, or of an attention head's query, key or value."""
    message = pb.NodeIndex(
        node_type=NODE_TYPE.to_wire(index.node_type),
        tensor_indices=tensor_indices_to_wire(index.tensor_indices),
        layer_index=index.layer_index,
        pass_type=PASS_TYPE.to_wire(index.pass_type),
    )
    if isinstance(index, AttnSubNodeIndex):
        message.q_k_or_v = ACTIVATION_LOCATION_TYPE.to_wire(index.q_k_or_v)
    return message


def node_index_from_wire(message: pb.NodeIndex) -> NodeIndex:
    """The node; an AttnSubNodeIndex if `q_k_or_v` is set. Raises InvalidRequest."""
    reader = Reader(message)
    node_type = reader.required_enum("node_type", NODE_TYPE, NodeType.ATTENTION_HEAD)
    indices = _tensor_indices(reader, message.tensor_indices)
    layer_index = reader.present("layer_index")
    pass_type = reader.enum("pass_type", PASS_TYPE, PassType.FORWARD)
    q_k_or_v = reader.enum("q_k_or_v", ACTIVATION_LOCATION_TYPE, None)
    if reader.failed("node_type"):
        indices = ()  # how many there may be is not known

    def make() -> NodeIndex:
        if q_k_or_v is None:
            return NodeIndex(node_type=node_type, tensor_indices=indices, layer_index=layer_index, pass_type=pass_type)
        return AttnSubNodeIndex(
            node_type=node_type,
            tensor_indices=indices,
            layer_index=layer_index,
            pass_type=pass_type,
            q_k_or_v=q_k_or_v,
        )

    return reader.finish(make)


def activation_index_to_wire(index: ActivationIndex) -> pb.ActivationIndex:
    """The message of entries of a tap, as they are or as reached through a query or key."""
    message = pb.ActivationIndex(
        activation_location_type=ACTIVATION_LOCATION_TYPE.to_wire(index.activation_location_type),
        tensor_indices=tensor_indices_to_wire(index.tensor_indices),
        layer_index=index.layer_index,
        pass_type=PASS_TYPE.to_wire(index.pass_type),
    )
    if isinstance(index, AttnSubActivationIndex):
        message.q_or_k = ACTIVATION_LOCATION_TYPE.to_wire(index.q_or_k)
    return message


def activation_index_from_wire(message: pb.ActivationIndex) -> ActivationIndex:
    """The entries; an AttnSubActivationIndex if `q_or_k` is set. Raises InvalidRequest."""
    reader = Reader(message)
    location = reader.required_enum(
        "activation_location_type", ACTIVATION_LOCATION_TYPE, ActivationLocationType.ATTN_QK_PROBS
    )
    indices = _tensor_indices(reader, message.tensor_indices)
    layer_index = reader.present("layer_index")
    pass_type = reader.enum("pass_type", PASS_TYPE, PassType.FORWARD)
    q_or_k = reader.enum("q_or_k", ACTIVATION_LOCATION_TYPE, None)
    if reader.failed("activation_location_type"):
        indices = ()  # how many there may be is not known

    def make() -> ActivationIndex:
        if q_or_k is None:
            return ActivationIndex(
                activation_location_type=location,
                tensor_indices=indices,
                layer_index=layer_index,
                pass_type=pass_type,
            )
        return AttnSubActivationIndex(
            activation_location_type=location,
            tensor_indices=indices,
            layer_index=layer_index,
            pass_type=pass_type,
            q_or_k=q_or_k,
        )

    return reader.finish(make)


def derived_scalar_index_to_wire(index: DerivedScalarIndex) -> pb.DerivedScalarIndex:
    """The message of entries of a derived scalar."""
    return pb.DerivedScalarIndex(
        dst=DERIVED_SCALAR_TYPE.to_wire(index.dst),
        tensor_indices=tensor_indices_to_wire(index.tensor_indices),
        layer_index=index.layer_index,
        pass_type=PASS_TYPE.to_wire(index.pass_type),
    )


def derived_scalar_index_from_wire(message: pb.DerivedScalarIndex) -> DerivedScalarIndex:
    """The entries. Raises InvalidRequest."""
    reader = Reader(message)
    dst = reader.required_enum("dst", DERIVED_SCALAR_TYPE, DerivedScalarType.LOGITS)
    indices = _tensor_indices(reader, message.tensor_indices)
    layer_index = reader.present("layer_index")
    pass_type = reader.enum("pass_type", PASS_TYPE, PassType.FORWARD)
    if reader.failed("dst"):
        indices = ()  # how many there may be is not known
    return reader.finish(
        lambda: DerivedScalarIndex(dst=dst, tensor_indices=indices, layer_index=layer_index, pass_type=pass_type)
    )
