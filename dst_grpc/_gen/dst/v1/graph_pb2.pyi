import datetime

from dst_grpc._gen.dst.v1 import explain_pb2 as _explain_pb2
from dst_grpc._gen.dst.v1 import inference_pb2 as _inference_pb2
from dst_grpc._gen.dst.v1 import intervention_pb2 as _intervention_pb2
from dst_grpc._gen.dst.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BeginToken(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BEGIN_TOKEN_UNSPECIFIED: _ClassVar[BeginToken]
    BEGIN_TOKEN_AUTOMATIC: _ClassVar[BeginToken]
    BEGIN_TOKEN_AS_GIVEN: _ClassVar[BeginToken]

class GraphSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRAPH_SOURCE_UNSPECIFIED: _ClassVar[GraphSource]
    GRAPH_SOURCE_FEATURES: _ClassVar[GraphSource]
    GRAPH_SOURCE_NEURONS: _ClassVar[GraphSource]
    GRAPH_SOURCE_HEADS: _ClassVar[GraphSource]
    GRAPH_SOURCE_LATENTS: _ClassVar[GraphSource]

class GraphEdgeSelection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRAPH_EDGE_SELECTION_UNSPECIFIED: _ClassVar[GraphEdgeSelection]
    GRAPH_EDGE_SELECTION_PRUNED: _ClassVar[GraphEdgeSelection]
    GRAPH_EDGE_SELECTION_WHOLE: _ClassVar[GraphEdgeSelection]
    GRAPH_EDGE_SELECTION_NONE: _ClassVar[GraphEdgeSelection]

class GraphPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRAPH_PHASE_UNSPECIFIED: _ClassVar[GraphPhase]
    GRAPH_PHASE_TARGETS: _ClassVar[GraphPhase]
    GRAPH_PHASE_FEATURES: _ClassVar[GraphPhase]
    GRAPH_PHASE_PRUNING: _ClassVar[GraphPhase]
    GRAPH_PHASE_RECORDING: _ClassVar[GraphPhase]

class GraphNodeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRAPH_NODE_KIND_UNSPECIFIED: _ClassVar[GraphNodeKind]
    GRAPH_NODE_KIND_FEATURE: _ClassVar[GraphNodeKind]
    GRAPH_NODE_KIND_ERROR: _ClassVar[GraphNodeKind]
    GRAPH_NODE_KIND_EMBEDDING: _ClassVar[GraphNodeKind]
    GRAPH_NODE_KIND_TARGET: _ClassVar[GraphNodeKind]
    GRAPH_NODE_KIND_NEURON: _ClassVar[GraphNodeKind]
    GRAPH_NODE_KIND_HEAD: _ClassVar[GraphNodeKind]
    GRAPH_NODE_KIND_MLP_LATENT: _ClassVar[GraphNodeKind]
    GRAPH_NODE_KIND_ATTENTION_LATENT: _ClassVar[GraphNodeKind]
    GRAPH_NODE_KIND_RESIDUAL_LATENT: _ClassVar[GraphNodeKind]
    GRAPH_NODE_KIND_ATTENTION_ERROR: _ClassVar[GraphNodeKind]
    GRAPH_NODE_KIND_RESIDUAL_ERROR: _ClassVar[GraphNodeKind]

class GraphEdgeDirection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRAPH_EDGE_DIRECTION_UNSPECIFIED: _ClassVar[GraphEdgeDirection]
    GRAPH_EDGE_DIRECTION_BOTH: _ClassVar[GraphEdgeDirection]
    GRAPH_EDGE_DIRECTION_INPUTS: _ClassVar[GraphEdgeDirection]
    GRAPH_EDGE_DIRECTION_OUTPUTS: _ClassVar[GraphEdgeDirection]
BEGIN_TOKEN_UNSPECIFIED: BeginToken
BEGIN_TOKEN_AUTOMATIC: BeginToken
BEGIN_TOKEN_AS_GIVEN: BeginToken
GRAPH_SOURCE_UNSPECIFIED: GraphSource
GRAPH_SOURCE_FEATURES: GraphSource
GRAPH_SOURCE_NEURONS: GraphSource
GRAPH_SOURCE_HEADS: GraphSource
GRAPH_SOURCE_LATENTS: GraphSource
GRAPH_EDGE_SELECTION_UNSPECIFIED: GraphEdgeSelection
GRAPH_EDGE_SELECTION_PRUNED: GraphEdgeSelection
GRAPH_EDGE_SELECTION_WHOLE: GraphEdgeSelection
GRAPH_EDGE_SELECTION_NONE: GraphEdgeSelection
GRAPH_PHASE_UNSPECIFIED: GraphPhase
GRAPH_PHASE_TARGETS: GraphPhase
GRAPH_PHASE_FEATURES: GraphPhase
GRAPH_PHASE_PRUNING: GraphPhase
GRAPH_PHASE_RECORDING: GraphPhase
GRAPH_NODE_KIND_UNSPECIFIED: GraphNodeKind
GRAPH_NODE_KIND_FEATURE: GraphNodeKind
GRAPH_NODE_KIND_ERROR: GraphNodeKind
GRAPH_NODE_KIND_EMBEDDING: GraphNodeKind
GRAPH_NODE_KIND_TARGET: GraphNodeKind
GRAPH_NODE_KIND_NEURON: GraphNodeKind
GRAPH_NODE_KIND_HEAD: GraphNodeKind
GRAPH_NODE_KIND_MLP_LATENT: GraphNodeKind
GRAPH_NODE_KIND_ATTENTION_LATENT: GraphNodeKind
GRAPH_NODE_KIND_RESIDUAL_LATENT: GraphNodeKind
GRAPH_NODE_KIND_ATTENTION_ERROR: GraphNodeKind
GRAPH_NODE_KIND_RESIDUAL_ERROR: GraphNodeKind
GRAPH_EDGE_DIRECTION_UNSPECIFIED: GraphEdgeDirection
GRAPH_EDGE_DIRECTION_BOTH: GraphEdgeDirection
GRAPH_EDGE_DIRECTION_INPUTS: GraphEdgeDirection
GRAPH_EDGE_DIRECTION_OUTPUTS: GraphEdgeDirection

class GraphTarget(_message.Message):
    __slots__ = ("token", "token_id", "direction", "name", "weight")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    token: str
    token_id: int
    direction: _intervention_pb2.RequestTensor
    name: str
    weight: float
    def __init__(self, token: _Optional[str] = ..., token_id: _Optional[int] = ..., direction: _Optional[_Union[_intervention_pb2.RequestTensor, _Mapping]] = ..., name: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class GraphRequest(_message.Message):
    __slots__ = ("request_id", "model", "prompt", "begin_token", "transcoders", "targets", "max_n_logits", "desired_logit_prob", "max_feature_nodes", "batch_size", "update_interval", "node_threshold", "edge_threshold", "edges", "max_bytes", "keep", "sources", "autoencoders")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    BEGIN_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TRANSCODERS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    MAX_N_LOGITS_FIELD_NUMBER: _ClassVar[int]
    DESIRED_LOGIT_PROB_FIELD_NUMBER: _ClassVar[int]
    MAX_FEATURE_NODES_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    NODE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EDGE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODERS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    prompt: _inference_pb2.Prompt
    begin_token: BeginToken
    transcoders: str
    targets: _containers.RepeatedCompositeFieldContainer[GraphTarget]
    max_n_logits: int
    desired_logit_prob: float
    max_feature_nodes: int
    batch_size: int
    update_interval: int
    node_threshold: float
    edge_threshold: float
    edges: GraphEdgeSelection
    max_bytes: int
    keep: bool
    sources: _containers.RepeatedScalarFieldContainer[GraphSource]
    autoencoders: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt: _Optional[_Union[_inference_pb2.Prompt, _Mapping]] = ..., begin_token: _Optional[_Union[BeginToken, str]] = ..., transcoders: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[GraphTarget, _Mapping]]] = ..., max_n_logits: _Optional[int] = ..., desired_logit_prob: _Optional[float] = ..., max_feature_nodes: _Optional[int] = ..., batch_size: _Optional[int] = ..., update_interval: _Optional[int] = ..., node_threshold: _Optional[float] = ..., edge_threshold: _Optional[float] = ..., edges: _Optional[_Union[GraphEdgeSelection, str]] = ..., max_bytes: _Optional[int] = ..., keep: bool = ..., sources: _Optional[_Iterable[_Union[GraphSource, str]]] = ..., autoencoders: _Optional[_Iterable[str]] = ...) -> None: ...

