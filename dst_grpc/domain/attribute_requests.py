"""Requests of Attribute: how much of a metric depends on which node, edge or token. Plain values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dst_grpc.domain.attribute import (
    ATTRIBUTED_NODES,
    ATTRIBUTION_METHODS,
    AttributedNode,
    AttributionMethod,
    Baseline,
    PathGroups,
    PathRule,
    PostNormJacobian,
    PropagationRule,
)
from dst_grpc.domain.enum_names import json_name, json_names
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.pairs import Orientation, PromptPair, check_pairs
from dst_grpc.domain.requests import check_id, check_names
from dst_grpc.errors import Violations

MAX_STEPS = 1000
MAX_VERIFIED = 10_000
DEFAULT_NODES = (AttributedNode.INPUT, AttributedNode.HEAD, AttributedNode.MLP_OUT)
"""What is attributed if a request names neither nodes nor edges: the sources of the graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeRequest:
    """How much a metric depends on nodes, edges or tokens, to first order."""

    pairs: tuple[PromptPair, ...]
    """The prompts. Scores are means over them."""
    request_id: str = ""
    """The client's own id."""
    model: str | None = None
    """Name or handle of the model; None = the server's default."""
    loss_fn_config: LossFnConfig | None = None
    """The metric of pairs without one of their own."""
    autoencoders: tuple[str, ...] = ()
    """Names or handles of autoencoders to splice into the runs."""
    orientation: Orientation = Orientation.NOISING
    """Which prompt of a pair is the base run; values come from the other one."""
    method: AttributionMethod = AttributionMethod.ATTRIBUTION_PATCHING
    """Where gradients are taken."""
    nodes: tuple[AttributedNode, ...] = ()
    """Kinds of nodes; empty, without edges = the sources of the graph."""
    edges: bool = False
    """Whether of all edges."""
    by_position: bool = False
    """Whether there is a score for each position, instead of their sum; all prompts are then equally long."""
    rule: PropagationRule = PropagationRule.PLAIN
    """How gradients pass through norms, attention and MLPs."""
    path_rule: PathRule | None = None
    """For methods with a path: at which points; None = the method's own default."""
    steps: int | None = None
    """For methods with a path: its steps; None = the method's own default."""
    path_groups: PathGroups | None = None
    """For INTEGRATED_ACTIVATIONS: over which groups; None = OWN_LAYER."""
    baseline: Baseline | None = None
    """For INTEGRATED_GRADIENTS: where the path begins; None = CORRUPT."""
    by_channel: bool = False
    """For INTEGRATED_GRADIENTS: whether each channel of a token is scored apart."""
    post_norms: PostNormJacobian | None = None
    """For edges: how the writes of heads pass post-norms; None = EXACT."""
    qk_fix: bool = False
    """Whether effects of queries and keys go through recomputed patterns (AtP*)."""
    grad_drop: bool = False
    """Whether scores of nodes are means of magnitudes over gradient passes that each drop one layer (AtP*)."""
    magnitudes: bool = False
    """Whether the mean over pairs is one of magnitudes, for nodes."""
    verify: int = 0
    """How many of the edges with the largest magnitudes to patch exactly, for comparison."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_id(problems, "request_id", self.request_id)
        check_names(problems, self.model, self.autoencoders)
        self._check_pairs(problems)
        self._check_method(problems)
        self._check_nodes(problems)
        problems.raise_if_any()

    @property
    def of_tokens(self) -> bool:
        """Whether tokens are attributed, rather than nodes and edges."""
        return self.method is AttributionMethod.INTEGRATED_GRADIENTS

    @property
    def effective_nodes(self) -> tuple[AttributedNode, ...]:
        """The kinds of nodes that are attributed."""
        return self.nodes if self.nodes or self.edges or self.of_tokens else DEFAULT_NODES

    @property
    def effective_path_rule(self) -> PathRule:
        """The points of the path."""
        return self.path_rule or ATTRIBUTION_METHODS[self.method].path_rule or PathRule.RIGHT

    @property
    def effective_steps(self) -> int:
        """The steps of the path; 0 if the method has none."""
        return ATTRIBUTION_METHODS[self.method].steps if self.steps is None else self.steps

    @property
    def effective_baseline(self) -> Baseline:
        """Where the path of integrated gradients begins."""
        return self.baseline or Baseline.CORRUPT

    @property
    def reads_corrupt(self) -> bool:
        """Whether corrupt prompts are needed."""
        return not self.of_tokens or self.effective_baseline is Baseline.CORRUPT

    def _check_pairs(self, problems: Violations) -> None:
        check_pairs(problems, self.pairs, self.loss_fn_config, "is required" if self.reads_corrupt else None)
        if self.reads_corrupt:
            return
        for i, pair in enumerate(self.pairs):
            why = f"must be absent: the baseline is {json_name(self.effective_baseline)}"
            problems.check(pair.corrupt is None, f"pairs[{i}].corrupt", why)
        if self.orientation is Orientation.DENOISING:
            problems.add(
                "orientation", f"must be {json_name(Orientation.NOISING)}: there is no corrupt prompt to attribute"
            )

    def _check_method(self, problems: Violations) -> None:
        facts, name = ATTRIBUTION_METHODS[self.method], json_name(self.method)
        if self.steps is not None:
            problems.check(0 < self.steps <= MAX_STEPS, "steps", f"must be between 1 and {MAX_STEPS}, not {self.steps}")
            problems.check(facts.steps > 0, "steps", f"must be absent: {name} has no path")
        if self.path_rule is not None:
            problems.check(facts.steps > 0, "path_rule", f"must be absent: {name} has no path")
        is_on_activations = self.method is AttributionMethod.INTEGRATED_ACTIVATIONS
        problems.check(self.path_groups is None or is_on_activations, "path_groups", f"must be absent for {name}")
        problems.check(self.baseline is None or self.of_tokens, "baseline", f"must be absent for {name}")
        problems.check(not self.by_channel or self.of_tokens, "by_channel", f"must be false for {name}")
        if self.of_tokens:
            for field in ("nodes", "edges", "by_position", "magnitudes"):
                problems.check(not getattr(self, field), field, f"must be absent for {name}, which is about tokens")
        is_plain = self.method is AttributionMethod.ATTRIBUTION_PATCHING
        for field in ("qk_fix", "grad_drop"):
            if getattr(self, field):
                wanted = json_name(AttributionMethod.ATTRIBUTION_PATCHING)
                problems.check(is_plain, field, f"must be false: it is a part of {wanted}, not of {name}")

    def _check_nodes(self, problems: Violations) -> None:
        for node, count in Counter(self.nodes).items():
            problems.check(count == 1, "nodes", f"names {json_name(node)} more than once")
        if self.method is AttributionMethod.INTEGRATED_ACTIVATIONS:
            for i, node in enumerate(self.nodes):
                sources = json_names(each for each in AttributedNode if ATTRIBUTED_NODES[each].is_source)
                is_source = ATTRIBUTED_NODES[node].is_source
                problems.check(is_source, f"nodes[{i}]", f"must be {sources} for {json_name(self.method)}")
        of_patterns = AttributedNode.QUERY, AttributedNode.KEY
        can_be_fixed = any(node in self.nodes for node in of_patterns)
        problems.check(can_be_fixed or not self.qk_fix, "qk_fix", f"needs {json_names(of_patterns)} among the nodes")
        is_plain = self.rule is PropagationRule.PLAIN
        problems.check(is_plain or not self.qk_fix, "qk_fix", f"must be false with the rule {json_name(self.rule)}")
        problems.check(not (self.grad_drop and self.edges), "grad_drop", "must be false for edges: it is about nodes")
        has_nodes = self.of_tokens or bool(self.effective_nodes)
        problems.check(has_nodes or not self.magnitudes, "magnitudes", "must be false for edges: it is about nodes")
        problems.check(self.post_norms is None or self.edges, "post_norms", "must be absent: it is about edges")
        if self.verify:
            bounds = f"must be between 0 and {MAX_VERIFIED}, not {self.verify}"
            problems.check(0 <= self.verify <= MAX_VERIFIED, "verify", bounds)
            problems.check(self.edges, "verify", "must be 0: it is about edges")
