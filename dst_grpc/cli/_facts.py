"""The content of an explanation's pictures, as plain values: the same for terminal and page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dst_grpc.cli._nodes import ablation_text, node_text, trace_text
from dst_grpc.client import (
    AblationSpec,
    AttentionTraceType,
    ExplainPart,
    ExplainRequest,
    ExplainRun,
    Intervention,
    LossFnConfig,
    LossFnName,
    NodeAblation,
    NodeIndex,
    NodeType,
    PreOrPostAct,
    ResidualShares,
    RunExplanation,
    ScoredTokens,
    TokenScore,
    TopKGroup,
)
from dst_grpc.domain.entries import is_of_token_pairs
from dst_grpc.domain.groups import RESIDUAL_GROUPS
from dst_grpc.domain.interventions import UNCHANGED
from dst_grpc.domain.scalars import FACTS

TITLES = {
    "direction_write": ("Direct effects", "what each part itself writes towards the answer"),
    "act_times_grad": ("Total effects", "by whatever way, to first order: activation times gradient"),
    "write_norm": ("Writes", "how long the vector is that each part writes"),
    "activation": ("Activations", "neurons, latents and attention, whatever they lead to"),
    "residual_direction_write": (
        "Direct effects of the residual",
        "the residual stream in other terms: what its latents and errors write towards the answer",
    ),
    "residual_act_times_grad": (
        "Total effects of the residual",
        "the residual stream in other terms: its latents and errors, by whatever way, to first order",
    ),
    "residual_write_norm": ("Writes of the residual", "how long the vector is that each latent or error is of it"),
    "residual_activation": ("Latents of the residual", "activations, whatever they lead to"),
}
"""Title and description of each default group."""
_ACTIVATIONS = {PreOrPostAct.PRE: "the pre-activation", PreOrPostAct.POST: "the activation"}
EFFECTS = frozenset({"direction_write", "act_times_grad", "residual_direction_write", "residual_act_times_grad"})
"""Groups whose values are effects on the answer, so that both signs matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """A node of a table, with all that the answer says about it."""

    index: NodeIndex
    """Which node."""
    value: float
    """Its value in the group that the row was made for."""
    promotes: tuple[TokenScore, ...] = ()
    """Output tokens that its write raises most, descending."""
    demotes: tuple[TokenScore, ...] = ()
    """Output tokens that its write lowers most, the lowest first."""
    excited_by: tuple[TokenScore, ...] = ()
    """Input tokens that would raise a neuron or latent most; for a head, as the token at its key."""
    asked_by: tuple[TokenScore, ...] = ()
    """Of a head: input tokens that would raise its score most as the token at its query."""
    comes_from: tuple[tuple[int, float], ...] = ()
    """Of a latent of attention: positions that contribute to its activation, and how much."""

    @property
    def text(self) -> str:
        """The node as written on the command line."""
        return node_text(self.index)

    @property
    def positions(self) -> tuple[int, ...]:
        """The position of its token; for a head at a pair of tokens, also that of the token it reads."""
        return tuple(at for at in self.index.tensor_indices[:-1] if at is not None)

    @property
    def is_head(self) -> bool:
        """Whether it is an attention head."""
        return self.index.node_type is NodeType.ATTENTION_HEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A value before and after an ablation."""

    row: NodeRow
    """The node, as it was before."""
    after: float
    """The value afterwards."""

    @property
    def difference(self) -> float:
        """The change of its value."""
        return self.after - self.row.value


def question_of(run: ExplainRun) -> str:
    """The origin of the run, in words: "' Mary' over ' John'"."""
    trace = run.trace_config
    if trace is None:
        return "" if run.loss_fn_config is None else _loss_text(run.loss_fn_config)
    if trace.attention_trace_type is not AttentionTraceType.V:
        named = "the score" if trace.attention_trace_type is not None else _ACTIVATIONS[trace.pre_or_post_act]
        return f"{named} of {node_text(trace.node_index)}"
    carrier = f"what {node_text(trace.node_index)} carries"
    goal = trace.downstream_trace_config
    if goal is not None:
        return f"{carrier} to {trace_text(goal)}"
    return f"{carrier} to {_loss_text(run.loss_fn_config)}" if run.loss_fn_config else carrier


def _loss_text(loss: LossFnConfig) -> str:
    target = _listed(loss.target_tokens, loss.target_token_ids)
    distractor = _listed(loss.distractor_tokens, loss.distractor_token_ids)
    over = f" over {distractor}" if distractor else ""
    return {
        LossFnName.ZERO: "nothing",
        LossFnName.PROBS: f"the probability of {target}{over}",
        LossFnName.LOG_PROB: f"the log-probability of {target}{over}",
        LossFnName.SEQUENCE_LOG_PROB: f"the log-probability of {target}, one after the other",
        LossFnName.LOGIT_MINUS_MEAN: f"{target} over the mean of all tokens",
        LossFnName.ENTROPY: "the entropy of the next token",
        LossFnName.KL_DIVERGENCE: f"the divergence from the run {loss.reference_run or UNCHANGED}",
        LossFnName.CROSS_ENTROPY: "the cross entropy of the prompt",
        LossFnName.TAP: "entries of a tap" if loss.tap is None else f"{loss.tap.at.activation_location_type} summed",
    }.get(loss.name, f"{target}{over}")


def path_of(run: ExplainRun) -> tuple[str, ...]:
    """The steps of the run's trace, from the output back; none without a trace."""
    steps = []
    trace = run.trace_config
    while trace is not None:
        steps.append(trace_text(trace))
        trace = trace.downstream_trace_config
    return tuple(reversed(steps))


