"""Attribution of nodes and edges, against golden data."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dst_grpc.causal.attribution import Attribution, Question
from dst_grpc.causal.nodes import Nodes
from dst_grpc.causal.rules import (
    Frozen,
    GradientInteractionModifications,
    RelP,
    RelPWithFrozenPatterns,
)
from dst_grpc.domain.attribute import (
    AttributedNode,
    AttributionMethod,
    PathGroups,
    PathRule,
    PostNormJacobian,
)
from dst_grpc.engine.propagation import Propagation
from tests.causal_goldens import CASES, DIRECTIONS, GoldenCase, assert_golden, golden_case, golden_decoder, pairs_of

M, N = AttributionMethod, AttributedNode
RULES: dict[str, Propagation] = {
    "atp_frozen": Frozen(),
    "relp": RelP(),
    "relp_ah": RelPWithFrozenPatterns(),
    "gim": GradientInteractionModifications(),
}
KINDS = {
    N.INPUT: "input",
    N.RESID_PRE: "resid_pre",
    N.RESID_MID: "resid_mid",
    N.RESID_POST: "resid_post",
    N.ATTN_OUT: "attn_out",
    N.MLP_OUT: "mlp_out",
    N.HEAD: "head",
    N.QUERY: "q",
    N.KEY: "k",
    N.VALUE: "v",
    N.PATTERN: "pattern",
}
GRADIENT = {"of_largest": 1e-4}
"""Float32 gradients: the bound that the golden data states for them."""


def attribution(case: GoldenCase, direction: str = "noise", *, count: int = 1, **asked: Any) -> Attribution:
    found = Attribution(golden_decoder(case.model), Question(**asked))
    found.add(pairs_of(case, direction, count))
    return found


def edges(case: GoldenCase, direction: str = "noise", *, count: int = 1, **asked: Any) -> torch.Tensor:
    scores = attribution(case, direction, count=count, edges=True, **asked).edges
    assert scores is not None
    return scores


def by_kind(nodes: dict[Nodes, torch.Tensor]) -> dict[AttributedNode, torch.Tensor]:
    """Scores in the order of the golden data: heads before tokens."""
    return {key.kind: scores.transpose(-1, -2) if scores.dim() == 3 else scores for key, scores in nodes.items()}


def kinds_of(case: GoldenCase, prefix: str, direction: str) -> dict[AttributedNode, torch.Tensor]:
    """The golden scores under *prefix*."""
    keys = {kind: f"{prefix}.{name}.{direction}" for kind, name in KINDS.items()}
    return {kind: case.tensors[key] for kind, key in keys.items() if key in case.tensors}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CASES)
def test_attribution_patching_of_nodes(name: str, direction: str) -> None:
    case = golden_case(name)
    golden = kinds_of(case, "atp", direction)
    assert len(golden) == (10 if case.model == "neox" else 11)
    found = by_kind(dict(attribution(case, direction, nodes=tuple(golden), by_position=True).nodes))
    for kind, scores in golden.items():
        assert_golden(found[kind], scores, **GRADIENT)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CASES)
def test_propagation_rules(name: str, direction: str, rule: str) -> None:
    case = golden_case(name)
    golden = kinds_of(case, rule, direction)
    assert len(golden) == 5
    asked = attribution(case, direction, nodes=tuple(golden), by_position=True, propagation=RULES[rule])
    found = by_kind(dict(asked.nodes))
    for kind, scores in golden.items():
        assert_golden(found[kind], scores, **GRADIENT)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CASES)
def test_the_qk_fix(name: str, direction: str) -> None:
    case = golden_case(name)
    golden = kinds_of(case, "atpstar", direction)
    assert len(golden) == 2
    found = by_kind(dict(attribution(case, direction, nodes=tuple(golden), by_position=True, fixes_qk=True).nodes))
    for kind, scores in golden.items():
        assert_golden(found[kind], scores, **GRADIENT)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CASES)
def test_dropping_gradients(name: str, direction: str) -> None:
    case = golden_case(name)
    golden = kinds_of(case, "graddrop", direction)
    assert len(golden) == 2
    asked = attribution(case, direction, nodes=tuple(golden), by_position=True, drops_gradients=True)
    found = by_kind(dict(asked.nodes))
    for kind, scores in golden.items():
        assert_golden(found[kind], scores, **GRADIENT)


METHODS: dict[str, dict[str, Any]] = {
    "eap.noise": {},
    "eap.clean_corrupt_average": {"method": M.CLEAN_CORRUPT},
    "eap_ig.left": {"method": M.INTEGRATED_INPUTS, "rule": PathRule.LEFT},
    "eap_ig.right": {"method": M.INTEGRATED_INPUTS, "rule": PathRule.RIGHT},
    "eap_ig.middle": {"method": M.INTEGRATED_INPUTS, "rule": PathRule.MIDDLE},
    "eap_ig_activations.own_layer": {"method": M.INTEGRATED_ACTIVATIONS},
    "eap_ig_activations.every_layer": {"method": M.INTEGRATED_ACTIVATIONS, "groups": PathGroups.EVERY_LAYER},
}
VARIANTS = {
    "": PostNormJacobian.EXACT,
    ".raw_post_norm": PostNormJacobian.RAW,
    ".frozen_post_norm": PostNormJacobian.FROZEN,
}


@pytest.mark.parametrize("key", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_edges(name: str, key: str) -> None:
    case = golden_case(name)
    variants = {key + suffix: post_norms for suffix, post_norms in VARIANTS.items() if key + suffix in case.tensors}
    assert key in variants
    for variant, post_norms in variants.items():
        assert_golden(edges(case, post_norms=post_norms, **METHODS[key]), case.tensors[variant], **GRADIENT)


@pytest.mark.parametrize("name", CASES)
def test_edges_of_the_other_direction(name: str) -> None:
    case = golden_case(name)
    assert_golden(edges(case, "denoise"), case.tensors["eap.denoise"], **GRADIENT)


@pytest.mark.parametrize("key", ["eap.noise", "eap_ig.left"])
@pytest.mark.parametrize("name", CASES)
def test_the_mean_over_pairs(name: str, key: str) -> None:
    case = golden_case(name)
    golden = case.tensors[f"{key}.mean_of_pairs"]
    assert_golden(edges(case, count=3, **METHODS[key]), golden, **GRADIENT)
