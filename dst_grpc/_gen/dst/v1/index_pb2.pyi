from dst_grpc._gen.dst.v1 import component_pb2 as _component_pb2
from dst_grpc._gen.dst.v1 import derived_scalar_type_pb2 as _derived_scalar_type_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AllPositions(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TensorIndex(_message.Message):
    __slots__ = ("at", "all")
    AT_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    at: int
    all: AllPositions
    def __init__(self, at: _Optional[int] = ..., all: _Optional[_Union[AllPositions, _Mapping]] = ...) -> None: ...

class NodeIndex(_message.Message):
    __slots__ = ("node_type", "tensor_indices", "layer_index", "pass_type", "q_k_or_v")
    NODE_TYPE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_INDICES_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPE_FIELD_NUMBER: _ClassVar[int]
    Q_K_OR_V_FIELD_NUMBER: _ClassVar[int]
    node_type: _component_pb2.NodeType
    tensor_indices: _containers.RepeatedCompositeFieldContainer[TensorIndex]
    layer_index: int
    pass_type: _component_pb2.PassType
    q_k_or_v: _component_pb2.ActivationLocationType
    def __init__(self, node_type: _Optional[_Union[_component_pb2.NodeType, str]] = ..., tensor_indices: _Optional[_Iterable[_Union[TensorIndex, _Mapping]]] = ..., layer_index: _Optional[int] = ..., pass_type: _Optional[_Union[_component_pb2.PassType, str]] = ..., q_k_or_v: _Optional[_Union[_component_pb2.ActivationLocationType, str]] = ...) -> None: ...

class ActivationIndex(_message.Message):
    __slots__ = ("activation_location_type", "tensor_indices", "layer_index", "pass_type", "q_or_k")
    ACTIVATION_LOCATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_INDICES_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPE_FIELD_NUMBER: _ClassVar[int]
    Q_OR_K_FIELD_NUMBER: _ClassVar[int]
    activation_location_type: _component_pb2.ActivationLocationType
    tensor_indices: _containers.RepeatedCompositeFieldContainer[TensorIndex]
    layer_index: int
    pass_type: _component_pb2.PassType
    q_or_k: _component_pb2.ActivationLocationType
    def __init__(self, activation_location_type: _Optional[_Union[_component_pb2.ActivationLocationType, str]] = ..., tensor_indices: _Optional[_Iterable[_Union[TensorIndex, _Mapping]]] = ..., layer_index: _Optional[int] = ..., pass_type: _Optional[_Union[_component_pb2.PassType, str]] = ..., q_or_k: _Optional[_Union[_component_pb2.ActivationLocationType, str]] = ...) -> None: ...

class DerivedScalarIndex(_message.Message):
    __slots__ = ("dst", "tensor_indices", "layer_index", "pass_type")
    DST_FIELD_NUMBER: _ClassVar[int]
    TENSOR_INDICES_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPE_FIELD_NUMBER: _ClassVar[int]
    dst: _derived_scalar_type_pb2.DerivedScalarType
    tensor_indices: _containers.RepeatedCompositeFieldContainer[TensorIndex]
    layer_index: int
    pass_type: _component_pb2.PassType
    def __init__(self, dst: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., tensor_indices: _Optional[_Iterable[_Union[TensorIndex, _Mapping]]] = ..., layer_index: _Optional[int] = ..., pass_type: _Optional[_Union[_component_pb2.PassType, str]] = ...) -> None: ...
