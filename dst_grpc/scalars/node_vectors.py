"""Write and input vectors of nodes in the residual stream, for scoring tokens.

A node's write is a number times a direction that nodes at other tokens share. Its input vector is the gradient of its
activation before the nonlinearity at the residual before it, with the scale of the norm held constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import AttentionTraceType, NodeType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_facts import Quantity
from dst_grpc.errors import require
from dst_grpc.scalars.components import EntryWrites, HeadPair, LayerOfRun, ResidualVector, component_of_nodes
from dst_grpc.scalars.node_groups import NodeGroup, NodeGroups

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.engine.layer import Layer
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.recorded_taps import RecordedTaps
    from dst_grpc.scalars.topology import Topology

_L = ActivationLocationType
Multiple = tuple[int, int, float]
"""The position of a node in its list, the row of its vector's direction, and its coefficient."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """One vector of the residual stream for each of some nodes: a coefficient times a row of *directions*."""

    nodes: tuple[int, ...]
    """Positions of the nodes in their list, ascending."""
    directions: torch.Tensor
    """[M, d], M at most the number of nodes."""
    rows: tuple[int, ...]
    """The row of each node's direction."""
    coefficients: tuple[float, ...]
    """The coefficient of each."""

    @property
    def multiples(self) -> tuple[Multiple, ...]:
        """What they are without the directions."""
        return tuple(zip(self.nodes, self.rows, self.coefficients, strict=True))


def sites_of_vectors(node_type: NodeType, layers: Sequence[int], topology: Topology) -> Iterator[Site]:
    """Taps that write and input vectors of nodes of a type at *layers* are computed from."""
    if node_type is NodeType.LAYER:
        yield _L.RESID_POST_EMBEDDING, None
    if node_type is NodeType.AUTOENCODER_ERROR:
        yield from ((_L.ONLINE_RESIDUAL_AUTOENCODER_ERROR, layer) for layer in layers)
    component = component_of_nodes(node_type, topology)
    if component is None:
        return
    is_head = isinstance(component, HeadPair)
    for layer in layers:
        for _, site in component.taps(layer, Quantity.WRITE):
            yield site
        if component.reads_one_token or is_head:
            yield component.residual_before(layer).site
        if is_head:
            yield _L.ATTN_QUERY, layer
            yield _L.ATTN_KEY, layer


@torch.no_grad()
def written_vectors(model: ExplainedModel, recorded: RecordedTaps, nodes: Sequence[NodeIndex]) -> Vectors:
    """The write of each node at its own token; nodes without a known write are left out.

    The embedding's node is one of type LAYER outside any layer. A latent writes if its autoencoder is in the run, and
    an attention head for a pair of tokens.
    """
    places: list[int] = []
    rows: list[torch.Tensor] = []
    coefficients: list[torch.Tensor] = []
    directions: list[torch.Tensor] = []
    n_directions = 0
    for group in NodeGroups(nodes):
        found = _written(model, recorded, group)
        if found is None:
            continue
        places += group.positions.tolist()
        coefficients.append(found.coefficients)
        rows.append(found.which + n_directions)
        directions.append(found.directions)
        n_directions += len(found.directions)
    return _vectors(model, places, directions, rows, coefficients)


def _written(model: ExplainedModel, recorded: RecordedTaps, group: NodeGroup) -> EntryWrites | None:
    run, entries = LayerOfRun(model, recorded, group.layer), group.entries.to(model.decoder.device)
    if group.node_type is NodeType.LAYER and group.layer is None:
        return ResidualVector(model.topology, _L.RESID_POST_EMBEDDING).bind(run).at(entries)
    if group.node_type is NodeType.AUTOENCODER_ERROR:
        return ResidualVector(model.topology, _L.ONLINE_RESIDUAL_AUTOENCODER_ERROR).bind(run).at(entries)
    component = component_of_nodes(group.node_type, model.topology)
    if component is None or not group.is_of_entries:
        return None
    return component.bind(run).at(entries)


