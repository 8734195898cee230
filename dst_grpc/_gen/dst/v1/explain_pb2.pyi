from dst_grpc._gen.dst.v1 import config_pb2 as _config_pb2
from dst_grpc._gen.dst.v1 import derived_scalar_type_pb2 as _derived_scalar_type_pb2
from dst_grpc._gen.dst.v1 import index_pb2 as _index_pb2
from dst_grpc._gen.dst.v1 import inference_pb2 as _inference_pb2
from dst_grpc._gen.dst.v1 import intervention_pb2 as _intervention_pb2
from dst_grpc._gen.dst.v1 import tensor_pb2 as _tensor_pb2
from dst_grpc._gen.dst.v1 import trace_pb2 as _trace_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TopKSelection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOP_K_SELECTION_UNSPECIFIED: _ClassVar[TopKSelection]
    TOP_K_SELECTION_TOP: _ClassVar[TopKSelection]
    TOP_K_SELECTION_BOTTOM: _ClassVar[TopKSelection]
    TOP_K_SELECTION_BOTH: _ClassVar[TopKSelection]

class NodeScope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_SCOPE_UNSPECIFIED: _ClassVar[NodeScope]
    NODE_SCOPE_BATCH: _ClassVar[NodeScope]
    NODE_SCOPE_PROMPT: _ClassVar[NodeScope]