class GraphTargetInfo(_message.Message):
    __slots__ = ("name", "token_id", "weight")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    name: str
    token_id: int
    weight: float
    def __init__(self, name: _Optional[str] = ..., token_id: _Optional[int] = ..., weight: _Optional[float] = ...) -> None: ...

class GraphHeader(_message.Message):
    __slots__ = ("model", "transcoders", "token_ids", "token_strings", "is_begin_token_added", "zeroed_token_count", "layer_count", "targets", "active_feature_count", "feature_count", "node_count", "byte_count", "sources", "autoencoders")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRANSCODERS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STRINGS_FIELD_NUMBER: _ClassVar[int]
    IS_BEGIN_TOKEN_ADDED_FIELD_NUMBER: _ClassVar[int]
    ZEROED_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    LAYER_COUNT_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FEATURE_COUNT_FIELD_NUMBER: _ClassVar[int]
    FEATURE_COUNT_FIELD_NUMBER: _ClassVar[int]
    NODE_COUNT_FIELD_NUMBER: _ClassVar[int]
    BYTE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODERS_FIELD_NUMBER: _ClassVar[int]
    model: str
    transcoders: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    token_strings: _containers.RepeatedScalarFieldContainer[str]
    is_begin_token_added: bool
    zeroed_token_count: int
    layer_count: int
    targets: _containers.RepeatedCompositeFieldContainer[GraphTargetInfo]
    active_feature_count: int
    feature_count: int
    node_count: int
    byte_count: int
    sources: _containers.RepeatedScalarFieldContainer[GraphSource]
    autoencoders: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., transcoders: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., token_strings: _Optional[_Iterable[str]] = ..., is_begin_token_added: bool = ..., zeroed_token_count: _Optional[int] = ..., layer_count: _Optional[int] = ..., targets: _Optional[_Iterable[_Union[GraphTargetInfo, _Mapping]]] = ..., active_feature_count: _Optional[int] = ..., feature_count: _Optional[int] = ..., node_count: _Optional[int] = ..., byte_count: _Optional[int] = ..., sources: _Optional[_Iterable[_Union[GraphSource, str]]] = ..., autoencoders: _Optional[_Iterable[str]] = ...) -> None: ...

