from dst_grpc._gen.dst.v1 import explain_pb2 as _explain_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GraphFeatureSetting(_message.Message):
    __slots__ = ("nodes", "activation", "factor")
    NODES_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    activation: float
    factor: float
    def __init__(self, nodes: _Optional[_Iterable[str]] = ..., activation: _Optional[float] = ..., factor: _Optional[float] = ...) -> None: ...

class GraphIntervention(_message.Message):
    __slots__ = ("name", "settings", "first_free_layer", "with_features")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FREE_LAYER_FIELD_NUMBER: _ClassVar[int]
    WITH_FEATURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    settings: _containers.RepeatedCompositeFieldContainer[GraphFeatureSetting]
    first_free_layer: int
    with_features: bool
    def __init__(self, name: _Optional[str] = ..., settings: _Optional[_Iterable[_Union[GraphFeatureSetting, _Mapping]]] = ..., first_free_layer: _Optional[int] = ..., with_features: bool = ...) -> None: ...

class GraphInterventions(_message.Message):
    __slots__ = ("interventions",)
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    interventions: _containers.RepeatedCompositeFieldContainer[GraphIntervention]
    def __init__(self, interventions: _Optional[_Iterable[_Union[GraphIntervention, _Mapping]]] = ...) -> None: ...

class GraphVerification(_message.Message):
    __slots__ = ("count", "seed")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    count: int
    seed: int
    def __init__(self, count: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class GraphEdgeHeads(_message.Message):
    __slots__ = ("source", "target")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...

class GraphAttention(_message.Message):
    __slots__ = ("layer", "head", "query", "key", "top_k")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    layer: int
    head: int
    query: int
    key: int
    top_k: int
    def __init__(self, layer: _Optional[int] = ..., head: _Optional[int] = ..., query: _Optional[int] = ..., key: _Optional[int] = ..., top_k: _Optional[int] = ...) -> None: ...

class GraphFeatureTokens(_message.Message):
    __slots__ = ("nodes", "top_k")
    NODES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    top_k: int
    def __init__(self, nodes: _Optional[_Iterable[str]] = ..., top_k: _Optional[int] = ...) -> None: ...

class ProbeGraphRequest(_message.Message):
    __slots__ = ("request_id", "graph", "interventions", "verification", "edge_heads", "attention", "feature_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    EDGE_HEADS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    FEATURE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    graph: str
    interventions: GraphInterventions
    verification: GraphVerification
    edge_heads: GraphEdgeHeads
    attention: GraphAttention
    feature_tokens: GraphFeatureTokens
    def __init__(self, request_id: _Optional[str] = ..., graph: _Optional[str] = ..., interventions: _Optional[_Union[GraphInterventions, _Mapping]] = ..., verification: _Optional[_Union[GraphVerification, _Mapping]] = ..., edge_heads: _Optional[_Union[GraphEdgeHeads, _Mapping]] = ..., attention: _Optional[_Union[GraphAttention, _Mapping]] = ..., feature_tokens: _Optional[_Union[GraphFeatureTokens, _Mapping]] = ...) -> None: ...

class GraphChange(_message.Message):
    __slots__ = ("node", "predicted", "measured")
    NODE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    node: str
    predicted: float
    measured: float
    def __init__(self, node: _Optional[str] = ..., predicted: _Optional[float] = ..., measured: _Optional[float] = ...) -> None: ...

class GraphChanges(_message.Message):
    __slots__ = ("index", "name", "changes")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    index: int
    name: str
    changes: _containers.RepeatedCompositeFieldContainer[GraphChange]
    def __init__(self, index: _Optional[int] = ..., name: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[GraphChange, _Mapping]]] = ...) -> None: ...

class GraphVerifiedFeature(_message.Message):
    __slots__ = ("node", "size", "held_deviation", "free_size", "free_deviation")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    HELD_DEVIATION_FIELD_NUMBER: _ClassVar[int]
    FREE_SIZE_FIELD_NUMBER: _ClassVar[int]
    FREE_DEVIATION_FIELD_NUMBER: _ClassVar[int]
    node: str
    size: float
    held_deviation: float
    free_size: float
    free_deviation: float
    def __init__(self, node: _Optional[str] = ..., size: _Optional[float] = ..., held_deviation: _Optional[float] = ..., free_size: _Optional[float] = ..., free_deviation: _Optional[float] = ...) -> None: ...

