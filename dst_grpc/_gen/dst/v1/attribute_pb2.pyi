from dst_grpc._gen.dst.v1 import config_pb2 as _config_pb2
from dst_grpc._gen.dst.v1 import explain_pb2 as _explain_pb2
from dst_grpc._gen.dst.v1 import pairs_pb2 as _pairs_pb2
from dst_grpc._gen.dst.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttributionMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTRIBUTION_METHOD_UNSPECIFIED: _ClassVar[AttributionMethod]
    ATTRIBUTION_METHOD_ATTRIBUTION_PATCHING: _ClassVar[AttributionMethod]
    ATTRIBUTION_METHOD_CLEAN_CORRUPT: _ClassVar[AttributionMethod]
    ATTRIBUTION_METHOD_INTEGRATED_INPUTS: _ClassVar[AttributionMethod]
    ATTRIBUTION_METHOD_INTEGRATED_ACTIVATIONS: _ClassVar[AttributionMethod]
    ATTRIBUTION_METHOD_INTEGRATED_GRADIENTS: _ClassVar[AttributionMethod]

class PathRule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PATH_RULE_UNSPECIFIED: _ClassVar[PathRule]
    PATH_RULE_LEFT: _ClassVar[PathRule]
    PATH_RULE_RIGHT: _ClassVar[PathRule]
    PATH_RULE_MIDDLE: _ClassVar[PathRule]
    PATH_RULE_TRAPEZOID: _ClassVar[PathRule]
    PATH_RULE_GAUSS_LEGENDRE: _ClassVar[PathRule]

class PropagationRule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROPAGATION_RULE_UNSPECIFIED: _ClassVar[PropagationRule]
    PROPAGATION_RULE_PLAIN: _ClassVar[PropagationRule]
    PROPAGATION_RULE_FROZEN_PATTERNS: _ClassVar[PropagationRule]
    PROPAGATION_RULE_FROZEN_NORMS: _ClassVar[PropagationRule]
    PROPAGATION_RULE_FROZEN: _ClassVar[PropagationRule]
    PROPAGATION_RULE_RELP: _ClassVar[PropagationRule]
    PROPAGATION_RULE_RELP_FROZEN_PATTERNS: _ClassVar[PropagationRule]
    PROPAGATION_RULE_GIM: _ClassVar[PropagationRule]