class GraphProgress(_message.Message):
    __slots__ = ("phase", "done", "total")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    phase: GraphPhase
    done: int
    total: int
    def __init__(self, phase: _Optional[_Union[GraphPhase, str]] = ..., done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class GraphNodeTable(_message.Message):
    __slots__ = ("nodes", "kinds", "layers", "tokens", "features", "activations", "names")
    NODES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    nodes: _tensor_pb2.Tensor
    kinds: _tensor_pb2.Tensor
    layers: _tensor_pb2.Tensor
    tokens: _tensor_pb2.Tensor
    features: _tensor_pb2.Tensor
    activations: _tensor_pb2.Tensor
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, nodes: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., kinds: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., layers: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., tokens: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., features: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class GraphNodeScores(_message.Message):
    __slots__ = ("nodes", "cumulative_scores", "input_sums", "kept")
    NODES_FIELD_NUMBER: _ClassVar[int]
    CUMULATIVE_SCORES_FIELD_NUMBER: _ClassVar[int]
    INPUT_SUMS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    nodes: _tensor_pb2.Tensor
    cumulative_scores: _tensor_pb2.Tensor
    input_sums: _tensor_pb2.Tensor
    kept: _tensor_pb2.Tensor
    def __init__(self, nodes: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., cumulative_scores: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., input_sums: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., kept: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class GraphEdges(_message.Message):
    __slots__ = ("targets", "counts", "sources", "weights")
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    targets: _tensor_pb2.Tensor
    counts: _tensor_pb2.Tensor
    sources: _tensor_pb2.Tensor
    weights: _tensor_pb2.Tensor
    def __init__(self, targets: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., counts: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., sources: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., weights: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class GraphSummary(_message.Message):
    __slots__ = ("edge_count", "node_threshold", "edge_threshold", "kept_node_count", "kept_edge_count", "replacement_score", "completeness_score")
    EDGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    NODE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EDGE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    KEPT_NODE_COUNT_FIELD_NUMBER: _ClassVar[int]
    KEPT_EDGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    REPLACEMENT_SCORE_FIELD_NUMBER: _ClassVar[int]
    COMPLETENESS_SCORE_FIELD_NUMBER: _ClassVar[int]
    edge_count: int
    node_threshold: float
    edge_threshold: float
    kept_node_count: int
    kept_edge_count: int
    replacement_score: float
    completeness_score: float
    def __init__(self, edge_count: _Optional[int] = ..., node_threshold: _Optional[float] = ..., edge_threshold: _Optional[float] = ..., kept_node_count: _Optional[int] = ..., kept_edge_count: _Optional[int] = ..., replacement_score: _Optional[float] = ..., completeness_score: _Optional[float] = ...) -> None: ...

class GraphPath(_message.Message):
    __slots__ = ("nodes", "strength")
    NODES_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[int]
    strength: float
    def __init__(self, nodes: _Optional[_Iterable[int]] = ..., strength: _Optional[float] = ...) -> None: ...

class GraphPaths(_message.Message):
    __slots__ = ("paths",)
    PATHS_FIELD_NUMBER: _ClassVar[int]
    paths: _containers.RepeatedCompositeFieldContainer[GraphPath]
    def __init__(self, paths: _Optional[_Iterable[_Union[GraphPath, _Mapping]]] = ...) -> None: ...

class KeptGraph(_message.Message):
    __slots__ = ("handle", "byte_count", "expire_time", "model", "transcoders", "prompt", "node_count", "sources", "autoencoders")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    BYTE_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRANSCODERS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NODE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODERS_FIELD_NUMBER: _ClassVar[int]
    handle: str
    byte_count: int
    expire_time: _timestamp_pb2.Timestamp
    model: str
    transcoders: str
    prompt: str
    node_count: int
    sources: _containers.RepeatedScalarFieldContainer[GraphSource]
    autoencoders: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, handle: _Optional[str] = ..., byte_count: _Optional[int] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., model: _Optional[str] = ..., transcoders: _Optional[str] = ..., prompt: _Optional[str] = ..., node_count: _Optional[int] = ..., sources: _Optional[_Iterable[_Union[GraphSource, str]]] = ..., autoencoders: _Optional[_Iterable[str]] = ...) -> None: ...

class GraphFrame(_message.Message):
    __slots__ = ("header", "progress", "nodes", "scores", "edges", "summary", "paths", "kept", "trailer", "partial")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    header: GraphHeader
    progress: GraphProgress
    nodes: GraphNodeTable
    scores: GraphNodeScores
    edges: GraphEdges
    summary: GraphSummary
    paths: GraphPaths
    kept: KeptGraph
    trailer: _explain_pb2.RunsTrailer
    partial: bool
    def __init__(self, header: _Optional[_Union[GraphHeader, _Mapping]] = ..., progress: _Optional[_Union[GraphProgress, _Mapping]] = ..., nodes: _Optional[_Union[GraphNodeTable, _Mapping]] = ..., scores: _Optional[_Union[GraphNodeScores, _Mapping]] = ..., edges: _Optional[_Union[GraphEdges, _Mapping]] = ..., summary: _Optional[_Union[GraphSummary, _Mapping]] = ..., paths: _Optional[_Union[GraphPaths, _Mapping]] = ..., kept: _Optional[_Union[KeptGraph, _Mapping]] = ..., trailer: _Optional[_Union[_explain_pb2.RunsTrailer, _Mapping]] = ..., partial: bool = ...) -> None: ...

class GraphResponse(_message.Message):
    __slots__ = ("request_id", "frames")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    frames: _containers.RepeatedCompositeFieldContainer[GraphFrame]
    def __init__(self, request_id: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[GraphFrame, _Mapping]]] = ...) -> None: ...

