"""Requests of Patch: what the metric would be if one place in a run were as in another run. Plain values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dst_grpc.domain.attribute import AttributedNode
from dst_grpc.domain.components import PassType
from dst_grpc.domain.enum_names import json_name
from dst_grpc.domain.graph_nodes import Edge, Reader, Source, check_named
from dst_grpc.domain.indices import check_number
from dst_grpc.domain.interventions import UNCHANGED, Intervention
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.pairs import SOURCE, Alternative, Orientation, PromptPair, check_pairs, check_reference
from dst_grpc.domain.requests import Prompt, check_id, check_names
from dst_grpc.domain.texts import check_text
from dst_grpc.errors import Violations

MEAN = "mean"
"""Name that they give the mean over the reference prompts."""
MAX_TOP_LOGITS = 1000
HEAD_INPUTS = frozenset({AttributedNode.KEY, AttributedNode.VALUE})
"""Nodes that heads of a group share."""
OF_HEADS = HEAD_INPUTS | {AttributedNode.HEAD, AttributedNode.QUERY, AttributedNode.PATTERN}
"""Nodes of which a layer has one for each head."""
LISTED_ENTRIES = frozenset({AttributedNode.NEURON, AttributedNode.LATENT})
"""Nodes of which a layer has so many that a grid names those it is of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGrid:
    """Cells that each change one node: for every layer, every head if there are several, and every position."""

    node: AttributedNode
    """What is changed."""
    all_positions: bool = False
    """Whether a cell changes all positions at once, rather than there being one for each."""
    layers: tuple[int, ...] = ()
    """The layers; empty = all that have such nodes."""
    positions: tuple[int, ...] = ()
    """The positions; empty = all."""
    entries: tuple[int, ...] = ()
    """The heads, groups of heads, neurons or latents; empty = all heads or groups."""
    by_group: bool = False
    """For KEY and VALUE: whether a cell changes what a group of heads shares, rather than one head's copy."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        name = json_name(self.node)
        for field in ("layers", "positions", "entries"):
            numbers: tuple[int, ...] = getattr(self, field)
            for i, number in enumerate(numbers):
                check_number(problems, f"{field}[{i}]", number)
            for number, count in Counter(numbers).items():
                problems.check(count == 1, field, f"names {number} more than once")
        problems.check(not self.by_group or self.node in HEAD_INPUTS, "by_group", f"must be false for {name}")
        if self.node in LISTED_ENTRIES:
            problems.check(bool(self.entries), "entries", f"is required for {name}: a layer has many")
        elif self.node not in OF_HEADS:
            problems.check(not self.entries, "entries", f"must be empty for {name}: a layer has one")
        if self.node is AttributedNode.INPUT:
            problems.check(not self.layers, "layers", f"must be empty for {name}: it is of no layer")
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class PathGrid:
    """Cells that each change what a receiver reads of a sender: path patching."""

    senders: tuple[str, ...] = ()
    """Names of sources, such as "a0.h1"; empty = all, or all heads if paths go through MLPs."""
    receivers: tuple[str, ...] = ()
    """Names of readers, such as "a2.h0<q>"; empty = all, or all inputs of heads and the logits if paths go through
    MLPs. Two without a path between them have no cell."""
    through_mlps: bool = False
    """Whether paths that go through MLPs in between count (Wang et al. 2022), rather than only the edge itself."""
    together: bool = False
    """Whether a cell changes what all receivers of a sender read, rather than there being one for each. With paths
    through MLPs, receivers are then required, and the logits are alone: they read all that others change."""

    def __post_init__(self) -> None:
        """Check the names as far as no model is needed; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        for field, names, cls in (("senders", self.senders, Source), ("receivers", self.receivers, Reader)):
            check_named(problems, field, names, cls.named)
            for name, count in Counter(names).items():
                problems.check(count == 1, field, f"names {name} more than once")
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeList:
    """Cells that each cut one edge: path patching, of named edges."""

    edges: tuple[str, ...]
    """Names, such as "a0.h1->m2"."""

    def __post_init__(self) -> None:
        """Check the names as far as no model is needed; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        problems.check(bool(self.edges), "edges", "must name at least one edge")
        check_named(problems, "edges", self.edges, Edge.named)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchCell:
    """A cell of one's own: any changes of values."""

    interventions: tuple[Intervention, ...]
    """The changes, in order. They may read the runs "source", of the pair's other prompt, "mean", over the reference
    prompts, and the unchanged run."""
    name: str = ""
    """What to call it in the answer."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_text(problems, "name", self.name)
        for i, one in enumerate(self.interventions):
            is_forward = one.at.pass_type is PassType.FORWARD
            problems.check(is_forward, f"interventions[{i}].at.pass_type", "must be FORWARD: no gradient is taken")
            for run in one.runs:
                known = run in {UNCHANGED, SOURCE, MEAN}
                names = f"must be {SOURCE!r}, {MEAN!r} or {UNCHANGED!r}, not {run!r}"
                problems.check(known, f"interventions[{i}].{one.action.arm}", names)
        problems.raise_if_any()

    def reads(self, run: str) -> bool:
        """Whether it reads the run of that name."""
        return any(run in one.runs for one in self.interventions)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRequest:
    """What would the metric be if one place in a run were as in another run, or changed otherwise?"""

    pairs: tuple[PromptPair, ...]
    """The prompts. The answer has the values of each, and means over them."""
    request_id: str = ""
    """The client's own id."""
    model: str | None = None
    """Name or handle of the model; None = the server's default."""
    loss_fn_config: LossFnConfig | None = None
    """The metric of pairs without one of their own."""
    autoencoders: tuple[str, ...] = ()
    """Names or handles of autoencoders to splice into the runs."""
    orientation: Orientation = Orientation.NOISING
    """Which prompt of a pair is run; values come from the other one."""
    alternative: Alternative = Alternative.PATCHING
    """What takes the place of a node, and what a path carries instead."""
    reference: tuple[Prompt, ...] = ()
    """The prompts of a mean."""
    grids: tuple[PatchGrid, ...] = ()
    """Grids of nodes."""
    paths: tuple[PathGrid, ...] = ()
    """Grids of paths."""
    edges: EdgeList | None = None
    """A list of edges."""
    cells: tuple[PatchCell, ...] = ()
    """Cells of one's own."""
    divergence: bool = False
    """Whether to send, of each cell, KL(clean run, changed run) at the last token too."""
    top_logits: int = 0
    """How many of each cell's largest logits at the last token to send."""
    all_logits: bool = False
    """Whether to send all of them."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_id(problems, "request_id", self.request_id)
        check_names(problems, self.model, self.autoencoders)
        check_pairs(problems, self.pairs, self.loss_fn_config, self._corrupt)
        check_reference(problems, self.reference, reads_mean=self.reads_mean)
        asks = self.grids or self.paths or self.edges is not None or self.cells
        problems.check(bool(asks), "", "give grids, paths, edges or cells")
        for i, paths in enumerate(self.paths):
            is_patching = self.alternative is Alternative.PATCHING
            problem = f"must be false: paths through MLPs carry what they do in the other run, not {self.alternative}"
            problems.check(is_patching or not paths.through_mlps, f"paths[{i}].through_mlps", problem)
        bounds = f"must be between 0 and {MAX_TOP_LOGITS}, not {self.top_logits}"
        problems.check(0 <= self.top_logits <= MAX_TOP_LOGITS, "top_logits", bounds)
        problems.check(not (self.top_logits and self.all_logits), "all_logits", "must be false with top_logits")
        problems.raise_if_any()

    @property
    def reads_source(self) -> bool:
        """Whether values are taken from the other prompts."""
        has_nodes = self.grids or self.paths or self.edges is not None
        is_taken = bool(has_nodes) and self.alternative is Alternative.PATCHING
        return is_taken or any(cell.reads(SOURCE) for cell in self.cells)

    @property
    def reads_mean(self) -> bool:
        """Whether there is a mean over reference prompts."""
        return self.alternative.is_mean or any(cell.reads(MEAN) for cell in self.cells)

    @property
    def _corrupt(self) -> str | None:
        """What is wrong with a pair without corrupt prompt; None if it is not needed."""
        if self.orientation is Orientation.DENOISING:
            return "is required to be run"
        return "is required for what cells take from it" if self.reads_source else None
