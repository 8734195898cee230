"""What the residual stream of the local replacement model becomes if something is written to it: effects, forward.

All is linear, so a change is carried on without the rest: through attention with its patterns, through skip
connections, with the scales of norms as they were. MLPs' writes stay, but for what is added to them.

Shapes: T token, d residual channel, n feature, K target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.engine.norm import wide
from dst_grpc.errors import Internal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.graphs.local_model import LocalModel
    from dst_grpc.graphs.nodes import GraphNodes

Place = tuple[int, int, int]
"""Layer, token and feature."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Writes:
    """What is added to the residual stream of a prompt."""

    embedding: torch.Tensor | None = None
    """To the embeddings, [T, d]; None for nothing."""
    mlps: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """To the MLP's write of each layer, [T, d]; nothing to those of others."""


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """By how much the residual stream differs, layer by layer."""

    entering: Sequence[torch.Tensor]
    """The residual that enters each layer, [T, d]; one more than layers, the last is that which leaves them."""
    read: Sequence[torch.Tensor]
    """The residual that the transcoder of each layer reads, [T, d]."""


@torch.no_grad()
def writes_of(model: LocalModel, nodes: GraphNodes, node: int) -> Writes:
    """What *node* writes, which is a feature, an error or an embedding."""
    match nodes.kind(node):
        case GraphNodeKind.FEATURE:
            activation = float(nodes.activations[nodes.selected[node]])
            return writes_of_features(model, {nodes.feature(node): activation})
        case GraphNodeKind.ERROR:
            layer, token = nodes.error(node)
            write = model.nothing
            write[token] = model.recording.layers[layer].error[token]
            return Writes(mlps={layer: write})
        case GraphNodeKind.EMBEDDING:
            token = nodes.embedding(node)
            write = model.nothing
            write[token] = wide(model.decoder.embed(model.recording.tokens[token]))
            return Writes(embedding=write)
        case GraphNodeKind.TARGET:
            raise Internal("a target writes nothing")


@torch.no_grad()
def writes_of_features(model: LocalModel, activations: Mapping[Place, float]) -> Writes:
    """What features write at these *activations*."""
    mlps: dict[int, torch.Tensor] = {}
    for (layer, token, feature), activation in activations.items():
        one = torch.tensor([feature], device=model.device)
        for written in model.transcoders.written_layers(layer):
            write = mlps.setdefault(written, model.nothing)
            write[token] += activation * model.transcoders.decoder_rows(layer, one, written)[0]
    return Writes(mlps=mlps)


@torch.no_grad()
def carried(model: LocalModel, writes: Writes, n_layers: int, *, through_heads: bool = True) -> Changes:
    """The changes by *writes* of the first *n_layers*, and of what leaves them.

    Args:
        model: the local replacement model of the prompt.
        writes: what is added.
        n_layers: how many layers it is carried through.
        through_heads: whether attention carries it too; else it stays at its tokens.
    """
    x = model.nothing if writes.embedding is None else writes.embedding
    entering, read = [x], []
    for index in range(n_layers):
        model.check()
        layer = model.layer(index)
        after = x + layer.attention_write(x) if through_heads else x
        seen = x if model.is_parallel else after
        skipped = layer.skip_write(seen)
        x = after if skipped is None else after + skipped
        if index in writes.mlps:
            x = x + writes.mlps[index]
        read.append(seen)
        entering.append(x)
    return Changes(entering, read)