def mlp_input_vectors(model: ExplainedModel, recorded: RecordedTaps, nodes: Sequence[NodeIndex]) -> Vectors:
    """The input vector of each neuron, and each latent of the MLPs or the residual stream; other nodes are left out."""
    places: list[int] = []
    gradients: list[torch.Tensor] = []
    for group in NodeGroups(nodes):
        component = component_of_nodes(group.node_type, model.topology)
        if component is None or not component.reads_one_token or not group.is_of_entries:
            continue
        layer = require(group.layer)
        tokens, which = group.entries.to(model.decoder.device).t()
        rho = recorded.value(component.residual_before(layer).site)[tokens]
        with torch.enable_grad():
            rho = rho.requires_grad_()
            pre = component.pre_activations(model, layer, rho, which)
            gradients += torch.autograd.grad(pre.sum(), rho)
        places += group.positions.tolist()
    return _vectors(model, places, gradients)


def score_input_vectors(
    model: ExplainedModel, recorded: RecordedTaps, nodes: Sequence[NodeIndex]
) -> tuple[Vectors, Vectors]:
    """The input vectors of each attention head's score for its pair of tokens.

    Other nodes are left out, and pairs that a sliding window masks.

    Returns:
        The gradients at the query's residual with the key held constant, and at the key's with the query held constant.
    """
    places: list[int] = []
    of_queries: list[torch.Tensor] = []
    of_keys: list[torch.Tensor] = []
    for group in NodeGroups(nodes):
        if group.node_type is not NodeType.ATTENTION_HEAD or not group.is_of_entries:
            continue
        layer = require(group.layer)
        block = model.decoder.layers[layer]
        distance = group.entries[:, 0] - group.entries[:, 1]
        seen = torch.ones_like(distance, dtype=torch.bool) if block.window is None else distance < block.window
        if not seen.any():
            continue
        t, u, h = group.entries[seen].to(model.decoder.device).t()
        rho = recorded.value(HeadPair(model.topology).residual_before(layer).site)
        keys, queries = recorded.value((_L.ATTN_KEY, layer))[u, h], recorded.value((_L.ATTN_QUERY, layer))[t, h]
        places += group.positions[seen].tolist()
        # One after the other: each takes a copy of its heads' weights.
        of_queries.append(_score_gradient(block, AttentionTraceType.Q, rho, t, h, keys))
        of_keys.append(_score_gradient(block, AttentionTraceType.K, rho, u, h, queries))
    return _vectors(model, places, of_queries), _vectors(model, places, of_keys)


def _score_gradient(
    block: Layer, part: AttentionTraceType, rho: torch.Tensor, tokens: torch.Tensor, h: torch.Tensor, held: torch.Tensor
) -> torch.Tensor:
    """Gradients [n, d] of scores at the residual *rho* [T, d] of *tokens* [n], which heads *h* [n] read as *part*, with
    what they meet, [n, c], held constant."""
    heads, which = h.unique(return_inverse=True)
    with torch.enable_grad():
        read = rho[tokens].requires_grad_()
        inputs = block.inputs_of_heads(part, heads, block.attn_norm(read, detach_scale=True), tokens)
        raised = inputs[torch.arange(len(h), device=h.device), which]
        # Each is the score of a prompt of one query and one key, for one head; which is which makes no difference.
        scores = block.attn_scores(raised[:, None, None], held[:, None, None])
        (gradient,) = torch.autograd.grad(scores.sum(), read)
    return gradient


def _vectors(
    model: ExplainedModel,
    places: list[int],
    directions: list[torch.Tensor],
    rows: list[torch.Tensor] | None = None,
    coefficients: list[torch.Tensor] | None = None,
) -> Vectors:
    """Vectors of nodes in the order of their list; without *rows*, each has a direction of its own."""
    if not places:
        empty = model.decoder.embedding.new_zeros(0, model.decoder.config.d_model)
        return Vectors((), empty, (), ())
    n = len(places)
    row_of = range(n) if rows is None else torch.cat(rows).tolist()
    coefficient_of = [1.0] * n if coefficients is None else torch.cat(coefficients).tolist()
    in_order = sorted(zip(places, row_of, coefficient_of, strict=True))
    ordered = [tuple(column) for column in zip(*in_order, strict=True)]
    return Vectors(ordered[0], torch.cat(directions), ordered[1], ordered[2])
