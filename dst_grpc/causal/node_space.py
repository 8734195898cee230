"""The nodes of circuits with latents: sources of the graph, and the latents and errors of spliced autoencoders.

First the sources, in the graph's order, without those that only an autoencoder reads: an MLP, or the heads of a layer,
whose write it reconstructs. Then for each autoencoder, layer by layer, its latents and its error. A node is what is at
one place in the forward pass, so that to cut it is to set it to its alternative there, at every position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dst_grpc.domain.components import LocationWithinLayer
from dst_grpc.domain.graph_nodes import Node, Part, Source
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.taps import site_entering
from dst_grpc.errors import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.causal.circuits import Mask
    from dst_grpc.causal.graph import Graph
    from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
    from dst_grpc.engine.taps import Site

_L = ActivationLocationType
EMBEDDING = site_entering(0)
Places = np.ndarray[Any, np.dtype[np.intp]]


@dataclass(frozen=True, slots=True)
class SplicedLayer:
    """An autoencoder that is spliced into a layer."""

    autoencoder: str
    """Name of its set."""
    input: AutoencoderInput
    """What it reads."""
    layer: int
    """The layer."""
    n_latents: int
    """Its latents (Z)."""

    @property
    def place(self) -> str:
        """What it reconstructs, as of `Part`."""
        if self.input.is_of_mlp:
            return "m"
        return "a" if self.input.is_of_attention_write else "r"


@dataclass(frozen=True, slots=True)
class NodesAt:
    """The nodes at one site: the heads of a layer, or the latents of an autoencoder, or a single one."""

    site: Site
    """Where they are."""
    first: int
    """Place of the first among all nodes."""
    count: int
    """How many there are."""

    @property
    def places(self) -> slice:
        """Their places."""
        return slice(self.first, self.first + self.count)

    @property
    def layer(self) -> int:
        """The first layer that has to run if one of them changes."""
        return self.site[1] or 0


@dataclass(frozen=True)
class NodeSpace:
    """All nodes of a model with spliced autoencoders."""

    graph: Graph
    """The model's."""
    spliced: tuple[SplicedLayer, ...]
    """The autoencoders, by layer."""

    @classmethod
    def of(cls, graph: Graph, spliced: Sequence[SplicedLayer]) -> NodeSpace:
        """The nodes of a model with autoencoders."""
        return cls(graph, tuple(sorted(spliced, key=lambda one: (one.layer, "amr".index(one.place)))))

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The sources among the nodes."""
        replaced = {(one.place, one.layer) for one in self.spliced}
        return tuple(
            source
            for source in self.graph.sources
            if ("m" if source.head is None else "a", source.layer) not in replaced
        )

    @cached_property
    def groups(self) -> tuple[NodesAt, ...]:
        """The nodes by site, in their order."""
        sites: list[tuple[Site, int]] = []
        for source in self.sources:
            if source.layer is None:
                sites.append((EMBEDDING, 1))
            elif source.head is None:
                sites.append(((_L.RESID_DELTA_MLP, source.layer), 1))
            elif source.head == 0:
                sites.append(((_L.ATTN_WEIGHTED_SUM_OF_VALUES, source.layer), self.graph.n_heads))
        for one in self.spliced:
            sites.append(((one.input.latent_tap, one.layer), one.n_latents))
            sites.append(((require(one.input.error_tap), one.layer), 1))
        ends = np.cumsum([0, *(count for _, count in sites)]).tolist()
        return tuple(NodesAt(site, first, count) for (site, count), first in zip(sites, ends[:-1], strict=True))

    @property
    def count(self) -> int:
        """How many nodes there are (N)."""
        return self.groups[-1].places.stop

    @cached_property
    def parts(self) -> tuple[tuple[SplicedLayer, NodesAt], ...]:
        """Each autoencoder, and its latents; its error comes after the last of them."""
        by_site = {group.site: group for group in self.groups}
        return tuple((one, by_site[one.input.latent_tap, one.layer]) for one in self.spliced)

    @property
    def in_passing(self) -> tuple[NodesAt, ...]:
        """The nodes by site, as a forward pass comes to them: in a layer first attention, then the MLP, each followed
        by what reconstructs it."""
        steps = {
            _L.RESID_POST_EMBEDDING: LocationWithinLayer.END_OF_PREV_LAYER,
            _L.ATTN_WEIGHTED_SUM_OF_VALUES: LocationWithinLayer.ATTN,
            _L.RESID_DELTA_MLP: LocationWithinLayer.MLP,
        }
        for one in self.spliced:
            steps |= dict.fromkeys(one.input.splice_taps, one.input.location)
        return tuple(sorted(self.groups, key=lambda group: (group.layer, steps[group.site[0]])))

    @property
    def part_sites(self) -> tuple[Site, ...]:
        """The sites of latents and errors."""
        return tuple(group.site for group in self.groups if group.first >= len(self.sources))

    def places_of(self, node: Node) -> slice:
        """The places of a node, or of all nodes of an autoencoder; raises KeyError if there is none of that name."""
        if isinstance(node, Source):
            place = self._place_of_source.get(node)
            if place is not None:
                return slice(place, place + 1)
            if node.layer is None or node.head is not None:
                raise KeyError(str(node))
            node = Part("m", node.layer)  # an MLP that is reconstructed is all that its autoencoder has
        for one, latents in self.parts:
            if (one.place, one.layer) == (node.place, node.layer):
                return _of_part(node, latents)
        raise KeyError(str(node))

    @cached_property
    def _place_of_source(self) -> dict[Source, int]:
        return {source: i for i, source in enumerate(self.sources)}

    def kept(self, nodes: Sequence[Node]) -> Mask:
        """The circuit [N] that keeps *nodes*; raises KeyError as `places_of` does."""
        found = np.zeros(self.count, dtype=bool)
        for node in nodes:
            found[self.places_of(node)] = True
        return found


def _of_part(part: Part, latents: NodesAt) -> slice:
    """The places of a part of the autoencoder that has *latents*; raises KeyError if it has no such part."""
    error = latents.places.stop
    if part.is_error:
        return slice(error, error + 1)
    if part.latent is None:
        return slice(latents.first, error + 1)
    if part.latent >= latents.count:
        raise KeyError(str(part))
    return slice(latents.first + part.latent, latents.first + part.latent + 1)
