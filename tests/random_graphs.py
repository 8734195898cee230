"""Random attribution graphs: layered, with edges forward only, as the engine makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dst_grpc.domain.graph_edges import GraphEdges
from dst_grpc.domain.graph_node_table import GraphNodeKind, GraphNodeTable

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class RandomGraph:
    """A graph as the values that travel, and as a matrix."""

    table: GraphNodeTable
    """Its nodes."""
    matrix: Array
    """Its weights by target and source, float32 [n, n]."""
    target_weights: Array
    """Of its targets, float32 [K]."""

    @property
    def edges(self) -> GraphEdges:
        """Its edges."""
        return GraphEdges.of_matrix(self.matrix)

    def __len__(self) -> int:
        """Nodes."""
        return len(self.table)


def random_graph(
    seed: int = 0,
    *,
    n_layers: int = 3,
    n_tokens: int = 4,
    n_features: int = 12,
    targets: tuple[str | int, ...] = (7, "a direction", 3),
    density: float = 0.6,
) -> RandomGraph:
    """A graph with *n_features* features; *targets* are token ids, or what directions are called."""
    random = np.random.default_rng(seed)
    places = np.stack(np.unravel_index(np.arange(n_layers * n_tokens * 50), (n_layers, n_tokens, 50)), axis=1)
    features = places[np.sort(random.choice(len(places), n_features, replace=False))]
    ids = [target if isinstance(target, int) else -1 for target in targets]
    table = GraphNodeTable.of(
        features=features,
        kinds=np.full(n_features, GraphNodeKind.FEATURE.number),
        activations=random.uniform(0.1, 3, n_features),
        errors=[(GraphNodeKind.ERROR, layer) for layer in range(n_layers)],
        token_ids=random.integers(0, 100, n_tokens).tolist(),
        target_ids=ids,
        target_names=[str(target) for target in targets],
    )
    n = len(table)
    weights = random.normal(size=(n, n)).astype(np.float32)
    weights *= random.random((n, n)) < density
    # Errors write where features do, but nothing acts on them; targets are after the last layer.
    reads_at = np.where(table.has_kind(GraphNodeKind.TARGET), n_layers, table.layers)
    weights *= (table.layers[None] < reads_at[:, None]) & (table.tokens[None] <= table.tokens[:, None])
    weights[:, table.has_kind(GraphNodeKind.TARGET)] = 0
    weights[table.has_kind(GraphNodeKind.ERROR) | table.has_kind(GraphNodeKind.EMBEDDING)] = 0
    return RandomGraph(
        table=table,
        matrix=weights,
        target_weights=random.uniform(0.05, 0.5, len(targets)).astype(np.float32),
    )
