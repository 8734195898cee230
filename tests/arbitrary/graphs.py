"""Requests and answers of Graph and QueryGraph."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from dst_grpc.domain.graph import GraphRequest, GraphSource, GraphTarget
from dst_grpc.domain.graph_answers import GraphNodeScores
from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_node_table import GraphNodeTable
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
    GraphEdgeQuery,
    GraphNeighbours,
    GraphPathQuery,
    GraphPruning,
    QueryGraphRequest,
)
from dst_grpc.domain.request_tensors import RequestTensor
from tests.arbitrary.basic import built, names, optional, own, texts, tuples, uint64
from tests.arbitrary.requests import prompts

nodes = st.sampled_from(["f3.120@5", "h0.2@1", "e0@1", "t5", "logit:464", "target:a name"])
shares = st.floats(0, 1)


def columns(n: int, dtype: Any) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    """Arrays of *n* elements."""
    if dtype is np.bool_:
        values: Any = st.booleans()
    elif dtype is np.float32:
        values = st.floats(width=32)
    else:
        values = st.integers(-(2**31), 2**31 - 1)
    return st.lists(values, min_size=n, max_size=n).map(lambda found: np.array(found, dtype))


@st.composite
def node_tables(draw: st.DrawFn) -> GraphNodeTable:
    n = draw(st.integers(0, 4))
    integers = {name: draw(columns(n, np.int32)) for name in ("nodes", "kinds", "layers", "tokens", "features")}
    names = tuple(draw(st.lists(texts, min_size=n, max_size=n)))
    return GraphNodeTable(**integers, activations=draw(columns(n, np.float32)), names=names)


@st.composite
def node_scores(draw: st.DrawFn) -> GraphNodeScores:
    n = draw(st.integers(0, 4))
    return GraphNodeScores(
        nodes=draw(columns(n, np.int32)),
        cumulative_scores=draw(columns(n, np.float32)),
        input_sums=draw(columns(n, np.float32)),
        kept=draw(columns(n, np.bool_)),
    )


@st.composite
def edges(draw: st.DrawFn) -> GraphEdges:
    counts = draw(st.lists(st.integers(0, 3), max_size=3))
    return GraphEdges(
        targets=draw(columns(len(counts), np.int32)),
        counts=np.array(counts, np.int32),
        sources=draw(columns(sum(counts), np.int32)),
        weights=draw(columns(sum(counts), np.float32)),
    )


own(GraphNodeTable, node_tables())
own(GraphNodeScores, node_scores())
own(GraphEdges, edges())
numbers = st.lists(st.floats(-(2.0**66), 2.0**66, width=32), min_size=1, max_size=4).filter(any)
vectors = st.builds(RequestTensor, handle=texts.filter(bool)) | st.builds(
    RequestTensor, tensor=numbers.map(lambda values: np.array(values, np.float32))
)
weights = optional(st.floats(1e-20, 1e20))
tokens = built(
    GraphTarget, token=texts.filter(bool), token_id=st.none(), direction=st.none(), name=st.just(""), weight=weights
)
ids = built(
    GraphTarget,
    token=st.none(),
    token_id=st.integers(0, 2**31 - 1),
    direction=st.none(),
    name=st.just(""),
    weight=weights,
)
directions = built(
    GraphTarget, token=st.none(), token_id=st.none(), direction=vectors, name=texts.filter(bool), weight=weights
)
own(GraphTarget, tokens | ids | directions)
_S = GraphSource
sources = st.sampled_from(
    [(), (_S.FEATURES,), (_S.HEADS, _S.NEURONS), (_S.FEATURES, _S.HEADS), (_S.LATENTS,), (_S.LATENTS, _S.FEATURES)]
)


def _requests(chosen: tuple[GraphSource, ...]) -> st.SearchStrategy[GraphRequest]:
    """Requests with *chosen* sources."""
    has_features, has_latents = _S.FEATURES in (chosen or [_S.FEATURES]), _S.LATENTS in chosen
    return built(
        GraphRequest,
        prompt=prompts,
        sources=st.just(chosen),
        transcoders=optional(names) if has_features else st.none(),
        autoencoders=tuples(names, min_size=1, unique=True) if has_latents else st.just(()),
        model=optional(names),
        targets=tuples(tokens | ids | directions, unique_by=lambda one: (one.token, one.token_id, one.name)),
        max_n_logits=st.integers(1, 1000),
        desired_logit_prob=st.floats(0, 1, exclude_min=True),
        max_feature_nodes=optional(st.integers(1, 2**32 - 1)),
        batch_size=st.integers(1, 65_536),
        update_interval=st.integers(1, 65_536),
        node_threshold=shares,
        edge_threshold=shares,
        max_bytes=optional(uint64),
    )


own(GraphRequest, sources.flatmap(_requests))
own(GraphNeighbours, built(GraphNeighbours, node=nodes, top_k=st.integers(1, 100_000)))
own(
    GraphPathQuery,
    st.lists(nodes, min_size=2, max_size=2, unique=True).flatmap(
        lambda ends: built(GraphPathQuery, source=st.just(ends[0]), target=st.just(ends[1]), top_k=st.integers(1, 1000))
    ),
)
own(GraphEdgeQuery, built(GraphEdgeQuery, min_weight=st.floats(0, allow_nan=False, allow_infinity=False)))
own(GraphPruning, built(GraphPruning, node_threshold=shares, edge_threshold=shares))
own(QueryGraphRequest, built(QueryGraphRequest, graph=texts.filter(bool)))

features = st.builds("f{}.{}@{}".format, st.integers(0, 30), st.integers(0, 9999), st.integers(0, 99))
finite = st.floats(allow_nan=False, allow_infinity=False)
own(
    GraphFeatureSetting,
    st.builds(GraphFeatureSetting, nodes=st.tuples(features), activation=finite)
    | st.builds(GraphFeatureSetting, nodes=st.tuples(features), factor=finite),
)
settings = st.lists(features, min_size=1, max_size=3, unique=True).map(
    lambda names: tuple(GraphFeatureSetting(nodes=(name,), factor=0.5) for name in names)
)
own(GraphIntervention, built(GraphIntervention, settings=settings, name=texts))
own(
    GraphInterventions,
    st.lists(built(GraphIntervention, settings=settings, name=texts), min_size=1, max_size=2).map(
        lambda found: GraphInterventions(interventions=tuple(found))
    ),
)
own(GraphVerification, built(GraphVerification, count=st.integers(1, 1000)))
own(
    GraphEdgeHeads,
    built(GraphEdgeHeads, source=st.sampled_from(["f3.120@5", "e0@1", "t5"]), target=st.sampled_from(["logit:464"])),
)
own(
    GraphAttention,
    st.integers(0, 99).flatmap(
        lambda query: built(
            GraphAttention, query=st.just(query), key=st.integers(0, query), top_k=st.integers(1, 10_000)
        )
    ),
)
own(
    GraphFeatureTokens,
    built(GraphFeatureTokens, nodes=st.tuples(features), top_k=st.integers(1, 100)),
)
own(ProbeGraphRequest, built(ProbeGraphRequest, graph=texts.filter(bool)))