def ablations_of(run: ExplainRun) -> tuple[str, ...]:
    """The ablations of the run, in words."""
    changes: tuple[NodeAblation | AblationSpec | Intervention, ...]
    changes = (*run.ablation_specs, *run.node_ablations, *run.interventions)
    return tuple(map(ablation_text, changes))


def groups_of(request: ExplainRequest) -> tuple[TopKGroup, ...]:
    """The groups of the request, in the order of TITLES, then others."""
    rank = list(TITLES)
    return tuple(
        sorted(request.effective_groups, key=lambda g: rank.index(g.group_id) if g.group_id in rank else len(rank))
    )


def target_of(run: RunExplanation) -> float | None:
    """The explained value: the traced activation, or the loss."""
    header = run.header
    return header.loss if header.activation_value is None else header.activation_value


def group_title(run: RunExplanation, group_id: str) -> tuple[str, str]:
    """The title of a group, which says of effects how they are to be read, and what the group is."""
    named, about = TITLES.get(group_id, (group_id, ""))
    is_of_loss = group_id in EFFECTS and run.header.convention
    return (f"{named} ({run.header.convention})" if is_of_loss else named), about


def says_again(group: TopKGroup) -> bool:
    """Whether a group is one of the residual stream, which other nodes write: its layers do not add up."""
    return group.group_id in RESIDUAL_GROUPS


def token_sums(run: RunExplanation, group: TopKGroup) -> np.ndarray:
    """Sums of a group's values by token [T]; a head at a pair of tokens counts for the token that it reads."""
    total = np.zeros(len(run.header.token_strings))
    for dst in group.dsts:
        values = run.sum_of(dst).astype(np.float64)
        total += values.sum(axis=0) if values.ndim == 2 else values
    return total


def reads_are_summed(run: RunExplanation, group: TopKGroup) -> bool:
    """Whether the sums of a group say which token is read; those of a long prompt say only where heads are."""
    return all(run.sum_of(dst).ndim == 2 for dst in group.dsts if is_of_token_pairs(FACTS[dst]))


def rows_of(run: RunExplanation, group_id: str) -> list[NodeRow]:
    """Every node of the run's table that has a value in the group, the largest value first."""
    table = run.node_table
    if table is None:
        return []
    promoted = _by_node(run.tokens_of(ExplainPart.UPVOTED_OUTPUT_TOKENS))
    exciting = _by_node(run.tokens_of(ExplainPart.INPUT_TOKENS_THAT_UPVOTE_MLP))
    asking = _by_node(run.tokens_of(ExplainPart.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q))
    read = _by_node(run.tokens_of(ExplainPart.INPUT_TOKENS_THAT_UPVOTE_ATTN_K))
    pairs = {} if run.token_pairs is None else {found.node: found.attended_tokens for found in run.token_pairs.nodes}
    nothing: tuple[tuple[TokenScore, ...], tuple[TokenScore, ...]] = ((), ())
    rows = [
        NodeRow(
            index=node,
            value=float(value),
            promotes=promoted.get(i, nothing)[0],
            demotes=promoted.get(i, nothing)[1],
            excited_by=(read if node.node_type is NodeType.ATTENTION_HEAD else exciting).get(i, nothing)[0],
            asked_by=asking.get(i, nothing)[0],
            comes_from=pairs.get(i, ()),
        )
        for i, (node, value) in enumerate(zip(table.nodes, table.group(group_id).values, strict=True))
        if not np.isnan(value)
    ]
    return sorted(rows, key=lambda row: -row.value)


