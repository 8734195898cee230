"""The nodes of an attribution graph in their order, and the graph itself.

Nodes are numbered from 0: first k units, as a pass comes to them: by layer, in a layer those that read and write before
others first, then by token, then by number; then E T errors, in the same order; then T embeddings; last K targets. A
unit is a feature of a transcoder, a neuron, a head, or a latent of an autoencoder; many graphs have features alone, and
names say "feature" for any unit. Shapes: A active units, k those of them that are nodes, E places with errors, T
tokens, K targets, n = k + E T + T + K nodes, r = k + K readers, d residual channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dst_grpc.domain.graph_node_table import GraphNodeKind

Floats = np.ndarray[Any, np.dtype[np.float32]]
Integers = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

FREE_DIRECTION = -1
"""The token id of a target that is no token."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GraphTargets:
    """What effects are traced back from: projections of the residual after the final norm, at the last token."""

    token_ids: Integers
    """Tokens [K] whose logits they are; `FREE_DIRECTION` for other projections."""
    names: tuple[str, ...]
    """What the projections that are no logits are called; empty for logits."""
    weights: Floats
    """How much each counts when influences are added up, [K]: the probability of a token."""
    vectors: Floats
    """What each projects on, [K, d]: of a logit, the unembedding of its token less the mean over the vocabulary."""

    def __len__(self) -> int:
        """Targets (K)."""
        return len(self.token_ids)


@dataclass(frozen=True, eq=False, kw_only=True)
class GraphNodes:
    """All of a graph but its edges."""

    token_ids: Integers
    """The prompt [T], with the first token if one was put before it."""
    n_layers: int
    """Layers of the model (L)."""
    active: Integers
    """Layer, token and number of each active unit, [A, 3], in the order of nodes."""
    kinds: Integers
    """Their kinds, as numbers, [A]."""
    errors: tuple[tuple[GraphNodeKind, int], ...]
    """The kind and layer of errors (E), of which there is one at each token."""
    activations: Floats
    """Their activations, [A]; none is 0."""
    selected: Integers
    """Which of them are nodes, [k], ascending."""
    targets: GraphTargets
    """The targets."""

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.token_ids)

    @property
    def n_features(self) -> int:
        """Units that are nodes (k)."""
        return len(self.selected)

    @property
    def first_error(self) -> int:
        """The first node that is an error."""
        return self.n_features

    @property
    def first_embedding(self) -> int:
        """The first node that is an embedding."""
        return self.first_error + len(self.errors) * self.n_tokens

    @property
    def first_target(self) -> int:
        """The first node that is a target."""
        return self.first_embedding + self.n_tokens

    def __len__(self) -> int:
        """Nodes (n)."""
        return self.first_target + len(self.targets)

    @cached_property
    def features(self) -> Integers:
        """Layer, token and number of the units that are nodes, [k, 3]."""
        return self.active[self.selected]

    @cached_property
    def feature_kinds(self) -> Integers:
        """The kinds of the units that are nodes, as numbers, [k]."""
        return self.kinds[self.selected]

    def kind(self, node: int) -> GraphNodeKind:
        """What *node* is; raises IndexError if there is no such node."""
        if not 0 <= node < len(self):
            raise IndexError(f"node {node} of {len(self)}")
        if node < self.first_error:
            return GraphNodeKind.numbered(int(self.feature_kinds[node]))
        if node < self.first_embedding:
            return self.errors[(node - self.first_error) // self.n_tokens][0]
        return GraphNodeKind.EMBEDDING if node < self.first_target else GraphNodeKind.TARGET

    def feature(self, node: int) -> tuple[int, int, int]:
        """Layer, token and number of *node*, which is a unit."""
        layer, token, feature = self.features[node]
        return int(layer), int(token), int(feature)

    def error(self, node: int) -> tuple[int, int]:
        """Layer and token of *node*, which is an error."""
        place, token = divmod(node - self.first_error, self.n_tokens)
        return self.errors[place][1], token

    def embedding(self, node: int) -> int:
        """The token of *node*, which is an embedding."""
        return node - self.first_embedding

    def target(self, node: int) -> int:
        """Which of the targets *node* is, which is one."""
        return node - self.first_target

    @cached_property
    def readers(self) -> Integers:
        """The nodes that others act on, [k + K]: units and targets."""
        return np.r_[: self.first_error, self.first_target : len(self)]

    @cached_property
    def layers(self) -> Integers:
        """The layer of each node [n] that is a unit or an error; -1 of embeddings, L of targets."""
        of_errors = np.repeat(np.array([layer for _, layer in self.errors], dtype=np.int64), self.n_tokens)
        others = np.full(self.n_tokens, -1), np.full(len(self.targets), self.n_layers)
        return np.concatenate((self.features[:, 0], of_errors, *others))

    @cached_property
    def tokens(self) -> Integers:
        """The token of each node, [n]; of targets, the last."""
        every = np.tile(np.arange(self.n_tokens), len(self.errors) + 1)
        last = np.full(len(self.targets), self.n_tokens - 1)
        return np.concatenate((self.features[:, 1], every, last))

    @cached_property
    def weights(self) -> Floats:
        """The weight of each node, [n]: 0 but of targets."""
        found = np.zeros(len(self), dtype=np.float32)
        found[self.first_target :] = self.targets.weights
        return found


@dataclass(frozen=True, eq=False, kw_only=True)
class AttributionGraph:
    """A graph. Only units and targets are acted on: r = k + K readers."""

    nodes: GraphNodes
    """Its nodes."""
    effects: Floats
    """The direct effect of each node on each reader, [r, n]; 0 where there is no edge. The columns of targets are 0."""

    @classmethod
    def of_matrix(cls, nodes: GraphNodes, adjacency: Floats) -> AttributionGraph:
        """The graph of an adjacency [n, n], by target and source."""
        return cls(nodes=nodes, effects=adjacency[nodes.readers])

    @property
    def adjacency(self) -> Floats:
        """Direct effects by target and source, [n, n]; the rows of errors and embeddings, of which a long prompt has
        very many, are 0."""
        found = np.zeros((len(self.nodes), len(self.nodes)), dtype=np.float32)
        found[self.nodes.readers] = self.effects
        return found

    @property
    def byte_count(self) -> int:
        """Bytes of its arrays."""
        nodes, targets = self.nodes, self.nodes.targets
        arrays = (self.effects, nodes.token_ids, nodes.active, nodes.kinds, nodes.activations, nodes.selected)
        return sum(one.nbytes for one in (*arrays, targets.token_ids, targets.weights, targets.vectors))
