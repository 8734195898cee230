from dst_grpc._gen.dst.v1 import component_pb2 as _component_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TensorElementType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TENSOR_ELEMENT_TYPE_UNSPECIFIED: _ClassVar[TensorElementType]
    TENSOR_ELEMENT_TYPE_FLOAT32: _ClassVar[TensorElementType]
    TENSOR_ELEMENT_TYPE_FLOAT16: _ClassVar[TensorElementType]
    TENSOR_ELEMENT_TYPE_BFLOAT16: _ClassVar[TensorElementType]
    TENSOR_ELEMENT_TYPE_INT32: _ClassVar[TensorElementType]
    TENSOR_ELEMENT_TYPE_UINT32: _ClassVar[TensorElementType]
    TENSOR_ELEMENT_TYPE_INT64: _ClassVar[TensorElementType]
    TENSOR_ELEMENT_TYPE_BOOL: _ClassVar[TensorElementType]

class TensorEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TENSOR_ENCODING_UNSPECIFIED: _ClassVar[TensorEncoding]
    TENSOR_ENCODING_DENSE: _ClassVar[TensorEncoding]
    TENSOR_ENCODING_SPARSE_LATENTS: _ClassVar[TensorEncoding]
TENSOR_ELEMENT_TYPE_UNSPECIFIED: TensorElementType
TENSOR_ELEMENT_TYPE_FLOAT32: TensorElementType
TENSOR_ELEMENT_TYPE_FLOAT16: TensorElementType
TENSOR_ELEMENT_TYPE_BFLOAT16: TensorElementType
TENSOR_ELEMENT_TYPE_INT32: TensorElementType
TENSOR_ELEMENT_TYPE_UINT32: TensorElementType
TENSOR_ELEMENT_TYPE_INT64: TensorElementType
TENSOR_ELEMENT_TYPE_BOOL: TensorElementType
TENSOR_ENCODING_UNSPECIFIED: TensorEncoding
TENSOR_ENCODING_DENSE: TensorEncoding
TENSOR_ENCODING_SPARSE_LATENTS: TensorEncoding

class Axis(_message.Message):
    __slots__ = ("dimension", "size")
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    dimension: _component_pb2.Dimension
    size: int
    def __init__(self, dimension: _Optional[_Union[_component_pb2.Dimension, str]] = ..., size: _Optional[int] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("element_type", "axes", "data")
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    element_type: TensorElementType
    axes: _containers.RepeatedCompositeFieldContainer[Axis]
    data: bytes
    def __init__(self, element_type: _Optional[_Union[TensorElementType, str]] = ..., axes: _Optional[_Iterable[_Union[Axis, _Mapping]]] = ..., data: _Optional[bytes] = ...) -> None: ...

class SparseTensor(_message.Message):
    __slots__ = ("axes", "values", "coordinates")
    AXES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    COORDINATES_FIELD_NUMBER: _ClassVar[int]
    axes: _containers.RepeatedCompositeFieldContainer[Axis]
    values: Tensor
    coordinates: Tensor
    def __init__(self, axes: _Optional[_Iterable[_Union[Axis, _Mapping]]] = ..., values: _Optional[_Union[Tensor, _Mapping]] = ..., coordinates: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
