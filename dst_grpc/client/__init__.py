"""The Python client: answers are numpy arrays, errors are those of `dst_grpc.errors`; torch is not needed.

    from dst_grpc.client import Client

    with Client("127.0.0.1:50051") as client:
        answer = client.derive(
            "When Mary and John went to the store, John gave a drink to",
            ["mlp_write_to_final_residual_grad"],
            target=" Mary",
            distractor=" John",
        )
        print(answer.loss, answer["mlp_write_to_final_residual_grad"].top(3))

`AsyncClient` has the same methods for asyncio. The classes of requests are re-exported here.
"""

from __future__ import annotations

from dst_grpc.client._answer import Answer
from dst_grpc.client._attribute_requests import AttributeArguments, make_attribute_request
from dst_grpc.client._attributions import AttributionAnswer, ScoredEntry, Scores
from dst_grpc.client._catalog import ServingStatus, Tokens
from dst_grpc.client._channel import DEFAULT_TARGET, Tls
from dst_grpc.client._circuit_requests import CircuitArguments, make_circuit_request
from dst_grpc.client._circuits import CircuitAnswer, ScoredEdge, ScoredNode
from dst_grpc.client._clients import AsyncClient, Client
from dst_grpc.client._collectors import TransferProgress
from dst_grpc.client._directions import decoder_row, difference_of_means, encoder_row, unembedding_row
from dst_grpc.client._explain_requests import (
    ExplainArguments,
    RunArguments,
    TopKArguments,
    make_explain_request,
    make_explain_run,
    make_top_k_request,
)
from dst_grpc.client._graph import GraphLike, NodeFilterArguments
from dst_grpc.client._graph_probe import make_graph_intervention
from dst_grpc.client._graph_requests import GraphArguments, make_graph_request
from dst_grpc.client._graph_views import GraphView, NamedEdge, NamedPath, NodeRow
from dst_grpc.client._graphs import GraphAnswer
from dst_grpc.client._interventions import (
    add_norm_scaled,
    clamp,
    detach_gradient,
    hold,
    mean_over,
    patch,
    project_out,
    scale,
    set_value,
    steer,
    swap,
)
from dst_grpc.client._mib import MibCircuit, mib_json, read_mib_json
from dst_grpc.client._pair_requests import PairArguments, make_pair
from dst_grpc.client._patch_requests import PatchArguments, make_patch_request
from dst_grpc.client._patched import PatchAnswer, PatchedGrid, PatchProgress, RankedCell
from dst_grpc.client._requests import RequestArguments, make_request
from dst_grpc.client._streams import ItemCancels
from dst_grpc.client._tensors import DerivedScalar, DerivedScalarTensor, Entry, TopBy
from dst_grpc.client._viewer_file import viewer_json
from dst_grpc.domain.attribute import (
    AttributedNode,
    AttributionMethod,
    Baseline,
    PathGroups,
    PathRule,
    PostNormJacobian,
    PropagationRule,
)
from dst_grpc.domain.attribute_answers import (
    AttributeHeader,
    AttributeProgress,
    PairMetrics,
    ScoredKind,
    ScoresInfo,
    VerifiedEdges,
)
from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.domain.callers import Caller, Role
from dst_grpc.domain.circuit import (
    AcdcSearch,
    CircuitCurve,
    CircuitEdges,
    CircuitEvaluation,
    CircuitHeader,
    CircuitKind,
    CircuitNodes,
    CircuitParts,
    CircuitProgress,
    CircuitRequest,
    CircuitSelection,
    CircuitStage,
    CurveSummary,
    KeptCircuit,
)
from dst_grpc.domain.components import (
    AttentionTraceType,
    ComponentTypeForAttention,
    ComponentTypeForMlp,
    ComponentTypeForResidual,
    Dimension,
    LossFnName,
    NodeType,
    PassType,
    PreOrPostAct,
    TensorElementType,
    TensorEncoding,
)
from dst_grpc.domain.config import AutoencoderConfig, DstConfig
from dst_grpc.domain.explain import (
    ExplainRequest,
    ExplainRun,
    NodeAblation,
    NodeScope,
    TopKGroup,
    TopKRequest,
    TopKSelection,
    default_groups,
)
from dst_grpc.domain.explanations import (
    Completeness,
    ExplainPart,
    Explanation,
    ExplanationPart,
    GroupValues,
    NodeTable,
    NodeTokenPairs,
    NodeTokens,
    PartKind,
    ResidualShares,
    RunExplanation,
    RunsTrailer,
    ScalarSum,
    ScoredTokens,
    TokenPairs,
    TokenScore,
)
from dst_grpc.domain.graph import BeginToken, GraphEdgeSelection, GraphRequest, GraphSource, GraphTarget
from dst_grpc.domain.graph_answers import (
    GraphHeader,
    GraphNodeScores,
    GraphPart,
    GraphPartKind,
    GraphPath,
    GraphPhase,
    GraphProgress,
    GraphSummary,
    GraphTargetInfo,
    KeptGraph,
)
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_node_table import GraphNode, GraphNodeKind, GraphNodeTable
from dst_grpc.domain.graph_probe_answers import (
    GraphAttentionScore,
    GraphChange,
    GraphChanges,
    GraphHeadLoading,
    GraphHeadLoadings,
    GraphNodePair,
    GraphProbePart,
    GraphProbePartKind,
    GraphScoredFeature,
    GraphTokenScore,
    GraphVerifiedFeature,
)
from dst_grpc.domain.graph_probes import (
    GraphAttention,
    GraphEdgeHeads,
    GraphFeatureSetting,
    GraphFeatureTokens,
    GraphIntervention,
    GraphInterventions,
    GraphVerification,
    ProbeGraphRequest,
)
from dst_grpc.domain.graph_queries import (
    GraphEdgeDirection,
    GraphEdgeQuery,
    GraphNeighbours,
    GraphNodeFilter,
    GraphPathQuery,
    GraphPruning,
    QueryGraphRequest,
)
from dst_grpc.domain.indices import ActivationIndex, AttnSubNodeIndex, NodeIndex
from dst_grpc.domain.interventions import AblationSpec, Direction, Intervention
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.origins import LossFnConfig, TapSum
from dst_grpc.domain.pairs import Alternative, Orientation, PromptPair
from dst_grpc.domain.patch import EdgeList, PatchCell, PatchGrid, PatchRequest, PathGrid
from dst_grpc.domain.patch_answers import PatchAxis, PatchedPair, PatchGridInfo, PatchGridKind, PatchHeader
from dst_grpc.domain.put_tensors import PutTensor
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt, ResolveRequest, SourceRun
from dst_grpc.domain.resolution import (
    AutoencoderInfo,
    ContextState,
    ContextStatus,
    LoadProgress,
    ModelInfo,
    RegistryChange,
    Resolution,
)
from dst_grpc.domain.results import Axis, NotFinite, RunHeader
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.selections import PositionList, PositionRange, TapSelection
from dst_grpc.domain.server_info import ServerInfo, ServerLimits
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.domain.type_info import DerivedScalarTypeInfo

