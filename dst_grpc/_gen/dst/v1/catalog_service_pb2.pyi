import datetime

from dst_grpc._gen.dst.v1 import catalog_pb2 as _catalog_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_ASK: _ClassVar[Role]
    ROLE_OPERATE: _ClassVar[Role]
ROLE_UNSPECIFIED: Role
ROLE_ASK: Role
ROLE_OPERATE: Role

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerLimits(_message.Message):
    __slots__ = ("max_request_bytes", "max_response_bytes", "max_queued_requests", "max_items_in_flight_per_stream", "max_items_per_stream", "max_run_bytes", "max_put_tensor_bytes", "max_put_tensor_ttl", "max_queued_requests_per_caller", "patience")
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_IN_FLIGHT_PER_STREAM_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_PER_STREAM_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PUT_TENSOR_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PUT_TENSOR_TTL_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_REQUESTS_PER_CALLER_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    max_request_bytes: int
    max_response_bytes: int
    max_queued_requests: int
    max_items_in_flight_per_stream: int
    max_items_per_stream: int
    max_run_bytes: int
    max_put_tensor_bytes: int
    max_put_tensor_ttl: _duration_pb2.Duration
    max_queued_requests_per_caller: int
    patience: _duration_pb2.Duration
    def __init__(self, max_request_bytes: _Optional[int] = ..., max_response_bytes: _Optional[int] = ..., max_queued_requests: _Optional[int] = ..., max_items_in_flight_per_stream: _Optional[int] = ..., max_items_per_stream: _Optional[int] = ..., max_run_bytes: _Optional[int] = ..., max_put_tensor_bytes: _Optional[int] = ..., max_put_tensor_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_queued_requests_per_caller: _Optional[int] = ..., patience: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DeviceLoad(_message.Message):
    __slots__ = ("device", "expected_wait", "waiting_requests")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_WAIT_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    device: str
    expected_wait: _duration_pb2.Duration
    waiting_requests: int
    def __init__(self, device: _Optional[str] = ..., expected_wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., waiting_requests: _Optional[int] = ...) -> None: ...

class Caller(_message.Message):
    __slots__ = ("name", "roles")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    name: str
    roles: _containers.RepeatedScalarFieldContainer[Role]
    def __init__(self, name: _Optional[str] = ..., roles: _Optional[_Iterable[_Union[Role, str]]] = ...) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "protocol_version", "limits", "features", "caller", "loads")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    version: str
    protocol_version: int
    limits: ServerLimits
    features: _containers.RepeatedScalarFieldContainer[str]
    caller: Caller
    loads: _containers.RepeatedCompositeFieldContainer[DeviceLoad]
    def __init__(self, version: _Optional[str] = ..., protocol_version: _Optional[int] = ..., limits: _Optional[_Union[ServerLimits, _Mapping]] = ..., features: _Optional[_Iterable[str]] = ..., caller: _Optional[_Union[Caller, _Mapping]] = ..., loads: _Optional[_Iterable[_Union[DeviceLoad, _Mapping]]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[_catalog_pb2.ModelInfo]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[_catalog_pb2.ModelInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _catalog_pb2.ModelInfo
    def __init__(self, model: _Optional[_Union[_catalog_pb2.ModelInfo, _Mapping]] = ...) -> None: ...

class ListAutoencodersRequest(_message.Message):
    __slots__ = ("model", "page_size", "page_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: str
    page_size: int
    page_token: str
    def __init__(self, model: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAutoencodersResponse(_message.Message):
    __slots__ = ("autoencoders", "next_page_token")
    AUTOENCODERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    autoencoders: _containers.RepeatedCompositeFieldContainer[_catalog_pb2.AutoencoderInfo]
    next_page_token: str
    def __init__(self, autoencoders: _Optional[_Iterable[_Union[_catalog_pb2.AutoencoderInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListDerivedScalarTypesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDerivedScalarTypesResponse(_message.Message):
    __slots__ = ("types", "next_page_token")
    TYPES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    types: _containers.RepeatedCompositeFieldContainer[_catalog_pb2.DerivedScalarTypeInfo]
    next_page_token: str
    def __init__(self, types: _Optional[_Iterable[_Union[_catalog_pb2.DerivedScalarTypeInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("model", "text")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("token_ids", "token_strings")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STRINGS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    token_strings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., token_strings: _Optional[_Iterable[str]] = ...) -> None: ...

class DetokenizeRequest(_message.Message):
    __slots__ = ("model", "token_ids")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class DetokenizeResponse(_message.Message):
    __slots__ = ("text", "token_strings")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STRINGS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_strings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, text: _Optional[str] = ..., token_strings: _Optional[_Iterable[str]] = ...) -> None: ...
