"""The reference's whole debugging requests as requests to Explain, and the comparison of the answers.

Node lists are compared as far as they are determined. Nodes strictly better than the k-th of their type must be there,
and in order; which of those tied with the k-th are taken, and where they stand, is not. Attention heads at keys later
than their query, all of them 0, are nodes there and none here: they can only be tied.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dst_grpc.domain.components import (
    AttentionTraceType,
    ComponentTypeForAttention,
    ComponentTypeForMlp,
    LossFnName,
    NodeType,
    PreOrPostAct,
)
from dst_grpc.domain.explain import ExplainRequest, ExplainRun, NodeAblation
from dst_grpc.domain.explanations import ExplainPart
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.trace import TraceConfig
from tests.parity.cases import GOLDEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dst_grpc.domain.explanations import Explanation, NodeTable, RunExplanation, TokenScore

EXPLAIN_CASES = sorted(path.name for path in (GOLDEN / "explain").iterdir())
ALL_PARTS = tuple(ExplainPart)
_SCORED = {
    "upvotedOutputTokens": ExplainPart.UPVOTED_OUTPUT_TOKENS,
    "inputTokensThatUpvoteMlp": ExplainPart.INPUT_TOKENS_THAT_UPVOTE_MLP,
}
"""The reference scores no tokens for queries and keys."""
_TABLES = (
    ("topKComponents", "node_table", None),
    ("componentSumsForTokenDisplay", "component_sums", 1),
    ("topOutputTokenLogits", "top_logits", 100),
)
"""The reference's name of a table, ours, and its k if it is not the request's."""


@dataclass(frozen=True)
class ExplainCase:
    """A request, and what the reference answered."""

    request: ExplainRequest
    answers: tuple[dict[str, Any], ...]


def load_explain_case(name: str, model: str) -> ExplainCase:
    """Read the case *name* as a request to *model*, whose autoencoder sets are named MODEL/KIND."""
    folder = GOLDEN / "explain" / name
    stored = json.loads((folder / "request.json").read_text())
    response = json.loads((folder / "response.json").read_text())
    first = stored["subRequests"][0]
    kinds = stored["autoencoders"]
    request = ExplainRequest(
        request_id=name,
        model=model,
        runs=tuple(map(_run, stored["subRequests"])),
        autoencoders=tuple(f"{model}/{kind}" for kind in kinds),
        component_type_for_mlp=ComponentTypeForMlp(first["componentTypeForMlp"]),
        component_type_for_attention=ComponentTypeForAttention(first["componentTypeForAttention"]),
        k=first["topAndBottomKForNodeTable"],
        parts=tuple(part for part in ALL_PARTS if part is not ExplainPart.TOKEN_PAIRS or "resid_delta_attn" in kinds),
    )
    return ExplainCase(request, tuple(response["inferenceSubResponses"]))


def _run(stored: dict[str, Any]) -> ExplainRun:
    trace = _trace(stored["upstreamNodeToTrace"], stored["downstreamNodeToTrace"])
    loss = LossFnConfig(
        name=LossFnName.LOGIT_DIFF,
        target_tokens=tuple(stored["targetTokens"]),
        distractor_tokens=tuple(stored["distractorTokens"]),
    )
    reads_loss = trace is None or (
        trace.attention_trace_type is AttentionTraceType.V and trace.downstream_trace_config is None
    )
    return ExplainRun(
        prompt=Prompt(text=stored["prompt"]),
        loss_fn_config=loss if reads_loss else None,
        trace_config=trace,
        node_ablations=tuple(
            NodeAblation(node_index=_node(ablated["nodeIndex"]), value=ablated["value"])
            for ablated in stored["nodeAblations"] or ()
        ),
    )


def _trace(upstream: dict[str, Any] | None, downstream: dict[str, Any] | None = None) -> TraceConfig | None:
    if upstream is None:
        return None
    through = upstream["attentionTraceType"]
    return TraceConfig(
        node_index=_node(upstream["nodeIndex"]),
        pre_or_post_act=PreOrPostAct.PRE,
        detach_layer_norm_scale=True,
        attention_trace_type=AttentionTraceType(through) if through else None,
        downstream_trace_config=_trace(downstream),
    )


def _node(stored: dict[str, Any], n_tokens: int = 0) -> NodeIndex:
    """A node; a token counted from the end, as the reference writes the last, is counted from the start."""
    first, *rest = stored["tensorIndices"]
    return NodeIndex(
        node_type=NodeType(stored["nodeType"]),
        tensor_indices=(first + n_tokens if first < 0 else first, *rest),
        layer_index=stored["layerIndex"],
    )


def compare_explanation(case: ExplainCase, found: Explanation) -> dict[str, list[str]]:
    """Everything that is not as the reference says it, in words, by the run and the part of the answer."""
    problems: dict[str, list[str]] = {}
    for i, (stored, run) in enumerate(zip(case.answers, found.runs, strict=True)):
        data = stored["processingResponseDataByName"]
        n_tokens = len(run.header.token_ids)

        def compared(name: str, checks: Iterator[str], i: int = i) -> None:
            problems[f"run {i}, {name}"] = list(checks)

        def earlier(name: str) -> list[dict[str, Any]]:
            return [answer["processingResponseDataByName"][name] for answer in case.answers]

        compared("header", _header(stored["inferenceResponse"]["inferenceAndTokenData"], run))
        for name, kind, k in _TABLES:
            tables = [getattr(one, kind) for one in found.runs]
            compared(name, _table(data[name], tables, k or case.request.k, i, earlier(name), n_tokens))
            if kind != "top_logits":
                compared(f"sums of {name}", _sums(data[name], run))
        for name, part in _SCORED.items():
            compared(name, _scored(data[name], run, part))
        compared("tokenPairAttribution", _pairs(data["tokenPairAttribution"], run))
    return problems


def _close(stored: float | None, ours: float | None, scale: float | None = None) -> bool:
    if stored is None or ours is None:
        return stored is ours
    return abs(stored - ours) <= 1e-6 + 1e-5 * (abs(stored) if scale is None else scale)


def _header(stored: dict[str, Any], run: RunExplanation) -> Iterator[str]:
    header = run.header
    if tuple(stored["tokensAsInts"]) != header.token_ids or tuple(stored["tokensAsStrings"]) != header.token_strings:
        yield "the prompt's tokens differ"
    if not _close(stored["loss"], header.loss):
        yield f"loss is {header.loss} instead of {stored['loss']}"
    if not _close(stored["activationValueForBackwardPass"], header.activation_value):
        yield f"traced value is {header.activation_value} instead of {stored['activationValueForBackwardPass']}"


# Tables


@dataclass(frozen=True)
class _Choice:
    """What one run's group chose of one type at one end: all that is better than the k-th, in order."""

    certain: dict[NodeIndex, float]
    """With their values."""
    tied: frozenset[NodeIndex]
    """Those that equal the k-th."""
    unordered: frozenset[NodeIndex]
    """Those that equal another one, the k-th or not."""
    kth: float
    largest: bool


