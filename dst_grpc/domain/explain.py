"""Requests of TopK and Explain: runs, the groups of derived scalars to select nodes by, and what to send.

The groups that an Explain request has unless it names its own are in `groups`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from dst_grpc.domain.components import (
    ComponentTypeForAttention,
    ComponentTypeForMlp,
    ComponentTypeForResidual,
    NodeType,
    PassType,
)
from dst_grpc.domain.entries import entries_are_nodes
from dst_grpc.domain.enum_names import json_name, json_names
from dst_grpc.domain.explanations import ExplainPart
from dst_grpc.domain.groups import DEFAULT_GROUPS, RESIDUAL_GROUPS
from dst_grpc.domain.indices import AttnSubNodeIndex, NodeIndex, check_number
from dst_grpc.domain.interventions import MAX_FLOAT32, AblationSpec, Intervention
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DeriveRequest, Prompt, SourceRun, check_id, check_names
from dst_grpc.domain.runs_read import check_runs_read
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.errors import InvalidRequest, Violations

DEFAULT_K = 15
DEFAULT_SCORED_TOKENS = 10
DEFAULT_TOKEN_PAIRS = 3
DEFAULT_TOP_LOGITS = 100
MAX_RUNS = 64
MAX_GROUPS = 64
MAX_SCORED_TOKENS = 1000
MAX_TOKEN_PAIRS = 1000
MAX_TOP_LOGITS = 10_000


class TopKSelection(StrEnum):
    """Which nodes to select: those with the largest values, the smallest, or both."""

    TOP = "top"
    """The largest."""
    BOTTOM = "bottom"
    """The smallest."""
    BOTH = "both"
    """The largest, then the smallest."""


class NodeScope(StrEnum):
    """Whether the runs of a request share one list of nodes."""

    BATCH = "batch"
    """All runs have the same list: every node that any of them selects."""
    PROMPT = "prompt"
    """Each run has a list of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKGroup:
    """Derived scalars to select nodes by, at most one per node type."""

    group_id: str
    """The client's own name of the group."""
    dsts: tuple[DerivedScalarType, ...]
    """The types, at most one per node type."""
    k: int | None = None
    """Entries to select of each type, at each end; None = the request's `k`."""
    selection: TopKSelection = TopKSelection.BOTH
    """Which end."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        problems.check(bool(self.group_id), "group_id", "is required")
        check_id(problems, "group_id", self.group_id)
        problems.check(bool(self.dsts), "dsts", "must name at least one derived scalar type")
        taken: dict[NodeType, DerivedScalarType] = {}
        for i, dst in enumerate(self.dsts):
            facts = FACTS[dst]
            if not entries_are_nodes(facts):
                axes = ", ".join(axis.value for axis in facts.dimensions)
                problems.add(f"dsts[{i}]", f"{json_name(dst)} has no nodes to choose from: its entries are [{axes}]")
            elif facts.node_type in taken:
                other = taken[facts.node_type]
                problems.add(
                    f"dsts[{i}]",
                    f"{json_name(dst)} and {json_name(other)} both have nodes of {facts.node_type}: one per group",
                )
            taken.setdefault(facts.node_type, dst)
        check_number(problems, "k", self.k, least=1)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKRequest:
    """The largest and smallest entries of derived scalars of one or more runs."""

    runs: tuple[DeriveRequest, ...]
    """The runs, without derived scalars of their own."""
    groups: tuple[TopKGroup, ...]
    """What to select nodes by."""
    request_id: str = ""
    """The client's own id."""
    k: int = DEFAULT_K
    """Entries to select of each type, at each end."""
    token_index: int | None = None
    """Select only nodes at this token; negative from the end; None = every token."""
    node_scope: NodeScope | None = None
    """Whether the runs share one list; None = if they can."""
    with_sums: bool = False
    """Whether to send the sums of whole derived scalars too."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_id(problems, "request_id", self.request_id)
        _check_run_count(problems, len(self.runs))
        for i, run in enumerate(self.runs):
            problems.check(run.prompt is not None, f"runs[{i}].prompt", "is required")
            problems.check(
                not run.derived_scalars, f"runs[{i}].derived_scalars", "must be empty: the groups say what to derive"
            )
            problems.check(
                not run.config.derive_gradients,
                f"runs[{i}].config.derive_gradients",
                "must be false: nodes are chosen by forward values",
            )
        problems.check(bool(self.groups), "groups", "must hold at least one group")
        _check_groups(problems, self.groups)
        check_number(problems, "k", self.k, least=1)
        if self.token_index is not None:
            limit = 2**31 - 1
            within = -limit <= self.token_index <= limit
            problems.check(within, "token_index", f"must be between {-limit} and {limit}, not {self.token_index}")
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAblation:
    """A node to ablate: its activation is overwritten."""

    node_index: NodeIndex
    """A head (t, u, h), whose whole row of attention at t is overwritten; or a neuron or latent (t, n). With a
    layer."""
    value: float = 0.0
    """The value to overwrite it with."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        node = self.node_index
        facts = NODES[node.node_type]
        if facts.ablated_tap is None:
            known = json_names(each for each, row in NODES.items() if row.ablated_tap is not None)
            problems.add("node_index.node_type", f"must be {known}, not {json_name(node.node_type)}")
        else:
            indices = node.tensor_indices
            problems.check(
                len(indices) == facts.rank and indices[0] is not None and indices[-1] is not None,
                "node_index.tensor_indices",
                f"must have {facts.rank} entries, the first and the last of them positions",
            )
        problems.check(not isinstance(node, AttnSubNodeIndex), "node_index.q_k_or_v", "must be absent")
        problems.check(
            node.pass_type is PassType.FORWARD, "node_index.pass_type", f"must be {json_name(PassType.FORWARD)}"
        )
        problems.check(node.layer_index is not None, "node_index.layer_index", "is required")
        # Comparison is false for NaN.
        problems.check(
            abs(self.value) <= MAX_FLOAT32, "value", f"must be finite and within float32's range, not {self.value}"
        )
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRun:
    """One run to explain."""

    prompt: Prompt
    """The prompt."""
    loss_fn_config: LossFnConfig | None = None
    """The loss: the targets, and perhaps distractors."""
    trace_config: TraceConfig | None = None
    """The node to explain instead."""
    node_ablations: tuple[NodeAblation, ...] = ()
    """Nodes to ablate."""
    ablation_specs: tuple[AblationSpec, ...] = ()
    """Other entries to overwrite, applied before the nodes."""
    interventions: tuple[Intervention, ...] = ()
    """Interventions, applied in order after the nodes."""
    source_runs: tuple[SourceRun, ...] = ()
    """Runs that interventions may read, by name."""
    detach_final_layer_norm_scale: bool | None = None
    """Whether the final norm's scale is held constant in gradients; None = it is."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        if self.trace_config is not None:
            try:
                self.trace_config.check_can_run()
            except InvalidRequest as error:
                problems.extend(error, "trace_config")
        check_runs_read(problems, self.source_runs, self.interventions, self.loss_fn_config)
        problems.raise_if_any()

    @property
    def has_origin(self) -> bool:
        """Whether a backward pass can start from this run."""
        return self.loss_fn_config is not None or self.trace_config is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRequest:
    """Why did the model prefer A to B here, and what if some node had been ablated?"""

    runs: tuple[ExplainRun, ...]
    """What to explain."""
    request_id: str = ""
    """The client's own id."""
    model: str | None = None
    """Name or handle of the model; None = the server's default."""
    autoencoders: tuple[str, ...] = ()
    """Names or handles of autoencoders to splice into the runs."""
    component_type_for_mlp: ComponentTypeForMlp = ComponentTypeForMlp.NEURON
    """Which nodes represent the MLPs."""
    component_type_for_attention: ComponentTypeForAttention = ComponentTypeForAttention.ATTENTION_HEAD
    """Which nodes represent attention."""
    groups: tuple[TopKGroup, ...] = ()
    """What to select nodes by; empty = the default groups."""
    k: int = DEFAULT_K
    """Nodes to select of each type, at each end."""
    parts: tuple[ExplainPart, ...] = ()
    """Which parts to send; empty = all that apply to the request."""
    scored_token_count: int = DEFAULT_SCORED_TOKENS
    """Tokens to score at each end, per node."""
    token_pair_count: int = DEFAULT_TOKEN_PAIRS
    """Tokens attended to, per latent of attention."""
    top_logit_count: int = DEFAULT_TOP_LOGITS
    """Output logits at each end."""
    node_scope: NodeScope | None = None
    """Whether the runs share one list of nodes; None = if they can."""
    unit_length_embeddings: bool | None = None
    """Whether input tokens are scored by their embeddings scaled to unit length; None = by them as they are."""
    component_type_for_residual: ComponentTypeForResidual = ComponentTypeForResidual.NONE
    """Which nodes describe the residual stream, beside those that write to it."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_id(problems, "request_id", self.request_id)
        _check_run_count(problems, len(self.runs))
        _check_groups(problems, self.groups)
        check_number(problems, "k", self.k, least=1)
        _check_count(problems, "scored_token_count", self.scored_token_count, MAX_SCORED_TOKENS)
        _check_count(problems, "token_pair_count", self.token_pair_count, MAX_TOKEN_PAIRS)
        _check_count(problems, "top_logit_count", self.top_logit_count, MAX_TOP_LOGITS)
        for part, count in Counter(self.parts).items():
            problems.check(count == 1, "parts", f"names {json_name(part)} more than once")
        check_names(problems, self.model, self.autoencoders)
        problems.raise_if_any()

    @property
    def effective_groups(self) -> tuple[TopKGroup, ...]:
        """The groups given, or the default ones; those that need an origin only if every run has one."""
        return self.groups or default_groups(
            self.component_type_for_mlp,
            self.component_type_for_attention,
            self.component_type_for_residual,
            has_origin=all(run.has_origin for run in self.runs),
        )


def default_groups(
    mlp: ComponentTypeForMlp = ComponentTypeForMlp.NEURON,
    attention: ComponentTypeForAttention = ComponentTypeForAttention.ATTENTION_HEAD,
    residual: ComponentTypeForResidual = ComponentTypeForResidual.NONE,
    *,
    has_origin: bool = True,
    k: int | None = None,
) -> tuple[TopKGroup, ...]:
    """The default groups: write norm, act x grad, direct effect and activation of every node.

    Args:
        mlp: which nodes represent the MLPs.
        attention: which nodes represent attention.
        residual: which nodes describe the residual stream; they have groups of their own, since they say again what
            others write.
        has_origin: whether there are gradients; without, two groups remain.
        k: entries to select of each type, at each end; None = the request's.
    """
    mlp_place = int(mlp is ComponentTypeForMlp.AUTOENCODER_LATENT)
    attention_place = int(attention is ComponentTypeForAttention.AUTOENCODER_LATENT)
    groups: dict[str, tuple[DerivedScalarType, ...]] = {
        name: (embedding, of_mlp[mlp_place], of_attention[attention_place])
        for name, (embedding, of_mlp, of_attention) in DEFAULT_GROUPS.items()
    }
    if residual is ComponentTypeForResidual.AUTOENCODER_LATENT:
        groups |= RESIDUAL_GROUPS
    return tuple(
        TopKGroup(group_id=name, dsts=dsts, k=k)
        for name, dsts in groups.items()
        if has_origin or not any(FACTS[dst].requires_grad_for_forward_pass for dst in dsts)
    )


def _check_run_count(problems: Violations, count: int) -> None:
    problems.check(0 < count <= MAX_RUNS, "runs", f"must hold between 1 and {MAX_RUNS} runs, not {count}")


def _check_groups(problems: Violations, groups: tuple[TopKGroup, ...]) -> None:
    problems.check(len(groups) <= MAX_GROUPS, "groups", f"must hold at most {MAX_GROUPS} groups, not {len(groups)}")
    seen: set[str] = set()
    for i, group in enumerate(groups):
        problems.check(group.group_id not in seen, f"groups[{i}].group_id", f"{group.group_id!r} is taken already")
        seen.add(group.group_id)


def _check_count(problems: Violations, field: str, count: int | None, limit: int) -> None:
    problems.check(count is None or 0 < count <= limit, field, f"must be between 1 and {limit}, not {count}")