class ComponentTypeForMlp(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPONENT_TYPE_FOR_MLP_UNSPECIFIED: _ClassVar[ComponentTypeForMlp]
    COMPONENT_TYPE_FOR_MLP_NEURON: _ClassVar[ComponentTypeForMlp]
    COMPONENT_TYPE_FOR_MLP_AUTOENCODER_LATENT: _ClassVar[ComponentTypeForMlp]

class ComponentTypeForAttention(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPONENT_TYPE_FOR_ATTENTION_UNSPECIFIED: _ClassVar[ComponentTypeForAttention]
    COMPONENT_TYPE_FOR_ATTENTION_ATTENTION_HEAD: _ClassVar[ComponentTypeForAttention]
    COMPONENT_TYPE_FOR_ATTENTION_AUTOENCODER_LATENT: _ClassVar[ComponentTypeForAttention]

class ComponentTypeForResidual(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPONENT_TYPE_FOR_RESIDUAL_UNSPECIFIED: _ClassVar[ComponentTypeForResidual]
    COMPONENT_TYPE_FOR_RESIDUAL_NONE: _ClassVar[ComponentTypeForResidual]
    COMPONENT_TYPE_FOR_RESIDUAL_AUTOENCODER_LATENT: _ClassVar[ComponentTypeForResidual]

class ExplainPart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXPLAIN_PART_UNSPECIFIED: _ClassVar[ExplainPart]
    EXPLAIN_PART_NODE_TABLE: _ClassVar[ExplainPart]
    EXPLAIN_PART_COMPONENT_SUMS: _ClassVar[ExplainPart]
    EXPLAIN_PART_UPVOTED_OUTPUT_TOKENS: _ClassVar[ExplainPart]
    EXPLAIN_PART_INPUT_TOKENS_THAT_UPVOTE_MLP: _ClassVar[ExplainPart]
    EXPLAIN_PART_INPUT_TOKENS_THAT_UPVOTE_ATTN_Q: _ClassVar[ExplainPart]
    EXPLAIN_PART_INPUT_TOKENS_THAT_UPVOTE_ATTN_K: _ClassVar[ExplainPart]
    EXPLAIN_PART_TOKEN_PAIRS: _ClassVar[ExplainPart]
    EXPLAIN_PART_TOP_LOGITS: _ClassVar[ExplainPart]
TOP_K_SELECTION_UNSPECIFIED: TopKSelection
TOP_K_SELECTION_TOP: TopKSelection
TOP_K_SELECTION_BOTTOM: TopKSelection
TOP_K_SELECTION_BOTH: TopKSelection
NODE_SCOPE_UNSPECIFIED: NodeScope
NODE_SCOPE_BATCH: NodeScope
NODE_SCOPE_PROMPT: NodeScope
COMPONENT_TYPE_FOR_MLP_UNSPECIFIED: ComponentTypeForMlp
COMPONENT_TYPE_FOR_MLP_NEURON: ComponentTypeForMlp
COMPONENT_TYPE_FOR_MLP_AUTOENCODER_LATENT: ComponentTypeForMlp
COMPONENT_TYPE_FOR_ATTENTION_UNSPECIFIED: ComponentTypeForAttention
COMPONENT_TYPE_FOR_ATTENTION_ATTENTION_HEAD: ComponentTypeForAttention
COMPONENT_TYPE_FOR_ATTENTION_AUTOENCODER_LATENT: ComponentTypeForAttention
COMPONENT_TYPE_FOR_RESIDUAL_UNSPECIFIED: ComponentTypeForResidual
COMPONENT_TYPE_FOR_RESIDUAL_NONE: ComponentTypeForResidual
COMPONENT_TYPE_FOR_RESIDUAL_AUTOENCODER_LATENT: ComponentTypeForResidual
EXPLAIN_PART_UNSPECIFIED: ExplainPart
EXPLAIN_PART_NODE_TABLE: ExplainPart
EXPLAIN_PART_COMPONENT_SUMS: ExplainPart
EXPLAIN_PART_UPVOTED_OUTPUT_TOKENS: ExplainPart
EXPLAIN_PART_INPUT_TOKENS_THAT_UPVOTE_MLP: ExplainPart
EXPLAIN_PART_INPUT_TOKENS_THAT_UPVOTE_ATTN_Q: ExplainPart
EXPLAIN_PART_INPUT_TOKENS_THAT_UPVOTE_ATTN_K: ExplainPart
EXPLAIN_PART_TOKEN_PAIRS: ExplainPart
EXPLAIN_PART_TOP_LOGITS: ExplainPart

class TopKGroup(_message.Message):
    __slots__ = ("group_id", "dsts", "k", "selection")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    DSTS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    dsts: _containers.RepeatedScalarFieldContainer[_derived_scalar_type_pb2.DerivedScalarType]
    k: int
    selection: TopKSelection
    def __init__(self, group_id: _Optional[str] = ..., dsts: _Optional[_Iterable[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]]] = ..., k: _Optional[int] = ..., selection: _Optional[_Union[TopKSelection, str]] = ...) -> None: ...

class TopKRequest(_message.Message):
    __slots__ = ("request_id", "runs", "groups", "k", "token_index", "node_scope", "with_sums")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    NODE_SCOPE_FIELD_NUMBER: _ClassVar[int]
    WITH_SUMS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    runs: _containers.RepeatedCompositeFieldContainer[_inference_pb2.DeriveRequest]
    groups: _containers.RepeatedCompositeFieldContainer[TopKGroup]
    k: int
    token_index: int
    node_scope: NodeScope
    with_sums: bool
    def __init__(self, request_id: _Optional[str] = ..., runs: _Optional[_Iterable[_Union[_inference_pb2.DeriveRequest, _Mapping]]] = ..., groups: _Optional[_Iterable[_Union[TopKGroup, _Mapping]]] = ..., k: _Optional[int] = ..., token_index: _Optional[int] = ..., node_scope: _Optional[_Union[NodeScope, str]] = ..., with_sums: bool = ...) -> None: ...

class ScalarSum(_message.Message):
    __slots__ = ("dst", "values", "first_token")
    DST_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    dst: _derived_scalar_type_pb2.DerivedScalarType
    values: _tensor_pb2.Tensor
    first_token: int
    def __init__(self, dst: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., first_token: _Optional[int] = ...) -> None: ...

class Completeness(_message.Message):
    __slots__ = ("listed", "total", "target", "reconstruction_error", "uncovered_layers", "residuals", "skip_connections")
    LISTED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTION_ERROR_FIELD_NUMBER: _ClassVar[int]
    UNCOVERED_LAYERS_FIELD_NUMBER: _ClassVar[int]
    RESIDUALS_FIELD_NUMBER: _ClassVar[int]
    SKIP_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    listed: float
    total: float
    target: float
    reconstruction_error: float
    uncovered_layers: float
    residuals: _containers.RepeatedCompositeFieldContainer[ResidualShares]
    skip_connections: float
    def __init__(self, listed: _Optional[float] = ..., total: _Optional[float] = ..., target: _Optional[float] = ..., reconstruction_error: _Optional[float] = ..., uncovered_layers: _Optional[float] = ..., residuals: _Optional[_Iterable[_Union[ResidualShares, _Mapping]]] = ..., skip_connections: _Optional[float] = ...) -> None: ...

class ResidualShares(_message.Message):
    __slots__ = ("layer_index", "listed", "latents", "error", "decoder_bias")
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    LISTED_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DECODER_BIAS_FIELD_NUMBER: _ClassVar[int]
    layer_index: int
    listed: float
    latents: float
    error: float
    decoder_bias: float
    def __init__(self, layer_index: _Optional[int] = ..., listed: _Optional[float] = ..., latents: _Optional[float] = ..., error: _Optional[float] = ..., decoder_bias: _Optional[float] = ...) -> None: ...

class TableNode(_message.Message):
    __slots__ = ("node", "vocab_token", "values")
    NODE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    node: _index_pb2.NodeIndex
    vocab_token: str
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, node: _Optional[_Union[_index_pb2.NodeIndex, _Mapping]] = ..., vocab_token: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class TableGroup(_message.Message):
    __slots__ = ("group_id", "top", "bottom", "completeness")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    COMPLETENESS_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    top: _containers.RepeatedScalarFieldContainer[int]
    bottom: _containers.RepeatedScalarFieldContainer[int]
    completeness: Completeness
    def __init__(self, group_id: _Optional[str] = ..., top: _Optional[_Iterable[int]] = ..., bottom: _Optional[_Iterable[int]] = ..., completeness: _Optional[_Union[Completeness, _Mapping]] = ...) -> None: ...

class NodeTable(_message.Message):
    __slots__ = ("nodes", "groups", "log_normalizer")
    NODES_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    LOG_NORMALIZER_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[TableNode]
    groups: _containers.RepeatedCompositeFieldContainer[TableGroup]
    log_normalizer: float
    def __init__(self, nodes: _Optional[_Iterable[_Union[TableNode, _Mapping]]] = ..., groups: _Optional[_Iterable[_Union[TableGroup, _Mapping]]] = ..., log_normalizer: _Optional[float] = ...) -> None: ...

class RunHeader(_message.Message):
    __slots__ = ("model", "token_ids", "token_strings", "loss", "activation_value", "detach_final_layer_norm_scale")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STRINGS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_VALUE_FIELD_NUMBER: _ClassVar[int]
    DETACH_FINAL_LAYER_NORM_SCALE_FIELD_NUMBER: _ClassVar[int]
    model: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    token_strings: _containers.RepeatedScalarFieldContainer[str]
    loss: float
    activation_value: float
    detach_final_layer_norm_scale: bool
    def __init__(self, model: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., token_strings: _Optional[_Iterable[str]] = ..., loss: _Optional[float] = ..., activation_value: _Optional[float] = ..., detach_final_layer_norm_scale: bool = ...) -> None: ...

class RunsTrailer(_message.Message):
    __slots__ = ("frame_count", "statistics", "provenance")
    FRAME_COUNT_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    frame_count: int
    statistics: _inference_pb2.RunStatistics
    provenance: _inference_pb2.Provenance
    def __init__(self, frame_count: _Optional[int] = ..., statistics: _Optional[_Union[_inference_pb2.RunStatistics, _Mapping]] = ..., provenance: _Optional[_Union[_inference_pb2.Provenance, _Mapping]] = ...) -> None: ...

class TopKFrame(_message.Message):
    __slots__ = ("run_index", "header", "node_table", "scalar_sum", "trailer", "partial")
    RUN_INDEX_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NODE_TABLE_FIELD_NUMBER: _ClassVar[int]
    SCALAR_SUM_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    run_index: int
    header: RunHeader
    node_table: NodeTable
    scalar_sum: ScalarSum
    trailer: RunsTrailer
    partial: bool
    def __init__(self, run_index: _Optional[int] = ..., header: _Optional[_Union[RunHeader, _Mapping]] = ..., node_table: _Optional[_Union[NodeTable, _Mapping]] = ..., scalar_sum: _Optional[_Union[ScalarSum, _Mapping]] = ..., trailer: _Optional[_Union[RunsTrailer, _Mapping]] = ..., partial: bool = ...) -> None: ...

class TopKResponse(_message.Message):
    __slots__ = ("request_id", "frames")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    frames: _containers.RepeatedCompositeFieldContainer[TopKFrame]
    def __init__(self, request_id: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[TopKFrame, _Mapping]]] = ...) -> None: ...

