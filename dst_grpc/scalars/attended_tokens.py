"""Tokens that contribute most to latents of attention: those whose values the heads write to a latent's token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.scalar_facts import Quantity
from dst_grpc.scalars.components import HeadPair, Latent, LayerOfRun, component_of_nodes
from dst_grpc.scalars.node_groups import NodeGroups

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.recorded_taps import RecordedTaps
    from dst_grpc.scalars.topology import Topology


def sites_of_attended_tokens(read: AutoencoderInput, layers: Sequence[int], topology: Topology) -> Iterator[Site]:
    """Taps that `attended_tokens` reads, for latents of an autoencoder of attention's write whose input is *read*."""
    for layer in layers:
        yield read.tap, layer
        for _, site in HeadPair(topology).taps(layer, Quantity.WRITE):
            yield site


def attended_tokens(
    model: ExplainedModel, recorded: RecordedTaps, nodes: Sequence[NodeIndex], count: int
) -> list[tuple[int, list[tuple[int, float]]]]:
    """For each active latent of attention, the *count* tokens that contribute most to it, descending.

    A contribution is the write of all heads from a token to the latent's own, projected on the latent's read direction.
    Inactive latents, and other nodes, are left out.
    """
    found = []
    for group in NodeGroups(nodes):
        component = component_of_nodes(group.node_type, model.topology)
        if not isinstance(component, Latent) or not component.input.is_of_attention_write:
            continue
        run = LayerOfRun(model, recorded, group.layer)
        t, latents = group.entries.to(model.decoder.device).t()
        autoencoder = model.loaded(component.node_type, group.layer)
        active = autoencoder.encode(run.value(component.input.tap)[t]).gather(1, latents.unsqueeze(1)).squeeze(1) > 0
        pairs = HeadPair(model.topology).bind(run)
        # One direction per node rather than per token, with the probabilities' row of the node's token.
        attributions = pairs.coefficients[t] * pairs.directions.project(autoencoder.encoder[latents])
        by_token = attributions.sum(dim=2)
        for place, token, is_active, of_node in zip(
            group.positions.tolist(), t.tolist(), active.tolist(), by_token, strict=True
        ):
            if is_active:
                best = of_node[: token + 1].topk(min(count, token + 1))
                found.append((place, list(zip(best.indices.tolist(), best.values.tolist(), strict=True))))
    return sorted(found)
