"""From keyword arguments to requests of Graph and QueryGraph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import index
from typing import Any, SupportsIndex, TypeAlias, TypedDict

import numpy as np

from dst_grpc.client._requests import PromptLike, member, prompt_of
from dst_grpc.domain.graph import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_EDGE_THRESHOLD,
    DEFAULT_LOGIT_PROB,
    DEFAULT_MAX_N_LOGITS,
    DEFAULT_NODE_THRESHOLD,
    DEFAULT_UPDATE_INTERVAL,
    BeginToken,
    GraphEdgeSelection,
    GraphRequest,
    GraphTarget,
)
from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.domain.graph_queries import GraphNodeFilter
from dst_grpc.domain.put_tensors import PutTensor
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.errors import InvalidRequest

TargetLike: TypeAlias = str | SupportsIndex | GraphTarget
"""A token as its text (mind the leading space) or its id; or a whole GraphTarget."""


class GraphArguments(TypedDict, total=False):
    """The keyword arguments of `graph`, besides its prompt and transcoders."""

    targets: TargetLike | Iterable[TargetLike]
    """The nodes that effects are traced back from; nothing = the logits of the most probable tokens."""
    directions: Mapping[str, Any]
    """Further targets, by name: vectors [d] that the final residual, after the final norm, is projected on; arrays or
    stored tensors."""
    max_n_logits: int
    """Without targets: at most so many logits."""
    desired_logit_prob: float
    """Without targets: as few logits as have so much probability together."""
    max_feature_nodes: int | None
    """At most so many features are nodes, those of the largest influence; None = all that are active."""
    batch_size: int
    """Features whose edges are computed together."""
    update_interval: int
    """Batches after which influences are ranked again."""
    node_threshold: float
    """The share of all influence that the nodes have together that pruning keeps."""
    edge_threshold: float
    """The same of edges."""
    edges: GraphEdgeSelection | str
    """Which edges are sent: `pruned`, `whole` or `none`."""
    begin_token: BeginToken | str
    """Whether a special token is put before a prompt that begins with none: `automatic`, or `as_given`."""
    max_bytes: int | None
    """Bytes of memory that the graph and its computation may take; None = what the server allows."""
    keep: bool | None
    """Whether the server keeps the graph, else refuses to compute it; None = unless it takes more than it may keep."""
    model: str | None
    """Name or handle of the model; None = the server's default."""
    request_id: str
    """Your own id, carried by the answer."""


def make_graph_request(
    prompt: PromptLike,
    transcoders: str | None = None,
    *,
    targets: TargetLike | Iterable[TargetLike] = (),
    directions: Mapping[str, Any] | None = None,
    max_n_logits: int = DEFAULT_MAX_N_LOGITS,
    desired_logit_prob: float = DEFAULT_LOGIT_PROB,
    max_feature_nodes: int | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    update_interval: int = DEFAULT_UPDATE_INTERVAL,
    node_threshold: float = DEFAULT_NODE_THRESHOLD,
    edge_threshold: float = DEFAULT_EDGE_THRESHOLD,
    edges: GraphEdgeSelection | str = GraphEdgeSelection.PRUNED,
    begin_token: BeginToken | str = BeginToken.AUTOMATIC,
    max_bytes: int | None = None,
    keep: bool | None = None,
    model: str | None = None,
    request_id: str = "",
) -> GraphRequest:
    """The request that the arguments describe; see GraphArguments.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model; names that are nearly right are suggested.
    """
    listed = (targets,) if isinstance(targets, str | SupportsIndex | GraphTarget) else tuple(targets)
    named = [_direction(name, vector) for name, vector in (directions or {}).items()]
    return GraphRequest(
        prompt=prompt_of(prompt),
        transcoders=transcoders,
        request_id=request_id,
        model=model,
        begin_token=member(BeginToken, begin_token, "begin_token"),
        targets=(*(_target(target) for target in listed), *named),
        max_n_logits=max_n_logits,
        desired_logit_prob=desired_logit_prob,
        max_feature_nodes=max_feature_nodes,
        batch_size=batch_size,
        update_interval=update_interval,
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        edges=member(GraphEdgeSelection, edges, "edges"),
        max_bytes=max_bytes,
        keep=keep,
    )


def make_node_filter(
    layers: Iterable[SupportsIndex] = (),
    tokens: Iterable[SupportsIndex] = (),
    kinds: Iterable[GraphNodeKind | str] = (),
) -> GraphNodeFilter:
    """Restricts nodes to those of *layers*, at *tokens*, of *kinds*, each if it is given.

    Raises:
        InvalidRequest: If a kind is none; it suggests the nearest.
    """
    given = (kinds,) if isinstance(kinds, str) else kinds
    return GraphNodeFilter(
        layers=tuple(map(index, layers)),
        tokens=tuple(map(index, tokens)),
        kinds=tuple(member(GraphNodeKind, kind, "kinds") for kind in given),
    )


def _target(target: TargetLike) -> GraphTarget:
    if isinstance(target, GraphTarget):
        return target
    return GraphTarget(token=target) if isinstance(target, str) else GraphTarget(token_id=index(target))


def _direction(name: str, vector: Any) -> GraphTarget:
    try:
        if isinstance(vector, PutTensor):
            vector = RequestTensor(handle=vector.handle)
        tensor = vector if isinstance(vector, RequestTensor) else RequestTensor(tensor=np.asarray(vector))
        return GraphTarget(direction=tensor, name=name)
    except InvalidRequest as error:
        raise error.under(f"directions[{name!r}]") from None
