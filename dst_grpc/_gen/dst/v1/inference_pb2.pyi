import datetime

from dst_grpc._gen.dst.v1 import component_pb2 as _component_pb2
from dst_grpc._gen.dst.v1 import config_pb2 as _config_pb2
from dst_grpc._gen.dst.v1 import derived_scalar_type_pb2 as _derived_scalar_type_pb2
from dst_grpc._gen.dst.v1 import intervention_pb2 as _intervention_pb2
from dst_grpc._gen.dst.v1 import tensor_pb2 as _tensor_pb2
from dst_grpc._gen.dst.v1 import trace_pb2 as _trace_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttentionImplementation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTENTION_IMPLEMENTATION_UNSPECIFIED: _ClassVar[AttentionImplementation]
    ATTENTION_IMPLEMENTATION_EAGER: _ClassVar[AttentionImplementation]
    ATTENTION_IMPLEMENTATION_SDPA: _ClassVar[AttentionImplementation]
ATTENTION_IMPLEMENTATION_UNSPECIFIED: AttentionImplementation
ATTENTION_IMPLEMENTATION_EAGER: AttentionImplementation
ATTENTION_IMPLEMENTATION_SDPA: AttentionImplementation

class TokenIds(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ...) -> None: ...

class SourceRun(_message.Message):
    __slots__ = ("name", "prompt", "interventions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    prompt: Prompt
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.Intervention]
    def __init__(self, name: _Optional[str] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., interventions: _Optional[_Iterable[_Union[_intervention_pb2.Intervention, _Mapping]]] = ...) -> None: ...

class DerivedScalarSpec(_message.Message):
    __slots__ = ("dst", "config")
    DST_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    dst: _derived_scalar_type_pb2.DerivedScalarType
    config: _config_pb2.DstConfig
    def __init__(self, dst: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., config: _Optional[_Union[_config_pb2.DstConfig, _Mapping]] = ...) -> None: ...

class DeriveRequest(_message.Message):
    __slots__ = ("request_id", "model", "prompt", "loss_fn_config", "trace_config", "ablation_specs", "autoencoders", "config", "derived_scalars", "element_type", "encoding", "interventions", "detach_final_layer_norm_scale", "max_chunk_bytes", "source_runs")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    LOSS_FN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    TRACE_CONFIG_FIELD_NUMBER: _ClassVar[int]
    ABLATION_SPECS_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODERS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    DERIVED_SCALARS_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    DETACH_FINAL_LAYER_NORM_SCALE_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_RUNS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    prompt: Prompt
    loss_fn_config: _config_pb2.LossFnConfig
    trace_config: _trace_pb2.TraceConfig
    ablation_specs: _containers.RepeatedCompositeFieldContainer[_config_pb2.AblationSpec]
    autoencoders: _containers.RepeatedScalarFieldContainer[str]
    config: _config_pb2.DstConfig
    derived_scalars: _containers.RepeatedCompositeFieldContainer[DerivedScalarSpec]
    element_type: _tensor_pb2.TensorElementType
    encoding: _tensor_pb2.TensorEncoding
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.Intervention]
    detach_final_layer_norm_scale: bool
    max_chunk_bytes: int
    source_runs: _containers.RepeatedCompositeFieldContainer[SourceRun]
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., loss_fn_config: _Optional[_Union[_config_pb2.LossFnConfig, _Mapping]] = ..., trace_config: _Optional[_Union[_trace_pb2.TraceConfig, _Mapping]] = ..., ablation_specs: _Optional[_Iterable[_Union[_config_pb2.AblationSpec, _Mapping]]] = ..., autoencoders: _Optional[_Iterable[str]] = ..., config: _Optional[_Union[_config_pb2.DstConfig, _Mapping]] = ..., derived_scalars: _Optional[_Iterable[_Union[DerivedScalarSpec, _Mapping]]] = ..., element_type: _Optional[_Union[_tensor_pb2.TensorElementType, str]] = ..., encoding: _Optional[_Union[_tensor_pb2.TensorEncoding, str]] = ..., interventions: _Optional[_Iterable[_Union[_intervention_pb2.Intervention, _Mapping]]] = ..., detach_final_layer_norm_scale: bool = ..., max_chunk_bytes: _Optional[int] = ..., source_runs: _Optional[_Iterable[_Union[SourceRun, _Mapping]]] = ...) -> None: ...

