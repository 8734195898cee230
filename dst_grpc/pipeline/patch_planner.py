"""Planning of Patch: what does not fit the model or another field is found before anything is run. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from dst_grpc.causal.circuit_runs import BATCH_BYTES, row_bytes
from dst_grpc.causal.graph import Graph
from dst_grpc.causal.patching import BATCH_LOGIT_BYTES, BATCH_TOKENS, first_difference, start_of
from dst_grpc.domain.pairs import SOURCE
from dst_grpc.domain.patch import MEAN, PatchRequest
from dst_grpc.domain.patch_answers import PatchAxis, PatchGridInfo, PatchGridKind
from dst_grpc.domain.requests import DeriveRequest, Prompt, SourceRun
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.errors import require
from dst_grpc.pipeline.cost import parameters_of_blocks
from dst_grpc.pipeline.findings import Findings, SourceMap
from dst_grpc.pipeline.interventions import with_tensors
from dst_grpc.pipeline.pair_planner import BLOCK_TOKENS, PairPlanner, PairsPlan
from dst_grpc.pipeline.patch_grids import CellCount, NodeGrids
from dst_grpc.pipeline.patch_paths import edge_cells, path_cells
from dst_grpc.pipeline.planner import plan_run
from dst_grpc.pipeline.sizes import BYTES_OF_FLOAT32, Sizes, most_latents

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dst_grpc.causal.attribution import Pair
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.request_tensors import TensorSource
    from dst_grpc.engine.taps import Site
    from dst_grpc.errors import Violations
    from dst_grpc.pipeline.patch_grids import NodeCells
    from dst_grpc.pipeline.patch_paths import PathCells
    from dst_grpc.pipeline.plan import Plan

    Changes = Sequence[tuple[tuple[Intervention, ...], list[tuple[int, int]]]]
    """What cells change, each set of changes once, and the grids and cells that have it."""

MAX_RUNS = 2_000_000
"""Changed runs of a request: its cells, for each pair."""
MAX_LOGITS = 1 << 28
"""Logits of an answer."""
MAX_PLANNED_CELLS = 10_000
"""A request's own cells, for each length that its prompts have: each is planned for each length."""
_BLOCK_RUNS = 50_000
"""Changed runs of the pairs that are recorded together, unless a single pair has more."""
_CELL_BYTES = 1500
"""Bytes of a cell in the plan, and of its run of each pair; about."""
_BLOCK_BYTES = 256 << 20
"""Bytes of what is recorded together, unless a single pair has more."""


