"""Planning what TopK and Explain ask: the runs, the rules over all of them, and paths in the terms of the request."""

from __future__ import annotations

from typing import Any

import pytest

from dst_grpc.contexts.registry import Registry
from dst_grpc.domain.components import ComponentTypeForAttention, ComponentTypeForMlp, LossFnName, NodeType
from dst_grpc.domain.explain import ExplainRequest, ExplainRun, NodeAblation, NodeScope, TopKGroup, TopKRequest
from dst_grpc.domain.explanations import ExplainPart as P
from dst_grpc.domain.indices import ActivationIndex, NodeIndex
from dst_grpc.domain.interventions import AblationSpec, SetValue
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import InvalidRequest, NotFound, PreconditionFailed, Reason
from dst_grpc.pipeline.explain_planner import plan_top_k
from dst_grpc.pipeline.explanation_answer import ExplanationAnswer
from dst_grpc.pipeline.run import run as run_plans
from tests import explaining, models, traces
from tests.unit.pipeline.planning import ATTN, MLP, WORLD

LATENTS = {
    "component_type_for_mlp": ComponentTypeForMlp.AUTOENCODER_LATENT,
    "component_type_for_attention": ComponentTypeForAttention.AUTOENCODER_LATENT,
}


def refusal(request: ExplainRequest | TopKRequest) -> dict[str, str]:
    """What is said of each field of a request that can never succeed."""
    with pytest.raises(InvalidRequest) as caught:
        explaining.plan(WORLD, request)
    return {violation.field: violation.description for violation in caught.value.violations}


def lack(request: ExplainRequest | TopKRequest) -> tuple[Reason, set[str]]:
    """The reason, and the fields that the request lacks."""
    with pytest.raises(PreconditionFailed) as caught:
        explaining.plan(WORLD, request)
    return caught.value.reason, {violation.field for violation in caught.value.violations}


def top_k(*dsts: T, **fields: Any) -> TopKRequest:
    runs = fields.pop("runs", (models.request(),))
    return TopKRequest(runs=runs, groups=(TopKGroup(group_id="g", dsts=dsts),), **fields)


def ablated(node: NodeIndex, value: float = 0.0) -> NodeAblation:
    return NodeAblation(node_index=node, value=value)


def run(*tokens: int, **fields: Any) -> ExplainRun:
    return ExplainRun(prompt=Prompt(token_ids=tokens or models.TOKENS), **fields)


def test_a_node_that_is_switched_off_is_a_forward_ablation_of_its_tap() -> None:
    nodes = (
        traces.node(NodeType.ATTENTION_HEAD, 1, 4, 2, 3),
        traces.node(NodeType.MLP_NEURON, 0, 3, 7),
        traces.node(NodeType.MLP_AUTOENCODER_LATENT, 2, 1, 5),
        traces.node(NodeType.ATTENTION_AUTOENCODER_LATENT, 1, 0, 6),
    )
    other = AblationSpec(
        index=ActivationIndex(activation_location_type=L.RESID_POST_ATTN, tensor_indices=(1, None), layer_index=0),
        value=2.0,
    )
    request = explaining.request(
        node_ablations=tuple(ablated(node, 0.5) for node in nodes), ablation_specs=(other,), autoencoders=(MLP, ATTN)
    )
    (plan,) = explaining.plan(WORLD, request).plans
    given = [(one.at, one.action) for one in plan.run.interventions]
    found = [(at.activation_location_type, at.layer_index, at.axes, action) for at, action in given]
    half = SetValue(scalar=0.5)
    assert found == [
        (L.RESID_POST_ATTN, 0, (1, None), SetValue(scalar=2.0)),
        (L.ATTN_QK_PROBS, 1, (4, None, 3), half),
        (L.MLP_POST_ACT, 0, (3, 7), half),
        (L.ONLINE_MLP_AUTOENCODER_LATENT, 2, (1, 5), half),
        (L.ONLINE_ATTENTION_AUTOENCODER_LATENT, 1, (0, 6), half),
    ]


