import datetime

from dst_grpc._gen.dst.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TensorDescription(_message.Message):
    __slots__ = ("element_type", "sizes", "ttl", "checksum")
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    element_type: _tensor_pb2.TensorElementType
    sizes: _containers.RepeatedScalarFieldContainer[int]
    ttl: _duration_pb2.Duration
    checksum: int
    def __init__(self, element_type: _Optional[_Union[_tensor_pb2.TensorElementType, str]] = ..., sizes: _Optional[_Iterable[int]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...

class PutTensorRequest(_message.Message):
    __slots__ = ("description", "data")
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    description: TensorDescription
    data: bytes
    def __init__(self, description: _Optional[_Union[TensorDescription, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PutTensorResponse(_message.Message):
    __slots__ = ("handle", "byte_count", "expire_time")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    BYTE_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    handle: str
    byte_count: int
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, handle: _Optional[str] = ..., byte_count: _Optional[int] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class DeleteTensorRequest(_message.Message):
    __slots__ = ("handle",)
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    handle: str
    def __init__(self, handle: _Optional[str] = ...) -> None: ...

class DeleteTensorResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