def foremost(rows: Iterable[NodeRow], count: int, group_id: str) -> list[NodeRow]:
    """The most important rows: for effects the largest by size, else by value."""
    return sorted(rows, key=lambda row: -abs(row.value) if group_id in EFFECTS else -row.value)[:count]


def decimals_for(values: Iterable[float]) -> int:
    """Decimals to print values with: three significant digits of the largest, and at least two decimals."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 2 if largest == 0 else max(2, 2 - math.floor(math.log10(largest)))


def number_text(value: float, decimals: int = 2, *, signed: bool = True) -> str:
    """A value with *decimals* decimals, and its sign; zero is never negative."""
    return f"{value:{'+' if signed else ''}z.{decimals}f}"


def add_up(asked: ExplainRun, run: RunExplanation) -> bool:
    """Whether direct effects are shares of the explained value: it is linear in what the nodes write, but for biases.

    A probability, a score by way of query and key together, and what comes after a nonlinearity or a norm that is not
    frozen are not.
    """
    trace, loss = asked.trace_config, asked.loss_fn_config
    if trace is not None:
        is_linear = trace.attention_trace_type is not AttentionTraceType.QK
        if trace.attention_trace_type is None:
            is_linear = trace.pre_or_post_act is PreOrPostAct.PRE
        return is_linear and trace.detach_layer_norm_scale
    is_linear = loss is not None and loss.name in {LossFnName.LOGIT_DIFF, LossFnName.LOGIT_MINUS_MEAN}
    return is_linear and run.header.detach_final_layer_norm_scale


def completeness_of(asked: ExplainRun, run: RunExplanation, group_id: str) -> list[str]:
    """How much of the answer the listed nodes account for, and what does for the rest, a line each."""
    rows = rows_of(run, group_id)
    found = None if run.node_table is None or not rows else run.node_table.group(group_id).completeness
    if found is None:
        return []
    decimals = decimals_for((found.listed, found.total, found.target or 0.0))

    def say(value: float) -> str:
        return number_text(value, decimals, signed=group_id in EFFECTS)

    nodes = f"The {len(rows)} listed nodes"
    if found.residuals:
        return [f"{nodes} are parts of the residual at their layer: all that was written before. Layers do not add up."]
    if group_id != "direction_write" or found.target is None or found.unaccounted is None:
        return [f"{nodes} sum to {say(found.listed)}, all nodes to {say(found.total)}."]
    text = f"{nodes} account for {say(found.listed)} of {say(found.target)}, all nodes for {say(found.total)}"
    rest = f"the rest, {say(found.unaccounted)}, belongs to no node."
    if not add_up(asked, run):
        text = f"{nodes} account for {say(found.listed)}, all nodes for {say(found.total)}"
        rest = f"to first order only: it need not add up to {say(found.target)}."
    elif say(found.total) == say(found.target) and found.reconstruction_error is None:
        return [f"{nodes} account for {say(found.listed)} of {say(found.target)}."]
    if found.reconstruction_error is None:
        return [f"{text}; {rest}"]
    lines = [f"{text}."]
    lines.append(f"Reconstruction errors of the autoencoders account for {say(found.reconstruction_error)}.")
    if found.skip_connections is not None:
        lines.append(f"Skip connections account for {say(found.skip_connections)}.")
    if found.uncovered_layers:
        lines.append(f"Layers without an autoencoder account for {say(found.uncovered_layers)}.")
    return [*lines, f"{rest[0].upper()}{rest[1:]}"]


def residuals_of(run: RunExplanation, group_id: str) -> tuple[ResidualShares, ...]:
    """The residual at each layer of an autoencoder of it, in parts; none of a group of something else."""
    found = None if run.node_table is None else run.node_table.group(group_id).completeness
    return () if found is None else found.residuals


def changes_of(before: RunExplanation, after: RunExplanation, group_id: str, count: int) -> list[Change]:
    """The nodes whose values differ most between two runs that have the same nodes."""
    values = {row.index: row.value for row in rows_of(after, group_id)}
    changes = [Change(row=row, after=values[row.index]) for row in rows_of(before, group_id) if row.index in values]
    return sorted(changes, key=lambda change: -abs(change.difference))[:count]


def _listed(texts: Sequence[str], ids: Sequence[int]) -> str:
    return ", ".join([*map(repr, texts), *(f"token {token}" for token in ids)])


def _by_node(scored: ScoredTokens | None) -> dict[int, tuple[tuple[TokenScore, ...], tuple[TokenScore, ...]]]:
    return {} if scored is None else {tokens.node: (tokens.top, tokens.bottom) for tokens in scored.nodes}