class TensorInfo(_message.Message):
    __slots__ = ("tensor_id", "dst", "pass_type", "layer_index", "axes", "element_type", "encoding", "byte_length", "nonzero_count", "spec_index", "zero_by_definition")
    TENSOR_ID_FIELD_NUMBER: _ClassVar[int]
    DST_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPE_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    BYTE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    NONZERO_COUNT_FIELD_NUMBER: _ClassVar[int]
    SPEC_INDEX_FIELD_NUMBER: _ClassVar[int]
    ZERO_BY_DEFINITION_FIELD_NUMBER: _ClassVar[int]
    tensor_id: int
    dst: _derived_scalar_type_pb2.DerivedScalarType
    pass_type: _component_pb2.PassType
    layer_index: int
    axes: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Axis]
    element_type: _tensor_pb2.TensorElementType
    encoding: _tensor_pb2.TensorEncoding
    byte_length: int
    nonzero_count: int
    spec_index: int
    zero_by_definition: bool
    def __init__(self, tensor_id: _Optional[int] = ..., dst: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., pass_type: _Optional[_Union[_component_pb2.PassType, str]] = ..., layer_index: _Optional[int] = ..., axes: _Optional[_Iterable[_Union[_tensor_pb2.Axis, _Mapping]]] = ..., element_type: _Optional[_Union[_tensor_pb2.TensorElementType, str]] = ..., encoding: _Optional[_Union[_tensor_pb2.TensorEncoding, str]] = ..., byte_length: _Optional[int] = ..., nonzero_count: _Optional[int] = ..., spec_index: _Optional[int] = ..., zero_by_definition: bool = ...) -> None: ...