_ByGroup = dict[str, dict[NodeType, tuple[_Choice, _Choice]]]


def _choices(stored: dict[str, Any], group: str, k: int, n_tokens: int) -> dict[NodeType, tuple[_Choice, _Choice]]:
    """By node type, what the group chose at the top and at the bottom, as far as the stored values determine it."""
    nodes = [_node(node, n_tokens) for node in stored["nodeIndices"]]
    by_type: dict[NodeType, list[tuple[float, NodeIndex]]] = {}
    for node, value in zip(nodes, stored["activationsByGroupId"][group], strict=True):
        by_type.setdefault(node.node_type, []).append((value, node))
    return {
        node_type: (_choice(pairs, k, largest=True), _choice(pairs, k, largest=False))
        for node_type, pairs in by_type.items()
    }


def _choice(pairs: list[tuple[float, NodeIndex]], k: int, *, largest: bool) -> _Choice:
    ranked = sorted(pairs, key=lambda pair: -pair[0] if largest else pair[0])
    kth = ranked[min(k, len(ranked)) - 1][0]
    certain = {node: value for value, node in ranked if abs(value - kth) > _slack(kth) and (value > kth) == largest}
    tied = frozenset(node for value, node in pairs if abs(value - kth) <= _slack(kth))
    equal = {
        node
        for one, other in pairwise(ranked)
        if abs(one[0] - other[0]) <= _slack(one[0])
        for node in (one[1], other[1])
    }
    return _Choice(certain, tied, tied | equal, kth, largest)


