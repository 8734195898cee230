from dst_grpc._gen.dst.v1 import attribute_pb2 as _attribute_pb2
from dst_grpc._gen.dst.v1 import config_pb2 as _config_pb2
from dst_grpc._gen.dst.v1 import explain_pb2 as _explain_pb2
from dst_grpc._gen.dst.v1 import inference_pb2 as _inference_pb2
from dst_grpc._gen.dst.v1 import intervention_pb2 as _intervention_pb2
from dst_grpc._gen.dst.v1 import pairs_pb2 as _pairs_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PatchGridKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PATCH_GRID_KIND_UNSPECIFIED: _ClassVar[PatchGridKind]
    PATCH_GRID_KIND_NODES: _ClassVar[PatchGridKind]
    PATCH_GRID_KIND_DIRECT_PATHS: _ClassVar[PatchGridKind]
    PATCH_GRID_KIND_PATHS_THROUGH_MLPS: _ClassVar[PatchGridKind]
    PATCH_GRID_KIND_INTERVENTIONS: _ClassVar[PatchGridKind]
PATCH_GRID_KIND_UNSPECIFIED: PatchGridKind
PATCH_GRID_KIND_NODES: PatchGridKind
PATCH_GRID_KIND_DIRECT_PATHS: PatchGridKind
PATCH_GRID_KIND_PATHS_THROUGH_MLPS: PatchGridKind
PATCH_GRID_KIND_INTERVENTIONS: PatchGridKind

class PatchGrid(_message.Message):
    __slots__ = ("node", "all_positions", "layers", "positions", "entries", "by_group")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ALL_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    BY_GROUP_FIELD_NUMBER: _ClassVar[int]
    node: _attribute_pb2.AttributedNode
    all_positions: bool
    layers: _containers.RepeatedScalarFieldContainer[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    entries: _containers.RepeatedScalarFieldContainer[int]
    by_group: bool
    def __init__(self, node: _Optional[_Union[_attribute_pb2.AttributedNode, str]] = ..., all_positions: bool = ..., layers: _Optional[_Iterable[int]] = ..., positions: _Optional[_Iterable[int]] = ..., entries: _Optional[_Iterable[int]] = ..., by_group: bool = ...) -> None: ...

class PathGrid(_message.Message):
    __slots__ = ("senders", "receivers", "through_mlps", "together")
    SENDERS_FIELD_NUMBER: _ClassVar[int]
    RECEIVERS_FIELD_NUMBER: _ClassVar[int]
    THROUGH_MLPS_FIELD_NUMBER: _ClassVar[int]
    TOGETHER_FIELD_NUMBER: _ClassVar[int]
    senders: _containers.RepeatedScalarFieldContainer[str]
    receivers: _containers.RepeatedScalarFieldContainer[str]
    through_mlps: bool
    together: bool
    def __init__(self, senders: _Optional[_Iterable[str]] = ..., receivers: _Optional[_Iterable[str]] = ..., through_mlps: bool = ..., together: bool = ...) -> None: ...

class EdgeList(_message.Message):
    __slots__ = ("edges",)
    EDGES_FIELD_NUMBER: _ClassVar[int]
    edges: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, edges: _Optional[_Iterable[str]] = ...) -> None: ...

class PatchCell(_message.Message):
    __slots__ = ("interventions", "name")
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.Intervention]
    name: str
    def __init__(self, interventions: _Optional[_Iterable[_Union[_intervention_pb2.Intervention, _Mapping]]] = ..., name: _Optional[str] = ...) -> None: ...

class PatchRequest(_message.Message):
    __slots__ = ("request_id", "model", "pairs", "loss_fn_config", "autoencoders", "orientation", "alternative", "reference", "grids", "paths", "edges", "cells", "divergence", "top_logits", "all_logits")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODERS_FIELD_NUMBER: _ClassVar[int]
    ORIENTATION_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    GRIDS_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    DIVERGENCE_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGITS_FIELD_NUMBER: _ClassVar[int]
    ALL_LOGITS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    pairs: _containers.RepeatedCompositeFieldContainer[_pairs_pb2.PromptPair]
    loss_fn_config: _config_pb2.LossFnConfig
    autoencoders: _containers.RepeatedScalarFieldContainer[str]
    orientation: _pairs_pb2.Orientation
    alternative: _pairs_pb2.Alternative
    reference: _containers.RepeatedCompositeFieldContainer[_inference_pb2.Prompt]
    grids: _containers.RepeatedCompositeFieldContainer[PatchGrid]
    paths: _containers.RepeatedCompositeFieldContainer[PathGrid]
    edges: EdgeList
    cells: _containers.RepeatedCompositeFieldContainer[PatchCell]
    divergence: bool
    top_logits: int
    all_logits: bool
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., pairs: _Optional[_Iterable[_Union[_pairs_pb2.PromptPair, _Mapping]]] = ..., loss_fn_config: _Optional[_Union[_config_pb2.LossFnConfig, _Mapping]] = ..., autoencoders: _Optional[_Iterable[str]] = ..., orientation: _Optional[_Union[_pairs_pb2.Orientation, str]] = ..., alternative: _Optional[_Union[_pairs_pb2.Alternative, str]] = ..., reference: _Optional[_Iterable[_Union[_inference_pb2.Prompt, _Mapping]]] = ..., grids: _Optional[_Iterable[_Union[PatchGrid, _Mapping]]] = ..., paths: _Optional[_Iterable[_Union[PathGrid, _Mapping]]] = ..., edges: _Optional[_Union[EdgeList, _Mapping]] = ..., cells: _Optional[_Iterable[_Union[PatchCell, _Mapping]]] = ..., divergence: bool = ..., top_logits: _Optional[int] = ..., all_logits: bool = ...) -> None: ...

