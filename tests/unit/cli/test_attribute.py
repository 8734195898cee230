"""`dst-grpc attribute` against a server that answers by heart: what it asks and prints, its pictures, how it fails."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dst_grpc.cli._attribute import score_pictures
from dst_grpc.cli._pictures import Paper
from dst_grpc.client import (
    AttributedNode,
    AttributionMethod,
    Axis,
    Baseline,
    Client,
    Dimension,
    Orientation,
    PairMetrics,
    PathRule,
    PropagationRule,
    ScoredKind,
    Scores,
    ScoresInfo,
    VerifiedEdges,
    make_attribute_request,
)
from dst_grpc.domain.attribute_requests import DEFAULT_NODES
from tests.fake_service import FakeService
from tests.unit.cli.conftest import Run

ASKED = ("attribute", "John gave to", "Mary gave to", "--target", " Mary", "--distractor", " John")
LAYERS, HEADS, TOKENS = Dimension.LAYERS, Dimension.ATTN_HEADS, Dimension.SEQUENCE_TOKENS
EDGES = (Dimension.GRAPH_SOURCES, Dimension.GRAPH_READERS)


def test_it_shows_what_scores_say_and_a_heat_map(run: Run, service: FakeService) -> None:
    result = run(*ASKED)
    assert result.exit_code == 0, result.output
    assert "The clean prompt is run (+1). A score estimates how much the metric changes if one place" in result.stdout
    assert "as in the corrupt one (+2), by attribution_patching." in result.stdout
    assert "mlp out, all positions at once: score, layer" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()[-2:]]
    assert [(line[:2], line[-1]) for line in lines] == [(["layer", "0"], "+0.500"), (["layer", "1"], "-0.250")]
    asked = service.attribute_asked
    assert asked is not None
    assert (asked.nodes, asked.edges, asked.by_position) == (DEFAULT_NODES, True, False)
    assert asked.orientation is Orientation.NOISING


def test_options_are_asked(run: Run, service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("clean,corrupt,target\na,b,c\n")
    result = run(
        *(*ASKED, "--pairs", str(tmp_path / "pairs.csv"), "--denoising", "--sites", "heads, query", "--edges"),
        *("--method", "integrated_inputs", "--path-rule", "left", "--steps", "7", "--rule", "plain", "--verify", "3"),
        *("--autoencoder", "tiny/mlp", "--model", "tiny"),
    )
    assert result.exit_code == 0, result.output
    asked = service.attribute_asked
    assert asked is not None
    assert [pair.clean.text for pair in asked.pairs] == ["John gave to", "a"]
    assert (asked.nodes, asked.edges) == ((AttributedNode.HEAD, AttributedNode.QUERY), True)
    assert (asked.method, asked.path_rule, asked.steps) == (AttributionMethod.INTEGRATED_INPUTS, PathRule.LEFT, 7)
    assert (asked.orientation, asked.rule, asked.verify) == (Orientation.DENOISING, PropagationRule.PLAIN, 3)
    assert (asked.autoencoders, asked.model) == (("tiny/mlp",), "tiny")
    assert "Means over 2 pairs" in result.stdout


@pytest.mark.parametrize(
    ("options", "nodes", "has_edges"),
    [
        (["--edges"], (), True),
        (["--verify", "2"], (), True),
        (["--sites", "heads"], (AttributedNode.HEAD,), False),
        (["--by-position"], (), False),
        (["--grad-drop"], (), False),
        (["--sites", "query", "--qk-fix"], (AttributedNode.QUERY,), False),
        (["--method", "integrated_gradients"], (), False),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_edges_are_scored_where_they_are_asked_for_or_nothing_is(
    run: Run, service: FakeService, options: Sequence[str], nodes: tuple[AttributedNode, ...], has_edges: bool
) -> None:
    result = run(*ASKED, *options)
    assert result.exit_code == 0, result.output
    asked = service.attribute_asked
    assert asked is not None
    assert (asked.nodes, asked.edges) == (nodes, has_edges)


def test_a_baseline_needs_no_other_prompt(run: Run, service: FakeService) -> None:
    result = run("attribute", "John gave to", *ASKED[3:], "--method", "integrated_gradients", "--baseline", "zero")
    assert result.exit_code == 0, result.output
    assert service.attribute_asked is not None
    assert service.attribute_asked.baseline is Baseline.ZERO


def test_programs_get_numbers_with_named_axes(run: Run) -> None:
    result = run(*ASKED, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (scores,) = document["scores"]
    assert (scores["node"], scores["axes"], scores["labels"]) == ("mlp_out", ["layers"], [["0", "1"]])
    assert scores["values"] == [0.5, -0.25]
    assert document["pairs"] == [{"base": 1.0, "source": 2.0, "residual": None}]
    assert document["meaning"] == "a change"
    assert document["verified"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sites", "hed"], "--sites: there is no 'hed'; the nearest are head"),
        (["--method", "integrated"], "--method: there is no 'integrated'; the nearest are integrated_inputs"),
        (["--verify", "3", "--by-position"], "--verify: must be absent with --by-position"),
        (["--method", "integrated_gradients", "--sites", "heads"], "which is about tokens"),
        (["--qk-fix"], "--qk-fix: needs query or key among the nodes"),
        (["--steps", "3"], "has no path"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_what_cannot_be_is_refused_before_it_is_asked(
    run: Run, service: FakeService, options: Sequence[str], said: str
) -> None:
    result = run(*ASKED, *options)
    assert result.exit_code == 1
    assert said in result.stderr
    assert service.attribute_asked is None


@pytest.mark.parametrize("command", ["attribute", "patch", "circuit"])
def test_a_question_without_a_metric_is_told_which_option_it_lacks(run: Run, command: str) -> None:
    result = run(command, *ASKED[1:3])
    assert result.exit_code == 1
    assert "--target: is required, or --loss, or --pairs with a column target" in result.stderr


# Pictures


def scores_of(values: Any, *axes: Dimension, **info: Any) -> Scores:
    """Scores with numbers as labels."""
    array = np.array(values, np.float32)
    named = tuple(Axis(axis, size) for axis, size in zip(axes, array.shape, strict=True))
    facts = ScoresInfo(tensor_id=0, axes=named, **{"kind": ScoredKind.NODES, **info})
    return Scores(facts, array, tuple(tuple(map(str, range(size))) for size in array.shape))


def edges_of(values: Any) -> Scores:
    """Scores of edges, of as many of these sources and readers as there are."""
    found = scores_of(values, *((TOKENS,) * (np.ndim(values) - 2)), *EDGES, kind=ScoredKind.EDGES)
    return replace(found, labels=(*found.labels[:-2], ("input", "m0"), ("m0", "logits")))


def drawn(
    service: FakeService,
    *scores: Scores,
    top: int = 9,
    width: int = 100,
    pair: PairMetrics | None = None,
    verified: VerifiedEdges | None = None,
    **asked: Any,
) -> str:
    """What is printed of an answer with these scores, about the tokens 'a' and 'b'."""
    request = make_attribute_request("a", "b", target="c", **asked)
    with Client(service.target) as client:
        answer = client.attribute_request(make_attribute_request("a", "b", target="c"))
    answer = replace(answer, scores=scores, pairs=answer.pairs if pair is None else (pair,), verified=verified)
    out = Console(width=width, force_terminal=False)
    with out.capture() as captured:
        for picture in score_pictures(request, answer, Paper(width, is_plain=True), top=top):
            out.print(picture)
    return captured.get()


def rows_of(text: str, title: str) -> list[list[str]]:
    """The words of the lines below a title."""
    return [line.split() for line in text.partition(title)[2].partition("\n\n")[0].splitlines()[1:]]


def test_one_score_is_a_line(service: FakeService) -> None:
    text = drawn(service, scores_of(-2.5, node=AttributedNode.INPUT))
    assert rows_of(text, "input, all positions at once: score") == [["#", "-2.50"]]


def test_heads_by_position_are_a_map_for_each_layer_on_one_scale(service: FakeService) -> None:
    values = [[[0.25, 0], [0, 0]], [[0, 0], [0, -4]]]
    text = drawn(service, scores_of(values, LAYERS, HEADS, TOKENS, node=AttributedNode.HEAD))
    rows = rows_of(text, "head: score, position by head by layer")
    assert rows[:4] == [
        ["layer", "0"],
        ["head", "0", "head", "1"],
        ["0", "'a'", ".", "+0.25", "0"],
        ["1", "'b'", "0", "0"],
    ]
    assert rows[-1] == ["1", "'b'", "0", "#", "-4.00"]


def test_the_largest_of_many_nodes_are_listed_with_their_places(service: FakeService) -> None:
    values = [[[0, 0.5, 0], [0, 0, -2]]]
    axes = (LAYERS, TOKENS, Dimension.MLP_ACTS)
    text = drawn(service, scores_of(values, *axes, node=AttributedNode.NEURON), top=1)
    rows = rows_of(text, "neuron: the 1 largest scores")
    assert rows == [["score", "layer", "position", "neuron"], ["-2.00", "------------", "0", "1", "'b'", "2"]]
    latents = scores_of([[1, 0]], LAYERS, Dimension.AUTOENCODER_LATENTS, node=AttributedNode.LATENT)
    named = replace(latents, info=replace(latents.info, autoencoder="tiny/mlp@0123:float32:cpu"))
    rows = rows_of(drawn(service, named), "latent of tiny/mlp, all positions at once: the 1 largest scores")
    assert rows[1][2:] == ["0", "0"]


def test_edges_are_listed_beside_exact_effects_but_none_that_is_none(service: FakeService) -> None:
    verified = VerifiedEdges(sources=(0,), readers=(1,), scores=(-3.0,), effects=(-4.5,))
    text = drawn(service, edges_of([[1, -3], [0, 0]]), verified=verified)
    rows = rows_of(text, "edges, all positions at once: the 2 largest scores")
    assert rows[:3] == [
        ["score", "patched", "edge"],
        ["-3.00", "-4.50", "------------", "input->logits"],
        ["+1.00", "++++", "input->m0"],
    ]
    assert "Patched, each alone: 1 edge; the correlation with scores is undefined." in text
    known = drawn(service, edges_of([[1, -3], [0, 0]]), verified=replace(verified, correlation=0.875))
    assert "with scores is 0.88." in known


def test_on_a_narrow_terminal_bars_are_short_and_numbers_whole(service: FakeService) -> None:
    verified = VerifiedEdges(sources=(0,), readers=(1,), scores=(-3.0,), effects=(-4.5,))
    for width, bar in ((48, 12), (40, 7), (34, 1), (33, 0)):
        text = drawn(service, edges_of([[1, -3], [0, 0]]), width=width, verified=verified)
        (row,) = [line.split() for line in text.splitlines() if "input->logits" in line]
        assert row == ["-3.00", "-4.50", *(["-" * bar] if bar else []), "input->logits"]


def test_edges_by_position_name_it(service: FakeService) -> None:
    text = drawn(service, edges_of([[[0, 0], [0, 0]], [[0, -3], [0, 0]]]))
    assert rows_of(text, "edges: the 1 largest scores")[1] == ["-3.00", "------------", "1", "'b'", "input->logits"]


def test_scores_that_are_all_0_are_said_to_be(service: FakeService) -> None:
    text = drawn(service, edges_of([[0, 0], [0, 0]]), pair=PairMetrics(base=2.0, source=2.0))
    assert "edges, all positions at once: all scores are 0" in text
    assert "Both metrics are the same: do the prompts differ in the answer?" in " ".join(text.split())


def test_tokens_have_bars_and_shares_that_add_up(service: FakeService) -> None:
    tokens = scores_of([3, -1], TOKENS, kind=ScoredKind.TOKENS)
    pair = PairMetrics(base=4.0, source=1.5, residual=0.5)
    text = drawn(service, tokens, pair=pair, method="integrated_gradients", rule="relp")
    assert rows_of(text, "tokens: share in the metric") == [
        ["0", "'a'", "+3.00", "+" * 24],
        ["1", "'b'", "-1.00", "-" * 8],
    ]
    said = " ".join(text.split())
    assert "to where its embeddings are the corrupt one's (+1.5) with relp" in said
    assert "The tokens' shares add up to +2 of the difference, +2.5." in said


def test_magnitudes_are_said_to_be(service: FakeService) -> None:
    text = drawn(service, scores_of([1], LAYERS, node=AttributedNode.MLP_OUT), nodes="mlp_out", grad_drop=True)
    assert "how far, up or down, the metric moves" in " ".join(text.split())
