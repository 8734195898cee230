"""Requests of Explain and TopK from friendly arguments."""

from __future__ import annotations

import pytest

from dst_grpc.client import (
    AblationSpec,
    ActivationIndex,
    ActivationLocationType,
    ComponentTypeForAttention,
    ComponentTypeForMlp,
    DerivedScalarType,
    ExplainPart,
    ExplainRequest,
    ExplainRun,
    LossFnConfig,
    LossFnName,
    NodeAblation,
    NodeIndex,
    NodeScope,
    NodeType,
    Prompt,
    TopKGroup,
    make_explain_request,
    make_explain_run,
    make_top_k_request,
    scale,
)
from dst_grpc.errors import InvalidRequest

NEURON = NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(1, 2), layer_index=0)
HEAD = NodeIndex(node_type=NodeType.ATTENTION_HEAD, tensor_indices=(1, 0, 2), layer_index=0)
LOSS = LossFnConfig(name=LossFnName.LOGIT_DIFF, target_tokens=(" A",), distractor_token_ids=(3,))


def test_the_plain_case_stays_plain() -> None:
    assert make_explain_request("x", target=" A", distractor=3) == ExplainRequest(
        runs=(ExplainRun(prompt=Prompt(text="x"), loss_fn_config=LOSS, detach_final_layer_norm_scale=True),),
        unit_length_embeddings=True,
    )


@pytest.mark.parametrize(
    ("ablate", "expected"),
    [
        (NEURON, [(NEURON, 0.0)]),
        ((NEURON, 2), [(NEURON, 2.0)]),
        (NodeAblation(node_index=HEAD, value=0.5), [(HEAD, 0.5)]),
        ([NEURON, (HEAD, 1.5)], [(NEURON, 0.0), (HEAD, 1.5)]),
        ((NEURON, HEAD), [(NEURON, 0.0), (HEAD, 0.0)]),
        ((), []),
    ],
)
def test_nodes_are_switched_off_or_set(ablate: object, expected: list[tuple[NodeIndex, float]]) -> None:
    run = make_explain_run([1, 2], ablate=ablate)  # type: ignore[arg-type]  # every accepted form, in one list
    assert [(one.node_index, one.value) for one in run.node_ablations] == expected


def test_every_argument_has_its_place() -> None:
    index = ActivationIndex(activation_location_type=ActivationLocationType.LOGITS, tensor_indices=(None, 1))
    other = make_explain_run("y", loss=LOSS, ablate=HEAD, detach_final_layer_norm_scale=False)
    request = make_explain_request(
        [1, 2],
        loss=LOSS,
        ablations=[AblationSpec(index=index, value=1.0)],
        interventions=[scale("resid.post_mlp", 0.5, layer=0)],
        beside=[other],
        model="m",
        autoencoders="a",
        mlp="AUTOENCODER_LATENT",
        attention="autoencoder_latent",
        groups={"mine": ["mlp_post_act", DerivedScalarType.ATTN_QK_PROBS], "one": "always_one"},
        k=3,
        parts=["node_table", ExplainPart.TOP_LOGITS],
        scored_token_count=4,
        token_pair_count=5,
        top_logit_count=6,
        node_scope="prompt",
        unit_length_embeddings=False,
        request_id="id",
    )
    first = ExplainRun(
        prompt=Prompt(token_ids=(1, 2)),
        loss_fn_config=LOSS,
        ablation_specs=(AblationSpec(index=index, value=1.0),),
        interventions=(scale("resid.post_mlp", 0.5, layer=0),),
        detach_final_layer_norm_scale=True,
    )
    assert other.detach_final_layer_norm_scale is False
    assert request == ExplainRequest(
        runs=(first, other),
        request_id="id",
        model="m",
        autoencoders=("a",),
        component_type_for_mlp=ComponentTypeForMlp.AUTOENCODER_LATENT,
        component_type_for_attention=ComponentTypeForAttention.AUTOENCODER_LATENT,
        groups=(
            TopKGroup(group_id="mine", dsts=(DerivedScalarType.MLP_POST_ACT, DerivedScalarType.ATTN_QK_PROBS)),
            TopKGroup(group_id="one", dsts=(DerivedScalarType.ALWAYS_ONE,)),
        ),
        k=3,
        parts=(ExplainPart.NODE_TABLE, ExplainPart.TOP_LOGITS),
        scored_token_count=4,
        token_pair_count=5,
        top_logit_count=6,
        node_scope=NodeScope.PROMPT,
        unit_length_embeddings=False,
    )


def test_names_that_are_nearly_right_are_suggested() -> None:
    with pytest.raises(InvalidRequest, match="mlp_post_act"):
        make_explain_request("x", groups={"g": ["mlp_post_axt"]})
    with pytest.raises(InvalidRequest, match="node_table"):
        make_explain_request("x", parts=["node_tabel"])
    with pytest.raises(InvalidRequest) as caught:
        make_explain_request("x", groups={"g": ["attn_write"]})
    assert [violation.field for violation in caught.value.violations] == ["groups[0].dsts[0]"]


def test_types_by_name_are_groups_of_their_own() -> None:
    kinds = DerivedScalarType.MLP_POST_ACT, DerivedScalarType.ATTN_QK_PROBS
    groups = tuple(TopKGroup(group_id=kind.value, dsts=(kind,)) for kind in kinds)
    assert make_top_k_request("x", "mlp_post_act").groups == groups[:1]
    assert make_top_k_request("x", ["mlp_post_act", kinds[1]]).groups == groups
    assert make_top_k_request("x", groups[0]).groups == groups[:1]
    assert make_explain_request("x", groups=kinds[0]).groups == groups[:1]
    with pytest.raises(InvalidRequest, match=r"groups\[1\]: .*mlp_post_act"):
        make_top_k_request("x", ["attn_qk_probs", "mlp_post_ac"])
    with pytest.raises(InvalidRequest, match=r"groups\[0\]: must be a TopKGroup or the name"):
        make_top_k_request("x", [3])  # type: ignore[list-item]


def test_top_k_takes_what_derive_takes() -> None:
    group = TopKGroup(group_id="g", dsts=(DerivedScalarType.MLP_POST_ACT,), k=2)
    request = make_top_k_request(
        "x", [group], target=" A", k=7, token_index=-1, with_sums=True, autoencoders="a", request_id="id"
    )
    assert (request.k, request.token_index, request.with_sums, request.request_id) == (7, -1, True, "id")
    assert request.groups == (group,)
    (run,) = request.runs
    assert run.prompt == Prompt(text="x")
    assert run.autoencoders == ("a",)
    assert run.loss_fn_config is not None
    assert run.request_id == ""
