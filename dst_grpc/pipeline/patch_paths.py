"""The cells of Patch's grids of paths: which sender and which receivers each has. Pure; reads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dst_grpc.domain.graph_nodes import Edge, Reader, Source
from dst_grpc.domain.patch_answers import PatchAxis, PatchGridInfo, PatchGridKind
from dst_grpc.pipeline.patch_grids import MAX_CELLS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dst_grpc.causal.graph import Graph
    from dst_grpc.domain.patch import EdgeList, PathGrid
    from dst_grpc.pipeline.findings import Findings
    from dst_grpc.pipeline.patch_grids import CellCount


@dataclass(frozen=True, slots=True)
class PathCell:
    """What one cell changes: what receivers read of a sender."""

    cell: int
    """Its place in its grid."""
    sender: Source
    """Who is read."""
    receivers: tuple[Reader, ...]
    """Who reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathCells:
    """A grid of paths that the model has."""

    info: PatchGridInfo
    """The grid."""
    cells: tuple[PathCell, ...]
    """Its cells, ascending."""

    @property
    def goes_through_mlps(self) -> bool:
        """Whether paths through MLPs count."""
        return self.info.kind is PatchGridKind.PATHS_THROUGH_MLPS


def edge_cells(edges: EdgeList, graph: Graph, count: CellCount) -> PathCells | None:
    """The cells of a list of edges; notes those that the model does not have. None if they are too many."""
    findings = count.findings
    if not count.add(len(edges.edges), "edges"):
        return None
    named = [Edge.named(name) for name in edges.edges]
    for i, edge in enumerate(named):
        findings.check(graph.has(edge), f"edges.edges[{i}]", f"the model has no edge {edge}")
    info = PatchGridInfo(
        kind=PatchGridKind.DIRECT_PATHS,
        all_positions=True,
        axes=(PatchAxis(name="edge", labels=edges.edges),),
        cell_count=len(named),
    )
    return PathCells(info=info, cells=tuple(PathCell(i, edge.source, (edge.reader,)) for i, edge in enumerate(named)))


def path_cells(grid: PathGrid, graph: Graph, path: str, count: CellCount) -> PathCells | None:
    """The cells of the grid at *path* of the request; None if something is wrong with it: nodes that the model does
    not have, or that no path begins or ends at."""
    findings = count.findings
    before = findings.count
    senders = _senders(grid, graph, path, findings)
    receivers = _receivers(grid, graph, path, findings)
    places = len(senders) * len(receivers)
    findings.check(places <= MAX_CELLS, path, f"asks for {places} cells, and may for {MAX_CELLS}")
    if findings.count > before:
        return None
    has_path = _paths(graph, senders, receivers, through_mlps=grid.through_mlps)
    n_cells = int(has_path.any(axis=1).sum() if grid.together else has_path.sum())
    findings.check(n_cells > 0, path, "no path leads from any of the senders to any of the receivers")
    if not count.add(n_cells, path):
        return None
    reached = [np.flatnonzero(row).tolist() for row in has_path]
    cells: list[PathCell] = []
    for i, (sender, own) in enumerate(zip(senders, reached, strict=True)):
        if grid.together:
            cells += [PathCell(i, sender, tuple(receivers[j] for j in own))] if own else []
        else:
            cells += [PathCell(i * len(receivers) + j, sender, (receivers[j],)) for j in own]
    axes = [PatchAxis(name="sender", labels=tuple(map(str, senders)))]
    if not grid.together:
        axes.append(PatchAxis(name="receiver", labels=tuple(map(str, receivers))))
    info = PatchGridInfo(
        kind=PatchGridKind.PATHS_THROUGH_MLPS if grid.through_mlps else PatchGridKind.DIRECT_PATHS,
        all_positions=True,
        axes=tuple(axes),
        cell_count=len(cells),
    )
    return PathCells(info=info, cells=tuple(cells))


def _senders(grid: PathGrid, graph: Graph, path: str, findings: Findings) -> Sequence[Source]:
    if not grid.senders:
        return [one for one in graph.sources if one.head is not None or not grid.through_mlps]
    found = [Source.named(name) for name in grid.senders]
    for i, sender in enumerate(found):
        at = f"{path}.senders[{i}]"
        try:
            graph.index_of_source(sender)
        except KeyError:
            findings.add(at, f"the model has no {sender}")
            continue
        is_head = sender.head is not None
        findings.check(is_head or not grid.through_mlps, at, f"{sender} must be a head: its paths go through MLPs")
    return found


def _receivers(grid: PathGrid, graph: Graph, path: str, findings: Findings) -> Sequence[Reader]:
    at_once = grid.together and grid.through_mlps
    if not grid.receivers:
        findings.check(not at_once, f"{path}.receivers", "is required: of all, the logits read what the others change")
        return [one for one in graph.readers if _can_receive(one, through_mlps=grid.through_mlps)]
    found = [Reader.named(name) for name in grid.receivers]
    for i, receiver in enumerate(found):
        at = f"{path}.receivers[{i}]"
        try:
            graph.index_of_reader(receiver)
        except KeyError:
            findings.add(at, f"the model has no {receiver}")
            continue
        can = _can_receive(receiver, through_mlps=grid.through_mlps)
        findings.check(can, at, f"{receiver} must be an input of a head, or the logits: paths go through MLPs")
    are_alone = not at_once or len(found) == 1 or Reader() not in found
    findings.check(are_alone, f"{path}.receivers", "must hold the logits alone: they read all that others change")
    return found


def _can_receive(receiver: Reader, *, through_mlps: bool) -> bool:
    return not through_mlps or receiver.layer is None or receiver.head is not None


def _paths(
    graph: Graph, senders: Sequence[Source], receivers: Sequence[Reader], *, through_mlps: bool
) -> npt.NDArray[np.bool_]:
    """Whether there is a path from each of *senders* to each of *receivers*; those through MLPs end in later layers."""
    rows, columns = map(graph.index_of_source, senders), map(graph.index_of_reader, receivers)
    has_edge = graph.mask[np.ix_(list(rows), list(columns))]
    if not through_mlps:
        return has_edge
    begins = [graph.n_layers if one.layer is None else one.layer for one in senders]
    ends = [graph.n_layers if one.layer is None else one.layer for one in receivers]
    return has_edge & (np.array(ends) > np.array(begins)[:, None])