class PatchAxis(_message.Message):
    __slots__ = ("name", "labels", "indices")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    name: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    indices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., indices: _Optional[_Iterable[int]] = ...) -> None: ...

class PatchGridInfo(_message.Message):
    __slots__ = ("kind", "node", "all_positions", "axes", "cell_count")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    ALL_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    CELL_COUNT_FIELD_NUMBER: _ClassVar[int]
    kind: PatchGridKind
    node: _attribute_pb2.AttributedNode
    all_positions: bool
    axes: _containers.RepeatedCompositeFieldContainer[PatchAxis]
    cell_count: int
    def __init__(self, kind: _Optional[_Union[PatchGridKind, str]] = ..., node: _Optional[_Union[_attribute_pb2.AttributedNode, str]] = ..., all_positions: bool = ..., axes: _Optional[_Iterable[_Union[PatchAxis, _Mapping]]] = ..., cell_count: _Optional[int] = ...) -> None: ...

class PatchHeader(_message.Message):
    __slots__ = ("model", "orientation", "alternative", "pair_count", "grids")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ORIENTATION_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_FIELD_NUMBER: _ClassVar[int]
    PAIR_COUNT_FIELD_NUMBER: _ClassVar[int]
    GRIDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    orientation: _pairs_pb2.Orientation
    alternative: _pairs_pb2.Alternative
    pair_count: int
    grids: _containers.RepeatedCompositeFieldContainer[PatchGridInfo]
    def __init__(self, model: _Optional[str] = ..., orientation: _Optional[_Union[_pairs_pb2.Orientation, str]] = ..., alternative: _Optional[_Union[_pairs_pb2.Alternative, str]] = ..., pair_count: _Optional[int] = ..., grids: _Optional[_Iterable[_Union[PatchGridInfo, _Mapping]]] = ...) -> None: ...

class PatchedPair(_message.Message):
    __slots__ = ("pair", "token_strings", "metric", "source_metric", "has_recovery")
    PAIR_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STRINGS_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    SOURCE_METRIC_FIELD_NUMBER: _ClassVar[int]
    HAS_RECOVERY_FIELD_NUMBER: _ClassVar[int]
    pair: int
    token_strings: _containers.RepeatedScalarFieldContainer[str]
    metric: float
    source_metric: float
    has_recovery: bool
    def __init__(self, pair: _Optional[int] = ..., token_strings: _Optional[_Iterable[str]] = ..., metric: _Optional[float] = ..., source_metric: _Optional[float] = ..., has_recovery: bool = ...) -> None: ...

class PatchedCells(_message.Message):
    __slots__ = ("grid", "pair", "cells", "metrics", "divergences", "logit_ids", "logits")
    GRID_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    DIVERGENCES_FIELD_NUMBER: _ClassVar[int]
    LOGIT_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    grid: int
    pair: int
    cells: _containers.RepeatedScalarFieldContainer[int]
    metrics: _containers.RepeatedScalarFieldContainer[float]
    divergences: _containers.RepeatedScalarFieldContainer[float]
    logit_ids: _containers.RepeatedScalarFieldContainer[int]
    logits: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, grid: _Optional[int] = ..., pair: _Optional[int] = ..., cells: _Optional[_Iterable[int]] = ..., metrics: _Optional[_Iterable[float]] = ..., divergences: _Optional[_Iterable[float]] = ..., logit_ids: _Optional[_Iterable[int]] = ..., logits: _Optional[_Iterable[float]] = ...) -> None: ...

class PatchMeans(_message.Message):
    __slots__ = ("grid", "cells", "metrics", "recoveries", "divergences", "recovery_pair_count")
    GRID_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    RECOVERIES_FIELD_NUMBER: _ClassVar[int]
    DIVERGENCES_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_PAIR_COUNT_FIELD_NUMBER: _ClassVar[int]
    grid: int
    cells: _containers.RepeatedScalarFieldContainer[int]
    metrics: _containers.RepeatedScalarFieldContainer[float]
    recoveries: _containers.RepeatedScalarFieldContainer[float]
    divergences: _containers.RepeatedScalarFieldContainer[float]
    recovery_pair_count: int
    def __init__(self, grid: _Optional[int] = ..., cells: _Optional[_Iterable[int]] = ..., metrics: _Optional[_Iterable[float]] = ..., recoveries: _Optional[_Iterable[float]] = ..., divergences: _Optional[_Iterable[float]] = ..., recovery_pair_count: _Optional[int] = ...) -> None: ...

class PatchFrame(_message.Message):
    __slots__ = ("header", "pair", "cells", "means", "trailer", "partial")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    MEANS_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    header: PatchHeader
    pair: PatchedPair
    cells: PatchedCells
    means: PatchMeans
    trailer: _explain_pb2.RunsTrailer
    partial: bool
    def __init__(self, header: _Optional[_Union[PatchHeader, _Mapping]] = ..., pair: _Optional[_Union[PatchedPair, _Mapping]] = ..., cells: _Optional[_Union[PatchedCells, _Mapping]] = ..., means: _Optional[_Union[PatchMeans, _Mapping]] = ..., trailer: _Optional[_Union[_explain_pb2.RunsTrailer, _Mapping]] = ..., partial: bool = ...) -> None: ...

class PatchResponse(_message.Message):
    __slots__ = ("request_id", "frames")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    frames: _containers.RepeatedCompositeFieldContainer[PatchFrame]
    def __init__(self, request_id: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[PatchFrame, _Mapping]]] = ...) -> None: ...