class GraphNeighbours(_message.Message):
    __slots__ = ("node", "direction", "top_k")
    NODE_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    node: str
    direction: GraphEdgeDirection
    top_k: int
    def __init__(self, node: _Optional[str] = ..., direction: _Optional[_Union[GraphEdgeDirection, str]] = ..., top_k: _Optional[int] = ...) -> None: ...

class GraphPathQuery(_message.Message):
    __slots__ = ("source", "target", "top_k")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    top_k: int
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., top_k: _Optional[int] = ...) -> None: ...

class GraphEdgeQuery(_message.Message):
    __slots__ = ("min_weight",)
    MIN_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    min_weight: float
    def __init__(self, min_weight: _Optional[float] = ...) -> None: ...

class GraphPruning(_message.Message):
    __slots__ = ("node_threshold", "edge_threshold")
    NODE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EDGE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    node_threshold: float
    edge_threshold: float
    def __init__(self, node_threshold: _Optional[float] = ..., edge_threshold: _Optional[float] = ...) -> None: ...

class GraphNodeFilter(_message.Message):
    __slots__ = ("layers", "tokens", "kinds")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    kinds: _containers.RepeatedScalarFieldContainer[GraphNodeKind]
    def __init__(self, layers: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ..., kinds: _Optional[_Iterable[_Union[GraphNodeKind, str]]] = ...) -> None: ...