@dataclass(frozen=True, kw_only=True)
class PatchPlan(PairsPlan[PatchRequest]):
    """A request of Patch, checked and completed."""

    graph: Graph
    """The model's."""
    has_sources: bool
    """Whether all pairs have both prompts."""
    nodes: tuple[NodeCells, ...]
    """Grids of nodes."""
    paths: tuple[PathCells, ...]
    """Grids of paths, and the list of edges."""
    cells: Mapping[int, tuple[Plan, ...]]
    """The plans of the request's own cells, by the number of tokens of the prompt."""

    @cached_property
    def infos(self) -> tuple[PatchGridInfo, ...]:
        """The grids of the answer."""
        found = [grid.info for grid in self.nodes] + [grid.info for grid in self.paths]
        if self.request.cells:
            labels = tuple(cell.name or str(i) for i, cell in enumerate(self.request.cells))
            axes = (PatchAxis(name="cell", labels=labels),)
            found.append(PatchGridInfo(kind=PatchGridKind.INTERVENTIONS, axes=axes, cell_count=len(labels)))
        return tuple(found)

    def changes(self, n_tokens: int) -> Changes:
        """What cells change in prompts of *n_tokens*."""
        if n_tokens not in self._latest:
            self._latest.clear()
            self._latest[n_tokens] = self._changed(n_tokens)
        return self._latest[n_tokens]

    @cached_property
    def _latest(self) -> dict[int, Changes]:
        """The changes of the length that was asked for last: of many cells they take a second to find."""
        return {}

    def _changed(self, n_tokens: int) -> Changes:
        found: dict[object, tuple[tuple[Intervention, ...], list[tuple[int, int]]]] = {}

        def add(interventions: tuple[Intervention, ...], grid: int, cell: int) -> None:
            key = tuple(one.key for one in interventions)
            found.setdefault(key, (interventions, []))[1].append((grid, cell))

        for number, grid in enumerate(self.nodes):
            for cell, change in enumerate(grid.changes):
                add((change,), number, cell)
        for cell, plan in enumerate(self.cells.get(n_tokens, ())):
            add(plan.run.interventions, len(self.nodes) + len(self.paths), cell)
        return list(found.values())

    @cached_property
    def sites(self) -> frozenset[Site]:
        """Taps that changed runs read of other runs."""
        changes = [change for grid in self.nodes for change in grid.changes]
        changes += [change for plans in self.cells.values() for plan in plans for change in plan.run.interventions]
        return frozenset(one.at.site for one in changes if one.runs)

    @property
    def cell_count(self) -> int:
        """Cells of all grids."""
        return sum(info.cell_count for info in self.infos)

    @cached_property
    def _bytes_of_a_pair(self) -> int:
        """What is recorded of a pair: what is read, residuals, keys and values, and logits."""
        model = self.plan.model
        d = model.dimensions
        sizes = Sizes(d, self.longest, model.architecture)
        own = (d.n_layers + 1) * d.d_model + 2 * d.n_layers * d.n_key_value_heads * d.d_head
        if self.paths:
            own += d.n_layers * (2 * d.d_model + d.n_heads * d.d_head)
        recorded = sizes.recorded_bytes(self.sites, most_latents(self.plan.spliced))
        n_read = max(len(pair.read_at) for pair in self.pairs)
        return 2 * (recorded + BYTES_OF_FLOAT32 * (self.longest * own + n_read * d.vocab_size))

    @cached_property
    def pairs_of_a_block(self) -> int:
        """How many pairs are recorded together."""
        most = (
            BLOCK_TOKENS // self.longest,
            _BLOCK_RUNS // self.cell_count,
            _BLOCK_BYTES // self._bytes_of_a_pair,
        )
        return max(min(most), 1)

    @cached_property
    def peak_bytes(self) -> int:
        """Estimated memory, without weights: what is recorded of a block of pairs, a pass, and the answer's means."""
        d, n_tokens = self.plan.model.dimensions, self.longest
        n_pairs = len(next(self.blocks()))
        n_runs = n_pairs * self.cell_count
        per_token = 8 * d.d_model + 4 * d.n_heads * d.d_head + 3 * d.d_mlp + 4 * n_tokens * d.n_heads
        of_tokens = BYTES_OF_FLOAT32 * per_token * min(max(BATCH_TOKENS, n_tokens), n_runs * n_tokens)
        of_logits = 3 * min(max(BATCH_LOGIT_BYTES, BYTES_OF_FLOAT32 * d.vocab_size), 4 * d.vocab_size * n_runs)
        of_paths = 0
        if self.paths:
            row = row_bytes(d, self.graph, n_tokens, n_inputs=3 * d.n_heads, n_held=len(self.graph.sources))
            of_paths = min(row * n_runs, max(BATCH_BYTES, row))
        means = 64 * sum(info.size for info in self.infos) + _CELL_BYTES * self.cell_count
        of_recorded = n_pairs * self._bytes_of_a_pair
        return of_recorded + max(of_tokens + of_logits, of_paths) + means + self.plan.cost.peak_bytes

    @cached_property
    def floating_point_operations(self) -> int:
        """Approximate operations of the whole: each changed run from the layer and token on that it changes."""
        d = self.plan.model.dimensions
        block = 2 * parameters_of_blocks(d, self.plan.model.architecture) // d.n_layers
        head = 2 * d.vocab_size * d.d_model
        first = self.pairs[0]
        n_tokens = len(first.base)
        differ_from = first_difference(first.base, first.source) if self.has_sources else 0
        per_pair = 3 * n_tokens * d.n_layers * block
        for interventions, _ in self.changes(n_tokens):
            layer, token = start_of(interventions, differ_from, n_tokens, d.n_layers)
            per_pair += (d.n_layers - layer) * (n_tokens - token) * block + head
        for grid in self.paths:
            passes = 2 if grid.goes_through_mlps else 1
            per_pair += passes * len(grid.cells) * (n_tokens * d.n_layers * block // 2 + head)
        of_reference = sum(map(len, self.reference)) * d.n_layers * block
        return per_pair * len(self.pairs) + of_reference

    @cached_property
    def n_steps(self) -> int:
        """About how many passes there are."""
        n_runs = len(self.pairs) * self.cell_count
        return n_runs * self.longest // (2 * BATCH_TOKENS) + sum(2 for _ in self.blocks())

    @cached_property
    def tensor_handles(self) -> Sequence[str]:
        """Handles that cells name."""
        plans = (plan for plans in self.cells.values() for plan in plans)
        return tuple(dict.fromkeys(handle for plan in plans for handle in plan.tensor_handles))

    def with_tensors(self, tensors: TensorSource | None) -> PatchPlan:
        """The same plan with the tensors that cells name by a handle.

        Raises:
            InvalidRequest: listing every handle whose tensor does not fit.
            NotFound: for an unknown handle.
        """
        roots = [f"cells[{i}]" for i in range(len(self.request.cells))]
        return replace(self, cells={n: with_tensors(plans, tensors, roots) for n, plans in self.cells.items()})


def plan_patch(
    request: PatchRequest, registry: Registry, known: Violations | None = None, *, check: Check = never_cancelled
) -> PatchPlan:
    """Plan *request*.

    Args:
        request: the request.
        registry: the models and autoencoders that can be loaded.
        known: violations found by reading the request's message, as for `make_plan`.
        check: raises Cancelled once nobody waits for the plan.

    Raises:
        InvalidRequest: listing every field that a model or another field rules out, of all prompts, and those of
            *known*.
        NotFound: for an unknown model or autoencoder.
    """
    return _PatchPlanner(request, registry, Findings.after(known, check_wanted=check)).plan()


class _PatchPlanner:
    """The state of planning one request."""

    def __init__(self, request: PatchRequest, registry: Registry, findings: Findings) -> None:
        self._request, self._registry, self._findings = request, registry, findings

    def plan(self) -> PatchPlan:
        """The plan; raises all that is wrong."""
        request, findings = self._request, self._findings
        planner = PairPlanner(request, self._registry, findings)
        planned = planner.plan()
        if planned is None:
            raise findings.error()
        first, pairs = planned.plan, planned.pairs
        reference = planner.reference(request, planned)
        graph = Graph.of(first.model.dimensions, first.model.architecture)
        count = CellCount(findings)
        node_grids = NodeGrids(planned, request.alternative, count)
        nodes = [
            node_grids.made(grid, f"grids[{i}]")
            for i, grid in enumerate(request.grids)
            if not findings.holds_stand_in(f"grids[{i}]")
        ]
        paths = [
            path_cells(grid, graph, f"paths[{i}]", count)
            for i, grid in enumerate(request.paths)
            if not findings.holds_stand_in(f"paths[{i}]")
        ]
        if request.edges is not None and not findings.holds_stand_in("edges"):
            paths.append(edge_cells(request.edges, graph, count))
        cells = self._cells(pairs) if request.cells and count.add(len(request.cells), "cells") else {}
        if findings.count or findings.known:
            raise findings.error()
        named = {n: tuple(map(require, plans)) for n, plans in cells.items()}
        direction_sets = dict.fromkeys(one for plans in named.values() for plan in plans for one in plan.direction_sets)
        found = PatchPlan(
            request=request,
            plan=replace(first, direction_sets=tuple(direction_sets)),
            graph=graph,
            pairs=pairs,
            has_sources=all(pair.corrupt is not None for pair in request.pairs),
            reference=reference,
            nodes=tuple(map(require, nodes)),
            paths=tuple(map(require, paths)),
            cells=named,
        )
        self._check_sizes(found)
        return found

    def _cells(self, pairs: Sequence[Pair]) -> dict[int, list[Plan | None]]:
        """The plans of the request's own cells, by the number of tokens of the prompt."""
        found: dict[int, list[Plan | None]] = {}
        n_cells, n_lengths = len(self._request.cells), len({len(pair.base) for pair in pairs})
        problem = (
            f"holds {n_cells} cells, planned for each of {n_lengths} lengths of prompts: that may be"
            f" {MAX_PLANNED_CELLS} in all"
        )
        self._findings.check(n_cells * n_lengths <= MAX_PLANNED_CELLS, "cells", problem)
        if n_cells * n_lengths > MAX_PLANNED_CELLS:
            return found
        for pair in pairs:
            if len(pair.base) in found:
                continue
            plans = found[len(pair.base)] = []
            for i, cell in enumerate(self._request.cells):
                path = f"cells[{i}].interventions"
                if self._findings.holds_stand_in(path):
                    continue
                prompt = Prompt(token_ids=pair.base)
                runs = [SourceRun(name=name, prompt=prompt) for name in (SOURCE, MEAN) if cell.reads(name)]
                asked = DeriveRequest(
                    prompt=prompt,
                    model=self._request.model,
                    autoencoders=self._request.autoencoders,
                    interventions=cell.interventions,
                    source_runs=tuple(runs),
                )
                plans.append(self._planned(f"cells[{i}]", asked, {"interventions": path}))
        return found

    def _planned(self, root: str, asked: DeriveRequest, moved: Mapping[str, str]) -> Plan | None:
        """The plan of a run; None if something is wrong with it."""
        names = {"model": "model", "autoencoders": "autoencoders"}
        findings = self._findings.about(SourceMap(root=root, moved={**names, **moved}))
        if findings.holds_stand_in("prompt"):
            return None
        plan = plan_run(asked, self._registry, findings)
        self._findings.count += findings.count
        return plan

    def _check_sizes(self, plan: PatchPlan) -> None:
        """Refuse more than can be answered; raises InvalidRequest."""
        findings, n_pairs = self._findings, len(plan.pairs)
        n_cells = plan.cell_count
        n_runs = n_cells * n_pairs
        problem = f"asks for {n_cells} cells of {n_pairs} pairs, {n_runs} runs, and may for {MAX_RUNS}"
        findings.check(n_runs <= MAX_RUNS, "", problem)
        vocabulary = plan.plan.model.dimensions.vocab_size
        request = plan.request
        per_run = vocabulary if request.all_logits else min(request.top_logits, vocabulary)
        problem = f"asks for {per_run} logits of {n_runs} runs, and may for {MAX_LOGITS} in all"
        findings.check(per_run * n_runs <= MAX_LOGITS, "all_logits" if request.all_logits else "top_logits", problem)
        if findings.count:
            raise findings.error()
