"""Setting units of a graph to other activations: what the graph predicts, and what the model does.

Layers before one are held: their patterns, the scales of norms and what MLPs write stay as in the unchanged run, and so
does what units stand for, but for what the changed units write. Layers from it on respond: the model computes them
anew, and units there are set to their activations whatever they would have been. If all layers are held, the change of
each node is its edges times the relative changes of their sources, exactly; if none is, the run is the model's own, in
which units are set.

Shapes: n node, T token, d residual channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dst_grpc.domain.graph_node_table import RECTIFIED_KINDS
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.autoencoder_input import input_site
from dst_grpc.engine.norm import wide
from dst_grpc.engine.taps import Taps, site_entering
from dst_grpc.errors import require
from dst_grpc.graphs.changes import carried, writes_of_units
from dst_grpc.graphs.units import FeatureUnits, TappedUnits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dst_grpc.engine.taps import Site
    from dst_grpc.graphs.local_model import LocalModel
    from dst_grpc.graphs.nodes import AttributionGraph, Floats, GraphNodes, Integers
    from dst_grpc.graphs.units import Units

_L = ActivationLocationType
_RECTIFIED = [kind.number for kind in RECTIFIED_KINDS]


def predicted(graph: AttributionGraph, activations: Mapping[int, float], first_free: int | None = None) -> Floats:
    """The change of each node [n] that follows from the graph: of what a unit reads, of a target's projection.

    A unit of a layer that responds changes by what changes its read, but a feature or latent to no less than 0, and
    acts on later nodes in turn; one that is not a node of the graph does not respond.

    Args:
        graph: the graph.
        activations: what units are set to, by their nodes.
        first_free: the first layer that responds; None if none does.
    """
    nodes = graph.nodes
    before = nodes.activations[nodes.selected]
    relative = np.zeros(len(nodes))
    for node, activation in activations.items():
        relative[node] = activation / before[node] - 1
    is_set = np.isin(np.arange(nodes.n_features), list(activations))
    is_rectified = np.isin(nodes.feature_kinds, _RECTIFIED)
    responds = ~is_set & (nodes.features[:, 0] >= (nodes.n_layers if first_free is None else first_free))
    for place in _places(nodes):  # what acts on the units of a place is known once those of earlier ones are
        own = place[responds[place]]
        change = graph.effects[own] @ relative / before[own]
        relative[own] = np.where(is_rectified[own], np.maximum(change, -1), change)
    found = np.zeros(len(nodes), dtype=np.float32)
    found[nodes.readers] = graph.effects @ relative
    return found


def _places(nodes: GraphNodes) -> Iterator[Integers]:
    """The units that are nodes, those of one kind and layer together, in the order of nodes."""
    of_places = np.stack((nodes.features[:, 0], nodes.feature_kinds))
    starts = np.flatnonzero((np.diff(of_places, axis=1) != 0).any(axis=0)) + 1
    yield from np.split(np.arange(nodes.n_features), starts)


@torch.no_grad()
def measured(
    model: LocalModel, nodes: GraphNodes, activations: Mapping[int, float], first_free: int | None = None
) -> Floats:
    """The change of each node [n] in a run, as `predicted` predicts it; 0 of errors and embeddings.

    Of a neuron of a layer that responds it is the change of its activation.

    Args:
        model: the local replacement model of the prompt.
        nodes: the nodes of its graph.
        activations: what units are set to, by their nodes.
        first_free: the first layer that responds; None if none does.
    """
    n_held = nodes.n_layers if first_free is None else first_free
    held, free = dict[int, float](), dict[int, float]()
    for node, activation in activations.items():
        place = int(nodes.selected[node])
        if nodes.active[place, 0] < n_held:
            held[place] = activation - float(nodes.activations[place])
        else:
            free[place] = activation
    writes = writes_of_units(model, held)
    changes = carried(model, writes, n_held)
    found = np.zeros(len(nodes), dtype=np.float32)
    for units, chosen, own in _units(model, nodes):
        if units.layer < n_held:
            found[chosen] = _on_host(changes.of_reads(model, units, own))
    vectors = torch.from_numpy(nodes.targets.vectors).to(model.device, model.dtype)
    if n_held == nodes.n_layers:
        found[nodes.first_target :] = _on_host(model.target_gradients(vectors) @ changes.entering[-1][-1])
        return found
    of_mlps = {layer: write for (layer, _), write in writes.places.items() if layer >= n_held}
    run = _SteeredRun(model, n_held, free, of_mlps)
    run.begin(changes.entering[n_held])
    for units, chosen, own in _units(model, nodes):
        if units.layer >= n_held:
            found[chosen] = _on_host(run.change_of_reads(units, own))
    found[nodes.first_target :] = _on_host(vectors @ run.final_change())
    return found


def _units(model: LocalModel, nodes: GraphNodes) -> Iterator[tuple[Units, Integers, torch.Tensor]]:
    """All units of which some are nodes: these nodes, and which of the units they are."""
    for units in model.recording.units:
        own = np.flatnonzero((nodes.selected >= units.first) & (nodes.selected < units.first + len(units)))
        if len(own):
            yield units, own, torch.from_numpy(nodes.selected[own] - units.first).to(model.device)


def _on_host(changes: torch.Tensor) -> Floats:
    found: Floats = changes.float().cpu().numpy()
    return found


class _SteeredRun(Taps):
    """The layers from one on, of the prompt as it is and with units set, as the two rows of one batch."""

    def __init__(
        self, model: LocalModel, first: int, activations: Mapping[int, float], writes: Mapping[int, torch.Tensor]
    ) -> None:
        """Plan it.

        Args:
            model: the local replacement model of the prompt.
            first: the first layer that runs.
            activations: what units of the layers from it on are set to, by their places among all active ones.
            writes: what is added to MLPs' writes, [T, d], by features of earlier layers.
        """
        super().__init__(check=model.check)
        self._model, self._first, self._activations = model, first, activations
        self._writes = dict(writes)
        architecture = model.decoder.config.architecture
        self._features: dict[Site, FeatureUnits] = {}
        """By the tap that they read."""
        self._tapped: dict[Site, TappedUnits] = {}
        """By their tap."""
        for units in model.recording.units:
            if isinstance(units, FeatureUnits):
                self._features[input_site(DerivedScalarType.RESID_POST_ATTN, units.layer, architecture)] = units
            elif isinstance(units, TappedUnits):
                self._tapped[units.tap, units.layer] = units
        self._read: dict[Units, torch.Tensor] = {}
        """What the tap of units recorded, before any are set, [2, T, ...]."""

    def begin(self, change: torch.Tensor) -> None:
        """Run, with the residual that enters the first layer changed by *change* [T, d]."""
        decoder, recording = self._model.decoder, self._model.recording
        entering = recording.layers[self._first].entering
        x = torch.stack((entering, (wide(entering) + change).to(entering.dtype)))
        self._note(site_entering(self._first), x)
        last = decoder.config.n_layers - 1
        decoder.forward(recording.tokens.expand(2, -1), self, entering=(self._first, x), stop_after_layer=last)

    def touches(self, location: ActivationLocationType, layer: int | None) -> bool:
        """As of any taps, and those that units read."""
        return (location, layer) in self._tapped or super().touches(location, layer)

    def visit(self, location: ActivationLocationType, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        """Set the units of a layer: features where its MLP writes, others at their tap."""
        x, site = super().visit(location, layer, x), (location, layer)
        if site in self._tapped:
            x = self._with_set(self._tapped[site], x)
        self._note(site, x)
        if location is _L.RESID_DELTA_MLP and layer is not None:
            self._add_writes(layer)
            if layer in self._writes:
                x = torch.stack((x[0], (wide(x[1]) + self._writes[layer]).to(x.dtype)))
        return x

    def change_of_reads(self, units: Units, own: torch.Tensor) -> torch.Tensor:
        """The changes of what units *own* [n] read, or of neurons themselves, [n]."""
        unchanged, changed = self._read[units]
        if isinstance(units, TappedUnits):
            return units.values(changed, own) - units.values(unchanged, own)
        change = self._input(units.layer, changed) - self._input(units.layer, unchanged)
        rows = require(self._model.sources.transcoders).encoder_rows(units.layer, units.active.features[own])
        return (rows * change[units.active.tokens[own]]).sum(dim=1)

    def final_change(self) -> torch.Tensor:
        """The change of the last token's residual after the final norm, [d]."""
        unchanged, changed = wide(self._model.decoder.final_norm(require(self.last_residual)[:, -1]))
        return changed - unchanged

    def _note(self, site: Site, x: torch.Tensor) -> None:
        if site in self._features:
            self._read[self._features[site]] = x

    def _settings(self, units: Units) -> dict[int, float]:
        """What some of *units* are set to, by which of them they are."""
        some = range(units.first, units.first + len(units))
        return {place - units.first: value for place, value in self._activations.items() if place in some}

    def _with_set(self, units: TappedUnits, x: torch.Tensor) -> torch.Tensor:
        """The tap *x* [2, T, ...] of *units* with those set in the second row that are to be."""
        self._read[units] = x
        wanted = self._settings(units)
        return torch.stack((x[0], units.with_set(x[1], wanted))) if wanted else x

    def _add_writes(self, layer: int) -> None:
        """Add what the features of *layer* that are set write besides what they write anyway."""
        transcoders = self._model.sources.transcoders
        units = next((one for one in self._features.values() if one.layer == layer), None)
        wanted = {} if units is None else self._settings(units)
        if units is None or transcoders is None or not wanted:
            return
        active = transcoders.active(layer, self._input(layer, self._read[units][1]))
        places = zip(active.tokens.tolist(), active.features.tolist(), active.values.tolist(), strict=True)
        now = {(token, feature): value for token, feature, value in places}
        added = {}
        for own, activation in wanted.items():
            place = int(units.active.tokens[own]), int(units.active.features[own])
            added[units.first + own] = activation - now.get(place, 0.0)
        for (written, _), write in writes_of_units(self._model, added).places.items():
            self._writes[written] = self._writes[written] + write if written in self._writes else write

    def _input(self, layer: int, residual: torch.Tensor) -> torch.Tensor:
        """What the transcoder of *layer* reads of *residual* [T, d]."""
        transcoders = require(self._model.sources.transcoders)
        return wide(transcoders.input(layer, residual, self._model.decoder.layers[layer]))
