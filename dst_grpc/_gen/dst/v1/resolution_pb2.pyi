from dst_grpc._gen.dst.v1 import catalog_pb2 as _catalog_pb2
from dst_grpc._gen.dst.v1 import component_pb2 as _component_pb2
from dst_grpc._gen.dst.v1 import config_pb2 as _config_pb2
from dst_grpc._gen.dst.v1 import context_pb2 as _context_pb2
from dst_grpc._gen.dst.v1 import derived_scalar_type_pb2 as _derived_scalar_type_pb2
from dst_grpc._gen.dst.v1 import inference_pb2 as _inference_pb2
from dst_grpc._gen.dst.v1 import tensor_pb2 as _tensor_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResolveRequest(_message.Message):
    __slots__ = ("request", "load")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    request: _inference_pb2.DeriveRequest
    load: bool
    def __init__(self, request: _Optional[_Union[_inference_pb2.DeriveRequest, _Mapping]] = ..., load: bool = ...) -> None: ...

class Validated(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoadProgress(_message.Message):
    __slots__ = ("context", "bytes_done", "bytes_total")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    context: str
    bytes_done: int
    bytes_total: int
    def __init__(self, context: _Optional[str] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ...) -> None: ...

class TapUse(_message.Message):
    __slots__ = ("location", "pass_type")
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPE_FIELD_NUMBER: _ClassVar[int]
    location: _component_pb2.ActivationLocationType
    pass_type: _component_pb2.PassType
    def __init__(self, location: _Optional[_Union[_component_pb2.ActivationLocationType, str]] = ..., pass_type: _Optional[_Union[_component_pb2.PassType, str]] = ...) -> None: ...

class ScalarResolution(_message.Message):
    __slots__ = ("dst", "config", "requires_grad", "taps", "pass_types", "layer_indices", "axes", "output_bytes")
    DST_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    REQUIRES_GRAD_FIELD_NUMBER: _ClassVar[int]
    TAPS_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPES_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDICES_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    dst: _derived_scalar_type_pb2.DerivedScalarType
    config: _config_pb2.DstConfig
    requires_grad: bool
    taps: _containers.RepeatedCompositeFieldContainer[TapUse]
    pass_types: _containers.RepeatedScalarFieldContainer[_component_pb2.PassType]
    layer_indices: _containers.RepeatedScalarFieldContainer[int]
    axes: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Axis]
    output_bytes: int
    def __init__(self, dst: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., config: _Optional[_Union[_config_pb2.DstConfig, _Mapping]] = ..., requires_grad: bool = ..., taps: _Optional[_Iterable[_Union[TapUse, _Mapping]]] = ..., pass_types: _Optional[_Iterable[_Union[_component_pb2.PassType, str]]] = ..., layer_indices: _Optional[_Iterable[int]] = ..., axes: _Optional[_Iterable[_Union[_tensor_pb2.Axis, _Mapping]]] = ..., output_bytes: _Optional[int] = ...) -> None: ...

class CostEstimate(_message.Message):
    __slots__ = ("sequence_tokens", "forward_passes", "backward_passes", "floating_point_operations", "peak_bytes", "output_bytes")
    SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_PASSES_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_PASSES_FIELD_NUMBER: _ClassVar[int]
    FLOATING_POINT_OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    sequence_tokens: int
    forward_passes: int
    backward_passes: int
    floating_point_operations: int
    peak_bytes: int
    output_bytes: int
    def __init__(self, sequence_tokens: _Optional[int] = ..., forward_passes: _Optional[int] = ..., backward_passes: _Optional[int] = ..., floating_point_operations: _Optional[int] = ..., peak_bytes: _Optional[int] = ..., output_bytes: _Optional[int] = ...) -> None: ...

class Resolved(_message.Message):
    __slots__ = ("config", "device", "model", "autoencoders", "scalars", "cost", "contexts")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODERS_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    config: _config_pb2.DstConfig
    device: str
    model: _catalog_pb2.ModelInfo
    autoencoders: _containers.RepeatedCompositeFieldContainer[_catalog_pb2.AutoencoderInfo]
    scalars: _containers.RepeatedCompositeFieldContainer[ScalarResolution]
    cost: CostEstimate
    contexts: _containers.RepeatedCompositeFieldContainer[_context_pb2.ContextStatus]
    def __init__(self, config: _Optional[_Union[_config_pb2.DstConfig, _Mapping]] = ..., device: _Optional[str] = ..., model: _Optional[_Union[_catalog_pb2.ModelInfo, _Mapping]] = ..., autoencoders: _Optional[_Iterable[_Union[_catalog_pb2.AutoencoderInfo, _Mapping]]] = ..., scalars: _Optional[_Iterable[_Union[ScalarResolution, _Mapping]]] = ..., cost: _Optional[_Union[CostEstimate, _Mapping]] = ..., contexts: _Optional[_Iterable[_Union[_context_pb2.ContextStatus, _Mapping]]] = ...) -> None: ...

class ResolveFrame(_message.Message):
    __slots__ = ("validated", "loading", "resolved", "error", "partial")
    VALIDATED_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    validated: Validated
    loading: LoadProgress
    resolved: Resolved
    error: _status_pb2.Status
    partial: bool
    def __init__(self, validated: _Optional[_Union[Validated, _Mapping]] = ..., loading: _Optional[_Union[LoadProgress, _Mapping]] = ..., resolved: _Optional[_Union[Resolved, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., partial: bool = ...) -> None: ...

class ResolveResponse(_message.Message):
    __slots__ = ("request_id", "frames")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    frames: _containers.RepeatedCompositeFieldContainer[ResolveFrame]
    def __init__(self, request_id: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[ResolveFrame, _Mapping]]] = ...) -> None: ...

class ResolveStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: ResolveRequest
    def __init__(self, request: _Optional[_Union[ResolveRequest, _Mapping]] = ...) -> None: ...

class ResolveStreamResponse(_message.Message):
    __slots__ = ("request_id", "frames", "item_index")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    ITEM_INDEX_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    frames: _containers.RepeatedCompositeFieldContainer[ResolveFrame]
    item_index: int
    def __init__(self, request_id: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[ResolveFrame, _Mapping]]] = ..., item_index: _Optional[int] = ...) -> None: ...