class GraphHeadLoading(_message.Message):
    __slots__ = ("layer", "head", "through", "last", "first", "only")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    ONLY_FIELD_NUMBER: _ClassVar[int]
    layer: int
    head: int
    through: float
    last: float
    first: float
    only: float
    def __init__(self, layer: _Optional[int] = ..., head: _Optional[int] = ..., through: _Optional[float] = ..., last: _Optional[float] = ..., first: _Optional[float] = ..., only: _Optional[float] = ...) -> None: ...

class GraphHeadLoadings(_message.Message):
    __slots__ = ("weight", "without_heads", "heads")
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    weight: float
    without_heads: float
    heads: _containers.RepeatedCompositeFieldContainer[GraphHeadLoading]
    def __init__(self, weight: _Optional[float] = ..., without_heads: _Optional[float] = ..., heads: _Optional[_Iterable[_Union[GraphHeadLoading, _Mapping]]] = ...) -> None: ...

class GraphNodePair(_message.Message):
    __slots__ = ("query", "key", "contribution")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    query: str
    key: str
    contribution: float
    def __init__(self, query: _Optional[str] = ..., key: _Optional[str] = ..., contribution: _Optional[float] = ...) -> None: ...

class GraphAttentionScore(_message.Message):
    __slots__ = ("score", "capped_score", "probability", "pairs", "remainder")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    CAPPED_SCORE_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    REMAINDER_FIELD_NUMBER: _ClassVar[int]
    score: float
    capped_score: float
    probability: float
    pairs: _containers.RepeatedCompositeFieldContainer[GraphNodePair]
    remainder: float
    def __init__(self, score: _Optional[float] = ..., capped_score: _Optional[float] = ..., probability: _Optional[float] = ..., pairs: _Optional[_Iterable[_Union[GraphNodePair, _Mapping]]] = ..., remainder: _Optional[float] = ...) -> None: ...

class GraphTokenScore(_message.Message):
    __slots__ = ("token_id", "token", "score")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    token: str
    score: float
    def __init__(self, token_id: _Optional[int] = ..., token: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class GraphScoredFeature(_message.Message):
    __slots__ = ("node", "promoted", "suppressed", "read")
    NODE_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSED_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    node: str
    promoted: _containers.RepeatedCompositeFieldContainer[GraphTokenScore]
    suppressed: _containers.RepeatedCompositeFieldContainer[GraphTokenScore]
    read: _containers.RepeatedCompositeFieldContainer[GraphTokenScore]
    def __init__(self, node: _Optional[str] = ..., promoted: _Optional[_Iterable[_Union[GraphTokenScore, _Mapping]]] = ..., suppressed: _Optional[_Iterable[_Union[GraphTokenScore, _Mapping]]] = ..., read: _Optional[_Iterable[_Union[GraphTokenScore, _Mapping]]] = ...) -> None: ...

class GraphProbeFrame(_message.Message):
    __slots__ = ("changes", "verified", "edge_heads", "attention", "trailer", "scored", "partial")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    EDGE_HEADS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    changes: GraphChanges
    verified: GraphVerifiedFeature
    edge_heads: GraphHeadLoadings
    attention: GraphAttentionScore
    trailer: _explain_pb2.RunsTrailer
    scored: GraphScoredFeature
    partial: bool
    def __init__(self, changes: _Optional[_Union[GraphChanges, _Mapping]] = ..., verified: _Optional[_Union[GraphVerifiedFeature, _Mapping]] = ..., edge_heads: _Optional[_Union[GraphHeadLoadings, _Mapping]] = ..., attention: _Optional[_Union[GraphAttentionScore, _Mapping]] = ..., trailer: _Optional[_Union[_explain_pb2.RunsTrailer, _Mapping]] = ..., scored: _Optional[_Union[GraphScoredFeature, _Mapping]] = ..., partial: bool = ...) -> None: ...

class ProbeGraphResponse(_message.Message):
    __slots__ = ("request_id", "frames")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    frames: _containers.RepeatedCompositeFieldContainer[GraphProbeFrame]
    def __init__(self, request_id: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[GraphProbeFrame, _Mapping]]] = ...) -> None: ...
