"""From keyword arguments to requests of Graph and QueryGraph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex, TypeAlias, TypedDict

from dst_grpc.client._directions import tensor_of
from dst_grpc.client._given import given, integers, text
from dst_grpc.client._requests import PromptLike, member, names_of, prompt_of, token_of
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
    GraphSource,
    GraphTarget,
)
from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.domain.graph_queries import (
    GraphEdgeDirection,
    GraphEdgeQuery,
    GraphNeighbours,
    GraphNodeFilter,
    GraphPathQuery,
    GraphPruning,
    check_node,
)
from dst_grpc.errors import InvalidRequest, Violations

TargetLike: TypeAlias = str | SupportsIndex | GraphTarget
"""A token as its text (mind the leading space) or its id; or a whole GraphTarget."""


SourcesLike: TypeAlias = GraphSource | str | Iterable[GraphSource | str]
"""What units are, as members or their names; one, or several."""


class GraphArguments(TypedDict, total=False):
    """The keyword arguments of `graph`, besides its prompt and transcoders."""

    sources: SourcesLike
    """What units are, the nodes between tokens and targets: `features` of transcoders, `neurons`, `heads`, `latents` of
    autoencoders, or several; nothing = latents if there are autoencoders, else features."""
    autoencoders: str | Iterable[str]
    """Names or handles of the sets of autoencoders whose latents are units."""
    targets: TargetLike | Iterable[TargetLike]
    """The nodes that effects are traced back from; nothing = the logits of the most probable tokens."""
    directions: Mapping[str, Any]
    """Further targets, after these, by name: vectors [d] that the final residual, after the final norm, is projected
    on; arrays or stored tensors."""
    max_n_logits: int
    """Without targets: at most so many logits."""
    desired_logit_prob: float
    """Without targets: as few logits as have so much probability together."""
    max_feature_nodes: int | None
    """At most so many features, neurons, heads and latents are nodes, those of the largest influence; None = all that
    are active, 500 if neurons are among the sources."""
    batch_size: int
    """Units whose edges are computed together."""
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
    sources: SourcesLike = (),
    autoencoders: str | Iterable[str] = (),
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
        TypeError: If an argument is of a wrong type.
        InvalidRequest: If an argument cannot be valid, whatever the model; names that are nearly right are suggested.
    """
    each = targets if isinstance(targets, Iterable) and not isinstance(targets, str) else (targets,)
    tokens = [_target(f"targets[{i}]", target) for i, target in enumerate(each)]
    if not isinstance(directions, Mapping | None):
        raise TypeError(f"directions must be a mapping from names to vectors, not {directions!r}")
    named = [
        _direction(f"targets[{i}]", name, vector)
        for i, (name, vector) in enumerate((directions or {}).items(), len(tokens))
    ]
    return given(
        "",
        GraphRequest,
        prompt=prompt_of(prompt),
        transcoders=transcoders,
        sources=tuple(member(GraphSource, one, f"sources[{i}]") for i, one in enumerate(names_of(sources, "sources"))),
        autoencoders=names_of(autoencoders),
        request_id=request_id,
        model=model,
        begin_token=member(BeginToken, begin_token, "begin_token"),
        targets=(*tokens, *named),
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
        TypeError: If an argument is of a wrong type.
        InvalidRequest: If a kind is none, with the nearest; or an index cannot be.
    """
    each = enumerate(names_of(kinds, "filter.kinds"))
    return given(
        "filter",
        GraphNodeFilter,
        layers=integers("filter.layers", layers),
        tokens=integers("filter.tokens", tokens),
        kinds=tuple(member(GraphNodeKind, kind, f"filter.kinds[{i}]") for i, kind in each),
    )


def node_name(path: str, name: str) -> str:
    """*name*, if it can be that of a node; raises TypeError, InvalidRequest."""
    problems = Violations()
    check_node(problems, path, text(path, name))
    problems.raise_if_any()
    return name


def make_neighbours(node: str, k: int, direction: GraphEdgeDirection | str) -> GraphNeighbours:
    """Asks for the *k* strongest edges of a node in a *direction*; raises TypeError, InvalidRequest."""
    asked = member(GraphEdgeDirection, direction, "neighbours.direction")
    return given("neighbours", GraphNeighbours, node=node, top_k=k, direction=asked)


def make_path_query(source: str, target: str, k: int) -> GraphPathQuery:
    """Asks for the *k* strongest paths; raises TypeError, InvalidRequest."""
    return given("paths", GraphPathQuery, source=source, target=target, top_k=k)


def make_edge_query(min_weight: float) -> GraphEdgeQuery:
    """Asks for edges of a magnitude of at least *min_weight*; raises TypeError, InvalidRequest."""
    return given("edges", GraphEdgeQuery, min_weight=min_weight)


def make_pruning(node_threshold: float, edge_threshold: float) -> GraphPruning:
    """Asks for what other thresholds leave; raises TypeError, InvalidRequest."""
    return given("pruning", GraphPruning, node_threshold=node_threshold, edge_threshold=edge_threshold)


def _target(path: str, target: TargetLike) -> GraphTarget:
    if isinstance(target, GraphTarget):
        return target
    token = token_of(path, target)
    return given(path, GraphTarget, token=token) if isinstance(token, str) else given(path, GraphTarget, token_id=token)


def _direction(path: str, name: str, vector: Any) -> GraphTarget:
    try:
        tensor = tensor_of(vector)
    except InvalidRequest as error:
        raise error.under(f"{path}.direction") from None
    except (TypeError, ValueError):
        raise TypeError(f"directions[{name!r}] must be a vector or a stored tensor, not {vector!r}") from None
    return given(path, GraphTarget, direction=tensor, name=name)
