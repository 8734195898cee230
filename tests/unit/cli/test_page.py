"""The page of an explanation, as text; what a browser makes of it is tested in tests/browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import numpy as np
import pytest

from dst_grpc.cli._explain import explain_request_of
from dst_grpc.cli._page import page, page_facts, script_safe, title_of
from tests.explanations import ATTENTION, explanation_of

NASTY = ("<!--<script>", "</script>", " {{data}}", "\u2028")
REQUEST = explain_request_of("x", target=[" Mary"], distractor=[" John"], ablate=["0.h1"], groups=["all"])


def test_tokens_are_data_and_never_markup() -> None:
    text = page(REQUEST, explanation_of(REQUEST, tokens=NASTY), {})
    # One element of data, one script, one title: nothing that a token says opens or closes another.
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert text.count("<!--") == 0
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    assert json.loads(found[1])["tokens"] == list(NASTY)


def test_the_policy_permits_the_script_and_the_style_that_are_there_alone() -> None:
    text = page(REQUEST, explanation_of(REQUEST), {})
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert "default-src 'none'" in policy[1]
    for element, directive in (("script", "script-src"), ("style", "style-src")):
        body = re.search(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        assert body
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy[1]


def test_nothing_is_fetched() -> None:
    text = page(REQUEST, explanation_of(REQUEST), {})
    assert not re.search(r"""https?:|//[a-z]|\bsrc=|@import|url\(""", text.replace("data:", ""))


def test_the_residual_is_told_by_layer_and_not_by_token() -> None:
    request = explain_request_of("x", target=[" Mary"], residual="latents", groups=["all"])
    groups = {group["id"]: group for group in page_facts(request, explanation_of(request), {})["groups"]}
    writers, residual = groups["direction_write"], groups["residual_direction_write"]
    assert (len(writers["sums"]), writers["residuals"]) == (4, [])
    assert (residual["sums"], residual["residuals"]) == (
        [],
        [(0, 1.75, 2.0, -0.5, 0.25, 1.0), (1, 1.75, 2.0, -0.5, 0.25, 1.0)],
    )
    assert residual["signed"]


def test_the_facts() -> None:
    facts = page_facts(REQUEST, explanation_of(REQUEST), {(0, 1): ATTENTION})
    assert facts["target"] == 5.0
    assert [group["id"] for group in facts["groups"]] == [
        *("direction_write", "act_times_grad", "write_norm", "activation"),
    ]
    assert facts["groups"][0]["rows"][0] == {
        "node": "0.h1@3,1",
        "order": (0, 1, 1),
        "at": (3, 1),
        "value": 4.5,
        "promotes": [" Mary", "</script>"],
        "demotes": [" John"],
        "excited": [],
        "head": "0.h1",
    }
    assert facts["attention"]["0.h1"][-2:] == [(3, 1, 0.97), (3, 2, 0.03)]
    (compared,) = facts["comparisons"]
    assert (compared["ablations"], compared["before"], compared["after"]) == (("0.h1=0",), 5.0, 2.5)
    assert compared["groups"][0]["rows"][0] == {"node": "0.h1@3,1", "at": (3, 1), "before": 4.5, "after": 2.25}


def test_numbers_that_json_has_not_are_null() -> None:
    explanation = explanation_of(REQUEST, scale=float("inf"))
    facts = page_facts(REQUEST, explanation, {(0, 1): np.zeros((4, 4))})
    assert facts["target"] is None
    assert "Infinity" not in script_safe(facts)


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({}, "When Mary saw John ..."),
        ({"target": [" Mary"]}, "When Mary saw John ... why Mary?"),
        ({"target": [" Mary"], "distractor": [" John"]}, "When Mary saw John ... why Mary and not John?"),
        ({"trace": ["1.n4@3"]}, "What makes 1.n4@3?"),
    ],
)
def test_the_title_is_the_question(options: dict[str, list[str]], title: str) -> None:
    request = explain_request_of("x", **options)  # type: ignore[arg-type]  # by case
    assert title_of(request, explanation_of(request).runs[0]) == title