class NodeAblation(_message.Message):
    __slots__ = ("node_index", "value")
    NODE_INDEX_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    node_index: _index_pb2.NodeIndex
    value: float
    def __init__(self, node_index: _Optional[_Union[_index_pb2.NodeIndex, _Mapping]] = ..., value: _Optional[float] = ...) -> None: ...

class ExplainRun(_message.Message):
    __slots__ = ("prompt", "loss_fn_config", "trace_config", "node_ablations", "ablation_specs", "detach_final_layer_norm_scale", "interventions", "source_runs")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    LOSS_FN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    TRACE_CONFIG_FIELD_NUMBER: _ClassVar[int]
    NODE_ABLATIONS_FIELD_NUMBER: _ClassVar[int]
    ABLATION_SPECS_FIELD_NUMBER: _ClassVar[int]
    DETACH_FINAL_LAYER_NORM_SCALE_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_RUNS_FIELD_NUMBER: _ClassVar[int]
    prompt: _inference_pb2.Prompt
    loss_fn_config: _config_pb2.LossFnConfig
    trace_config: _trace_pb2.TraceConfig
    node_ablations: _containers.RepeatedCompositeFieldContainer[NodeAblation]
    ablation_specs: _containers.RepeatedCompositeFieldContainer[_config_pb2.AblationSpec]
    detach_final_layer_norm_scale: bool
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.Intervention]
    source_runs: _containers.RepeatedCompositeFieldContainer[_inference_pb2.SourceRun]
    def __init__(self, prompt: _Optional[_Union[_inference_pb2.Prompt, _Mapping]] = ..., loss_fn_config: _Optional[_Union[_config_pb2.LossFnConfig, _Mapping]] = ..., trace_config: _Optional[_Union[_trace_pb2.TraceConfig, _Mapping]] = ..., node_ablations: _Optional[_Iterable[_Union[NodeAblation, _Mapping]]] = ..., ablation_specs: _Optional[_Iterable[_Union[_config_pb2.AblationSpec, _Mapping]]] = ..., detach_final_layer_norm_scale: bool = ..., interventions: _Optional[_Iterable[_Union[_intervention_pb2.Intervention, _Mapping]]] = ..., source_runs: _Optional[_Iterable[_Union[_inference_pb2.SourceRun, _Mapping]]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id", "model", "runs", "autoencoders", "component_type_for_mlp", "component_type_for_attention", "groups", "k", "parts", "scored_token_count", "token_pair_count", "top_logit_count", "node_scope", "unit_length_embeddings", "component_type_for_residual")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODERS_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_TYPE_FOR_MLP_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_TYPE_FOR_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    SCORED_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_PAIR_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGIT_COUNT_FIELD_NUMBER: _ClassVar[int]
    NODE_SCOPE_FIELD_NUMBER: _ClassVar[int]
    UNIT_LENGTH_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_TYPE_FOR_RESIDUAL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    runs: _containers.RepeatedCompositeFieldContainer[ExplainRun]
    autoencoders: _containers.RepeatedScalarFieldContainer[str]
    component_type_for_mlp: ComponentTypeForMlp
    component_type_for_attention: ComponentTypeForAttention
    groups: _containers.RepeatedCompositeFieldContainer[TopKGroup]
    k: int
    parts: _containers.RepeatedScalarFieldContainer[ExplainPart]
    scored_token_count: int
    token_pair_count: int
    top_logit_count: int
    node_scope: NodeScope
    unit_length_embeddings: bool
    component_type_for_residual: ComponentTypeForResidual
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., runs: _Optional[_Iterable[_Union[ExplainRun, _Mapping]]] = ..., autoencoders: _Optional[_Iterable[str]] = ..., component_type_for_mlp: _Optional[_Union[ComponentTypeForMlp, str]] = ..., component_type_for_attention: _Optional[_Union[ComponentTypeForAttention, str]] = ..., groups: _Optional[_Iterable[_Union[TopKGroup, _Mapping]]] = ..., k: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[ExplainPart, str]]] = ..., scored_token_count: _Optional[int] = ..., token_pair_count: _Optional[int] = ..., top_logit_count: _Optional[int] = ..., node_scope: _Optional[_Union[NodeScope, str]] = ..., unit_length_embeddings: bool = ..., component_type_for_residual: _Optional[_Union[ComponentTypeForResidual, str]] = ...) -> None: ...