__all__ = [
    "DEFAULT_TARGET",
    "AblationSpec",
    "AcdcSearch",
    "ActivationIndex",
    "ActivationLocationType",
    "Alternative",
    "Answer",
    "AsyncClient",
    "AttentionTraceType",
    "AttnSubNodeIndex",
    "AttributeArguments",
    "AttributeHeader",
    "AttributeProgress",
    "AttributeRequest",
    "AttributedNode",
    "AttributionAnswer",
    "AttributionMethod",
    "AutoencoderActivation",
    "AutoencoderConfig",
    "AutoencoderInfo",
    "Axis",
    "Baseline",
    "BeginToken",
    "Caller",
    "CircuitAnswer",
    "CircuitArguments",
    "CircuitCurve",
    "CircuitEdges",
    "CircuitEvaluation",
    "CircuitHeader",
    "CircuitKind",
    "CircuitNodes",
    "CircuitParts",
    "CircuitProgress",
    "CircuitRequest",
    "CircuitSelection",
    "CircuitStage",
    "Client",
    "Completeness",
    "ComponentTypeForAttention",
    "ComponentTypeForMlp",
    "ComponentTypeForResidual",
    "ContextState",
    "ContextStatus",
    "CurveSummary",
    "DeriveRequest",
    "DerivedScalar",
    "DerivedScalarSpec",
    "DerivedScalarTensor",
    "DerivedScalarType",
    "DerivedScalarTypeInfo",
    "Dimension",
    "Direction",
    "DstConfig",
    "EdgeList",
    "Entry",
    "ExplainArguments",
    "ExplainPart",
    "ExplainRequest",
    "ExplainRun",
    "Explanation",
    "ExplanationPart",
    "GraphAnswer",
    "GraphArguments",
    "GraphAttention",
    "GraphAttentionScore",
    "GraphChange",
    "GraphChanges",
    "GraphEdgeDirection",
    "GraphEdgeHeads",
    "GraphEdgeQuery",
    "GraphEdgeSelection",
    "GraphEdges",
    "GraphFeatureSetting",
    "GraphFeatureTokens",
    "GraphHeadLoading",
    "GraphHeadLoadings",
    "GraphHeader",
    "GraphIntervention",
    "GraphInterventions",
    "GraphLike",
    "GraphNeighbours",
    "GraphNode",
    "GraphNodeFilter",
    "GraphNodeKind",
    "GraphNodePair",
    "GraphNodeScores",
    "GraphNodeTable",
    "GraphPart",
    "GraphPartKind",
    "GraphPath",
    "GraphPathQuery",
    "GraphPhase",
    "GraphProbePart",
    "GraphProbePartKind",
    "GraphProgress",
    "GraphPruning",
    "GraphRequest",
    "GraphScoredFeature",
    "GraphSource",
    "GraphSummary",
    "GraphTarget",
    "GraphTargetInfo",
    "GraphTokenScore",
    "GraphVerification",
    "GraphVerifiedFeature",
    "GraphView",
    "GroupValues",
    "InputNormalization",
    "Intervention",
    "ItemCancels",
    "KeptCircuit",
    "KeptGraph",
    "LoadProgress",
    "LossFnConfig",
    "LossFnName",
    "MibCircuit",
    "ModelInfo",
    "ModelNorm",
    "NamedEdge",
    "NamedPath",
    "NodeAblation",
    "NodeFilterArguments",
    "NodeIndex",
    "NodeRow",
    "NodeScope",
    "NodeTable",
    "NodeTokenPairs",
    "NodeTokens",
    "NodeType",
    "NotFinite",
    "Orientation",
    "PairArguments",
    "PairMetrics",
    "PartKind",
    "PassType",
    "PatchAnswer",
    "PatchArguments",
    "PatchAxis",
    "PatchCell",
    "PatchGrid",
    "PatchGridInfo",
    "PatchGridKind",
    "PatchHeader",
    "PatchProgress",
    "PatchRequest",
    "PatchedGrid",
    "PatchedPair",
    "PathGrid",
    "PathGroups",
    "PathRule",
    "PositionList",
    "PositionRange",
    "PostNormJacobian",
    "PreOrPostAct",
    "ProbeGraphRequest",
    "Prompt",
    "PromptPair",
    "PropagationRule",
    "PutTensor",
    "QueryGraphRequest",
    "RankedCell",
    "RegistryChange",
    "RequestArguments",
    "RequestTensor",
    "ResidualShares",
    "Resolution",
    "ResolveRequest",
    "Role",
    "RunArguments",
    "RunExplanation",
    "RunHeader",
    "RunsTrailer",
    "ScalarSum",
    "ScoredEdge",
    "ScoredEntry",
    "ScoredKind",
    "ScoredNode",
    "ScoredTokens",
    "Scores",
    "ScoresInfo",
    "ServerInfo",
    "ServerLimits",
    "ServingStatus",
    "SourceRun",
    "TapSelection",
    "TapSum",
    "TensorElementType",
    "TensorEncoding",
    "Tls",
    "TokenPairs",
    "TokenScore",
    "Tokens",
    "TopBy",
    "TopKArguments",
    "TopKGroup",
    "TopKRequest",
    "TopKSelection",
    "TraceConfig",
    "TransferProgress",
    "VerifiedEdges",
    "add_norm_scaled",
    "clamp",
    "decoder_row",
    "default_groups",
    "detach_gradient",
    "difference_of_means",
    "encoder_row",
    "hold",
    "make_attribute_request",
    "make_circuit_request",
    "make_explain_request",
    "make_explain_run",
    "make_graph_intervention",
    "make_graph_request",
    "make_pair",
    "make_patch_request",
    "make_request",
    "make_top_k_request",
    "mean_over",
    "mib_json",
    "patch",
    "project_out",
    "read_mib_json",
    "scale",
    "set_value",
    "steer",
    "swap",
    "unembedding_row",
    "viewer_json",
]
