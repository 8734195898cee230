"""What a request of TopK or Explain may say, and which groups it has if it names none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from dst_grpc.domain.components import (
    AttentionTraceType,
    ComponentTypeForAttention,
    ComponentTypeForMlp,
    NodeType,
    PassType,
    PreOrPostAct,
)
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.entries import entries_are_nodes, is_of_token_pairs, node_at
from dst_grpc.domain.explain import (
    MAX_GROUPS,
    MAX_RUNS,
    ExplainRequest,
    ExplainRun,
    NodeAblation,
    TopKGroup,
    TopKRequest,
    default_groups,
)
from dst_grpc.domain.explanations import ExplainPart
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.errors import InvalidRequest
from tests import models, traces

PROMPT = Prompt(token_ids=(1, 2))
RUN = ExplainRun(prompt=PROMPT)
DERIVE = DeriveRequest(prompt=PROMPT)
NEURON = NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(1, 2), layer_index=0)
HEAD = NodeIndex(node_type=NodeType.ATTENTION_HEAD, tensor_indices=(1, None, 2), layer_index=0)


def fields(make: Callable[[], object]) -> list[str]:
    """The fields that making the value complains about."""
    with pytest.raises(InvalidRequest) as caught:
        make()
    return [violation.field for violation in caught.value.violations]


def group(*dsts: T, group_id: str = "g", **others: Any) -> TopKGroup:
    return TopKGroup(group_id=group_id, dsts=dsts, **others)


def top_k(*groups: TopKGroup, **others: Any) -> TopKRequest:
    return TopKRequest(**{"runs": (DERIVE,), "groups": groups or (group(T.MLP_POST_ACT),), **others})


def explain(**others: Any) -> ExplainRequest:
    return ExplainRequest(**{"runs": (RUN,), **others})


def test_a_group_needs_a_name_and_types() -> None:
    assert fields(lambda: group(group_id="")) == ["group_id", "dsts"]
    assert fields(lambda: group(T.MLP_POST_ACT, group_id="x" * 257)) == ["group_id"]
    assert fields(lambda: group(T.MLP_POST_ACT, group_id="\ud800")) == ["group_id"]


def test_a_group_has_one_type_per_type_of_node() -> None:
    assert fields(lambda: group(T.MLP_POST_ACT, T.ATTN_QK_PROBS, T.MLP_WRITE_NORM)) == ["dsts[2]"]
    assert fields(lambda: group(T.MLP_POST_ACT, T.MLP_POST_ACT)) == ["dsts[1]"]


@pytest.mark.parametrize("dst", [T.ATTN_WRITE, T.MLP_WRITE, T.ATTN_WRITE_SUM_HEADS, T.ONLINE_MLP_AUTOENCODER_WRITE])
def test_a_group_has_no_types_whose_entries_are_no_nodes(dst: T) -> None:
    assert fields(lambda: group(T.ALWAYS_ONE, dst)) == ["dsts[1]"]


@pytest.mark.parametrize("k", [0, -1, 2**32])
def test_a_count_is_at_least_one(k: int) -> None:
    assert fields(lambda: group(T.MLP_POST_ACT, k=k)) == ["k"]
    assert fields(lambda: top_k(k=k)) == ["k"]
    counts = ["k", "scored_token_count", "token_pair_count", "top_logit_count"]
    assert fields(lambda: explain(**dict.fromkeys(counts, k))) == counts


def test_groups_have_different_names() -> None:
    groups = (group(T.MLP_POST_ACT), group(T.ATTN_QK_PROBS, group_id="h"), group(T.ALWAYS_ONE))
    assert fields(lambda: top_k(*groups)) == ["groups[2].group_id"]
    assert fields(lambda: explain(groups=groups)) == ["groups[2].group_id"]


def test_a_request_has_runs_and_groups_within_bounds() -> None:
    assert fields(lambda: top_k(runs=(), groups=())) == ["runs", "groups"]
    assert fields(lambda: explain(runs=(RUN,) * (MAX_RUNS + 1))) == ["runs"]
    many = tuple(group(T.MLP_POST_ACT, group_id=str(i)) for i in range(MAX_GROUPS + 1))
    assert fields(lambda: explain(groups=many)) == ["groups"]
    assert fields(lambda: explain(request_id="x" * 257)) == ["request_id"]


def test_runs_of_top_k_derive_nothing_of_their_own() -> None:
    runs = (
        DERIVE,
        DeriveRequest(prompt=None),
        DeriveRequest(prompt=PROMPT, derived_scalars=(DerivedScalarSpec(dst=T.LOGITS),)),
        DeriveRequest(prompt=PROMPT, config=DstConfig(derive_gradients=True)),
    )
    assert fields(lambda: top_k(runs=runs)) == [
        "runs[1].prompt",
        "runs[2].derived_scalars",
        "runs[3].config.derive_gradients",
    ]
    assert fields(lambda: top_k(token_index=2**31)) == ["token_index"]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (NodeIndex(node_type=NodeType.LAYER, tensor_indices=(0, 0), layer_index=0), ["node_index.node_type"]),
        (NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(1, 2)), ["node_index.layer_index"]),
        (
            NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(None, 2), layer_index=0),
            ["node_index.tensor_indices"],
        ),
        (
            NodeIndex(node_type=NodeType.ATTENTION_HEAD, tensor_indices=(1, 2), layer_index=0),
            ["node_index.tensor_indices"],
        ),
        (
            NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(1, 2), layer_index=0, pass_type=PassType.BACKWARD),
            ["node_index.pass_type"],
        ),
        (traces.subnode(HEAD, L.ATTN_QUERY), ["node_index.q_k_or_v"]),
    ],
)
def test_an_ablated_node_is_one_node_with_a_layer(node: NodeIndex, expected: list[str]) -> None:
    assert fields(lambda: NodeAblation(node_index=node)) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e39])
def test_an_ablated_node_gets_a_number(value: float) -> None:
    assert fields(lambda: NodeAblation(node_index=HEAD, value=value)) == ["value"]


def test_a_run_is_traced_from_one_node() -> None:
    trace = TraceConfig(
        node_index=NodeIndex(node_type=NodeType.ATTENTION_HEAD, tensor_indices=(1, 0, 2)),
        pre_or_post_act=PreOrPostAct.PRE,
        detach_layer_norm_scale=True,
        attention_trace_type=AttentionTraceType.Q,
    )
    assert fields(lambda: ExplainRun(prompt=PROMPT, trace_config=trace)) == ["trace_config.node_index.layer_index"]


def test_names_and_parts_are_valid_and_different() -> None:
    assert fields(lambda: explain(model="a b", autoencoders=("x", "?"))) == ["model", "autoencoders[1]"]
    assert fields(lambda: explain(autoencoders=("x", "x"))) == ["autoencoders"]
    assert fields(lambda: explain(parts=(ExplainPart.TOP_LOGITS,) * 2)) == ["parts"]


@pytest.mark.parametrize("mlp", ComponentTypeForMlp)
@pytest.mark.parametrize("attention", ComponentTypeForAttention)
def test_the_default_groups_are_of_the_components_wanted(
    mlp: ComponentTypeForMlp, attention: ComponentTypeForAttention
) -> None:
    groups = default_groups(mlp, attention, k=3)
    assert [one.group_id for one in groups] == ["write_norm", "act_times_grad", "direction_write", "activation"]
    of_mlp = NodeType.MLP_NEURON if mlp is ComponentTypeForMlp.NEURON else NodeType.MLP_AUTOENCODER_LATENT
    heads = attention is ComponentTypeForAttention.ATTENTION_HEAD
    of_attention = NodeType.ATTENTION_HEAD if heads else NodeType.ATTENTION_AUTOENCODER_LATENT
    for one in groups:
        assert [FACTS[dst].node_type for dst in one.dsts] == [NodeType.LAYER, of_mlp, of_attention]
        assert one.k == 3


def test_without_an_origin_only_groups_remain_that_need_none() -> None:
    with_origin = ExplainRun(prompt=PROMPT, loss_fn_config=models.LOSS)
    assert [one.group_id for one in explain(runs=(with_origin, RUN)).effective_groups] == ["write_norm", "activation"]
    assert len(explain(runs=(with_origin,)).effective_groups) == 4
    mine = (group(T.MLP_POST_ACT),)
    assert explain(groups=mine).effective_groups == mine


def test_nodes_lie_where_their_types_say() -> None:
    choosable = [facts for facts in FACTS.values() if entries_are_nodes(facts)]
    assert len(choosable) > 80
    pairs = FACTS[T.ATTN_WRITE_NORM]
    assert pairs.is_flattened
    assert is_of_token_pairs(pairs)
    assert node_at(pairs, 1, (4, 2, 3)).tensor_indices == (4, 2, 3)
    assert node_at(FACTS[T.ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN], 1, (4, 3)).tensor_indices == (4, None, 3)
    assert node_at(FACTS[T.LOGITS], None, (4, 3)) == NodeIndex(node_type=NodeType.VOCAB_TOKEN, tensor_indices=(4, 3))
    assert not is_of_token_pairs(FACTS[T.ATTN_KEY])
