from dst_grpc._gen.dst.v1 import component_pb2 as _component_pb2
from dst_grpc._gen.dst.v1 import index_pb2 as _index_pb2
from dst_grpc._gen.dst.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PositionList(_message.Message):
    __slots__ = ("positions",)
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, positions: _Optional[_Iterable[int]] = ...) -> None: ...

class PositionRange(_message.Message):
    __slots__ = ("start", "stop")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class AxisSelection(_message.Message):
    __slots__ = ("at", "all", "list", "range")
    AT_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    at: int
    all: _index_pb2.AllPositions
    list: PositionList
    range: PositionRange
    def __init__(self, at: _Optional[int] = ..., all: _Optional[_Union[_index_pb2.AllPositions, _Mapping]] = ..., list: _Optional[_Union[PositionList, _Mapping]] = ..., range: _Optional[_Union[PositionRange, _Mapping]] = ...) -> None: ...

class TapSelection(_message.Message):
    __slots__ = ("activation_location_type", "axes", "layer_index", "pass_type")
    ACTIVATION_LOCATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPE_FIELD_NUMBER: _ClassVar[int]
    activation_location_type: _component_pb2.ActivationLocationType
    axes: _containers.RepeatedCompositeFieldContainer[AxisSelection]
    layer_index: int
    pass_type: _component_pb2.PassType
    def __init__(self, activation_location_type: _Optional[_Union[_component_pb2.ActivationLocationType, str]] = ..., axes: _Optional[_Iterable[_Union[AxisSelection, _Mapping]]] = ..., layer_index: _Optional[int] = ..., pass_type: _Optional[_Union[_component_pb2.PassType, str]] = ...) -> None: ...

class RequestTensor(_message.Message):
    __slots__ = ("tensor", "handle")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    tensor: _tensor_pb2.Tensor
    handle: str
    def __init__(self, tensor: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., handle: _Optional[str] = ...) -> None: ...

class SetValue(_message.Message):
    __slots__ = ("scalar", "tensor")
    SCALAR_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    scalar: float
    tensor: RequestTensor
    def __init__(self, scalar: _Optional[float] = ..., tensor: _Optional[_Union[RequestTensor, _Mapping]] = ...) -> None: ...

class UnembeddingRow(_message.Message):
    __slots__ = ("token", "token_id")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    token: str
    token_id: int
    def __init__(self, token: _Optional[str] = ..., token_id: _Optional[int] = ...) -> None: ...

class EncoderRow(_message.Message):
    __slots__ = ("autoencoder", "latent", "layer_index")
    AUTOENCODER_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    autoencoder: str
    latent: int
    layer_index: int
    def __init__(self, autoencoder: _Optional[str] = ..., latent: _Optional[int] = ..., layer_index: _Optional[int] = ...) -> None: ...

class DecoderRow(_message.Message):
    __slots__ = ("autoencoder", "latent", "layer_index")
    AUTOENCODER_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    autoencoder: str
    latent: int
    layer_index: int
    def __init__(self, autoencoder: _Optional[str] = ..., latent: _Optional[int] = ..., layer_index: _Optional[int] = ...) -> None: ...

class DifferenceOfMeans(_message.Message):
    __slots__ = ("runs", "minus_runs", "token_index")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    MINUS_RUNS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedScalarFieldContainer[str]
    minus_runs: _containers.RepeatedScalarFieldContainer[str]
    token_index: int
    def __init__(self, runs: _Optional[_Iterable[str]] = ..., minus_runs: _Optional[_Iterable[str]] = ..., token_index: _Optional[int] = ...) -> None: ...

class Direction(_message.Message):
    __slots__ = ("vector", "unembedding_row", "encoder_row", "decoder_row", "difference_of_means", "normalize")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    UNEMBEDDING_ROW_FIELD_NUMBER: _ClassVar[int]
    ENCODER_ROW_FIELD_NUMBER: _ClassVar[int]
    DECODER_ROW_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_OF_MEANS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    vector: RequestTensor
    unembedding_row: UnembeddingRow
    encoder_row: EncoderRow
    decoder_row: DecoderRow
    difference_of_means: DifferenceOfMeans
    normalize: bool
    def __init__(self, vector: _Optional[_Union[RequestTensor, _Mapping]] = ..., unembedding_row: _Optional[_Union[UnembeddingRow, _Mapping]] = ..., encoder_row: _Optional[_Union[EncoderRow, _Mapping]] = ..., decoder_row: _Optional[_Union[DecoderRow, _Mapping]] = ..., difference_of_means: _Optional[_Union[DifferenceOfMeans, _Mapping]] = ..., normalize: bool = ...) -> None: ...