class NotFinite(_message.Message):
    __slots__ = ("activation_location_type", "layer_index", "token_index", "pass_type", "description")
    ACTIVATION_LOCATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    activation_location_type: _component_pb2.ActivationLocationType
    layer_index: int
    token_index: int
    pass_type: _component_pb2.PassType
    description: str
    def __init__(self, activation_location_type: _Optional[_Union[_component_pb2.ActivationLocationType, str]] = ..., layer_index: _Optional[int] = ..., token_index: _Optional[int] = ..., pass_type: _Optional[_Union[_component_pb2.PassType, str]] = ..., description: _Optional[str] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("model", "token_ids", "token_strings", "loss", "activation_value", "tensors", "detach_final_layer_norm_scale", "not_finite")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STRINGS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_VALUE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    DETACH_FINAL_LAYER_NORM_SCALE_FIELD_NUMBER: _ClassVar[int]
    NOT_FINITE_FIELD_NUMBER: _ClassVar[int]
    model: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    token_strings: _containers.RepeatedScalarFieldContainer[str]
    loss: float
    activation_value: float
    tensors: _containers.RepeatedCompositeFieldContainer[TensorInfo]
    detach_final_layer_norm_scale: bool
    not_finite: NotFinite
    def __init__(self, model: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., token_strings: _Optional[_Iterable[str]] = ..., loss: _Optional[float] = ..., activation_value: _Optional[float] = ..., tensors: _Optional[_Iterable[_Union[TensorInfo, _Mapping]]] = ..., detach_final_layer_norm_scale: bool = ..., not_finite: _Optional[_Union[NotFinite, _Mapping]] = ...) -> None: ...

class TensorChunk(_message.Message):
    __slots__ = ("tensor_id", "offset", "data")
    TENSOR_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    tensor_id: int
    offset: int
    data: bytes
    def __init__(self, tensor_id: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class RunStatistics(_message.Message):
    __slots__ = ("forward_passes", "backward_passes", "queue_duration", "pass_duration", "derive_duration")
    FORWARD_PASSES_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_PASSES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DURATION_FIELD_NUMBER: _ClassVar[int]
    PASS_DURATION_FIELD_NUMBER: _ClassVar[int]
    DERIVE_DURATION_FIELD_NUMBER: _ClassVar[int]
    forward_passes: int
    backward_passes: int
    queue_duration: _duration_pb2.Duration
    pass_duration: _duration_pb2.Duration
    derive_duration: _duration_pb2.Duration
    def __init__(self, forward_passes: _Optional[int] = ..., backward_passes: _Optional[int] = ..., queue_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., pass_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., derive_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("model", "model_digest", "autoencoder_digests", "element_type", "device", "library_versions", "config_digest", "attention", "batch_size")
    class AutoencoderDigestsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LibraryVersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODER_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LIBRARY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_digest: str
    autoencoder_digests: _containers.ScalarMap[str, str]
    element_type: _tensor_pb2.TensorElementType
    device: str
    library_versions: _containers.ScalarMap[str, str]
    config_digest: str
    attention: AttentionImplementation
    batch_size: int
    def __init__(self, model: _Optional[str] = ..., model_digest: _Optional[str] = ..., autoencoder_digests: _Optional[_Mapping[str, str]] = ..., element_type: _Optional[_Union[_tensor_pb2.TensorElementType, str]] = ..., device: _Optional[str] = ..., library_versions: _Optional[_Mapping[str, str]] = ..., config_digest: _Optional[str] = ..., attention: _Optional[_Union[AttentionImplementation, str]] = ..., batch_size: _Optional[int] = ...) -> None: ...

class Trailer(_message.Message):
    __slots__ = ("tensor_count", "byte_count", "checksums", "statistics", "provenance")
    TENSOR_COUNT_FIELD_NUMBER: _ClassVar[int]
    BYTE_COUNT_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tensor_count: int
    byte_count: int
    checksums: _containers.RepeatedScalarFieldContainer[int]
    statistics: RunStatistics
    provenance: Provenance
    def __init__(self, tensor_count: _Optional[int] = ..., byte_count: _Optional[int] = ..., checksums: _Optional[_Iterable[int]] = ..., statistics: _Optional[_Union[RunStatistics, _Mapping]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ...) -> None: ...

class DeriveFrame(_message.Message):
    __slots__ = ("header", "chunk", "trailer", "error", "partial")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    header: Header
    chunk: TensorChunk
    trailer: Trailer
    error: _status_pb2.Status
    partial: bool
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., chunk: _Optional[_Union[TensorChunk, _Mapping]] = ..., trailer: _Optional[_Union[Trailer, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., partial: bool = ...) -> None: ...

class DeriveResponse(_message.Message):
    __slots__ = ("request_id", "frames")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    frames: _containers.RepeatedCompositeFieldContainer[DeriveFrame]
    def __init__(self, request_id: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[DeriveFrame, _Mapping]]] = ...) -> None: ...

class CancelItem(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class DeriveStreamRequest(_message.Message):
    __slots__ = ("request", "cancel", "timeout")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    request: DeriveRequest
    cancel: CancelItem
    timeout: _duration_pb2.Duration
    def __init__(self, request: _Optional[_Union[DeriveRequest, _Mapping]] = ..., cancel: _Optional[_Union[CancelItem, _Mapping]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DeriveStreamResponse(_message.Message):
    __slots__ = ("request_id", "frames", "item_index")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    ITEM_INDEX_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    frames: _containers.RepeatedCompositeFieldContainer[DeriveFrame]
    item_index: int
    def __init__(self, request_id: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[DeriveFrame, _Mapping]]] = ..., item_index: _Optional[int] = ...) -> None: ...
