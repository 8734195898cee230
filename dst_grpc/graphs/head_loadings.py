"""Which heads carry an edge from its source to its target.

An edge is a sum over paths, each through some heads of earlier to later layers, or through none: along the residual,
and skip connections. With S what the source adds to the residual that enters a layer along all paths, and G the
gradient of the target at the layer's attention write along all paths, both in the local replacement model, and S', G'
the same along paths without heads, head h carries

    through     head_h(S) . G         all paths through it
    last        head_h(S) . G'        those on which no head comes after it
    first       head_h(S') . G        those on which none comes before it
    only        head_h(S') . G'       the path through no other head

The edge is the sum of paths without heads and of `last` over all heads, or of `first`. Only graphs whose units are all
at MLPs are asked: elsewhere units stand for heads, or for all that they write into.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.graphs.changes import carried, writes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.graphs.changes import Changes
    from dst_grpc.graphs.local_model import LocalModel
    from dst_grpc.graphs.nodes import Floats, GraphNodes


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HeadLoadings:
    """How much of an edge each head carries, by layer and head [L, H]; 0 in layers that are not between its ends."""

    weight: float
    """The edge."""
    without_heads: float
    """Paths through no head: the residual and skip connections at one token."""
    through: Floats
    """All paths through a head. They overlap: their sum is not the edge."""
    last: Floats
    """Paths on which it is the last one."""
    first: Floats
    """Paths on which it is the first one."""
    only: Floats
    """The path through it alone."""


@torch.no_grad()
def head_loadings(model: LocalModel, nodes: GraphNodes, source: int, target: int) -> HeadLoadings:
    """The loadings of the edge from *source* to *target*.

    Args:
        model: the local replacement model of the prompt.
        nodes: the nodes of its graph.
        source: a unit, an error or an embedding.
        target: a feature or neuron, or a target.
    """
    end, writes = _End.of(model, nodes, target), writes_of(model, nodes, source)
    n_layers = min(end.layer + 1, len(model.recording.layers))  # its own too, whose transcoder reads what it is
    every = carried(model, writes, n_layers)
    straight = carried(model, writes, n_layers, through_heads=False)
    config = model.decoder.config
    through, last, first, only = torch.zeros(4, config.n_layers, config.n_heads, device=model.device, dtype=model.dtype)
    for layer, gradients in _through_heads(model, end, all_paths=True):
        through[layer] = _along(gradients, every.entering[layer])
        first[layer] = _along(gradients, straight.entering[layer])
    for layer, gradients in _through_heads(model, end, all_paths=False):
        last[layer] = _along(gradients, every.entering[layer])
        only[layer] = _along(gradients, straight.entering[layer])
    return HeadLoadings(
        weight=end.effect(every),
        without_heads=end.effect(straight),
        through=_on_host(through),
        last=_on_host(last),
        first=_on_host(first),
        only=_on_host(only),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _End:
    """Where an edge ends."""

    layer: int
    """Its layer; the number of layers if it is after the last."""
    token: int
    """Its token."""
    gradient: torch.Tensor
    """Its gradient at the residual there, [d]: that which its layer's MLP reads, or the last."""
    is_unit: bool
    """Whether it is a unit rather than a target."""

    @classmethod
    def of(cls, model: LocalModel, nodes: GraphNodes, node: int) -> _End:
        """That of *node*."""
        if node < nodes.first_error:
            units, own = model.recording.unit(int(nodes.selected[node]))
            return cls(units.layer, int(units.active.tokens[own]), units.gradients(own)[0], is_unit=True)
        vector = torch.from_numpy(nodes.targets.vectors[nodes.target(node)]).to(model.device, model.dtype)
        return cls(nodes.n_layers, nodes.n_tokens - 1, model.target_gradients(vector[None])[0], is_unit=False)

    def effect(self, changes: Changes) -> float:
        """What *changes* do to it."""
        residual = changes.read[self.layer] if self.is_unit else changes.entering[self.layer]
        return float(residual[self.token] @ self.gradient)


def _through_heads(model: LocalModel, end: _End, *, all_paths: bool) -> Iterator[tuple[int, torch.Tensor]]:
    """Each layer before *end*, the latest first, with the gradients of *end* through each head, [H, T, d].

    They are those at the residual that enters the layer; along all paths from there on, or those without other heads.
    """
    gradient = model.nothing
    gradient[end.token] = end.gradient
    reads_after_attention = end.is_unit and not model.is_parallel
    for index in reversed(range(end.layer + reads_after_attention)):
        model.check()
        layer = model.layer(index)
        # A feature of this layer reads its residual, and nothing of the MLP's write.
        skipped = None if end.is_unit and index == end.layer else layer.through_skip(gradient[None])
        if skipped is not None and not model.is_parallel:
            gradient = gradient + skipped[0]
        of_heads = layer.head_gradients(gradient)
        yield index, of_heads
        if skipped is not None and model.is_parallel:
            gradient = gradient + skipped[0]
        if all_paths:
            gradient = gradient + of_heads.sum(dim=0)


def _along(gradients: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """What *change* [T, d] does through each head, [H], given *gradients* [H, T, d] there."""
    return torch.einsum("htd,td->h", gradients, change)


def _on_host(loadings: torch.Tensor) -> Floats:
    found: Floats = loadings.float().cpu().numpy()
    return found