def _slack(value: float) -> float:
    return 1e-6 + 1e-5 * abs(value)


def _table(
    stored: dict[str, Any],
    tables: Sequence[NodeTable],
    k: int,
    run_index: int,
    all_stored: list[dict[str, Any]],
    n_tokens: int,
) -> Iterator[str]:
    table = tables[run_index]
    if set(stored["activationsByGroupId"]) != {group.group_id for group in table.groups}:
        yield "the groups differ"
        return
    choices: list[_ByGroup] = [
        {group.group_id: _choices(answer, group.group_id, k, n_tokens) for group in table.groups}
        for answer in all_stored
    ]
    fillers = [node for of_run, one in zip(choices, tables, strict=True) for node in _fillers(one, of_run)]
    everyones = [
        choice for of_run in choices for by_type in of_run.values() for ends in by_type.values() for choice in ends
    ]
    yield from _nodes(stored, table, everyones, frozenset(fillers), n_tokens)
    for group_id, by_type in choices[run_index].items():
        yield from _group(table, group_id, by_type)
    yield from _values(stored, table, n_tokens)


def _fillers(table: NodeTable, choices: _ByGroup) -> Iterator[NodeIndex]:
    """Nodes that took a place which equal ones, or heads at later keys, have in the reference: earlier than theirs."""
    for group in table.groups:
        for end, listed in enumerate((group.top, group.bottom)):
            for node in (table.nodes[i] for i in listed):
                ends = choices[group.group_id].get(node.node_type)
                if ends is None or node not in ends[end].certain:
                    yield node


def _nodes(
    stored: dict[str, Any], table: NodeTable, choices: list[_Choice], fillers: frozenset[NodeIndex], n_tokens: int
) -> Iterator[str]:
    """Whether the list holds what all runs must choose, in the reference's order where that is determined."""
    stored_nodes = [_node(node, n_tokens) for node in stored["nodeIndices"]]
    place = {node: i for i, node in enumerate(table.nodes)}
    tied = frozenset().union(*(choice.tied for choice in choices))
    unordered = fillers.union(*(choice.unordered for choice in choices))
    certain = {node for choice in choices for node in choice.certain}
    missing = [node for node in stored_nodes if node not in place and (node in certain or node not in tied)]
    if missing:
        yield f"{len(missing)} nodes are missing, such as {missing[0]}"
    both = [node for node in stored_nodes if node in certain - unordered and node in place]
    if any(place[a] > place[b] for a, b in pairwise(both)):
        yield "the nodes stand in another order"


def _values(stored: dict[str, Any], table: NodeTable, n_tokens: int) -> Iterator[str]:
    """Whether values and texts of nodes that are in both lists are equal."""
    stored_nodes = [_node(node, n_tokens) for node in stored["nodeIndices"]]
    place = {node: i for i, node in enumerate(table.nodes)}
    for group in table.groups:
        values = stored["activationsByGroupId"][group.group_id]
        # Logits are sums of hundreds of products, some of which cancel: rounding is relative to their size.
        rounding = 1e-6 * max(map(abs, values))
        for node, value in zip(stored_nodes, values, strict=True):
            if node in place and abs(value - group.values[place[node]]) > 1e-6 + 1e-5 * abs(value) + rounding:
                yield f"{group.group_id} of {node} is {group.values[place[node]]} instead of {value}"
    texts = stored["vocabTokenStringsForIndices"]
    if texts is not None:
        ours = dict(zip(table.nodes, table.vocab_tokens, strict=True))
        if any(text != ours.get(node, text) for node, text in zip(stored_nodes, texts, strict=True)):
            yield "the texts of tokens differ"


def _group(table: NodeTable, group_id: str, choices: dict[NodeType, tuple[_Choice, _Choice]]) -> Iterator[str]:
    """Whether the group's own lists hold what they must, in order, and nothing that is better than they may be."""
    group = table.group(group_id)
    for node_type, ends in choices.items():
        for choice, listed in zip(ends, (group.top, group.bottom), strict=True):
            values = {table.nodes[i]: float(group.values[i]) for i in listed if table.nodes[i].node_type is node_type}
            if not choice.certain.keys() <= values.keys():
                yield f"{group_id} lacks nodes of {node_type} that are better than the k-th"
            in_our_order = [choice.certain[node] for node in values if node in choice.certain]
            if any(b - a > _slack(a) for a, b in pairwise(in_our_order)):
                yield f"{group_id} orders nodes of {node_type} differently"
            sign = 1 if choice.largest else -1
            for node, value in values.items():
                if node not in choice.certain and sign * (value - choice.kth) > _slack(choice.kth):
                    yield f"{group_id} has {node}, better than the k-th, which the reference has not"
    for listed in (group.top, group.bottom):
        if any(a < b for a, b in pairwise(group.values[list(listed)])):
            yield f"{group_id} does not descend"


