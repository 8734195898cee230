from dst_grpc._gen.dst.v1 import context_pb2 as _context_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoadContextRequest(_message.Message):
    __slots__ = ("context", "pin")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    context: str
    pin: bool
    def __init__(self, context: _Optional[str] = ..., pin: bool = ...) -> None: ...

class LoadContextResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _context_pb2.ContextStatus
    def __init__(self, status: _Optional[_Union[_context_pb2.ContextStatus, _Mapping]] = ...) -> None: ...

class UnpinContextRequest(_message.Message):
    __slots__ = ("context",)
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    context: str
    def __init__(self, context: _Optional[str] = ...) -> None: ...

class UnpinContextResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _context_pb2.ContextStatus
    def __init__(self, status: _Optional[_Union[_context_pb2.ContextStatus, _Mapping]] = ...) -> None: ...

class UnloadContextRequest(_message.Message):
    __slots__ = ("context",)
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    context: str
    def __init__(self, context: _Optional[str] = ...) -> None: ...

class UnloadContextResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _context_pb2.ContextStatus
    def __init__(self, status: _Optional[_Union[_context_pb2.ContextStatus, _Mapping]] = ...) -> None: ...

class ListContextsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListContextsResponse(_message.Message):
    __slots__ = ("contexts", "next_page_token")
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    contexts: _containers.RepeatedCompositeFieldContainer[_context_pb2.ContextStatus]
    next_page_token: str
    def __init__(self, contexts: _Optional[_Iterable[_Union[_context_pb2.ContextStatus, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchContextsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchContextsResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _context_pb2.ContextStatus
    def __init__(self, status: _Optional[_Union[_context_pb2.ContextStatus, _Mapping]] = ...) -> None: ...

class ReloadRegistryRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadRegistryResponse(_message.Message):
    __slots__ = ("added", "removed", "changed")
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    added: _containers.RepeatedScalarFieldContainer[str]
    removed: _containers.RepeatedScalarFieldContainer[str]
    changed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, added: _Optional[_Iterable[str]] = ..., removed: _Optional[_Iterable[str]] = ..., changed: _Optional[_Iterable[str]] = ...) -> None: ...
