"""Requests of Attribute: what is refused without a model."""

from __future__ import annotations

from typing import Any

import pytest

from dst_grpc.domain.attribute import (
    AttributedNode,
    AttributionMethod,
    Baseline,
    PathGroups,
    PathRule,
    PostNormJacobian,
    PropagationRule,
)
from dst_grpc.domain.attribute_requests import DEFAULT_NODES, MAX_STEPS, AttributeRequest
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.pairs import Orientation, PromptPair
from dst_grpc.domain.requests import Prompt
from dst_grpc.errors import InvalidRequest

M, N = AttributionMethod, AttributedNode
LOSS = LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(1,))
CLEAN, CORRUPT = Prompt(text="a"), Prompt(text="b")
PAIR = PromptPair(clean=CLEAN, corrupt=CORRUPT)
ALONE = PromptPair(clean=CLEAN)
TOKENS: dict[str, Any] = {"method": M.INTEGRATED_GRADIENTS}


def request(**fields: Any) -> AttributeRequest:
    return AttributeRequest(**{"pairs": (PAIR,), "loss_fn_config": LOSS, **fields})


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({"pairs": ()}, "pairs"),
        ({"loss_fn_config": None}, "pairs[0].loss_fn_config"),
        ({"pairs": (PAIR, ALONE)}, "pairs[1].corrupt"),
        ({**TOKENS, "baseline": Baseline.ZERO}, "pairs[0].corrupt"),
        ({**TOKENS, "pairs": (ALONE,)}, "pairs[0].corrupt"),
        (
            {**TOKENS, "pairs": (ALONE,), "baseline": Baseline.MEAN, "orientation": Orientation.DENOISING},
            "orientation",
        ),
        ({"request_id": "a" * 257}, "request_id"),
        ({"autoencoders": ("one", "one")}, "autoencoders"),
        ({"autoencoders": ("one", "")}, "autoencoders[1]"),
        ({"model": "a b"}, "model"),
        ({"steps": 5}, "steps"),
        ({"method": M.INTEGRATED_INPUTS, "steps": 0}, "steps"),
        ({"method": M.INTEGRATED_INPUTS, "steps": MAX_STEPS + 1}, "steps"),
        ({"method": M.CLEAN_CORRUPT, "path_rule": PathRule.LEFT}, "path_rule"),
        ({"method": M.INTEGRATED_INPUTS, "path_groups": PathGroups.EVERY_LAYER}, "path_groups"),
        ({"baseline": Baseline.CORRUPT}, "baseline"),
        ({"by_channel": True}, "by_channel"),
        ({**TOKENS, "nodes": (N.HEAD,)}, "nodes"),
        ({**TOKENS, "edges": True}, "edges"),
        ({**TOKENS, "by_position": True}, "by_position"),
        ({**TOKENS, "magnitudes": True}, "magnitudes"),
        ({"method": M.CLEAN_CORRUPT, "grad_drop": True}, "grad_drop"),
        ({"method": M.INTEGRATED_INPUTS, "nodes": (N.KEY,), "qk_fix": True}, "qk_fix"),
        ({"nodes": (N.HEAD,), "qk_fix": True}, "qk_fix"),
        ({"nodes": (N.KEY,), "qk_fix": True, "rule": PropagationRule.GIM}, "qk_fix"),
        ({"edges": True, "grad_drop": True}, "grad_drop"),
        ({"edges": True, "magnitudes": True}, "magnitudes"),
        ({"nodes": (N.HEAD, N.KEY, N.HEAD)}, "nodes"),
        ({"method": M.INTEGRATED_ACTIVATIONS, "nodes": (N.HEAD, N.RESID_POST)}, "nodes[1]"),
        ({"post_norms": PostNormJacobian.RAW}, "post_norms"),
        ({"verify": 5}, "verify"),
        ({"edges": True, "verify": 10_001}, "verify"),
        ({"edges": True, "verify": -1}, "verify"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, Any], bad: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request(**fields)
    assert [violation.field for violation in caught.value.violations] == [bad]


def test_everything_that_is_wrong_is_reported_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        request(pairs=(ALONE,), loss_fn_config=None, steps=3, verify=1)
    found = {violation.field for violation in caught.value.violations}
    assert found == {"pairs[0].loss_fn_config", "pairs[0].corrupt", "steps", "verify"}


def test_without_nodes_or_edges_the_sources_of_the_graph_are_scored() -> None:
    assert request().effective_nodes == DEFAULT_NODES
    assert request(edges=True).effective_nodes == ()
    assert request(**TOKENS).effective_nodes == ()
    assert request(edges=True, nodes=(N.NEURON,)).effective_nodes == (N.NEURON,)


@pytest.mark.parametrize(
    ("method", "rule", "steps"),
    [
        (M.INTEGRATED_INPUTS, PathRule.RIGHT, 5),
        (M.INTEGRATED_ACTIVATIONS, PathRule.RIGHT, 5),
        (M.INTEGRATED_GRADIENTS, PathRule.GAUSS_LEGENDRE, 20),
    ],
)
def test_methods_with_a_path_have_defaults_of_their_own(method: AttributionMethod, rule: PathRule, steps: int) -> None:
    asked = request(method=method)
    assert (asked.effective_path_rule, asked.effective_steps) == (rule, steps)
    asked = request(method=method, path_rule=PathRule.MIDDLE, steps=7)
    assert (asked.effective_path_rule, asked.effective_steps) == (PathRule.MIDDLE, 7)


def test_a_pair_may_have_a_metric_of_its_own() -> None:
    own = PromptPair(clean=CLEAN, corrupt=CORRUPT, loss_fn_config=LOSS)
    assert request(pairs=(own,), loss_fn_config=None).pairs[0].loss_fn_config == LOSS