def _sums(stored: dict[str, Any], run: RunExplanation) -> Iterator[str]:
    for by_dst in stored["intermediateSumActivationsByDstByGroupId"].values():
        for name, tensor in by_dst.items():
            expected = np.array(tensor["value"], np.float64)
            ours = run.sum_of(DerivedScalarType(name))
            if ours.shape != expected.shape:
                yield f"the sum of {name} has shape {ours.shape} instead of {expected.shape}"
            elif not (np.abs(ours - expected) <= 1e-6 + 1e-5 * np.abs(expected).max()).all():
                yield f"the sum of {name} is off by {np.abs(ours - expected).max():.2g}"


# Tokens


def _scored(stored: dict[str, Any], run: RunExplanation, part: ExplainPart) -> Iterator[str]:
    scored = run.tokens_of(part)
    assert scored is not None
    assert run.node_table is not None
    ours = {run.node_table.nodes[tokens.node]: tokens for tokens in scored.nodes}
    listed = set(run.node_table.nodes)
    for stored_node, tokens in zip(stored["nodeIndices"], stored["topTokensList"], strict=True):
        node = _node(stored_node)
        if node not in listed:
            continue
        if (tokens is None) != (node not in ours):
            yield f"{node} is scored in one answer and not in the other"
        elif tokens is not None:
            for end, found in (("top", ours[node].top), ("bottom", ours[node].bottom)):
                yield from (f"{node}, {end}: {problem}" for problem in _token_list(tokens[end], found))


def _token_list(stored: list[dict[str, Any]], found: Sequence[TokenScore]) -> Iterator[str]:
    if len(stored) != len(found):
        yield f"{len(found)} tokens instead of {len(stored)}"
        return
    scale = max(abs(entry["scalar"]) for entry in stored)
    scores = [entry["scalar"] for entry in stored]
    for i, (entry, ours) in enumerate(zip(stored, found, strict=True)):
        if not _close(entry["scalar"], ours.score, scale):
            yield f"score {ours.score} instead of {entry['scalar']}"
        if not _close(entry["normalizedScalar"], ours.normalized_score, 1.0):
            yield f"normalised score {ours.normalized_score} instead of {entry['normalizedScalar']}"
        # Equal scores may swap, and the last may be tied with one that is not listed.
        is_alone = all(not _close(other, scores[i], scale) for j, other in enumerate(scores) if j != i)
        if is_alone and i < len(scores) - 1 and entry["token"] != ours.token:
            yield f"token {ours.token!r} instead of {entry['token']!r}"


def _pairs(stored: dict[str, Any], run: RunExplanation) -> Iterator[str]:
    assert run.node_table is not None
    pairs = run.token_pairs.nodes if run.token_pairs is not None else ()
    ours = {run.node_table.nodes[pair.node]: pair.attended_tokens for pair in pairs}
    listed = set(run.node_table.nodes)
    for stored_node, entry in zip(stored["nodeIndices"], stored["topTokensAttendedToList"], strict=True):
        node = _node(stored_node)
        if node not in listed:
            continue
        if (entry is None) != (node not in ours):
            yield f"{node} has token pairs in one answer and not in the other"
        elif entry is not None:
            token = stored_node["tensorIndices"][0]
            expected = [
                (u, value)
                for u, value in zip(entry["tokenIndices"], entry["attributions"], strict=True)
                if u <= token  # later tokens fill up with 0 there
            ]
            found = ours[node][: len(expected)]
            if [u for u, _ in expected] != [u for u, _ in found]:
                yield f"{node} attends to {found} instead of {expected}"
            elif not all(_close(x, y) for (_, x), (_, y) in zip(expected, found, strict=True)):
                yield f"{node} has attributions {found} instead of {expected}"