class AddVector(_message.Message):
    __slots__ = ("vector", "factor", "direction")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    vector: RequestTensor
    factor: float
    direction: Direction
    def __init__(self, vector: _Optional[_Union[RequestTensor, _Mapping]] = ..., factor: _Optional[float] = ..., direction: _Optional[_Union[Direction, _Mapping]] = ...) -> None: ...

class ScaleValue(_message.Message):
    __slots__ = ("factor",)
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    factor: float
    def __init__(self, factor: _Optional[float] = ...) -> None: ...

class DetachGradient(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CopyFromRun(_message.Message):
    __slots__ = ("run", "subspace")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    run: str
    subspace: RequestTensor
    def __init__(self, run: _Optional[str] = ..., subspace: _Optional[_Union[RequestTensor, _Mapping]] = ...) -> None: ...

class HoldValue(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MeanOverRuns(_message.Message):
    __slots__ = ("runs", "over_positions")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    OVER_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedScalarFieldContainer[str]
    over_positions: bool
    def __init__(self, runs: _Optional[_Iterable[str]] = ..., over_positions: bool = ...) -> None: ...

class ClampValue(_message.Message):
    __slots__ = ("direction", "minimum", "maximum")
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    direction: Direction
    minimum: float
    maximum: float
    def __init__(self, direction: _Optional[_Union[Direction, _Mapping]] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ...) -> None: ...

class ProjectOut(_message.Message):
    __slots__ = ("direction", "factor")
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    direction: Direction
    factor: float
    def __init__(self, direction: _Optional[_Union[Direction, _Mapping]] = ..., factor: _Optional[float] = ...) -> None: ...

class AddNormScaled(_message.Message):
    __slots__ = ("direction", "factor", "cap")
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    CAP_FIELD_NUMBER: _ClassVar[int]
    direction: Direction
    factor: float
    cap: float
    def __init__(self, direction: _Optional[_Union[Direction, _Mapping]] = ..., factor: _Optional[float] = ..., cap: _Optional[float] = ...) -> None: ...

class SwapDirections(_message.Message):
    __slots__ = ("direction", "target")
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    direction: Direction
    target: Direction
    def __init__(self, direction: _Optional[_Union[Direction, _Mapping]] = ..., target: _Optional[_Union[Direction, _Mapping]] = ...) -> None: ...

class Intervention(_message.Message):
    __slots__ = ("at", "set", "add", "scale", "detach", "copy", "hold", "mean", "clamp", "project_out", "add_norm_scaled", "swap")
    AT_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    ADD_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    DETACH_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    CLAMP_FIELD_NUMBER: _ClassVar[int]
    PROJECT_OUT_FIELD_NUMBER: _ClassVar[int]
    ADD_NORM_SCALED_FIELD_NUMBER: _ClassVar[int]
    SWAP_FIELD_NUMBER: _ClassVar[int]
    at: TapSelection
    set: SetValue
    add: AddVector
    scale: ScaleValue
    detach: DetachGradient
    copy: CopyFromRun
    hold: HoldValue
    mean: MeanOverRuns
    clamp: ClampValue
    project_out: ProjectOut
    add_norm_scaled: AddNormScaled
    swap: SwapDirections
    def __init__(self, at: _Optional[_Union[TapSelection, _Mapping]] = ..., set: _Optional[_Union[SetValue, _Mapping]] = ..., add: _Optional[_Union[AddVector, _Mapping]] = ..., scale: _Optional[_Union[ScaleValue, _Mapping]] = ..., detach: _Optional[_Union[DetachGradient, _Mapping]] = ..., copy: _Optional[_Union[CopyFromRun, _Mapping]] = ..., hold: _Optional[_Union[HoldValue, _Mapping]] = ..., mean: _Optional[_Union[MeanOverRuns, _Mapping]] = ..., clamp: _Optional[_Union[ClampValue, _Mapping]] = ..., project_out: _Optional[_Union[ProjectOut, _Mapping]] = ..., add_norm_scaled: _Optional[_Union[AddNormScaled, _Mapping]] = ..., swap: _Optional[_Union[SwapDirections, _Mapping]] = ...) -> None: ...