class PostNormJacobian(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POST_NORM_JACOBIAN_UNSPECIFIED: _ClassVar[PostNormJacobian]
    POST_NORM_JACOBIAN_EXACT: _ClassVar[PostNormJacobian]
    POST_NORM_JACOBIAN_FROZEN: _ClassVar[PostNormJacobian]
    POST_NORM_JACOBIAN_RAW: _ClassVar[PostNormJacobian]

class PathGroups(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PATH_GROUPS_UNSPECIFIED: _ClassVar[PathGroups]
    PATH_GROUPS_OWN_LAYER: _ClassVar[PathGroups]
    PATH_GROUPS_EVERY_LAYER: _ClassVar[PathGroups]

class Baseline(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BASELINE_UNSPECIFIED: _ClassVar[Baseline]
    BASELINE_CORRUPT: _ClassVar[Baseline]
    BASELINE_ZERO: _ClassVar[Baseline]
    BASELINE_MEAN: _ClassVar[Baseline]

class AttributedNode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTRIBUTED_NODE_UNSPECIFIED: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_INPUT: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_RESID_PRE: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_RESID_MID: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_RESID_POST: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_ATTN_OUT: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_MLP_OUT: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_HEAD: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_QUERY: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_KEY: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_VALUE: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_PATTERN: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_NEURON: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_LATENT: _ClassVar[AttributedNode]
    ATTRIBUTED_NODE_LATENT_ERROR: _ClassVar[AttributedNode]

class ScoredKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORED_KIND_UNSPECIFIED: _ClassVar[ScoredKind]
    SCORED_KIND_NODES: _ClassVar[ScoredKind]
    SCORED_KIND_EDGES: _ClassVar[ScoredKind]
    SCORED_KIND_TOKENS: _ClassVar[ScoredKind]
ATTRIBUTION_METHOD_UNSPECIFIED: AttributionMethod
ATTRIBUTION_METHOD_ATTRIBUTION_PATCHING: AttributionMethod
ATTRIBUTION_METHOD_CLEAN_CORRUPT: AttributionMethod
ATTRIBUTION_METHOD_INTEGRATED_INPUTS: AttributionMethod
ATTRIBUTION_METHOD_INTEGRATED_ACTIVATIONS: AttributionMethod
ATTRIBUTION_METHOD_INTEGRATED_GRADIENTS: AttributionMethod
PATH_RULE_UNSPECIFIED: PathRule
PATH_RULE_LEFT: PathRule
PATH_RULE_RIGHT: PathRule
PATH_RULE_MIDDLE: PathRule
PATH_RULE_TRAPEZOID: PathRule
PATH_RULE_GAUSS_LEGENDRE: PathRule
PROPAGATION_RULE_UNSPECIFIED: PropagationRule
PROPAGATION_RULE_PLAIN: PropagationRule
PROPAGATION_RULE_FROZEN_PATTERNS: PropagationRule
PROPAGATION_RULE_FROZEN_NORMS: PropagationRule
PROPAGATION_RULE_FROZEN: PropagationRule
PROPAGATION_RULE_RELP: PropagationRule
PROPAGATION_RULE_RELP_FROZEN_PATTERNS: PropagationRule
PROPAGATION_RULE_GIM: PropagationRule
POST_NORM_JACOBIAN_UNSPECIFIED: PostNormJacobian
POST_NORM_JACOBIAN_EXACT: PostNormJacobian
POST_NORM_JACOBIAN_FROZEN: PostNormJacobian
POST_NORM_JACOBIAN_RAW: PostNormJacobian
PATH_GROUPS_UNSPECIFIED: PathGroups
PATH_GROUPS_OWN_LAYER: PathGroups
PATH_GROUPS_EVERY_LAYER: PathGroups
BASELINE_UNSPECIFIED: Baseline
BASELINE_CORRUPT: Baseline
BASELINE_ZERO: Baseline
BASELINE_MEAN: Baseline
ATTRIBUTED_NODE_UNSPECIFIED: AttributedNode
ATTRIBUTED_NODE_INPUT: AttributedNode
ATTRIBUTED_NODE_RESID_PRE: AttributedNode
ATTRIBUTED_NODE_RESID_MID: AttributedNode
ATTRIBUTED_NODE_RESID_POST: AttributedNode
ATTRIBUTED_NODE_ATTN_OUT: AttributedNode
ATTRIBUTED_NODE_MLP_OUT: AttributedNode
ATTRIBUTED_NODE_HEAD: AttributedNode
ATTRIBUTED_NODE_QUERY: AttributedNode
ATTRIBUTED_NODE_KEY: AttributedNode
ATTRIBUTED_NODE_VALUE: AttributedNode
ATTRIBUTED_NODE_PATTERN: AttributedNode
ATTRIBUTED_NODE_NEURON: AttributedNode
ATTRIBUTED_NODE_LATENT: AttributedNode
ATTRIBUTED_NODE_LATENT_ERROR: AttributedNode
SCORED_KIND_UNSPECIFIED: ScoredKind
SCORED_KIND_NODES: ScoredKind
SCORED_KIND_EDGES: ScoredKind
SCORED_KIND_TOKENS: ScoredKind

class AttributeRequest(_message.Message):
    __slots__ = ("request_id", "model", "pairs", "loss_fn_config", "autoencoders", "orientation", "method", "nodes", "edges", "by_position", "rule", "path_rule", "steps", "path_groups", "baseline", "by_channel", "post_norms", "qk_fix", "grad_drop", "magnitudes", "verify")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODERS_FIELD_NUMBER: _ClassVar[int]
    ORIENTATION_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    BY_POSITION_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    PATH_RULE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PATH_GROUPS_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    BY_CHANNEL_FIELD_NUMBER: _ClassVar[int]
    POST_NORMS_FIELD_NUMBER: _ClassVar[int]
    QK_FIX_FIELD_NUMBER: _ClassVar[int]
    GRAD_DROP_FIELD_NUMBER: _ClassVar[int]
    MAGNITUDES_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    pairs: _containers.RepeatedCompositeFieldContainer[_pairs_pb2.PromptPair]
    loss_fn_config: _config_pb2.LossFnConfig
    autoencoders: _containers.RepeatedScalarFieldContainer[str]
    orientation: _pairs_pb2.Orientation
    method: AttributionMethod
    nodes: _containers.RepeatedScalarFieldContainer[AttributedNode]
    edges: bool
    by_position: bool
    rule: PropagationRule
    path_rule: PathRule
    steps: int
    path_groups: PathGroups
    baseline: Baseline
    by_channel: bool
    post_norms: PostNormJacobian
    qk_fix: bool
    grad_drop: bool
    magnitudes: bool
    verify: int
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., pairs: _Optional[_Iterable[_Union[_pairs_pb2.PromptPair, _Mapping]]] = ..., loss_fn_config: _Optional[_Union[_config_pb2.LossFnConfig, _Mapping]] = ..., autoencoders: _Optional[_Iterable[str]] = ..., orientation: _Optional[_Union[_pairs_pb2.Orientation, str]] = ..., method: _Optional[_Union[AttributionMethod, str]] = ..., nodes: _Optional[_Iterable[_Union[AttributedNode, str]]] = ..., edges: bool = ..., by_position: bool = ..., rule: _Optional[_Union[PropagationRule, str]] = ..., path_rule: _Optional[_Union[PathRule, str]] = ..., steps: _Optional[int] = ..., path_groups: _Optional[_Union[PathGroups, str]] = ..., baseline: _Optional[_Union[Baseline, str]] = ..., by_channel: bool = ..., post_norms: _Optional[_Union[PostNormJacobian, str]] = ..., qk_fix: bool = ..., grad_drop: bool = ..., magnitudes: bool = ..., verify: _Optional[int] = ...) -> None: ...

class ScoresInfo(_message.Message):
    __slots__ = ("tensor_id", "kind", "axes", "node", "layer_indices", "autoencoder")
    TENSOR_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDICES_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODER_FIELD_NUMBER: _ClassVar[int]
    tensor_id: int
    kind: ScoredKind
    axes: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Axis]
    node: AttributedNode
    layer_indices: _containers.RepeatedScalarFieldContainer[int]
    autoencoder: str
    def __init__(self, tensor_id: _Optional[int] = ..., kind: _Optional[_Union[ScoredKind, str]] = ..., axes: _Optional[_Iterable[_Union[_tensor_pb2.Axis, _Mapping]]] = ..., node: _Optional[_Union[AttributedNode, str]] = ..., layer_indices: _Optional[_Iterable[int]] = ..., autoencoder: _Optional[str] = ...) -> None: ...

class AttributeHeader(_message.Message):
    __slots__ = ("model", "sources", "readers", "edge_count", "pair_count", "orientation", "method", "rule", "meaning", "token_ids", "token_strings", "scores")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    READERS_FIELD_NUMBER: _ClassVar[int]
    EDGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    PAIR_COUNT_FIELD_NUMBER: _ClassVar[int]
    ORIENTATION_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STRINGS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    model: str
    sources: _containers.RepeatedScalarFieldContainer[str]
    readers: _containers.RepeatedScalarFieldContainer[str]
    edge_count: int
    pair_count: int
    orientation: _pairs_pb2.Orientation
    method: AttributionMethod
    rule: PropagationRule
    meaning: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    token_strings: _containers.RepeatedScalarFieldContainer[str]
    scores: _containers.RepeatedCompositeFieldContainer[ScoresInfo]
    def __init__(self, model: _Optional[str] = ..., sources: _Optional[_Iterable[str]] = ..., readers: _Optional[_Iterable[str]] = ..., edge_count: _Optional[int] = ..., pair_count: _Optional[int] = ..., orientation: _Optional[_Union[_pairs_pb2.Orientation, str]] = ..., method: _Optional[_Union[AttributionMethod, str]] = ..., rule: _Optional[_Union[PropagationRule, str]] = ..., meaning: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., token_strings: _Optional[_Iterable[str]] = ..., scores: _Optional[_Iterable[_Union[ScoresInfo, _Mapping]]] = ...) -> None: ...

class AttributeProgress(_message.Message):
    __slots__ = ("done", "total")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class PairMetrics(_message.Message):
    __slots__ = ("base", "source", "residual", "relative_residual")
    BASE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    RESIDUAL_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_RESIDUAL_FIELD_NUMBER: _ClassVar[int]
    base: float
    source: float
    residual: float
    relative_residual: float
    def __init__(self, base: _Optional[float] = ..., source: _Optional[float] = ..., residual: _Optional[float] = ..., relative_residual: _Optional[float] = ...) -> None: ...

class AttributedPairs(_message.Message):
    __slots__ = ("pairs",)
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    pairs: _containers.RepeatedCompositeFieldContainer[PairMetrics]
    def __init__(self, pairs: _Optional[_Iterable[_Union[PairMetrics, _Mapping]]] = ...) -> None: ...

class ScoreValues(_message.Message):
    __slots__ = ("tensor_id", "values", "first")
    TENSOR_ID_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    tensor_id: int
    values: _tensor_pb2.Tensor
    first: int
    def __init__(self, tensor_id: _Optional[int] = ..., values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., first: _Optional[int] = ...) -> None: ...

class VerifiedEdges(_message.Message):
    __slots__ = ("sources", "readers", "scores", "effects", "correlation")
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    READERS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    EFFECTS_FIELD_NUMBER: _ClassVar[int]
    CORRELATION_FIELD_NUMBER: _ClassVar[int]
    sources: _containers.RepeatedScalarFieldContainer[int]
    readers: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    effects: _containers.RepeatedScalarFieldContainer[float]
    correlation: float
    def __init__(self, sources: _Optional[_Iterable[int]] = ..., readers: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ..., effects: _Optional[_Iterable[float]] = ..., correlation: _Optional[float] = ...) -> None: ...

class AttributeFrame(_message.Message):
    __slots__ = ("header", "progress", "pairs", "values", "verified", "trailer", "partial")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    header: AttributeHeader
    progress: AttributeProgress
    pairs: AttributedPairs
    values: ScoreValues
    verified: VerifiedEdges
    trailer: _explain_pb2.RunsTrailer
    partial: bool
    def __init__(self, header: _Optional[_Union[AttributeHeader, _Mapping]] = ..., progress: _Optional[_Union[AttributeProgress, _Mapping]] = ..., pairs: _Optional[_Union[AttributedPairs, _Mapping]] = ..., values: _Optional[_Union[ScoreValues, _Mapping]] = ..., verified: _Optional[_Union[VerifiedEdges, _Mapping]] = ..., trailer: _Optional[_Union[_explain_pb2.RunsTrailer, _Mapping]] = ..., partial: bool = ...) -> None: ...

class AttributeResponse(_message.Message):
    __slots__ = ("request_id", "frames")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    frames: _containers.RepeatedCompositeFieldContainer[AttributeFrame]
    def __init__(self, request_id: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[AttributeFrame, _Mapping]]] = ...) -> None: ...
