"""Setting features of a graph to other activations: what the graph predicts, and what the model does.

Layers before one are held: their patterns, the scales of norms and what MLPs write stay as in the unchanged run, but
for what the changed features write. Layers from it on respond: the model computes them anew, and features there are
set to their activations whatever they would have been. If all layers are held, the change of each node is its edges
times the relative changes of their sources, exactly; if none is, the run is the model's own, steered at the MLPs'
writes.

Shapes: n node, T token, d residual channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.autoencoder_input import input_site
from dst_grpc.engine.norm import wide
from dst_grpc.engine.taps import Taps, site_entering
from dst_grpc.errors import require
from dst_grpc.graphs.changes import Place, carried, writes_of_features

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dst_grpc.engine.taps import Site
    from dst_grpc.graphs.local_model import LocalModel
    from dst_grpc.graphs.nodes import AttributionGraph, Floats, GraphNodes, Integers

_L = ActivationLocationType


def predicted(graph: AttributionGraph, activations: Mapping[int, float], first_free: int | None = None) -> Floats:
    """The change of each node [n] that follows from the graph: of a feature's pre-activation, of a target's projection.

    A feature of a layer that responds changes by what changes its pre-activation, but to no less than 0, and acts on
    later nodes in turn; one that is not a node of the graph does not respond.

    Args:
        graph: the graph.
        activations: what features are set to, by their nodes.
        first_free: the first layer that responds; None if none does.
    """
    nodes = graph.nodes
    before = nodes.activations[nodes.selected]
    relative = np.zeros(len(nodes))
    for node, activation in activations.items():
        relative[node] = activation / before[node] - 1
    layers, is_set = nodes.features[:, 0], np.isin(np.arange(nodes.n_features), list(activations))
    for layer in range(nodes.n_layers if first_free is None else first_free, nodes.n_layers):
        # Features are in the order of layers, and what acts on those of a layer is known once earlier ones are.
        own = np.flatnonzero((layers == layer) & ~is_set)
        change = graph.effects[own] @ relative
        relative[own] = np.maximum(change / before[own], -1)
    found = np.zeros(len(nodes), dtype=np.float32)
    found[nodes.readers] = graph.effects @ relative
    return found


@torch.no_grad()
def measured(
    model: LocalModel, nodes: GraphNodes, activations: Mapping[int, float], first_free: int | None = None
) -> Floats:
    """The change of each node [n] in a run, as `predicted` predicts it; 0 of errors and embeddings.

    Args:
        model: the local replacement model of the prompt.
        nodes: the nodes of its graph.
        activations: what features are set to, by their nodes.
        first_free: the first layer that responds; None if none does.
    """
    n_held = nodes.n_layers if first_free is None else first_free
    held, free = dict[Place, float](), dict[Place, float]()
    for node, activation in activations.items():
        place = nodes.feature(node)
        if place[0] < n_held:
            held[place] = activation - float(nodes.activations[nodes.selected[node]])
        else:
            free[place] = activation
    writes = writes_of_features(model, held)
    changes = carried(model, writes, n_held)
    found = np.zeros(len(nodes), dtype=np.float32)
    for layer, own, tokens, features in _features(model, nodes, range(n_held)):
        gradients = model.feature_gradients(layer, tokens, features)
        found[own] = _on_host((gradients * changes.read[layer][tokens]).sum(dim=1))
    vectors = torch.from_numpy(nodes.targets.vectors).to(model.device, model.dtype)
    if n_held == nodes.n_layers:
        found[nodes.first_target :] = _on_host(model.target_gradients(vectors) @ changes.entering[-1][-1])
        return found
    run = _SteeredRun(model, n_held, free, writes.mlps)
    run.begin(changes.entering[n_held])
    for layer, own, tokens, features in _features(model, nodes, range(n_held, nodes.n_layers)):
        rows = model.transcoders.encoder_rows(layer, features)
        found[own] = _on_host((rows * run.input_change(layer)[tokens]).sum(dim=1))
    found[nodes.first_target :] = _on_host(vectors @ run.final_change())
    return found


def _features(
    model: LocalModel, nodes: GraphNodes, layers: range
) -> Iterator[tuple[int, Integers, torch.Tensor, torch.Tensor]]:
    """Each of *layers* with features that are nodes: these nodes, and their tokens and features."""
    for layer in layers:
        own = np.flatnonzero(nodes.features[:, 0] == layer)
        if len(own):
            places = torch.from_numpy(nodes.features[own]).long().to(model.device)
            yield layer, own, places[:, 1], places[:, 2]


def _on_host(changes: torch.Tensor) -> Floats:
    found: Floats = changes.float().cpu().numpy()
    return found


class _SteeredRun(Taps):
    """The layers from one on, of the prompt as it is and with features set, as the two rows of one batch."""

    def __init__(
        self, model: LocalModel, first: int, activations: Mapping[Place, float], writes: Mapping[int, torch.Tensor]
    ) -> None:
        """Plan it.

        Args:
            model: the local replacement model of the prompt.
            first: the first layer that runs.
            activations: what features of the layers from it on are set to.
            writes: what is added to MLPs' writes, [T, d], by features of earlier layers.
        """
        super().__init__(check=model.check)
        self._model, self._first, self._activations = model, first, activations
        self._writes = dict(writes)
        architecture = model.decoder.config.architecture
        layers = range(first, model.decoder.config.n_layers)
        self._layer_read = {
            input_site(DerivedScalarType.RESID_POST_ATTN, layer, architecture): layer for layer in layers
        }
        self._read: dict[int, torch.Tensor] = {}
        """The residual that the transcoder of each layer reads, [2, T, d]."""

    def begin(self, change: torch.Tensor) -> None:
        """Run, with the residual that enters the first layer changed by *change* [T, d]."""
        decoder, recording = self._model.decoder, self._model.recording
        entering = recording.layers[self._first].entering
        x = torch.stack((entering, (wide(entering) + change).to(entering.dtype)))
        self._note(site_entering(self._first), x)
        last = decoder.config.n_layers - 1
        decoder.forward(recording.tokens.expand(2, -1), self, entering=(self._first, x), stop_after_layer=last)

    def visit(self, location: ActivationLocationType, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        """Set the features of a layer where its MLP writes."""
        x = super().visit(location, layer, x)
        self._note((location, layer), x)
        if location is _L.RESID_DELTA_MLP and layer is not None:
            self._set_features(layer)
            if layer in self._writes:
                x = torch.stack((x[0], (wide(x[1]) + self._writes[layer]).to(x.dtype)))
        return x

    def input_change(self, layer: int) -> torch.Tensor:
        """The change of what the transcoder of *layer* reads, [T, d]."""
        unchanged, changed = (self._input(layer, row) for row in self._read[layer])
        return changed - unchanged

    def final_change(self) -> torch.Tensor:
        """The change of the last token's residual after the final norm, [d]."""
        unchanged, changed = wide(self._model.decoder.final_norm(require(self.last_residual)[:, -1]))
        return changed - unchanged

    def _note(self, site: Site, x: torch.Tensor) -> None:
        if site in self._layer_read:
            self._read[self._layer_read[site]] = x

    def _set_features(self, layer: int) -> None:
        """Add what the features of *layer* that are set write besides what they write anyway."""
        wanted = {place: activation for place, activation in self._activations.items() if place[0] == layer}
        if not wanted:
            return
        active = self._model.transcoders.active(layer, self._input(layer, self._read[layer][1]))
        places = zip(active.tokens.tolist(), active.features.tolist(), active.values.tolist(), strict=True)
        now = {(layer, token, feature): value for token, feature, value in places}
        added = {place: activation - now.get(place, 0.0) for place, activation in wanted.items()}
        for written, write in writes_of_features(self._model, added).mlps.items():
            self._writes[written] = self._writes[written] + write if written in self._writes else write

    def _input(self, layer: int, residual: torch.Tensor) -> torch.Tensor:
        """What the transcoder of *layer* reads of *residual* [T, d]."""
        return wide(self._model.transcoders.input(layer, residual, self._model.decoder.layers[layer]))
