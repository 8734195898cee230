"""What planning finds: told at the paths of the message that was sent, beside what reading the message found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.explain import ExplainRequest, ExplainRun, NodeAblation, NodeScope, TopKGroup, TopKRequest
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import FieldViolation, InvalidRequest, PreconditionFailed, Reason, Violations
from dst_grpc.pipeline.findings import Findings, SourceMap
from dst_grpc.pipeline.planner import make_plan
from tests import explaining, models, traces

from .planning import LOSS, MLP, NEURON, WORLD, ablate

MAP = SourceMap(
    root="runs[3]",
    moved={"autoencoders": "autoencoders", "ablation_specs[1].index": "runs[3].nodes[0].node_index"},
    made_from={"derived_scalars": "groups", "derived_scalars[1]": "groups[2].dsts[0]"},
)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("", "runs[3]"),
        ("prompt.text", "runs[3].prompt.text"),
        ("autoencoders", "autoencoders"),
        ("autoencoders[1]", "autoencoders[1]"),
        ("autoencoders_too", "runs[3].autoencoders_too"),
        ("ablation_specs[1].index.tensor_indices[2]", "runs[3].nodes[0].node_index.tensor_indices[2]"),
        ("ablation_specs[1].value", "runs[3].ablation_specs[1].value"),
        ("ablation_specs[10].index", "runs[3].ablation_specs[10].index"),
        ("derived_scalars[1].config.layer_indices[4]", "groups[2].dsts[0]"),
        ("derived_scalars[0].dst", "groups"),
    ],
)
def test_a_path_is_that_of_the_nearest_field_that_is_mapped(path: str, sent: str) -> None:
    assert MAP.path_sent(path) == sent


def test_what_is_missing_is_said_if_nothing_is_wrong() -> None:
    findings = Findings()
    findings.lack("loss_fn_config", "is needed", Reason.ORIGIN_REQUIRED)
    findings.lack("config", "is needed too")
    findings.lack("config", "is needed too")
    error = findings.error()
    assert isinstance(error, PreconditionFailed)
    assert error.reason is Reason.ORIGIN_REQUIRED
    assert [violation.field for violation in error.violations] == ["loss_fn_config", "config"]
    findings.add("prompt", "is bad")
    assert isinstance(findings.error(), InvalidRequest)


# What reading found


def read(*fields: str) -> Violations:
    """What reading a message found."""
    found = Violations()
    for field in fields:
        found.add(field, "could not be read")
    return found


def complaints(error: InvalidRequest | PreconditionFailed) -> dict[str, str]:
    assert len({violation.field for violation in error.violations}) == len(error.violations)
    return {violation.field: violation.description for violation in error.violations}


def refused(request: DeriveRequest, *fields: str) -> set[str]:
    """The fields complained about; those of *fields* hold stand-ins, and are complained about as they were read."""
    with pytest.raises(InvalidRequest) as caught:
        make_plan(request, WORLD.registry, read(*fields))
    found = complaints(caught.value)
    assert all(found[field] == "could not be read" for field in fields)
    return {*found} - {*fields}


def test_other_fields_are_checked_beside_a_prompt_that_could_not_be_read() -> None:
    request = models.request(T.MLP_WRITE, config=DstConfig(layer_indices=(77,)))
    assert refused(replace(request, prompt=None), "prompt.text") == {"config.layer_indices.layer_indices[0]"}
    assert refused(replace(request, prompt=Prompt(token_ids=(1,))), "prompt") == {
        "config.layer_indices.layer_indices[0]"
    }


def test_positions_are_not_checked_against_a_prompt_that_could_not_be_read() -> None:
    specs = (ablate(L.MLP_POST_ACT, 1, 5, 3), ablate(L.MLP_POST_ACT, 1, 5, 99), ablate(L.MLP_POST_ACT, 1, 12, 3))
    request = models.request(tokens=(1,), ablation_specs=specs)
    assert refused(request, "prompt.token_ids.token_ids[4]") == {
        "ablation_specs[1].index.tensor_indices[1]",
        "ablation_specs[2].index.tensor_indices[0]",  # no prompt is as long
    }


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({"ablation_specs": (ablate(L.MLP_POST_ACT, 9, 0, 0),)}, "ablation_specs[0].index.layer_index"),
        ({"ablation_specs": (ablate(L.MLP_POST_ACT, 9, 0, 0),)}, "ablation_specs[0]"),
        ({"trace_config": traces.trace(NEURON, 9, 1, 2)}, "trace_config.node_index"),
        ({"config": DstConfig(trace_config=traces.trace(NEURON, 9, 1, 2))}, "config.trace_config.node_index"),
        ({"config": DstConfig(layer_indices=(9,))}, "config.layer_indices"),
        ({"autoencoders": ("nobody", MLP)}, "autoencoders[0]"),
        ({"config": DstConfig(autoencoder_context="nobody")}, "config.autoencoder_context"),
        ({"model": "nobody"}, "model"),
        ({"config": DstConfig(model_context="nobody")}, "config.model_context"),
        (LOSS | {"tokens": (99,)}, "prompt"),
        ({"model": "nobody"}, "prompt"),
        ({}, ""),
    ],
)
def test_nothing_more_is_said_of_what_holds_a_stand_in(fields: dict[str, Any], bad: str) -> None:
    assert refused(models.request(T.MLP_WRITE_NORM, **fields), bad) == set()


def test_what_depends_on_autoencoders_that_could_not_be_read_is_not_checked() -> None:
    specs = (ablate(L.ONLINE_MLP_AUTOENCODER_LATENT, 1, 0, 0), ablate(L.MLP_POST_ACT, 9, 0, 0))
    request = models.request(T.ONLINE_MLP_AUTOENCODER_LATENT, ablation_specs=specs)
    assert refused(request, "autoencoders[0]") == set()


def test_a_type_that_could_not_be_read_stands_for_nothing_and_the_others_are_checked() -> None:
    specs = tuple(
        DerivedScalarSpec(dst=dst, config=DstConfig(derive_gradients=True)) for dst in (T.LOGITS, T.MLP_WRITE)
    )
    request = models.request(derived_scalars=specs)
    assert refused(request, "derived_scalars[0].dst") == {"derived_scalars[1].config.derive_gradients"}


def test_what_is_missing_is_not_said_beside_what_is_wrong() -> None:
    assert refused(models.request(T.MLP_ACT_TIMES_GRAD), "loss_fn_config.name") == set()


def test_what_reading_found_is_taken_over_with_its_reason() -> None:
    found = Violations()
    found.add("prompt", "is too long", Reason.PROMPT_TOO_LONG)
    with pytest.raises(InvalidRequest) as caught:
        make_plan(models.request(), WORLD.registry, found)
    assert caught.value.reason is Reason.PROMPT_TOO_LONG
    assert caught.value.violations == (FieldViolation("prompt", "is too long"),)


# Of runs


def test_runs_are_checked_beside_what_reading_found_in_any_of_them() -> None:
    neuron = traces.node(NEURON, 9, 1, 3)
    runs = (
        ExplainRun(prompt=Prompt(token_ids=(1,)), loss_fn_config=models.LOSS),
        ExplainRun(prompt=Prompt(token_ids=(1, 99)), node_ablations=(NodeAblation(node_index=neuron),)),
    )
    request = ExplainRequest(runs=runs, groups=(TopKGroup(group_id="g", dsts=(T.MLP_POST_ACT, T.ALWAYS_ONE)),))
    bad = ("runs[0].prompt.text", "groups[0].dsts[1]", "runs[1].node_ablations[0].node_index.tensor_indices[0]")
    with pytest.raises(InvalidRequest) as caught:
        explaining.plan(WORLD, request, read(*bad))
    assert {*complaints(caught.value)} - {*bad} == {"runs[1].prompt.token_ids.token_ids[1]"}
    with pytest.raises(InvalidRequest) as caught:
        explaining.plan(WORLD, request, read(bad[0]))
    assert {*complaints(caught.value)} - {bad[0]} == {
        "runs[1].prompt.token_ids.token_ids[1]",
        "runs[1].node_ablations[0].node_index.layer_index",
    }


def test_a_run_of_top_k_is_checked_beside_another_that_could_not_be_read() -> None:
    runs = (models.request(), models.request(config=DstConfig(layer_indices=(77,))))
    request = TopKRequest(runs=runs, groups=(TopKGroup(group_id="g", dsts=(T.MLP_POST_ACT,)),))
    with pytest.raises(InvalidRequest) as caught:
        explaining.plan(WORLD, request, read("runs[0].prompt"))
    assert {*complaints(caught.value)} == {"runs[0].prompt", "runs[1].config.layer_indices.layer_indices[0]"}


def test_rules_over_all_runs_are_told_together() -> None:
    runs = (models.request(), models.request(model="other", tokens=(1, 2)))
    group = TopKGroup(group_id="g", dsts=(T.MLP_POST_ACT,))
    request = TopKRequest(runs=runs, groups=(group,), token_index=4, node_scope=NodeScope.BATCH)
    with pytest.raises(InvalidRequest) as caught:
        explaining.plan(WORLD, request)
    assert {*complaints(caught.value)} == {"runs[1].model", "token_index", "node_scope"}


def test_rules_over_all_runs_are_told_beside_what_is_wrong_with_one() -> None:
    bad = DstConfig(layer_indices=(77,))
    group = TopKGroup(group_id="g", dsts=(T.MLP_POST_ACT,))
    for runs in ((models.request(config=bad),), (models.request(), models.request(config=bad))):
        request = TopKRequest(runs=runs, groups=(group,), token_index=99)
        with pytest.raises(InvalidRequest) as caught:
            explaining.plan(WORLD, request)
        at = f"runs[{len(runs) - 1}].config.layer_indices.layer_indices[0]"
        assert {violation.field for violation in caught.value.violations} == {at, "token_index"}


def test_a_layer_of_the_shared_config_is_checked_without_a_type_that_reads_it() -> None:
    request = models.request(config=DstConfig(layer_indices=(77,)))
    assert not request.derived_scalars
    with pytest.raises(InvalidRequest) as caught:
        make_plan(request, WORLD.registry)
    assert {*complaints(caught.value)} == {"config.layer_indices.layer_indices[0]"}
