"""Scores of nodes: the change of an activation, times the gradient at it, summed over its channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.causal.qk_fix import key_effects, query_effects
from dst_grpc.domain.attribute import ATTRIBUTED_NODES, AttributedNode
from dst_grpc.domain.components import Dimension
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.taps import Site, site_entering
from dst_grpc.errors import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice

_L = ActivationLocationType


@dataclass(frozen=True, slots=True)
class Nodes:
    """All nodes of a kind, or those of one autoencoder set."""

    kind: AttributedNode
    """The kind."""
    sites: tuple[Site, ...]
    """The site of each layer's nodes."""
    layers: tuple[int, ...]
    """The layer of each site; empty for nodes that exist once per model."""
    spliced_at: ActivationLocationType | None = None
    """For latents and errors: the tap that their autoencoders reconstruct."""

    @property
    def fixes_pattern(self) -> bool:
        """Whether the QK fix is about nodes of the kind."""
        return self.sites[0][0] in {_L.ATTN_QUERY, _L.ATTN_KEY}


def nodes_of(kind: AttributedNode, n_layers: int, splices: Mapping[Site, Splice]) -> Iterator[Nodes]:
    """The nodes of *kind* in a model with autoencoders *splices*: one group, or one for each autoencoder set."""
    facts, layers = ATTRIBUTED_NODES[kind], tuple(range(n_layers))
    if facts.tap is None:
        yield from _of_autoencoders(kind, splices)
    elif facts.tap.has_no_layers:
        yield Nodes(kind, ((facts.tap, None),), ())
    elif facts.is_of_previous_layer:
        yield Nodes(kind, tuple(map(site_entering, layers)), layers)
    else:
        yield Nodes(kind, tuple((facts.tap, layer) for layer in layers), layers)


def _of_autoencoders(kind: AttributedNode, splices: Mapping[Site, Splice]) -> Iterator[Nodes]:
    for taps in dict.fromkeys(splice.input for splice in splices.values()):
        tap = taps.latent_tap if kind is AttributedNode.LATENT else require(taps.error_tap)
        layers = tuple(sorted(splice.layer for splice in splices.values() if splice.input is taps))
        yield Nodes(kind, tuple((tap, layer) for layer in layers), layers, taps.spliced_at)


@dataclass(frozen=True, eq=False)
class NodeScores:
    """Computes the scores of nodes of a model."""

    decoder: Decoder
    fixes_qk: bool = False
    """Whether those of queries and keys go through recomputed patterns (QK fix)."""

    def sites(self, nodes: Nodes) -> frozenset[Site]:
        """The sites whose values and gradients the scores of *nodes* are computed from."""
        if not (self.fixes_qk and nodes.fixes_pattern):
            return frozenset(nodes.sites)
        return frozenset(
            (tap, layer) for tap in (_L.ATTN_QUERY, _L.ATTN_KEY, _L.ATTN_QK_PROBS) for layer in nodes.layers
        )

    def of(
        self,
        nodes: Nodes,
        base: Callable[[Site], torch.Tensor],
        source: Callable[[Site], torch.Tensor],
        gradient: Callable[[Site], torch.Tensor],
    ) -> torch.Tensor:
        """Scores of each pair, with one position after the other.

        Args:
            nodes: the nodes.
            base: values at a site in the base runs [n, T, ...].
            source: values there in the runs that they are replaced by.
            gradient: the gradient there, summed over runs with their weights.

        Returns:
            [n, L, T], [n, L, T, H] or, where each entry is a node, [n, L, T, F or Z]; without L for nodes that exist
            once per model.
        """
        if self.fixes_qk and nodes.fixes_pattern:
            effects = query_effects if nodes.sites[0][0] is _L.ATTN_QUERY else key_effects
            other = nodes.sites[0][0]
            found = [
                effects(
                    self.decoder.layers[layer],
                    base((_L.ATTN_QUERY, layer)),
                    base((_L.ATTN_KEY, layer)),
                    source((other, layer)),
                    gradient((_L.ATTN_QK_PROBS, layer)),
                )
                for layer in nodes.layers
            ]
        else:
            found = [_product(nodes, site, source(site) - base(site), gradient(site)) for site in nodes.sites]
        return torch.stack(found, dim=1) if nodes.layers else found[0]


def _product(nodes: Nodes, site: Site, change: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The change times the gradient, summed over what is not a node of its own."""
    product = change * gradient
    if ATTRIBUTED_NODES[nodes.kind].is_entry:
        return product
    dimensions = site[0].dimensions
    keys = dimensions.index(Dimension.ATTENDED_TO_SEQUENCE_TOKENS) if site[0].facts.is_attention_matrix else -1
    return product.sum(dim=keys + 1 if keys >= 0 else -1)
