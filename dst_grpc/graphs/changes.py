"""What the residual stream of the local replacement model becomes if something is written to it: effects, forward.

All is linear, so a change is carried on without the rest: through attention with its patterns, through skip
connections, with the scales of norms as they were. MLPs' writes stay, and so does all else that units stand for, but
for what is added.

Shapes: T token, d residual channel, n unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dst_grpc.errors import Internal
from dst_grpc.graphs.units import Place, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.graphs.local_model import LocalModel
    from dst_grpc.graphs.nodes import GraphNodes
    from dst_grpc.graphs.units import Units


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Writes:
    """What is added to the residual stream of a prompt."""

    embedding: torch.Tensor | None = None
    """To the embeddings, [T, d]; None for nothing."""
    places: Mapping[Place, torch.Tensor] = field(default_factory=dict)
    """To what is written at each place, [T, d]; nothing to those at others."""


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """By how much the residual stream differs, layer by layer."""

    entering: Sequence[torch.Tensor]
    """The residual that enters each layer, [T, d]; one more than layers, the last is that which leaves them."""
    read: Sequence[torch.Tensor]
    """The residual that the MLP of each layer, or its transcoder, reads, [T, d]."""
    residuals: Mapping[Place, torch.Tensor]
    """The residuals that units stand for, [T, d]."""

    def of_reads(self, model: LocalModel, units: Units, own: torch.Tensor) -> torch.Tensor:
        """The changes of what units *own* [n] read, [n]."""
        layer, tokens = units.layer, units.active.tokens[own]
        if units.stage is Stage.ATTENTION:
            of_heads = model.layer(layer).head_changes(self.entering[layer]).flatten(0, 1)  # [H, T, c]
            return (of_heads[:, tokens].transpose(0, 1) * model.of_heads(units, own)).flatten(1).sum(dim=1)
        residual = self.read[layer] if units.stage is Stage.MLP else self.residuals[layer, units.stage]
        return (residual[tokens] * units.gradients(own)).sum(dim=1)


@torch.no_grad()
def writes_of(model: LocalModel, nodes: GraphNodes, node: int) -> Writes:
    """What *node* writes, which is a unit, an error or an embedding."""
    if node < nodes.first_error:
        place = int(nodes.selected[node])
        return writes_of_units(model, {place: float(nodes.activations[place])})
    if node < nodes.first_embedding:
        index, token = divmod(node - nodes.first_error, nodes.n_tokens)
        missed, write = model.recording.missed[index], model.nothing
        write[token] = missed.error[token]
        return Writes(places={(missed.layer, missed.stage): write})
    if node >= nodes.first_target:
        raise Internal("a target writes nothing")
    token, write = nodes.embedding(node), model.nothing
    write[token] = model.embeddings[token]
    return Writes(embedding=write)


@torch.no_grad()
def writes_of_units(model: LocalModel, activations: Mapping[int, float]) -> Writes:
    """What units write at these *activations*, by their places among all active ones."""
    found: dict[Place, torch.Tensor] = {}
    for place, activation in activations.items():
        units, one = model.recording.unit(place)
        token = int(units.active.tokens[one])
        for written in units.written:
            write = found.setdefault((written, units.stage), model.nothing)
            write[token] += activation * units.writes(one, written)[0]
    return Writes(places=found)


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
    recording, residuals = model.recording, dict[Place, torch.Tensor]()

    def added(x: torch.Tensor, place: Place) -> torch.Tensor:
        """*x* with what is written at *place*; that alone where units stand for the residual."""
        if recording.has_residual(*place):
            residuals[place], x = x, model.nothing
        return x + writes.places[place] if place in writes.places else x

    entering, read = [x], []
    for index in range(n_layers):
        model.check()
        layer, before = model.layer(index), x
        if through_heads and not model.sources.is_attention_replaced(index):
            x = x + layer.attention_write(x)
        x = added(added(x, (index, Stage.ATTENTION)), (index, Stage.POST_ATTENTION))
        seen = before if model.is_parallel else x
        skipped = layer.skip_write(seen)
        x = added(added(x if skipped is None else x + skipped, (index, Stage.MLP)), (index, Stage.END))
        read.append(seen)
        entering.append(x)
    return Changes(entering, read, residuals)