class TokenScore(_message.Message):
    __slots__ = ("token_id", "token", "score", "normalized_score")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_SCORE_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    token: str
    score: float
    normalized_score: float
    def __init__(self, token_id: _Optional[int] = ..., token: _Optional[str] = ..., score: _Optional[float] = ..., normalized_score: _Optional[float] = ...) -> None: ...

class NodeTokens(_message.Message):
    __slots__ = ("node", "top", "bottom")
    NODE_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    node: int
    top: _containers.RepeatedCompositeFieldContainer[TokenScore]
    bottom: _containers.RepeatedCompositeFieldContainer[TokenScore]
    def __init__(self, node: _Optional[int] = ..., top: _Optional[_Iterable[_Union[TokenScore, _Mapping]]] = ..., bottom: _Optional[_Iterable[_Union[TokenScore, _Mapping]]] = ...) -> None: ...

class ScoredTokens(_message.Message):
    __slots__ = ("part", "nodes")
    PART_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    part: ExplainPart
    nodes: _containers.RepeatedCompositeFieldContainer[NodeTokens]
    def __init__(self, part: _Optional[_Union[ExplainPart, str]] = ..., nodes: _Optional[_Iterable[_Union[NodeTokens, _Mapping]]] = ...) -> None: ...

class AttendedToken(_message.Message):
    __slots__ = ("token_index", "attribution")
    TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    token_index: int
    attribution: float
    def __init__(self, token_index: _Optional[int] = ..., attribution: _Optional[float] = ...) -> None: ...

