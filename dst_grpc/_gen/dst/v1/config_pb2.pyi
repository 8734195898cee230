from dst_grpc._gen.dst.v1 import component_pb2 as _component_pb2
from dst_grpc._gen.dst.v1 import derived_scalar_type_pb2 as _derived_scalar_type_pb2
from dst_grpc._gen.dst.v1 import index_pb2 as _index_pb2
from dst_grpc._gen.dst.v1 import intervention_pb2 as _intervention_pb2
from dst_grpc._gen.dst.v1 import trace_pb2 as _trace_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LayerIndices(_message.Message):
    __slots__ = ("layer_indices",)
    LAYER_INDICES_FIELD_NUMBER: _ClassVar[int]
    layer_indices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layer_indices: _Optional[_Iterable[int]] = ...) -> None: ...

class AutoencoderPath(_message.Message):
    __slots__ = ("layer_index", "path")
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    layer_index: int
    path: str
    def __init__(self, layer_index: _Optional[int] = ..., path: _Optional[str] = ...) -> None: ...

class AutoencoderConfig(_message.Message):
    __slots__ = ("dst", "autoencoder_path_by_layer_index")
    DST_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODER_PATH_BY_LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    dst: _derived_scalar_type_pb2.DerivedScalarType
    autoencoder_path_by_layer_index: _containers.RepeatedCompositeFieldContainer[AutoencoderPath]
    def __init__(self, dst: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., autoencoder_path_by_layer_index: _Optional[_Iterable[_Union[AutoencoderPath, _Mapping]]] = ...) -> None: ...

class MultiAutoencoderContext(_message.Message):
    __slots__ = ("autoencoder_contexts",)
    AUTOENCODER_CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    autoencoder_contexts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, autoencoder_contexts: _Optional[_Iterable[str]] = ...) -> None: ...

class DstConfig(_message.Message):
    __slots__ = ("derive_gradients", "model_name", "inference_engine_type", "layer_indices", "autoencoder_config", "model_context", "autoencoder_context", "multi_autoencoder_context", "trace_config", "node_index_for_attention_write", "device_for_raw_activations", "activation_index_for_fake_grad", "node_index_for_attribution", "detach_layer_norm_scale_for_attribution")
    DERIVE_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_ENGINE_TYPE_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDICES_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODER_CONFIG_FIELD_NUMBER: _ClassVar[int]
    MODEL_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODER_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MULTI_AUTOENCODER_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    TRACE_CONFIG_FIELD_NUMBER: _ClassVar[int]
    NODE_INDEX_FOR_ATTENTION_WRITE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FOR_RAW_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_INDEX_FOR_FAKE_GRAD_FIELD_NUMBER: _ClassVar[int]
    NODE_INDEX_FOR_ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    DETACH_LAYER_NORM_SCALE_FOR_ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    derive_gradients: bool
    model_name: str
    inference_engine_type: _component_pb2.InferenceEngineType
    layer_indices: LayerIndices
    autoencoder_config: AutoencoderConfig
    model_context: str
    autoencoder_context: str
    multi_autoencoder_context: MultiAutoencoderContext
    trace_config: _trace_pb2.TraceConfig
    node_index_for_attention_write: _index_pb2.NodeIndex
    device_for_raw_activations: str
    activation_index_for_fake_grad: _index_pb2.ActivationIndex
    node_index_for_attribution: _index_pb2.NodeIndex
    detach_layer_norm_scale_for_attribution: bool
    def __init__(self, derive_gradients: bool = ..., model_name: _Optional[str] = ..., inference_engine_type: _Optional[_Union[_component_pb2.InferenceEngineType, str]] = ..., layer_indices: _Optional[_Union[LayerIndices, _Mapping]] = ..., autoencoder_config: _Optional[_Union[AutoencoderConfig, _Mapping]] = ..., model_context: _Optional[str] = ..., autoencoder_context: _Optional[str] = ..., multi_autoencoder_context: _Optional[_Union[MultiAutoencoderContext, _Mapping]] = ..., trace_config: _Optional[_Union[_trace_pb2.TraceConfig, _Mapping]] = ..., node_index_for_attention_write: _Optional[_Union[_index_pb2.NodeIndex, _Mapping]] = ..., device_for_raw_activations: _Optional[str] = ..., activation_index_for_fake_grad: _Optional[_Union[_index_pb2.ActivationIndex, _Mapping]] = ..., node_index_for_attribution: _Optional[_Union[_index_pb2.NodeIndex, _Mapping]] = ..., detach_layer_norm_scale_for_attribution: bool = ...) -> None: ...

class TapSum(_message.Message):
    __slots__ = ("at", "direction")
    AT_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    at: _intervention_pb2.TapSelection
    direction: _intervention_pb2.Direction
    def __init__(self, at: _Optional[_Union[_intervention_pb2.TapSelection, _Mapping]] = ..., direction: _Optional[_Union[_intervention_pb2.Direction, _Mapping]] = ...) -> None: ...

class LossFnConfig(_message.Message):
    __slots__ = ("name", "target_tokens", "distractor_tokens", "target_token_ids", "distractor_token_ids", "token_index", "reference_run", "span", "tap")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DISTRACTOR_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DISTRACTOR_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_RUN_FIELD_NUMBER: _ClassVar[int]
    SPAN_FIELD_NUMBER: _ClassVar[int]
    TAP_FIELD_NUMBER: _ClassVar[int]
    name: _component_pb2.LossFnName
    target_tokens: _containers.RepeatedScalarFieldContainer[str]
    distractor_tokens: _containers.RepeatedScalarFieldContainer[str]
    target_token_ids: _containers.RepeatedScalarFieldContainer[int]
    distractor_token_ids: _containers.RepeatedScalarFieldContainer[int]
    token_index: int
    reference_run: str
    span: _intervention_pb2.PositionRange
    tap: TapSum
    def __init__(self, name: _Optional[_Union[_component_pb2.LossFnName, str]] = ..., target_tokens: _Optional[_Iterable[str]] = ..., distractor_tokens: _Optional[_Iterable[str]] = ..., target_token_ids: _Optional[_Iterable[int]] = ..., distractor_token_ids: _Optional[_Iterable[int]] = ..., token_index: _Optional[int] = ..., reference_run: _Optional[str] = ..., span: _Optional[_Union[_intervention_pb2.PositionRange, _Mapping]] = ..., tap: _Optional[_Union[TapSum, _Mapping]] = ...) -> None: ...

class AblationSpec(_message.Message):
    __slots__ = ("index", "value")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    index: _index_pb2.ActivationIndex
    value: float
    def __init__(self, index: _Optional[_Union[_index_pb2.ActivationIndex, _Mapping]] = ..., value: _Optional[float] = ...) -> None: ...
