"""The cells of Patch's grids: what each changes, and where it is in its grid. Pure; reads no weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from dst_grpc.domain.attribute import ATTRIBUTED_NODES, AttributedNode
from dst_grpc.domain.entry_actions import SetValue
from dst_grpc.domain.enum_names import json_name
from dst_grpc.domain.interventions import CopyFromRun, Intervention
from dst_grpc.domain.pairs import SOURCE, Alternative
from dst_grpc.domain.patch import LISTED_ENTRIES, MEAN, OF_HEADS
from dst_grpc.domain.patch_answers import PatchAxis, PatchGridInfo, PatchGridKind
from dst_grpc.domain.selections import PositionList, PositionRange, TapSelection
from dst_grpc.engine.taps import site_entering
from dst_grpc.errors import Reason
from dst_grpc.pipeline.checks import check_layer
from dst_grpc.pipeline.interventions import owner_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.domain.actions import Action
    from dst_grpc.domain.locations import ActivationLocationType
    from dst_grpc.domain.patch import PatchGrid
    from dst_grpc.domain.selections import AxisSelection
    from dst_grpc.pipeline.findings import Findings
    from dst_grpc.pipeline.pair_planner import PlannedPairs

_N = AttributedNode
_ACTIONS: dict[Alternative, Action] = {
    Alternative.PATCHING: CopyFromRun(run=SOURCE),
    Alternative.MEAN_BY_POSITION: CopyFromRun(run=MEAN),
    Alternative.MEAN_BY_LENGTH: CopyFromRun(run=MEAN),
    Alternative.MEAN: CopyFromRun(run=MEAN),
    Alternative.ZERO: SetValue(scalar=0.0),
}
_ENTRIES_OF = {_N.NEURON: "neuron", _N.LATENT: "latent"}


MAX_CELLS = 100_000
"""Cells of a request."""


@dataclass(slots=True)
class CellCount:
    """Counts the cells of a request, grid by grid, before they are made: a few bytes ask for any number."""

    findings: Findings
    """Collects what is wrong."""
    count: int = 0
    """Cells so far."""

    def add(self, count: int, path: str) -> bool:
        """Count those of the grid at *path*; whether they may be made, or, noted, are too many."""
        self.count += count
        together = "" if self.count == count else f", with those before {self.count}"
        problem = f"asks for {count} cells{together}, and may for {MAX_CELLS}"
        self.findings.check(self.count <= MAX_CELLS, path, problem)
        return self.count <= MAX_CELLS


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCells:
    """A grid of nodes that the model has."""

    info: PatchGridInfo
    """The grid."""
    changes: tuple[Intervention, ...]
    """What each cell changes, in the order of the grid."""


class NodeGrids:
    """Makes grids of nodes of a model, and notes what it does not have."""

    def __init__(self, planned: PlannedPairs, alternative: Alternative, cells: CellCount) -> None:
        """Make no grid yet.

        Args:
            planned: the pairs.
            alternative: what takes the place of nodes.
            cells: counts the cells; its findings collect what is wrong.
        """
        self._planned, self._alternative, self._cells, self._findings = planned, alternative, cells, cells.findings
        self._plan, self._lengths = planned.plan, [len(pair.base) for pair in planned.pairs]

    def made(self, grid: PatchGrid, path: str) -> NodeCells | None:
        """The grid at *path* of the request; None if something is wrong with it."""
        before = self._findings.count
        location = self._location(grid, path)
        if location is None:
            return None
        layers = self._layers(grid, path, location)
        entries = self._entries(grid, path)
        positions = self._positions(grid, path)
        if self._findings.count > before:
            return None
        axes = [axis for axis in (layers, entries, None if grid.all_positions else positions) if axis is not None]
        if not self._cells.add(math.prod(len(axis.labels) for axis in axes), path):
            return None
        changes = tuple(
            self._change(grid, location, layer, entry, position)
            for layer, entry, position in product(
                (None,) if layers is None else layers.indices,
                (None,) if entries is None else entries.indices,
                (None,) if grid.all_positions else positions.indices,
            )
        )
        info = PatchGridInfo(
            kind=PatchGridKind.NODES,
            node=grid.node,
            all_positions=grid.all_positions,
            axes=tuple(axes),
            cell_count=len(changes),
        )
        return NodeCells(info=info, changes=changes)

    def _location(self, grid: PatchGrid, path: str) -> ActivationLocationType | None:
        """The tap that holds the nodes."""
        node, model, spliced = grid.node, self._plan.model, self._plan.spliced
        if node is _N.LATENT or node is _N.LATENT_ERROR:
            if len(spliced) != 1:
                problem = f"{json_name(node)} needs exactly one autoencoder to splice in, not {len(spliced)}"
                self._findings.add(f"{path}.node", problem)
                return None
            of_set = spliced[0].input
            return of_set.latent_tap if node is _N.LATENT else of_set.error_tap
        tap = ATTRIBUTED_NODES[node].tap
        why = None if tap is None else model.architecture.why_without(tap)
        if why is not None:
            problem = f"{model.name!r} has no {json_name(node)}: {why}"
            self._findings.add(f"{path}.node", problem, Reason.UNSUPPORTED_BY_MODEL)
            return None
        if node is _N.PATTERN and self._alternative is Alternative.MEAN:
            problem = f"must not be {json_name(node)} with MEAN: a pattern has no mean over positions"
            self._findings.add(f"{path}.node", problem)
        return tap

    def _layers(self, grid: PatchGrid, path: str, location: ActivationLocationType) -> PatchAxis | None:
        """The axis of layers; None for a node of no layer."""
        if grid.node is _N.INPUT:
            return None
        n_layers = self._plan.model.dimensions.n_layers
        owner = owner_of(location, self._plan.spliced)
        covered = range(n_layers) if owner is None else owner.layer_indices
        for i, layer in enumerate(grid.layers):
            check_layer(self._findings, layer, f"{path}.layers[{i}]", n_layers, owner)
        return _numbers("layer", grid.layers or tuple(covered))

    def _entries(self, grid: PatchGrid, path: str) -> PatchAxis | None:
        """The axis of heads, groups, neurons or latents; None for a node of which a layer has one."""
        if grid.node not in OF_HEADS and grid.node not in LISTED_ENTRIES:
            return None
        d = self._plan.model.dimensions
        name = _ENTRIES_OF.get(grid.node) or ("group" if grid.by_group else "head")
        size = {
            "head": d.n_heads,
            "group": d.n_key_value_heads,
            "neuron": d.d_mlp,
            "latent": self._plan.spliced[0].n_latents if self._plan.spliced else 0,
        }[name]
        for i, entry in enumerate(grid.entries):
            problem = f"must be below {size}, the number of {name}s of a layer, not {entry}"
            self._findings.check(entry < size, f"{path}.entries[{i}]", problem)
        return _numbers(name, grid.entries or tuple(range(size)))

    def _positions(self, grid: PatchGrid, path: str) -> PatchAxis:
        """The axis of positions, with the tokens of the first clean prompt."""
        shortest = min(self._lengths)
        for i, position in enumerate(grid.positions):
            problem = f"must be below {shortest}, the tokens of the shortest prompt, not {position}"
            self._findings.check(position < shortest, f"{path}.positions[{i}]", problem)
        if not grid.positions and not grid.all_positions:
            self._planned.check_equal_lengths(self._findings, f"{path} has a cell for each position")
        tokens = self._plan.token_strings
        positions = grid.positions or tuple(range(self._lengths[0]))
        labels = tuple(tokens[position] if position < len(tokens) else "" for position in positions)
        return PatchAxis(name="position", labels=labels, indices=positions)

    def _change(
        self,
        grid: PatchGrid,
        location: ActivationLocationType,
        layer: int | None,
        entry: int | None,
        position: int | None,
    ) -> Intervention:
        """What one cell changes."""
        self._findings.check_wanted()
        tokens: AxisSelection = position
        if position is None and grid.positions:
            tokens = PositionList(positions=grid.positions)
        if layer is not None and ATTRIBUTED_NODES[grid.node].is_of_previous_layer:
            location, layer = site_entering(layer)
        at = TapSelection(
            activation_location_type=location, layer_index=layer, axes=(tokens, *self._entry_axes(grid, entry))
        )
        return Intervention(at=at, action=_ACTIONS[self._alternative])

    def _entry_axes(self, grid: PatchGrid, entry: int | None) -> Iterator[AxisSelection]:
        """The selection along the axes after that of tokens."""
        if entry is None:
            return
        if grid.node is _N.PATTERN:
            yield None
        if grid.by_group:
            size = self._plan.model.dimensions.n_heads // self._plan.model.dimensions.n_key_value_heads
            yield PositionRange(start=entry * size, stop=(entry + 1) * size)
        else:
            yield entry


def _numbers(name: str, indices: tuple[int, ...]) -> PatchAxis:
    return PatchAxis(name=name, labels=tuple(map(str, indices)), indices=indices)