def test_the_final_norm_is_frozen_unless_it_is_attached() -> None:
    (plan,) = explaining.plan(WORLD, explaining.request(detach_final_layer_norm_scale=False)).plans
    assert [one.interventions for one in plan.run.passes] == [()]


def test_a_generic_latent_is_that_of_the_only_autoencoder() -> None:
    node = traces.node(NodeType.AUTOENCODER_LATENT, 1, 2, 3)
    request = explaining.request(node_ablations=(ablated(node),), autoencoders=(ATTN,))
    (plan,) = explaining.plan(WORLD, request).plans
    assert plan.run.interventions[0].at.activation_location_type is L.ONLINE_ATTENTION_AUTOENCODER_LATENT
    two = explaining.request(node_ablations=(ablated(node),), autoencoders=(MLP, ATTN))
    assert list(refusal(two)) == ["runs[0].node_ablations[0].node_index.node_type"]


def test_what_is_wrong_with_any_run_is_said_in_the_request_s_own_terms() -> None:
    bad_loss = LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(99,))
    late = traces.node(NodeType.MLP_NEURON, 7, 9, 99)
    other = AblationSpec(
        index=ActivationIndex(activation_location_type=L.RESID_POST_ATTN, tensor_indices=(99, None), layer_index=0),
        value=0.0,
    )
    request = ExplainRequest(
        runs=(
            run(loss_fn_config=bad_loss),
            run(99, ablation_specs=(other,), node_ablations=(ablated(late),)),
            run(trace_config=traces.trace(traces.NEURON, 9, 1, 2)),
        ),
    )
    assert set(refusal(request)) == {
        "runs[0].loss_fn_config.target_token_ids[0]",
        "runs[1].prompt.token_ids.token_ids[0]",
        "runs[1].ablation_specs[0].index.tensor_indices[0]",
        "runs[1].node_ablations[0].node_index.layer_index",
        "runs[1].node_ablations[0].node_index.tensor_indices[0]",
        "runs[1].node_ablations[0].node_index.tensor_indices[1]",
        "runs[2].trace_config.node_index.layer_index",
    }


def test_unknown_names_are_not_found() -> None:
    with pytest.raises(NotFound, match="nobody"):
        explaining.plan(WORLD, explaining.request(model="nobody"))
    with pytest.raises(NotFound, match="nothing"):
        explaining.plan(WORLD, explaining.request(autoencoders=("nothing",)))


def test_two_autoencoders_of_one_kind_are_refused_once_for_all_runs() -> None:
    two = run(), run()
    assert list(refusal(ExplainRequest(runs=two, autoencoders=(MLP, "tiny/resid_delta_mlp")))) == ["autoencoders[1]"]


def test_latents_need_their_autoencoder() -> None:
    assert lack(explaining.request(**LATENTS)) == (Reason.AUTOENCODER_REQUIRED, {"autoencoders"})
    mine = (TopKGroup(group_id="g", dsts=(T.ALWAYS_ONE, T.ONLINE_ATTENTION_AUTOENCODER_LATENT)),)
    assert lack(explaining.request(groups=mine)) == (Reason.AUTOENCODER_REQUIRED, {"autoencoders"})
    assert lack(top_k(T.ONLINE_MLP_AUTOENCODER_LATENT)) == (Reason.AUTOENCODER_REQUIRED, {"runs[0].autoencoders"})
    assert lack(explaining.request(parts=(P.TOKEN_PAIRS,))) == (Reason.AUTOENCODER_REQUIRED, {"autoencoders"})


