"""Exceptions to the rules of `codec`: what fields of classes and messages do not say by themselves."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from dst_grpc.domain.attribute_answers import ScoreValues
from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.domain.circuit import CircuitRequest
from dst_grpc.domain.components import AttentionTraceType, Dimension, NodeType, TensorElementType
from dst_grpc.domain.explain import ExplainRequest, ExplainRun, NodeAblation, TopKGroup, TopKRequest
from dst_grpc.domain.explanations import ScalarSum
from dst_grpc.domain.graph import GraphRequest, GraphTarget
from dst_grpc.domain.graph_answers import GraphNodeScores
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_node_table import GraphNodeTable
from dst_grpc.domain.graph_probes import (
    GraphEdgeHeads,
    GraphFeatureSetting,
    GraphIntervention,
    GraphVerification,
    ProbeGraphRequest,
)
from dst_grpc.domain.graph_queries import GraphNeighbours, GraphPathQuery, QueryGraphRequest
from dst_grpc.domain.indices import (
    ActivationIndex,
    AttnSubActivationIndex,
    AttnSubNodeIndex,
    DerivedScalarIndex,
    NodeIndex,
)
from dst_grpc.domain.interventions import AblationSpec, AddVector, Direction, Intervention, SetValue
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.patch import PatchRequest
from dst_grpc.domain.put_tensors import PutTensor
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import DeriveRequest, Prompt, ResolveRequest, SourceRun
from dst_grpc.domain.resolution import RegistryChange, Resolution
from dst_grpc.domain.results import AnswerHeader, AnswerTrailer, TensorInfo
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.server_info import ServerInfo
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.wire.checks import check_header, check_tensor_info
from dst_grpc.wire.kinds import Kind, array, column

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dst_grpc.errors import Violations

MESSAGE_NAMES: Mapping[type, str] = {
    AnswerHeader: "Header",
    AnswerTrailer: "Trailer",
    Resolution: "Resolved",
    RegistryChange: "ReloadRegistryResponse",
    ServerInfo: "GetServerInfoResponse",
    PutTensor: "PutTensorResponse",
    AttnSubNodeIndex: "NodeIndex",
    AttnSubActivationIndex: "ActivationIndex",
}
"""Messages whose name differs from that of their class."""
SPECIFIC: Mapping[type, tuple[str, type]] = {
    NodeIndex: ("q_k_or_v", AttnSubNodeIndex),
    ActivationIndex: ("q_or_k", AttnSubActivationIndex),
}
"""Classes that are read as a more specific class if a field is set."""
COMPUTED: Mapping[type, tuple[str, ...]] = {TensorInfo: ("byte_length",)}
"""Properties that are sent too, so that clients need not compute them."""
CHECKS: Mapping[type, Callable[[Any, Any, Violations], None]] = {
    TensorInfo: check_tensor_info,
    AnswerHeader: check_header,
}
"""Checks of an answer beyond the rules of its classes."""
PART_BY_PART = frozenset(
    {
        SourceRun,
        DeriveRequest,
        ResolveRequest,
        TopKRequest,
        ExplainRun,
        ExplainRequest,
        AttributeRequest,
        CircuitRequest,
        PatchRequest,
        GraphRequest,
        ProbeGraphRequest,
        QueryGraphRequest,
    }
)
"""Requests, whose fields do not depend on one another: a bad one does not make the others unusable."""
_NUMBERS = count()
STAND_INS: Mapping[type | tuple[type, str], Callable[[], Any]] = {
    Prompt: lambda: Prompt(token_ids=(0,)),
    Direction: lambda: Direction(direction=RequestTensor(tensor=np.zeros(1, np.float32))),
    RequestTensor: lambda: RequestTensor(tensor=np.zeros(1, np.float32)),
    # Groups of one id exclude one another.
    TopKGroup: lambda: TopKGroup(group_id=f"\0{next(_NUMBERS)}", dsts=(DerivedScalarType.ALWAYS_ONE,)),
    # Nor may runs share a name.
    (SourceRun, "name"): lambda: f"\0{next(_NUMBERS)}",
    SourceRun: lambda: SourceRun(name=f"\0{next(_NUMBERS)}"),
    (DeriveRequest, "prompt"): lambda: Prompt(token_ids=(0,)),
    (TraceConfig, "node_index"): lambda: NodeIndex(node_type=NodeType.ATTENTION_HEAD),
    (TraceConfig, "attention_trace_type"): lambda: AttentionTraceType.V,
    (NodeAblation, "node_index"): lambda: NodeIndex(
        node_type=NodeType.MLP_NEURON, tensor_indices=(0, 0), layer_index=0
    ),
    (DerivedScalarIndex, "dst"): lambda: DerivedScalarType.ATTN_WRITE,  # no type has more axes
    (AblationSpec, "index"): lambda: ActivationIndex(
        activation_location_type=ActivationLocationType.RESID_POST_EMBEDDING, tensor_indices=(None, None)
    ),
    (Intervention, "action"): lambda: SetValue(scalar=0.0),
    (RequestTensor, "tensor"): lambda: np.zeros(1, np.float32),
    (SetValue, "tensor"): lambda: RequestTensor(tensor=np.zeros(1, np.float32)),
    (AddVector, "vector"): lambda: RequestTensor(tensor=np.zeros(1, np.float32)),
    (Direction, "direction"): lambda: RequestTensor(tensor=np.zeros(1, np.float32)),
    # Nor may targets share a token or a name.
    GraphTarget: lambda: GraphTarget(token=f"\0{next(_NUMBERS)}"),
    (GraphTarget, "direction"): lambda: RequestTensor(tensor=np.ones(1, np.float32)),
    (GraphRequest, "prompt"): lambda: Prompt(token_ids=(0,)),
    (GraphNeighbours, "node"): lambda: "t0",
    (GraphPathQuery, "source"): lambda: "t0",
    (GraphPathQuery, "target"): lambda: f"target:\0{next(_NUMBERS)}",
    # Nor may features be set twice.
    GraphFeatureSetting: lambda: GraphFeatureSetting(nodes=(f"f0.{next(_NUMBERS)}@0",), factor=0.0),
    GraphIntervention: lambda: GraphIntervention(settings=(GraphFeatureSetting(nodes=("f0.0@0",), factor=0.0),)),
    (GraphEdgeHeads, "source"): lambda: "t0",
    (GraphEdgeHeads, "target"): lambda: "logit:0",
    (ProbeGraphRequest, "graph"): lambda: "none",
    (ProbeGraphRequest, "probe"): GraphVerification,
    (QueryGraphRequest, "graph"): lambda: "none",
    (QueryGraphRequest, "query"): lambda: GraphNeighbours(node="t0"),
}
"""Makes stand-ins of a class, or for a field, where one made of defaults would not be valid."""
ARRAYS: Mapping[tuple[type, str], Kind] = {
    (ScalarSum, "values"): array(Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS),
    (RequestTensor, "tensor"): array(),
    (ScoreValues, "values"): array(),
    **{
        (GraphNodeTable, name): column(TensorElementType.INT32)
        for name in ("nodes", "kinds", "layers", "tokens", "features")
    },
    (GraphNodeTable, "activations"): column(TensorElementType.FLOAT32),
    (GraphNodeScores, "nodes"): column(TensorElementType.INT32),
    (GraphNodeScores, "cumulative_scores"): column(TensorElementType.FLOAT32),
    (GraphNodeScores, "input_sums"): column(TensorElementType.FLOAT32),
    (GraphNodeScores, "kept"): column(TensorElementType.BOOL),
    **{(GraphEdges, name): column(TensorElementType.INT32) for name in ("targets", "counts", "sources")},
    (GraphEdges, "weights"): column(TensorElementType.FLOAT32),
}
"""Fields that hold numpy arrays."""