class NodeTokenPairs(_message.Message):
    __slots__ = ("node", "attended_tokens")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ATTENDED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    node: int
    attended_tokens: _containers.RepeatedCompositeFieldContainer[AttendedToken]
    def __init__(self, node: _Optional[int] = ..., attended_tokens: _Optional[_Iterable[_Union[AttendedToken, _Mapping]]] = ...) -> None: ...

class TokenPairs(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeTokenPairs]
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodeTokenPairs, _Mapping]]] = ...) -> None: ...

class ExplainFrame(_message.Message):
    __slots__ = ("run_index", "header", "node_table", "component_sums", "scalar_sum", "scored_tokens", "token_pairs", "top_logits", "trailer", "partial")
    RUN_INDEX_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NODE_TABLE_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_SUMS_FIELD_NUMBER: _ClassVar[int]
    SCALAR_SUM_FIELD_NUMBER: _ClassVar[int]
    SCORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_PAIRS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGITS_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    run_index: int
    header: RunHeader
    node_table: NodeTable
    component_sums: NodeTable
    scalar_sum: ScalarSum
    scored_tokens: ScoredTokens
    token_pairs: TokenPairs
    top_logits: NodeTable
    trailer: RunsTrailer
    partial: bool
    def __init__(self, run_index: _Optional[int] = ..., header: _Optional[_Union[RunHeader, _Mapping]] = ..., node_table: _Optional[_Union[NodeTable, _Mapping]] = ..., component_sums: _Optional[_Union[NodeTable, _Mapping]] = ..., scalar_sum: _Optional[_Union[ScalarSum, _Mapping]] = ..., scored_tokens: _Optional[_Union[ScoredTokens, _Mapping]] = ..., token_pairs: _Optional[_Union[TokenPairs, _Mapping]] = ..., top_logits: _Optional[_Union[NodeTable, _Mapping]] = ..., trailer: _Optional[_Union[RunsTrailer, _Mapping]] = ..., partial: bool = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("request_id", "frames")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    frames: _containers.RepeatedCompositeFieldContainer[ExplainFrame]
    def __init__(self, request_id: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[ExplainFrame, _Mapping]]] = ...) -> None: ...