def test_gradients_need_an_origin() -> None:
    assert lack(top_k(T.MLP_ACT_TIMES_GRAD)) == (Reason.ORIGIN_REQUIRED, {"runs[0].loss_fn_config"})
    mine = (TopKGroup(group_id="g", dsts=(T.MLP_ACT_TIMES_GRAD,)),)
    request = explaining.request(groups=mine, loss_fn_config=None)
    assert lack(request) == (Reason.ORIGIN_REQUIRED, {"runs[0].loss_fn_config"})
    v = run(trace_config=traces.V_OF_LOSS)
    assert lack(ExplainRequest(runs=(v,))) == (Reason.ORIGIN_REQUIRED, {"runs[0].loss_fn_config"})


def test_a_type_is_refused_where_the_groups_name_it() -> None:
    needs_node = T.MLP_IN_EDGE_ACTIVATION
    request = top_k(T.ALWAYS_ONE, needs_node)
    assert lack(request) == (Reason.FIELD_REQUIRED, {"runs[0].config.node_index_for_attribution"})
    many = TopKRequest(
        runs=(models.request(tokens=range(12)),),
        groups=tuple(TopKGroup(group_id=str(i), dsts=(T.MLP_POST_ACT,)) for i in range(3)),
        k=10**6,
    )
    assert explaining.plan(WORLD, many).plans


def test_runs_of_top_k_are_of_one_model() -> None:
    runs = (models.request(), models.request(model="other"))
    assert list(refusal(top_k(T.MLP_POST_ACT, runs=runs))) == ["runs[1].model"]
    by_handle = (models.request(), models.request(model=WORLD.context.handle))
    assert len(explaining.plan(WORLD, top_k(T.MLP_POST_ACT, runs=by_handle)).plans) == 2


@pytest.mark.parametrize("token", [6, -7])
def test_a_token_to_choose_at_is_one_of_every_prompt(token: int) -> None:
    runs = (models.request(tokens=range(12)), models.request())
    assert list(refusal(top_k(T.MLP_POST_ACT, runs=runs, token_index=token))) == ["token_index"]


def test_a_shared_list_needs_prompts_of_one_length() -> None:
    runs = (run(1, 2), run(1, 2, 3))
    assert not explaining.plan(WORLD, ExplainRequest(runs=runs)).is_shared
    assert explaining.plan(WORLD, ExplainRequest(runs=runs[:1] * 2)).is_shared
    apart = ExplainRequest(runs=runs[:1] * 2, node_scope=NodeScope.PROMPT)
    assert not explaining.plan(WORLD, apart).is_shared
    assert list(refusal(ExplainRequest(runs=runs, node_scope=NodeScope.BATCH))) == ["node_scope"]


def test_a_table_that_fits_no_message_is_refused_before_any_work() -> None:
    runs = (models.request(tokens=tuple(range(12))),)
    dsts = (T.MLP_POST_ACT, T.ATTN_QK_PROBS, T.RESID_POST_MLP)
    groups = tuple(TopKGroup(group_id=str(i), dsts=dsts) for i in range(20))
    request = TopKRequest(runs=runs, groups=groups, k=10_000)
    assert list(refusal(request)) == ["k"]
    own = TopKGroup(group_id="own", dsts=dsts, k=9_999)
    assert list(refusal(TopKRequest(runs=runs, groups=(*groups[:6], own), k=1_000_000))) == ["groups[6].k"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, set(P) - {P.TOKEN_PAIRS}),
        ({"loss_fn_config": None}, set(P) - {P.TOKEN_PAIRS}),
        (
            {**LATENTS, "autoencoders": (MLP, ATTN)},
            set(P) - {P.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q, P.INPUT_TOKENS_THAT_UPVOTE_ATTN_K},
        ),
        (
            {"groups": (TopKGroup(group_id="g", dsts=(T.RESID_POST_MLP,)),)},
            {P.NODE_TABLE, P.COMPONENT_SUMS, P.UPVOTED_OUTPUT_TOKENS, P.TOP_LOGITS},
        ),
        ({"parts": (P.TOP_LOGITS,)}, {P.TOP_LOGITS}),
        ({"parts": (P.INPUT_TOKENS_THAT_UPVOTE_MLP,)}, {P.NODE_TABLE, P.INPUT_TOKENS_THAT_UPVOTE_MLP}),
    ],
)
def test_parts_are_those_wanted_or_those_that_make_sense(fields: dict[str, Any], expected: set[P]) -> None:
    assert explaining.plan(WORLD, explaining.request(**fields)).parts == expected


