import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ContextState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTEXT_STATE_UNSPECIFIED: _ClassVar[ContextState]
    CONTEXT_STATE_NOT_LOADED: _ClassVar[ContextState]
    CONTEXT_STATE_LOADING: _ClassVar[ContextState]
    CONTEXT_STATE_AVAILABLE: _ClassVar[ContextState]
    CONTEXT_STATE_UNLOADING: _ClassVar[ContextState]
    CONTEXT_STATE_FAILED: _ClassVar[ContextState]

class ContextKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTEXT_KIND_UNSPECIFIED: _ClassVar[ContextKind]
    CONTEXT_KIND_MODEL: _ClassVar[ContextKind]
    CONTEXT_KIND_AUTOENCODER: _ClassVar[ContextKind]
CONTEXT_STATE_UNSPECIFIED: ContextState
CONTEXT_STATE_NOT_LOADED: ContextState
CONTEXT_STATE_LOADING: ContextState
CONTEXT_STATE_AVAILABLE: ContextState
CONTEXT_STATE_UNLOADING: ContextState
CONTEXT_STATE_FAILED: ContextState
CONTEXT_KIND_UNSPECIFIED: ContextKind
CONTEXT_KIND_MODEL: ContextKind
CONTEXT_KIND_AUTOENCODER: ContextKind

class ContextStatus(_message.Message):
    __slots__ = ("handle", "kind", "state", "bytes_total", "bytes_loaded", "device", "pins", "hits", "idle_duration", "error", "pinned")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_LOADED_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    IDLE_DURATION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    handle: str
    kind: ContextKind
    state: ContextState
    bytes_total: int
    bytes_loaded: int
    device: str
    pins: int
    hits: int
    idle_duration: _duration_pb2.Duration
    error: _status_pb2.Status
    pinned: bool
    def __init__(self, handle: _Optional[str] = ..., kind: _Optional[_Union[ContextKind, str]] = ..., state: _Optional[_Union[ContextState, str]] = ..., bytes_total: _Optional[int] = ..., bytes_loaded: _Optional[int] = ..., device: _Optional[str] = ..., pins: _Optional[int] = ..., hits: _Optional[int] = ..., idle_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., pinned: bool = ...) -> None: ...
