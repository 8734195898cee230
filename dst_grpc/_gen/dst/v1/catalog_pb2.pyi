from dst_grpc._gen.dst.v1 import component_pb2 as _component_pb2
from dst_grpc._gen.dst.v1 import context_pb2 as _context_pb2
from dst_grpc._gen.dst.v1 import derived_scalar_type_pb2 as _derived_scalar_type_pb2
from dst_grpc._gen.dst.v1 import tensor_pb2 as _tensor_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NormKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NORM_KIND_UNSPECIFIED: _ClassVar[NormKind]
    NORM_KIND_LAYER_NORM: _ClassVar[NormKind]
    NORM_KIND_RMS_NORM: _ClassVar[NormKind]

class PositionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POSITION_KIND_UNSPECIFIED: _ClassVar[PositionKind]
    POSITION_KIND_LEARNED: _ClassVar[PositionKind]
    POSITION_KIND_ROTARY: _ClassVar[PositionKind]

class ActivationFunction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTIVATION_FUNCTION_UNSPECIFIED: _ClassVar[ActivationFunction]
    ACTIVATION_FUNCTION_GELU_TANH: _ClassVar[ActivationFunction]
    ACTIVATION_FUNCTION_GELU: _ClassVar[ActivationFunction]
    ACTIVATION_FUNCTION_SILU: _ClassVar[ActivationFunction]
    ACTIVATION_FUNCTION_RELU: _ClassVar[ActivationFunction]

class AutoencoderActivation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUTOENCODER_ACTIVATION_UNSPECIFIED: _ClassVar[AutoencoderActivation]
    AUTOENCODER_ACTIVATION_RELU: _ClassVar[AutoencoderActivation]
    AUTOENCODER_ACTIVATION_TOP_K: _ClassVar[AutoencoderActivation]
    AUTOENCODER_ACTIVATION_JUMP_RELU: _ClassVar[AutoencoderActivation]
    AUTOENCODER_ACTIVATION_IDENTITY: _ClassVar[AutoencoderActivation]

class InputNormalization(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INPUT_NORMALIZATION_UNSPECIFIED: _ClassVar[InputNormalization]
    INPUT_NORMALIZATION_NONE: _ClassVar[InputNormalization]
    INPUT_NORMALIZATION_CENTRED: _ClassVar[InputNormalization]
    INPUT_NORMALIZATION_LAYER_NORM: _ClassVar[InputNormalization]
    INPUT_NORMALIZATION_CONSTANT_NORM: _ClassVar[InputNormalization]

class ModelNorm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_NORM_UNSPECIFIED: _ClassVar[ModelNorm]
    MODEL_NORM_NONE: _ClassVar[ModelNorm]
    MODEL_NORM_MLP_NORM: _ClassVar[ModelNorm]
    MODEL_NORM_MLP_NORM_WITHOUT_GAIN: _ClassVar[ModelNorm]
NORM_KIND_UNSPECIFIED: NormKind
NORM_KIND_LAYER_NORM: NormKind
NORM_KIND_RMS_NORM: NormKind
POSITION_KIND_UNSPECIFIED: PositionKind
POSITION_KIND_LEARNED: PositionKind
POSITION_KIND_ROTARY: PositionKind
ACTIVATION_FUNCTION_UNSPECIFIED: ActivationFunction
ACTIVATION_FUNCTION_GELU_TANH: ActivationFunction
ACTIVATION_FUNCTION_GELU: ActivationFunction
ACTIVATION_FUNCTION_SILU: ActivationFunction
ACTIVATION_FUNCTION_RELU: ActivationFunction
AUTOENCODER_ACTIVATION_UNSPECIFIED: AutoencoderActivation
AUTOENCODER_ACTIVATION_RELU: AutoencoderActivation
AUTOENCODER_ACTIVATION_TOP_K: AutoencoderActivation
AUTOENCODER_ACTIVATION_JUMP_RELU: AutoencoderActivation
AUTOENCODER_ACTIVATION_IDENTITY: AutoencoderActivation
INPUT_NORMALIZATION_UNSPECIFIED: InputNormalization
INPUT_NORMALIZATION_NONE: InputNormalization
INPUT_NORMALIZATION_CENTRED: InputNormalization
INPUT_NORMALIZATION_LAYER_NORM: InputNormalization
INPUT_NORMALIZATION_CONSTANT_NORM: InputNormalization
MODEL_NORM_UNSPECIFIED: ModelNorm
MODEL_NORM_NONE: ModelNorm
MODEL_NORM_MLP_NORM: ModelNorm
MODEL_NORM_MLP_NORM_WITHOUT_GAIN: ModelNorm

class ModelDimensions(_message.Message):
    __slots__ = ("n_layers", "d_model", "n_heads", "n_key_value_heads", "d_head", "d_mlp", "vocab_size", "context_window")
    N_LAYERS_FIELD_NUMBER: _ClassVar[int]
    D_MODEL_FIELD_NUMBER: _ClassVar[int]
    N_HEADS_FIELD_NUMBER: _ClassVar[int]
    N_KEY_VALUE_HEADS_FIELD_NUMBER: _ClassVar[int]
    D_HEAD_FIELD_NUMBER: _ClassVar[int]
    D_MLP_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_WINDOW_FIELD_NUMBER: _ClassVar[int]
    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    vocab_size: int
    context_window: int
    def __init__(self, n_layers: _Optional[int] = ..., d_model: _Optional[int] = ..., n_heads: _Optional[int] = ..., n_key_value_heads: _Optional[int] = ..., d_head: _Optional[int] = ..., d_mlp: _Optional[int] = ..., vocab_size: _Optional[int] = ..., context_window: _Optional[int] = ...) -> None: ...

class Architecture(_message.Message):
    __slots__ = ("norm", "positions", "layers_without_positions", "activation", "gated", "parallel", "post_norms", "qk_norm", "attn_softcap", "final_softcap", "sliding_windows")
    NORM_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_WITHOUT_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    GATED_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_FIELD_NUMBER: _ClassVar[int]
    POST_NORMS_FIELD_NUMBER: _ClassVar[int]
    QK_NORM_FIELD_NUMBER: _ClassVar[int]
    ATTN_SOFTCAP_FIELD_NUMBER: _ClassVar[int]
    FINAL_SOFTCAP_FIELD_NUMBER: _ClassVar[int]
    SLIDING_WINDOWS_FIELD_NUMBER: _ClassVar[int]
    norm: NormKind
    positions: PositionKind
    layers_without_positions: _containers.RepeatedScalarFieldContainer[int]
    activation: ActivationFunction
    gated: bool
    parallel: bool
    post_norms: bool
    qk_norm: bool
    attn_softcap: float
    final_softcap: float
    sliding_windows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, norm: _Optional[_Union[NormKind, str]] = ..., positions: _Optional[_Union[PositionKind, str]] = ..., layers_without_positions: _Optional[_Iterable[int]] = ..., activation: _Optional[_Union[ActivationFunction, str]] = ..., gated: bool = ..., parallel: bool = ..., post_norms: bool = ..., qk_norm: bool = ..., attn_softcap: _Optional[float] = ..., final_softcap: _Optional[float] = ..., sliding_windows: _Optional[_Iterable[int]] = ...) -> None: ...