def test_only_what_the_parts_need_is_derived_and_recorded() -> None:
    (plan,) = explaining.plan(WORLD, explaining.request(parts=(P.TOP_LOGITS,), loss_fn_config=None)).plans
    assert not plan.scalars
    assert plan.values == {(L.RESID_POST_MLP, 2)}
    changed = AblationSpec(index=ActivationIndex(activation_location_type=L.LOGITS, tensor_indices=(5, 3)), value=9.0)
    (plan,) = explaining.plan(WORLD, explaining.request(parts=(P.TOP_LOGITS,), ablation_specs=(changed,))).plans
    assert (L.LOGITS, None) in plan.values
    assert plan.stop_after_layer is None


def test_equal_plans_have_equal_digests_and_others_do_not() -> None:
    def digest(**fields: Any) -> str:
        return explaining.plan(WORLD, explaining.request(**fields)).digest("m@1", ["a@1"])

    assert digest() == digest(request_id="x")
    others = [
        digest(),
        digest(k=3),
        digest(parts=(P.TOP_LOGITS,)),
        digest(scored_token_count=2),
        digest(loss_fn_config=None),
    ]
    assert len(set(others)) == len(others)


def test_a_k_that_overfills_the_table_of_any_run_is_refused_before_a_pass() -> None:
    """However short the first run is."""
    registry = Registry.build(models={}, device="cpu")
    short, long = (models.request(tokens=(1,) * n_tokens, model="embedded") for n_tokens in (2, 200))
    for runs in ((short, long), (long, short)):
        with pytest.raises(InvalidRequest) as caught:
            plan_top_k(top_k(T.MLP_POST_ACT, runs=runs, k=2**31), registry, None)
        (violation,) = caught.value.violations
        assert violation.field == "k"
        assert "a table holds at most 20000" in violation.description
    assert plan_top_k(top_k(T.MLP_POST_ACT, runs=(short, short), k=2**31), registry, None).plans


def test_scored_tokens_are_in_every_estimate_of_the_cost() -> None:
    few = explaining.plan(WORLD, explaining.request(k=2, scored_token_count=2))
    many = explaining.plan(WORLD, explaining.request(k=200, scored_token_count=1000))
    none = explaining.plan(WORLD, explaining.request(k=200, parts=(P.NODE_TABLE,)))
    of_runs = sum(one.cost.floating_point_operations for one in none.plans)
    assert none.floating_point_operations == of_runs
    dimensions = none.plans[0].model.dimensions
    product = 2 * dimensions.d_model * dimensions.vocab_size
    assert few.floating_point_operations > of_runs + product
    assert (many.floating_point_operations - of_runs) % product == 0
    assert many.floating_point_operations > few.floating_point_operations
    assert many.n_steps > 10 * few.n_steps > 10 * none.n_steps
    assert many.peak_bytes > few.peak_bytes > none.peak_bytes


def test_the_steps_that_are_estimated_are_no_fewer_than_those_of_the_answer() -> None:
    asked = explaining.plan(WORLD, explaining.request(k=200, scored_token_count=1000))
    sets = {
        name: one for name, one in WORLD.sets.items() if name in {info.name for info in asked.plans[0].autoencoders}
    }
    answer = ExplanationAnswer(asked, run_plans(asked.plans, WORLD.decoder, sets), WORLD.context, sets)
    with_parts = sum(bool(parts) for parts in answer.steps())
    assert with_parts - 1 <= asked.n_steps <= 4 * with_parts
