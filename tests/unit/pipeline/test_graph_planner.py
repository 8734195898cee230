"""Planning of Graph: what the prompt begins with, targets, memory, and all that is wrong at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.client import GraphRequest, make_graph_request
from dst_grpc.contexts.registry import Registry
from dst_grpc.domain.graph import DEFAULT_NEURON_NODES, GraphSource, GraphTarget
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import Prompt
from dst_grpc.errors import InvalidRequest, NotFound, Reason, Violations, require
from dst_grpc.graphs.question import MostProbable
from dst_grpc.pipeline.graph_planner import GraphPlan, n_zeroed, plan_graph
from tests.graph_goldens import model_folder

REGISTRY = Registry.build(
    models={model: model_folder(model) for model in ("gpt2", "llama")}, include_embedded=False, default_model="gpt2"
)
PLT = "gpt2/plt_relu"
LIMIT = 1 << 30
WIDTH = REGISTRY.model_entry("gpt2").dimensions.d_model
WINDOW = REGISTRY.model_entry("gpt2").dimensions.context_window
VOCABULARY = REGISTRY.model_entry("gpt2").dimensions.vocab_size


def plan(prompt: Any = (0, 5, 6), transcoders: str = PLT, **arguments: Any) -> GraphPlan:
    return plan_graph(make_graph_request(prompt, transcoders, **arguments), REGISTRY, limit_bytes=LIMIT)


def refusal(prompt: Any = (0, 5, 6), transcoders: str = PLT, **arguments: Any) -> dict[str, str]:
    """What is said of each field of a request that can never succeed."""
    with pytest.raises(InvalidRequest) as caught:
        plan(prompt, transcoders, **arguments)
    return {violation.field: violation.description for violation in caught.value.violations}


# The prompt


@pytest.mark.parametrize(
    ("prompt", "tokens", "is_added"),
    [
        ((5, 6), (0, 5, 6), True),
        ((0, 5), (0, 5), False),
        ((0,), (0,), False),
        (" w5 w6", (0, 5, 6), True),
        ("<|endoftext|> w5", (0, 5), False),
    ],
)
def test_a_prompt_begins_with_a_special_token(prompt: Any, tokens: tuple[int, ...], is_added: bool) -> None:
    found = plan(prompt)
    assert (found.plan.token_ids, found.is_begin_token_added) == (tokens, is_added)
    assert found.plan.token_strings[0] == "<|endoftext|>"
    assert found.question.token_ids == tokens
    assert found.n_zeroed == 1
    as_given = plan(prompt, begin_token="as_given")
    assert as_given.plan.token_ids == tokens[is_added:]
    assert not as_given.is_begin_token_added


def test_a_begin_token_must_fit_the_window_too() -> None:
    assert len(plan((5,) * (WINDOW - 1)).plan.token_ids) == WINDOW
    with pytest.raises(InvalidRequest) as caught:
        plan((5,) * WINDOW)
    assert caught.value.reason is Reason.PROMPT_TOO_LONG
    (violation,) = caught.value.violations
    assert violation.field == "prompt"
    said = f"has {WINDOW} tokens, and {WINDOW + 1} with the special token that is put before them (begin_token), but"
    assert violation.description.startswith(said)
    assert len(plan((5,) * WINDOW, begin_token="as_given").plan.token_ids) == WINDOW


# Transcoders and targets


def test_transcoders_are_leased_with_the_model() -> None:
    for name in (PLT, "gpt2/clt_relu"):
        found = plan(transcoders=name)
        assert [entry.name for entry in found.plan.autoencoders] == [name]
        assert require(found.transcoders).name == name
    handle = REGISTRY.autoencoder_entry(PLT, "gpt2").handle
    assert plan(transcoders=handle).plan.handles == (handle,)


def only(tmp_path: Path, *sets: str) -> Registry:
    """One golden model with some of its sets of transcoders."""
    (folder := tmp_path / "m").mkdir()
    for path in model_folder("gpt2").iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    (folder / "transcoders").mkdir()
    for name in sets:
        (folder / "transcoders" / name).symlink_to(model_folder("gpt2") / "transcoders" / name)
    return Registry.build(models={"m": folder}, include_embedded=False)


def test_the_only_transcoders_of_a_model_need_no_name(tmp_path: Path) -> None:
    request = make_graph_request((0, 5, 6))
    assert request.transcoders is None
    found = plan_graph(request, only(tmp_path, "plt_relu"), limit_bytes=LIMIT)
    assert require(found.transcoders).name == "m/plt_relu"


@pytest.mark.parametrize("names", [(), ("clt_relu", "plt_relu")])
def test_none_or_one_of_several_must_be_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan_graph(make_graph_request((0, 5, 6)), only(tmp_path, *names), limit_bytes=LIMIT)
    (violation,) = caught.value.violations
    assert violation.field == "transcoders"
    assert all(f"m/{name}" in violation.description for name in names)


def test_targets_are_the_most_probable_tokens_unless_they_are_given() -> None:
    automatic = plan(max_n_logits=3, desired_logit_prob=0.5).question.targets
    assert automatic == MostProbable(max_n_logits=3, desired_logit_prob=0.5)
    vector = np.arange(WIDTH, dtype=np.float32)
    given = GraphTarget(token_id=9, weight=0.25)
    targets = plan(targets=[" w5", 7, given], directions={"up": vector}).question.targets
    assert isinstance(targets, tuple)
    assert [one.token_id for one in targets] == [5, 7, 9, None]
    assert [one.weight for one in targets] == [None, None, 0.25, None]
    assert targets[3].name == "up"
    assert targets[3].vector is not None
    assert torch.equal(targets[3].vector, torch.from_numpy(vector))


def test_a_stored_direction_is_looked_up() -> None:
    stored = {"t1": RequestTensor(tensor=np.ones(WIDTH)), "t2": RequestTensor(tensor=np.ones(3))}
    found = plan(targets=[5], directions={"up": RequestTensor(handle="t1")})
    with pytest.raises(InvalidRequest, match="no tensors are kept"):
        found.with_tensors(None)
    target = found.with_tensors(stored).targets[1]  # type: ignore[arg-type]  # get is all that it needs
    assert target.vector is not None
    assert target.vector.tolist() == [1.0] * WIDTH
    with pytest.raises(InvalidRequest) as caught:
        plan(directions={"up": RequestTensor(handle="t2")}).with_tensors(stored)  # type: ignore[arg-type]
    assert [violation.field for violation in caught.value.violations] == ["targets[0].direction"]


def test_all_that_is_wrong_is_reported_at_once() -> None:
    found = refusal(
        (0, VOCABULARY),
        "llama/plt_relu_skip",
        targets=[" w5", " w5 w6", 5, VOCABULARY],
        directions={"up": np.ones(WIDTH + 1)},
    )
    assert set(found) == {
        *("prompt.token_ids.token_ids[1]", "transcoders", "targets[1].token", "targets[2]", "targets[3].token_id"),
        "targets[4].direction",
    }
    assert "targets[0]" in found["targets[2]"]


def test_unknown_names_are_told() -> None:
    for arguments in ({"model": "gpt3"}, {"transcoders": "gpt2/plt"}):
        with pytest.raises(NotFound) as caught:
            plan(**arguments)
        assert caught.value.nearest


def test_what_reading_found_is_reported_with_the_rest() -> None:
    known = Violations()
    known.add("targets[0].token_id", "must be a number")
    request = GraphRequest(
        prompt=Prompt(token_ids=(0, 5)), transcoders=PLT, targets=(GraphTarget(token="\0"), GraphTarget(token_id=9999))
    )
    with pytest.raises(InvalidRequest) as caught:
        plan_graph(request, REGISTRY, known, limit_bytes=LIMIT)
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["targets[0].token_id", "targets[1].token_id"]


# Memory and cost


def test_memory_is_what_the_request_allows_itself() -> None:
    assert plan().peak_bytes == plan().question.memory_bytes == LIMIT
    own = plan(max_bytes=12_345_678)
    assert (own.question.memory_bytes, own.peak_bytes) == (12_345_678, 12_345_678)
    few, many = plan(max_feature_nodes=64), plan(max_feature_nodes=640)
    assert few.n_steps < many.n_steps
    assert 0 < few.floating_point_operations < many.floating_point_operations


def test_the_digest_is_of_all_that_determines_the_numbers() -> None:
    def digest(**arguments: Any) -> str:
        return plan(**arguments).digest("model", ["set"])

    assert digest() == digest(request_id="another", model="gpt2")
    others = [
        digest(targets=[5]),
        digest(max_feature_nodes=3),
        digest(node_threshold=0.5),
        digest(prompt=(0, 6)),
        digest(directions={"up": np.ones(WIDTH)}),
        digest(directions={"up": np.full(WIDTH, 2.0)}),
    ]
    assert len({digest(), *others}) == 7


@pytest.mark.parametrize(
    ("family", "tokens", "expected"),
    [
        ("gemma3", (2, 105, 2364, 107, 5), 4),
        ("gemma3", (2, 105, 2364, 108, 5), 1),
        ("gemma3", (2, 105), 1),
        ("gemma2", (2, 105, 2364, 107, 5), 1),
    ],
)
def test_chat_prompts_of_gemma_3_have_four_zeroed_tokens(family: str, tokens: tuple[int, ...], expected: int) -> None:
    assert n_zeroed(family, tokens) == expected


# Sources

EMBEDDED = Registry.build()


def of_embedded(**arguments: Any) -> GraphPlan:
    """The plan of a request to the model of the package."""
    return plan_graph(make_graph_request((5, 6), model="embedded", **arguments), EMBEDDED, limit_bytes=LIMIT)


def refused(**arguments: Any) -> dict[str, str]:
    """What is said of each field of a request to the model of the package."""
    with pytest.raises(InvalidRequest) as caught:
        of_embedded(**arguments)
    return {violation.field: violation.description for violation in caught.value.violations}


@pytest.mark.parametrize("sources", ["heads", "neurons", ("neurons", "heads")])
def test_neurons_and_heads_need_no_transcoders(sources: Any) -> None:
    found = of_embedded(sources=sources)
    assert (found.transcoders, found.autoencoders, found.n_zeroed) == (None, (), 0)
    assert found.plan.autoencoders == ()
    assert found.question.max_feature_nodes == (None if sources == "heads" else DEFAULT_NEURON_NODES)
    assert of_embedded(sources=sources, max_feature_nodes=7).question.max_feature_nodes == 7


def test_sets_whose_latents_are_sources_are_leased_with_transcoders() -> None:
    both = of_embedded(sources=("features", "latents"), autoencoders="embedded/resid_delta_attn")
    assert [entry.name for entry in both.plan.autoencoders] == ["embedded/mlp_transcoders", "embedded/resid_delta_attn"]
    assert both.n_zeroed == 1
    alone = of_embedded(autoencoders=("embedded/resid_delta_attn", "embedded/mlp_post_act"))
    assert alone.request.chosen_sources == (GraphSource.LATENTS,)
    assert [entry.name for entry in alone.autoencoders] == ["embedded/resid_delta_attn", "embedded/mlp_post_act"]


def test_sources_that_stand_for_the_same_are_refused() -> None:
    assert "both stand for what MLPs write" in refused(sources=("features", "neurons"))["sources"]
    assert "are sources already" in refused(sources=("heads", "heads"))["sources[1]"]
    for source, name in (
        ("features", "embedded/mlp_post_act"),
        ("neurons", "embedded/resid_delta_mlp"),
        ("heads", "embedded/resid_delta_attn"),
    ):
        found = refused(sources=(source, "latents"), autoencoders=name)
        assert f"and so do {source}" in found["autoencoders[0]"]


def test_sets_are_named_for_their_sources_alone() -> None:
    assert "is required" in refused(sources="latents")["autoencoders"]
    found = refused(sources="heads", autoencoders="embedded/mlp_post_act", transcoders="embedded/mlp_transcoders")
    assert {field: "must be absent" in said for field, said in found.items()} == {
        "autoencoders": True,
        "transcoders": True,
    }
    found = refused(autoencoders="embedded/mlp_transcoders")
    assert "set of transcoders" in found["autoencoders[0]"]
    assert "name it in transcoders" in found["autoencoders[0]"]
