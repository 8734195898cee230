"""Arranges the runs of plans, and those that they read, as rows of batches.

A run that others read is a row beside them, which they read at the very tap that they change; only if not all fit into
one batch, the runs that are read go first and record what the others need. A run that changes nothing before some layer
begins there, with the residual of the same prompt's unchanged run, if that runs too. A run whose recording is kept is
not run again for others to read.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dst_grpc.engine.taps import site_entering
from dst_grpc.pipeline.rows import Row, Start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import torch

    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.runs import Run

    Recorded = Mapping[Site, torch.Tensor]
    Kept = Callable[[Run], Recorded]
    """What is kept of an equal run; nothing if nothing is."""

MAX_BATCH_TOKENS = 2048
"""Tokens of a batch, pads included, unless a single prompt is longer."""


def nothing_kept(run: Run) -> Recorded:
    """Nothing is kept of any run."""
    del run
    return {}


@dataclass(slots=True, eq=False)
class Node:
    """A run that has to be executed."""

    run: Run
    plan: Plan | None
    """The plan that it is the run of; None if it is only read."""
    sources: Mapping[str, Node | Recorded]
    """The runs that it reads, by the names that its interventions give them; or what is kept of them."""
    references: Mapping[str, Node] = field(default_factory=dict)
    """The runs whose logits its origins read, by name."""
    logits: set[int] = field(default_factory=set)
    """Positions whose logits other runs read."""
    first_layer: int = 0
    """The first layer that it has to run, if what enters that is known."""
    base: Node | Recorded | None = None
    """The run that it is until that layer, or what is kept of it; None if it begins at the embedding."""
    recorded: set[Site] = field(default_factory=set)
    """Sites to record for runs of later batches."""

    @property
    def read(self) -> list[Node]:
        """All that have to run before it, or beside it."""
        return [one for one in (*self.sources.values(), *self.references.values(), self.base) if isinstance(one, Node)]


@dataclass(frozen=True, slots=True, eq=False)
class Arrangement:
    """The runs of plans in batches."""

    batches: tuple[tuple[Node, ...], ...]
    """In order; within a batch, runs that others read come before them."""
    of_plans: tuple[Node, ...]
    """The run of each plan."""

    @classmethod
    def of(
        cls,
        plans: Sequence[Plan],
        n_layers: int,
        max_tokens: int = MAX_BATCH_TOKENS,
        kept: Kept = nothing_kept,
    ) -> Arrangement:
        """Arrange the runs of *plans*, which are of a model with *n_layers*.

        Args:
            plans: the plans.
            n_layers: layers of the model.
            max_tokens: tokens of a batch, pads included.
            kept: what is kept of runs.
        """
        made = _Nodes(plans, n_layers, kept)
        nodes, of_plans = made.found, tuple(made.of_plan[i] for i in range(len(plans)))
        read = {id(one) for node in nodes for one in node.read}
        if _size(nodes) <= max_tokens:
            return cls((tuple(nodes),), of_plans)
        first = _packed([node for node in nodes if id(node) in read], max_tokens)
        batches = (*first, *_packed([node for node in nodes if id(node) not in read], max_tokens))
        for batch in batches:
            here = {id(node) for node in batch}
            for node in batch:
                _record(node, here)
        return cls(batches, of_plans)


def _record(node: Node, here: set[int]) -> None:
    """Have what *node* needs of runs of earlier batches recorded; those of its own are *here*."""
    for one in node.run.interventions:
        for name in one.runs:
            source = node.sources[name]
            if isinstance(source, Node) and id(source) not in here:
                source.recorded.add(one.at.site)
    if isinstance(node.base, Node) and id(node.base) not in here:
        node.base.recorded.add(site_entering(node.first_layer))


def rows_of(
    batch: Sequence[Node], recorded: Mapping[int, Recorded], logits: Mapping[int, Mapping[int, torch.Tensor]]
) -> list[Row]:
    """The rows of *batch*, given what the runs of earlier batches *recorded*, and their *logits* by position, by their
    identity."""
    numbers = {id(node): i for i, node in enumerate(batch)}

    def found(node: Node | Recorded) -> int | Recorded:
        if not isinstance(node, Node):
            return node
        return numbers[id(node)] if id(node) in numbers else recorded[id(node)]

    def start(node: Node) -> Start | None:
        if node.base is None:
            return None
        base = found(node.base)
        residual = base if isinstance(base, int) else base[site_entering(node.first_layer)]
        return Start(layer=node.first_layer, base=residual)

    return [
        Row(
            node.run,
            values=frozenset(node.recorded).union(() if node.plan is None else node.plan.values),
            gradients=frozenset() if node.plan is None else node.plan.gradients,
            sources={name: found(source) for name, source in node.sources.items()},
            start=start(node),
            references={
                name: numbers[id(one)] if id(one) in numbers else logits[id(one)]
                for name, one in node.references.items()
            },
            logits=frozenset(node.logits),
        )
        for node in batch
    ]


class _Nodes:
    """Makes the nodes of plans, each run once, but every plan's own."""

    def __init__(self, plans: Sequence[Plan], n_layers: int, kept: Kept) -> None:
        self._n_layers, self._kept = n_layers, kept
        # Latents that write to later layers are needed there, so that a pass has to begin with the first.
        self._begin_late = not any(info.is_cross_layer for info in plans[0].spliced)
        self._plans = plans
        self._numbers: dict[Run, int] = {}
        """By what runs forward, the first plan of it: who reads that run reads the plan's. Not one whose origin reads
        other runs, since these may be read in turn."""
        for number, plan in enumerate(plans):
            if not plan.run.references:
                self._numbers.setdefault(plan.run.forward, number)
        self._sites: dict[Run, frozenset[Site]] = defaultdict(frozenset)
        """By what runs forward, the sites that others read."""
        for plan in plans:
            for run, sites in plan.run.all_read.items():
                self._sites[run] |= sites
        self._referred_to = {plan.run.source(name) for plan in plans for name, _ in plan.run.references}
        """By what runs forward, those whose logits are read."""
        self._unchanged = self._with_unchanged()
        self._of_run: dict[Run, Node] = {}
        self.of_plan: dict[int, Node] = {}
        """The run of each plan, by its number."""
        self.found: list[Node] = []
        """All, those that others read before them."""
        for number, plan in enumerate(plans):
            self._add(plan.run, number)

    def _with_unchanged(self) -> set[Run]:
        """The runs without interventions that others can begin with: those that run anyway, and those that save
        more layers than they run."""
        running = {*self._numbers, *self._sites}
        saved: dict[Run, int] = defaultdict(int)
        for run in running:
            if run.interventions:
                saved[run.unchanged] += self._first_layer(run, self._numbers.get(run))
        return {run for run, n_layers in saved.items() if run in running or n_layers > self._n_layers}

    def _source(self, run: Run) -> Node | Recorded:
        """The node of a run that is read; or what is kept of it, if that suffices and it does not run anyway."""
        kept = {} if run in self._numbers or run in self._referred_to else self._kept(run)
        return kept if kept and self._sites[run] <= kept.keys() else self._node(run)

    def _base(self, run: Run, first_layer: int) -> Node | Recorded | None:
        """The run that *run* is before its first layer, or what is kept of it; None if neither is to be had."""
        kept = {} if run.unchanged in self._unchanged else self._kept(run.unchanged)
        if site_entering(first_layer) in kept:
            return kept
        return self._node(run.unchanged) if run.unchanged in self._unchanged else None

    def _node(self, run: Run) -> Node:
        """The node of a run that is read."""
        number = self._numbers.get(run)
        return self._add(run if number is None else self._plans[number].run, number)

    def _add(self, run: Run, number: int | None) -> Node:
        """The node of a run, that of a plan if it has a *number*."""
        known = self._of_run.get(run) if number is None else self.of_plan.get(number)
        if known is not None:
            return known
        sources = {name: self._source(run.source(name)) for one in run.interventions for name in one.runs}
        references = {name: self._node(run.source(name)) for name, _ in run.references}
        for name, position in run.references:
            references[name].logits.add(position)
        node = Node(run, None if number is None else self._plans[number], sources, references)
        if node.plan is not None:
            node.logits |= node.plan.logits
        first = self._first_layer(run, number) if run.interventions else 0
        node.base = self._base(run, first) if first > 0 else None
        node.first_layer = 0 if node.base is None else first
        if number is None:
            self._of_run[run] = node
        else:
            self.of_plan[number] = node
        self.found.append(node)
        return node

    def _first_layer(self, run: Run, number: int | None) -> int:
        """The first layer at which anything is changed or needed, the number of layers if none is; 0 if no run may
        begin late."""
        if not self._begin_late:
            return 0
        sites: set[Site] = {one.at.site for one in run.interventions}
        sites |= self._sites.get(run.forward, frozenset())
        if number is not None:
            plan = self._plans[number]
            sites |= plan.values | plan.gradients | run.values | run.attached
        return first_layer_of(sites, self._n_layers)


def first_layer_of(sites: Iterable[Site], n_layers: int) -> int:
    """The first layer that has to run for *sites*; the number of layers if there are none or they come after all."""
    layers = (
        n_layers if location.facts.is_after_layers else 0 if layer is None else layer for location, layer in sites
    )
    return min(layers, default=n_layers)


def _packed(nodes: Sequence[Node], max_tokens: int) -> tuple[tuple[Node, ...], ...]:
    """*nodes* in batches, in their order."""
    batches: list[list[Node]] = []
    for node in nodes:
        if batches and _size([*batches[-1], node]) <= max_tokens:
            batches[-1].append(node)
        else:
            batches.append([node])
    return tuple(map(tuple, batches))


def _size(nodes: Sequence[Node]) -> int:
    """Tokens of a batch of *nodes*, pads included."""
    return len(nodes) * max(len(node.run.token_ids) for node in nodes)
