"""`dst-grpc circuit` against a server that answers by heart: what it asks, prints and writes, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dst_grpc.cli._circuit_page import MAX_EDGES, circuit_facts
from dst_grpc.client import Alternative, CircuitSelection, Client, Orientation, make_circuit_request, mib_json
from tests.fake_service import FakeService
from tests.unit.cli.conftest import Run

ASKED = ("circuit", "John gave to", "Mary gave to", "--target", " Mary", "--distractor", " John")


def test_it_shows_the_curve_and_the_edges(run: Run, service: FakeService) -> None:
    result = run(*ASKED, "--top", "2")
    assert result.exit_code == 0, result.output
    assert "The whole model: 8, without any edge: 0, the mean over 1 pair; 8 edges" in result.stdout
    assert "cut edges carry the other prompt's values" in result.stdout
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("40.00%")]
    assert row.split()[1:5] == ["3", "2", "7", "0.875"]
    assert row.split()[5] == "+" * 21  # no terminal: nothing but ASCII
    assert result.stdout.isascii()
    assert "(CPR) 0.7000, under its distance from 1 (CMD) 0.2000" in result.stdout
    lines = result.stdout.splitlines()
    assert [line.split() for line in lines[-3:-1]] == [["m0->logits", "-3"], ["input->m0", "-2"]]
    assert "and 1 more" in lines[-1]
    asked = service.circuit_asked
    assert asked is not None
    assert asked.curve is not None
    assert not asked.curve.with_scores
    assert asked.loss_fn_config is not None
    assert asked.loss_fn_config.target_tokens == (" Mary",)
    assert asked.is_pruned


def test_scores_are_explained_where_they_are_shown(run: Run) -> None:
    assert "A score is about how much the metric changes if its edge is cut." in run(*ASKED).stdout
    assert "score" not in run(*ASKED, "--acdc", "0.25").stdout


def test_prompts_that_do_not_differ_have_no_faithfulness(run: Run, service: FakeService) -> None:
    service.circuit_has_gap = False
    result = run(*ASKED)
    assert result.exit_code == 0, result.output
    assert "Both metrics are the same, so that faithfulness is undefined" in result.stdout
    assert "as faithful as" not in result.stdout
    assert "CPR" not in result.stdout


def test_a_question_without_a_metric_is_told_which_option_it_lacks(run: Run, service: FakeService) -> None:
    result = run(*ASKED[:3])
    assert result.exit_code != 0
    assert "--target: is required" in result.stderr
    assert service.circuit_asked is None


def test_options_are_asked(run: Run, service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "mean.txt").write_text("one prompt\nanother\n")
    (tmp_path / "pairs.csv").write_text('clean,corrupt,target,distractor\n"a, b",c, d, e\nf,g,,\n')
    result = run(
        *(*ASKED, "--pairs", str(tmp_path / "pairs.csv"), "--reference", str(tmp_path / "mean.txt")),
        *("--alternative", "mean", "--orientation", "denoising", "--select", "signed", "--faithfulness", "0.5"),
        *("--fraction", "0.1", "--fraction", "0.4", "--steps", "3", "--no-prune", "--autoencoder", "tiny/mlp"),
    )
    assert result.exit_code == 0, result.output
    asked = service.circuit_asked
    assert asked is not None
    assert asked.curve is not None
    assert [pair.clean.text for pair in asked.pairs] == ["John gave to", "a, b", "f"]
    own = asked.pairs[1].loss_fn_config
    assert own is not None
    assert (own.target_tokens, own.distractor_tokens) == ((" d",), (" e",))
    assert asked.pairs[2].loss_fn_config is None
    assert [prompt.text for prompt in asked.reference] == ["one prompt", "another"]
    assert (asked.alternative, asked.orientation) == (Alternative.MEAN, Orientation.DENOISING)
    assert asked.curve.selection is CircuitSelection.SIGNED
    assert (asked.curve.wanted_faithfulness, asked.curve.fractions, asked.curve.steps) == (0.5, (0.1, 0.4), 3)
    assert (asked.prune, asked.autoencoders) == (False, ("tiny/mlp",))


def test_which_prompt_is_run_is_said(run: Run) -> None:
    result = run(*ASKED, "--orientation", "denoising")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("The whole model, on the corrupt prompt: 8, without any edge: 0")


def test_a_circuit_with_latents_is_of_nodes(run: Run, service: FakeService, tmp_path: Path) -> None:
    result = run(*ASKED, "--latents", "--autoencoder", "tiny/mlp")
    assert result.exit_code == 0, result.output
    assert "without any node: 0, the mean over 1 pair; 7 nodes; cut nodes are the other" in result.stdout
    assert "m0.l3" in result.stdout
    assert [line.split() for line in result.stdout.splitlines()[-3:]] == [
        ["m0.error", "-3"],
        ["a0.h0", "-2"],
        ["m0.l3", "+0.5"],
    ]
    asked = service.circuit_asked
    assert asked is not None
    assert (asked.latents, asked.prune, asked.autoencoders) == (True, None, ("tiny/mlp",))
    file = json.loads(run(*ASKED, "--latents", "--json").stdout)
    assert file["nodes"]["m0.error"] == {"score": 3.0, "in_graph": True}
    assert file["nodes"]["m0.l0"] == {"score": -0.25, "in_graph": False}
    assert (file["edges"], file["cfg"]["n_layers"], file["cfg"]["n_heads"]) == ({}, 1, 1)
    (tmp_path / "circuit.json").write_text(json.dumps(file))
    again = run(*ASKED, "--latents", "--evaluate", str(tmp_path / "circuit.json"))
    assert again.exit_code == 0, again.output
    asked = service.circuit_asked
    assert asked is not None
    assert set(asked.circuits[0].nodes) == {"m0.error", "a0.h0", "m0.l3"}
    refused = run(*ASKED, "--latents", "--html", str(tmp_path / "page.html"), "--scores", "x.json")
    assert refused.exit_code != 0
    assert "--scores: must be absent with --latents" in refused.stderr
    assert "--html: must be absent with --latents" in refused.stderr
    refused = run(*ASKED, "--json", "--html", str(tmp_path / "page.html"))
    assert refused.exit_code != 0
    assert "must be absent with --json" in refused.stderr
    assert not (tmp_path / "page.html").exists()


def test_a_search_has_no_curve(run: Run, service: FakeService) -> None:
    result = run(*ASKED, "--acdc", "0.25")
    assert result.exit_code == 0, result.output
    asked = service.circuit_asked
    assert asked is not None
    assert asked.acdc is not None
    assert (asked.curve, asked.acdc.threshold) == (None, 0.25)
    refused = run(*ASKED, "--acdc", "0.25", "--select", "signed", "--fraction", "0.1")
    assert refused.exit_code != 0
    assert "--select: must be absent with --acdc" in refused.stderr
    assert "--fraction: must be absent with --acdc" in refused.stderr


def test_a_file_of_the_benchmark_goes_out_and_comes_back(run: Run, service: FakeService, tmp_path: Path) -> None:
    result = run(*ASKED, "--json")
    assert result.exit_code == 0, result.output
    file = json.loads(result.stdout)
    assert file["cfg"] == {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 8}
    assert file["nodes"] == {name: {"in_graph": name != "a0.h0"} for name in ("input", "a0.h0", "m0", "logits")}
    assert len(file["edges"]) == 8
    # Important edges are positive there.
    assert file["edges"]["m0->logits"] == {"score": 3.0, "in_graph": True}
    assert file["edges"]["input->a0.h0<v>"] == {"score": -0.25, "in_graph": False}
    (tmp_path / "circuit.json").write_text(result.stdout)
    again = run(*ASKED, "--scores", str(tmp_path / "circuit.json"), "--evaluate", str(tmp_path / "circuit.json"))
    assert again.exit_code == 0, again.output
    asked = service.circuit_asked
    assert asked is not None
    assert asked.curve is not None
    assert asked.curve.scores is not None
    assert asked.curve.scores.tensor is not None
    assert asked.curve.scores_orientation is Orientation.DENOISING
    expected = np.array([[-0.5, 0, -0.25, 2, -0.25], [0, 0, 0, 0, 0], [0, 0, 0, 0, 3]])
    assert np.array_equal(asked.curve.scores.tensor, expected)
    (kept,) = asked.circuits
    assert set(kept.edges) == {"m0->logits", "input->m0", "input->a0.h0<q>"}


def test_a_page_that_cannot_be_written(run: Run, service: FakeService, tmp_path: Path) -> None:
    result = run(*ASKED, "--html", str(tmp_path / "nowhere" / "page.html"))
    assert result.exit_code == 1
    assert "--html: cannot write" in result.stderr
    assert service.circuit_asked is None


def test_a_page_is_written_whole(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "circuit.html"
    result = run(*ASKED, "--html", str(path))
    assert result.exit_code == 0, result.output
    text = path.read_text()
    assert "<title>A circuit of 3 of 8 edges</title>" in text
    assert "{{" not in text
    assert "default-src 'none'" in text
    assert "http://www.w3.org/2000/svg" in text
    assert text.count("http") == text.count("http://www.w3.org/2000/svg") + text.count("http-equiv")


def test_a_page_holds_the_largest_edges_alone(service: FakeService) -> None:
    request = make_circuit_request("a", "b", target="c")
    with Client(service.target) as client:
        answer = client.circuit_request(request)
    facts = circuit_facts(request, answer)
    assert facts["edges"] == [("m0", "logits", -3.0), ("input", "m0", -2.0), ("input", "a0.h0<q>", 0.5)]
    assert (facts["count"], facts["chosen"], facts["layers"], facts["heads"]) == (3, 1, 1, 1)
    assert MAX_EDGES >= 100
    assert mib_json(answer)["cfg"]["n_heads"] == 1


@pytest.mark.parametrize(
    ("name", "text", "option", "problem"),
    [
        ("x.csv", "corrupt\na\n", "--pairs", "it must have clean"),
        ("x.csv", "clean,label\na,b\n", "--pairs", "has the columns clean, label"),
        ("x.csv", "clean\n''\n\"\"\n", "--pairs", "--pairs row 2"),
        ("x.json", "no json", "--scores", "is no JSON"),
        ("x.json", "[]", "--scores", "holds no JSON object"),
        ("x.json", '{"cfg": {}, "nodes": {}}', "--evaluate", "edges"),
        ("x.json", '{"cfg": {"n_layers": 1}, "nodes": {}, "edges": {}}', "--evaluate", "n_heads"),
        (
            "x.json",
            '{"cfg": {"n_layers": 1, "n_heads": 1}, "nodes": {}, "edges": {"a0.h3->logits": {"score": 1}}}',
            "--scores",
            "is no edge of the graph",
        ),
    ],
)
def test_files_that_cannot_be_used(run: Run, tmp_path: Path, name: str, text: str, option: str, problem: str) -> None:
    (tmp_path / name).write_text(text)
    result = run(*ASKED, option, str(tmp_path / name))
    assert result.exit_code == 1
    assert problem in " ".join(result.stderr.split())


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    for option in ("--pairs", "--reference", "--scores", "--evaluate"):
        result = run(*ASKED, option, str(tmp_path / "none"))
        assert result.exit_code == 1
        assert "cannot read" in result.stderr
