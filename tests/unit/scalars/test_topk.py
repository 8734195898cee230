"""Nodes, sums and values of derived scalars, beside sorting, summing and reading the whole tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.domain.components import NodeType
from dst_grpc.domain.entries import is_of_token_pairs
from dst_grpc.domain.explain import NodeScope, TopKGroup, TopKRequest, TopKSelection
from dst_grpc.domain.explanations import GroupValues, NodeTable
from dst_grpc.domain.indices import ActivationIndex, NodeIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.scalars import FACTS
from dst_grpc.errors import InvalidRequest, OutOfRange
from dst_grpc.scalars.topk import sum_to_send
from tests import explaining, models

WORLD = models.world(T.MLP_POST_ACT, T.RESID_DELTA_ATTN, config=models.ARCHITECTURES["layer norms"])
"""One whose windows hide keys."""
SETS = tuple(WORLD.sets)
TYPES = [
    T.MLP_POST_ACT,
    T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD,
    T.UNFLATTENED_ATTN_ACT_TIMES_GRAD,
    T.ATTN_QK_LOGITS,
    T.ATTN_WRITE_NORM,
    T.ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN,
    T.ATTN_KEY,
    T.RESID_POST_MLP,
    T.RESID_POST_EMBEDDING_NORM,
    T.ONLINE_MLP_AUTOENCODER_LATENT,
    T.ONLINE_ATTENTION_AUTOENCODER_ACT_TIMES_GRAD,
    T.LOGITS,
]


def entries(dst: T, tokens: tuple[int, ...] = models.TOKENS) -> dict[NodeIndex, float]:
    """Every node of a type with its value, read off the tensors one by one; what is hidden has no score."""
    found = {}
    facts = FACTS[dst]
    tensors = WORLD.one(dst, tokens=tokens, loss_fn_config=models.LOSS, autoencoders=SETS)
    for layer, tensor in tensors.items():
        values = tensor
        if facts.is_flattened:
            t, u = torch.tril_indices(len(tokens), len(tokens))
            values = torch.full((len(tokens), len(tokens), tensor.shape[-1]), math.nan, dtype=tensor.dtype)
            values[t, u] = tensor
        for place in np.ndindex(*values.shape):
            if (is_of_token_pairs(facts) and place[1] > place[0]) or values[place].isneginf():
                continue
            indices: tuple[int | None, ...] = place
            if facts.node_type is NodeType.ATTENTION_HEAD and len(place) == 2:
                indices = (place[0], None, place[1])
            node = NodeIndex(node_type=facts.node_type, tensor_indices=indices, layer_index=layer)
            found[node] = values[place].item()
    return found


def ask(*groups: TopKGroup, runs: tuple[Any, ...] | None = None, **fields: Any) -> TopKRequest:
    plain = (models.request(loss_fn_config=models.LOSS, autoencoders=SETS),)
    return TopKRequest(runs=plain if runs is None else runs, groups=groups, **fields)


def table(request: TopKRequest, run: int = 0) -> NodeTable:
    found = explaining.explain(WORLD, request).runs[run].node_table
    assert found is not None
    return found


def listed(found: NodeTable, group: GroupValues, *, top: bool) -> list[tuple[NodeIndex, float]]:
    return [(found.nodes[i], float(group.values[i])) for i in (group.top if top else group.bottom)]


@pytest.mark.parametrize("dst", TYPES)
@pytest.mark.parametrize("k", [4, 10**6])
def test_nodes_sums_and_totals_are_those_of_the_whole_tensors(dst: T, k: int) -> None:
    all_entries = entries(dst)
    k = k if k < 10 else len(all_entries)
    answer = explaining.explain(WORLD, ask(TopKGroup(group_id="g", dsts=(dst,)), k=k, with_sums=True)).runs[0]
    assert answer.node_table is not None
    (group,) = answer.node_table.groups
    expected = sorted(all_entries.values(), reverse=True)
    for top, best in ((True, expected[:k]), (False, expected[-k:])):
        chosen = listed(answer.node_table, group, top=top)
        assert [value for _, value in chosen] == pytest.approx(best, rel=1e-5, abs=1e-7)
        assert len({node for node, _ in chosen}) == len(chosen)
        for node, value in chosen:
            assert value == pytest.approx(all_entries[node], rel=1e-6, abs=1e-9)
    assert group.completeness is not None
    assert group.completeness.total == pytest.approx(sum(all_entries.values()), rel=1e-6, abs=1e-6)
    assert group.completeness.listed == pytest.approx(
        sum(all_entries[node] for node in answer.node_table.nodes), rel=1e-5, abs=1e-5
    )
    sums = answer.sum_of(dst)
    at_token = [0.0] * len(models.TOKENS)
    for node, value in all_entries.items():
        at_token[node.tensor_indices[0] or 0] += value
    per_token = sums.sum(axis=1) if sums.ndim == 2 else sums
    assert (sums.ndim == 2) == is_of_token_pairs(FACTS[dst])
    assert per_token.tolist() == pytest.approx(at_token, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("dst", [T.MLP_POST_ACT, T.ATTN_QK_PROBS, T.ATTN_WRITE_NORM, T.LOGITS, T.RESID_POST_MLP])
@pytest.mark.parametrize("token", [4, -6])
def test_nodes_may_be_chosen_at_one_token(dst: T, token: int) -> None:
    at = token % len(models.TOKENS)
    all_entries = entries(dst)
    here = sorted((value for node, value in all_entries.items() if node.tensor_indices[0] == at), reverse=True)
    found = table(ask(TopKGroup(group_id="g", dsts=(dst,), k=3), token_index=token))
    (group,) = found.groups
    assert [value for _, value in listed(found, group, top=True)] == pytest.approx(here[:3], rel=1e-5)
    assert [value for _, value in listed(found, group, top=False)] == pytest.approx(here[-3:], rel=1e-5)
    assert {node.tensor_indices[0] for node in found.nodes} == {at}


def test_every_group_has_a_value_for_every_node_it_has_a_type_for() -> None:
    found = table(
        ask(
            TopKGroup(group_id="both", dsts=(T.MLP_POST_ACT, T.ATTN_QK_PROBS)),
            TopKGroup(group_id="neurons", dsts=(T.MLP_WRITE_NORM,), selection=TopKSelection.TOP),
            TopKGroup(group_id="rows", dsts=(T.ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN,), selection=TopKSelection.BOTTOM),
            k=3,
        )
    )
    values = {group.group_id: group.values for group in found.groups}
    of_type = {dst: entries(dst) for dst in (T.MLP_POST_ACT, T.ATTN_QK_PROBS, T.MLP_WRITE_NORM)}
    for i, node in enumerate(found.nodes):
        is_row = None in node.tensor_indices
        is_neuron = node.node_type is NodeType.MLP_NEURON
        assert math.isnan(values["rows"][i]) != is_row
        assert math.isnan(values["both"][i]) == is_row
        assert math.isnan(values["neurons"][i]) != is_neuron
        if is_neuron:
            assert values["both"][i] == pytest.approx(of_type[T.MLP_POST_ACT][node], rel=1e-6)
            assert values["neurons"][i] == pytest.approx(of_type[T.MLP_WRITE_NORM][node], rel=1e-6)
    assert not found.group("neurons").bottom
    assert not found.group("rows").top
    assert len(found.group("rows").bottom) == 3
    with pytest.raises(KeyError, match="both, neurons, rows"):
        found.group("nobody")


def test_groups_follow_one_another_and_list_each_node_once() -> None:
    found = table(
        ask(
            TopKGroup(group_id="a", dsts=(T.MLP_POST_ACT, T.ATTN_QK_PROBS), k=3),
            TopKGroup(group_id="b", dsts=(T.MLP_WRITE_NORM,), k=3),
        )
    )
    assert len(set(found.nodes)) == len(found.nodes)
    seen: dict[int, None] = {}
    for group in found.groups:
        seen |= dict.fromkeys((*group.top, *group.bottom))
    assert list(seen) == list(range(len(found.nodes)))


def test_prompts_of_one_length_share_a_list_and_others_do_not() -> None:
    first, second = (3, 1, 4, 1, 5, 9), (2, 7, 1, 8, 2, 8)
    group = TopKGroup(group_id="g", dsts=(T.MLP_POST_ACT,), k=2)

    def runs(*prompts: tuple[int, ...]) -> tuple[Any, ...]:
        return tuple(models.request(tokens=tokens) for tokens in prompts)

    one, other = (explaining.explain(WORLD, ask(group, runs=runs(first, second))).runs[i].node_table for i in (0, 1))
    assert one is not None
    assert other is not None
    assert one.nodes == other.nodes
    assert 4 < len(one.nodes) <= 8
    for found, tokens in ((one, first), (other, second)):
        expected = entries(T.MLP_POST_ACT, tokens)
        assert found.groups[0].values.tolist() == pytest.approx([expected[node] for node in found.nodes], rel=1e-5)
    apart = ask(group, runs=runs(first, second), node_scope=NodeScope.PROMPT)
    assert [len(table(apart, i).nodes) for i in (0, 1)] == [4, 4]
    unequal = ask(group, runs=runs(first, second[:4]))
    for i, prompt in enumerate([first, second[:4]]):
        expected = entries(T.MLP_POST_ACT, prompt)
        found = table(unequal, i)
        assert found.groups[0].values.tolist() == pytest.approx([expected[node] for node in found.nodes], rel=1e-5)
    with pytest.raises(InvalidRequest) as caught:
        explaining.plan(WORLD, ask(group, runs=runs(first, second[:4]), node_scope=NodeScope.BATCH))
    assert [violation.field for violation in caught.value.violations] == ["node_scope"]


def test_what_is_not_finite_has_no_order() -> None:
    index = ActivationIndex(activation_location_type=L.MLP_POST_ACT, tensor_indices=(1, 2), layer_index=0)
    poisoned = models.request(ablation_specs=(AblationSpec(index=index, value=1e38),))
    world = models.world(dtype=torch.float32)
    with pytest.raises(OutOfRange, match="not finite"):
        explaining.explain(world, ask(TopKGroup(group_id="g", dsts=(T.LOGITS,)), runs=(poisoned,)))


@pytest.mark.parametrize("n_tokens", [1000, 1001])
def test_a_long_prompt_has_its_pairs_summed_by_token(n_tokens: int) -> None:
    pairs = torch.ones(n_tokens, n_tokens).tril()
    expected = pairs if n_tokens == 1000 else pairs.sum(dim=1)
    assert torch.equal(sum_to_send(pairs), expected)
    assert torch.equal(sum_to_send(expected[0]), expected[0])