class QueryGraphRequest(_message.Message):
    __slots__ = ("request_id", "graph", "neighbours", "paths", "edges", "pruning", "filter")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    PRUNING_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    graph: str
    neighbours: GraphNeighbours
    paths: GraphPathQuery
    edges: GraphEdgeQuery
    pruning: GraphPruning
    filter: GraphNodeFilter
    def __init__(self, request_id: _Optional[str] = ..., graph: _Optional[str] = ..., neighbours: _Optional[_Union[GraphNeighbours, _Mapping]] = ..., paths: _Optional[_Union[GraphPathQuery, _Mapping]] = ..., edges: _Optional[_Union[GraphEdgeQuery, _Mapping]] = ..., pruning: _Optional[_Union[GraphPruning, _Mapping]] = ..., filter: _Optional[_Union[GraphNodeFilter, _Mapping]] = ...) -> None: ...

class QueryGraphResponse(_message.Message):
    __slots__ = ("request_id", "frames")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    frames: _containers.RepeatedCompositeFieldContainer[GraphFrame]
    def __init__(self, request_id: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[GraphFrame, _Mapping]]] = ...) -> None: ...

class ListGraphsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListGraphsResponse(_message.Message):
    __slots__ = ("graphs", "next_page_token")
    GRAPHS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    graphs: _containers.RepeatedCompositeFieldContainer[KeptGraph]
    next_page_token: str
    def __init__(self, graphs: _Optional[_Iterable[_Union[KeptGraph, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DropGraphRequest(_message.Message):
    __slots__ = ("graph",)
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    graph: str
    def __init__(self, graph: _Optional[str] = ...) -> None: ...

class DropGraphResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