class UnsupportedType(_message.Message):
    __slots__ = ("dst", "reason")
    DST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    dst: _derived_scalar_type_pb2.DerivedScalarType
    reason: str
    def __init__(self, dst: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "handle", "family", "dimensions", "element_type", "device", "digest", "parameter_bytes", "source", "default_model", "state", "autoencoders", "architecture", "unsupported", "revision", "error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_BYTES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODERS_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    UNSUPPORTED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    handle: str
    family: str
    dimensions: ModelDimensions
    element_type: _tensor_pb2.TensorElementType
    device: str
    digest: str
    parameter_bytes: int
    source: str
    default_model: bool
    state: _context_pb2.ContextState
    autoencoders: _containers.RepeatedScalarFieldContainer[str]
    architecture: Architecture
    unsupported: _containers.RepeatedCompositeFieldContainer[UnsupportedType]
    revision: str
    error: _status_pb2.Status
    def __init__(self, name: _Optional[str] = ..., handle: _Optional[str] = ..., family: _Optional[str] = ..., dimensions: _Optional[_Union[ModelDimensions, _Mapping]] = ..., element_type: _Optional[_Union[_tensor_pb2.TensorElementType, str]] = ..., device: _Optional[str] = ..., digest: _Optional[str] = ..., parameter_bytes: _Optional[int] = ..., source: _Optional[str] = ..., default_model: bool = ..., state: _Optional[_Union[_context_pb2.ContextState, str]] = ..., autoencoders: _Optional[_Iterable[str]] = ..., architecture: _Optional[_Union[Architecture, _Mapping]] = ..., unsupported: _Optional[_Iterable[_Union[UnsupportedType, _Mapping]]] = ..., revision: _Optional[str] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class LayerCheck(_message.Message):
    __slots__ = ("layer_index", "l0", "fraction_of_variance_unexplained", "dead_latents", "orientation", "reading")
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    L0_FIELD_NUMBER: _ClassVar[int]
    FRACTION_OF_VARIANCE_UNEXPLAINED_FIELD_NUMBER: _ClassVar[int]
    DEAD_LATENTS_FIELD_NUMBER: _ClassVar[int]
    ORIENTATION_FIELD_NUMBER: _ClassVar[int]
    READING_FIELD_NUMBER: _ClassVar[int]
    layer_index: int
    l0: float
    fraction_of_variance_unexplained: float
    dead_latents: int
    orientation: float
    reading: str
    def __init__(self, layer_index: _Optional[int] = ..., l0: _Optional[float] = ..., fraction_of_variance_unexplained: _Optional[float] = ..., dead_latents: _Optional[int] = ..., orientation: _Optional[float] = ..., reading: _Optional[str] = ...) -> None: ...

class AutoencoderInfo(_message.Message):
    __slots__ = ("name", "handle", "model", "dst", "node_type", "layer_indices", "n_latents", "activations", "spliceable", "parameter_bytes", "digest", "state", "declared", "measured", "formats", "output", "normalizations", "input_norms", "folded", "source", "revision", "error", "makes_graphs", "cross_layer", "file_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DST_FIELD_NUMBER: _ClassVar[int]
    NODE_TYPE_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDICES_FIELD_NUMBER: _ClassVar[int]
    N_LATENTS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    SPLICEABLE_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DECLARED_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATIONS_FIELD_NUMBER: _ClassVar[int]
    INPUT_NORMS_FIELD_NUMBER: _ClassVar[int]
    FOLDED_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MAKES_GRAPHS_FIELD_NUMBER: _ClassVar[int]
    CROSS_LAYER_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    handle: str
    model: str
    dst: _derived_scalar_type_pb2.DerivedScalarType
    node_type: _component_pb2.NodeType
    layer_indices: _containers.RepeatedScalarFieldContainer[int]
    n_latents: int
    activations: _containers.RepeatedScalarFieldContainer[AutoencoderActivation]
    spliceable: bool
    parameter_bytes: int
    digest: str
    state: _context_pb2.ContextState
    declared: _containers.RepeatedCompositeFieldContainer[LayerCheck]
    measured: _containers.RepeatedCompositeFieldContainer[LayerCheck]
    formats: _containers.RepeatedScalarFieldContainer[str]
    output: _derived_scalar_type_pb2.DerivedScalarType
    normalizations: _containers.RepeatedScalarFieldContainer[InputNormalization]
    input_norms: _containers.RepeatedScalarFieldContainer[ModelNorm]
    folded: _containers.RepeatedScalarFieldContainer[str]
    source: str
    revision: str
    error: _status_pb2.Status
    makes_graphs: bool
    cross_layer: bool
    file_bytes: int
    def __init__(self, name: _Optional[str] = ..., handle: _Optional[str] = ..., model: _Optional[str] = ..., dst: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., node_type: _Optional[_Union[_component_pb2.NodeType, str]] = ..., layer_indices: _Optional[_Iterable[int]] = ..., n_latents: _Optional[int] = ..., activations: _Optional[_Iterable[_Union[AutoencoderActivation, str]]] = ..., spliceable: bool = ..., parameter_bytes: _Optional[int] = ..., digest: _Optional[str] = ..., state: _Optional[_Union[_context_pb2.ContextState, str]] = ..., declared: _Optional[_Iterable[_Union[LayerCheck, _Mapping]]] = ..., measured: _Optional[_Iterable[_Union[LayerCheck, _Mapping]]] = ..., formats: _Optional[_Iterable[str]] = ..., output: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., normalizations: _Optional[_Iterable[_Union[InputNormalization, str]]] = ..., input_norms: _Optional[_Iterable[_Union[ModelNorm, str]]] = ..., folded: _Optional[_Iterable[str]] = ..., source: _Optional[str] = ..., revision: _Optional[str] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., makes_graphs: bool = ..., cross_layer: bool = ..., file_bytes: _Optional[int] = ...) -> None: ...

class DerivedScalarTypeInfo(_message.Message):
    __slots__ = ("dst", "name", "dimensions", "flattened", "node_type", "once_per_model", "requires_grad_for_forward_pass", "accepts_derive_gradients", "yields_backward", "needs_autoencoder", "needs_fields", "formula", "note")
    DST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    FLATTENED_FIELD_NUMBER: _ClassVar[int]
    NODE_TYPE_FIELD_NUMBER: _ClassVar[int]
    ONCE_PER_MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUIRES_GRAD_FOR_FORWARD_PASS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_DERIVE_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    YIELDS_BACKWARD_FIELD_NUMBER: _ClassVar[int]
    NEEDS_AUTOENCODER_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FIELDS_FIELD_NUMBER: _ClassVar[int]
    FORMULA_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    dst: _derived_scalar_type_pb2.DerivedScalarType
    name: str
    dimensions: _containers.RepeatedScalarFieldContainer[_component_pb2.Dimension]
    flattened: bool
    node_type: _component_pb2.NodeType
    once_per_model: bool
    requires_grad_for_forward_pass: bool
    accepts_derive_gradients: bool
    yields_backward: bool
    needs_autoencoder: _component_pb2.NodeType
    needs_fields: _containers.RepeatedScalarFieldContainer[str]
    formula: str
    note: str
    def __init__(self, dst: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., name: _Optional[str] = ..., dimensions: _Optional[_Iterable[_Union[_component_pb2.Dimension, str]]] = ..., flattened: bool = ..., node_type: _Optional[_Union[_component_pb2.NodeType, str]] = ..., once_per_model: bool = ..., requires_grad_for_forward_pass: bool = ..., accepts_derive_gradients: bool = ..., yields_backward: bool = ..., needs_autoencoder: _Optional[_Union[_component_pb2.NodeType, str]] = ..., needs_fields: _Optional[_Iterable[str]] = ..., formula: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...
