"""`dst-grpc graph` against a server that answers by heart: what it asks, prints and writes, and how it fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dst_grpc.cli import _graph_page
from dst_grpc.cli._graph import PHASES
from dst_grpc.cli._graph_page import graph_facts
from dst_grpc.client import BeginToken, Client, GraphAnswer, GraphPhase, NamedPath
from dst_grpc.domain.graph import GraphSource
from tests.fake_service import FakeService
from tests.unit.cli.conftest import Run


@pytest.fixture(name="client")
def _client(service: FakeService) -> Iterator[Client]:
    with Client(service.target) as client:
        yield client


ASKED = ("graph", "abc", "--transcoders", "tiny/plt")


def test_it_sums_up_the_graph(run: Run, service: FakeService, client: Client) -> None:
    result = run(*ASKED, "--top", "2")
    assert result.exit_code == 0, result.output
    graph = client.graph("abc", "tiny/plt")
    assert "Tokens: 0'a' 1'b' 2'c' 3'd'" in result.stdout
    assert "'a' was put first" in result.stdout
    assert "12 of 20 active features; pruned to" in result.stdout
    assert "replacement score 0.500" in result.stdout
    assert "completeness 0.750" in result.stdout
    lines = result.stdout.splitlines()
    assert "' e'" in result.stdout
    assert [line.split()[0] for line in lines if "@" in line.split(" ")[0]] == [row.name for row in graph.top(2)]
    (start,) = [i for i, line in enumerate(lines) if line.startswith("Strongest paths")]
    target = f"logit:{graph.header.targets[0].token_id}"
    assert all(line.endswith(target) for line in lines[start + 1 :] if line)
    asked = service.graph_asked
    assert asked is not None
    assert (asked.prompt.text, asked.transcoders, asked.targets) == ("abc", "tiny/plt", ())


def test_features_that_pruning_leaves_out_are_marked(run: Run, client: Client) -> None:
    result = run(*ASKED, "--top", "9")
    rows = [line.split() for line in result.stdout.splitlines() if "@" in line.split(" ")[0]]
    graph = client.graph("abc", "tiny/plt")
    assert [(row[0], row[4]) for row in rows] == [(one.name, "yes" if one.kept else "no") for one in graph.top(9)]
    assert {row[4] for row in rows} == {"yes", "no"}


def test_features_of_a_graph_that_is_not_kept_stand_without_their_tokens(run: Run, service: FakeService) -> None:
    service.keeps_graphs = False
    result = run(*ASKED, "--top", "2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len([line for line in lines if "@" in line.split(" ")[0]]) == 2
    assert "' e'" not in result.stdout


def test_strengths_of_paths_have_digits_however_small(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = NamedPath(("t1", "logit:7"), -1.234e-6)
    monkeypatch.setattr(GraphAnswer, "paths", lambda *given, **asked: (found,))
    result = run(*ASKED)
    assert "  -1.23e-06  'b' t1 -> logit:7" in result.stdout


def test_a_graph_without_paths_from_tokens_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GraphAnswer, "paths", lambda *given, **asked: ())
    result = run(*ASKED)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "  none, along the edges that pruning left: higher thresholds leave more"


def test_the_page_and_the_viewers_file_are_two(run: Run, service: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "graph"
    result = run(*ASKED, "--html", str(file), "--json", str(file))
    assert result.exit_code == 1
    assert f"--json: must be another file than that of --html, {file}" in result.stderr
    assert service.graph_asked is None
    assert not file.exists()


def test_every_phase_has_words() -> None:
    assert PHASES.keys() == {*GraphPhase}


def test_the_only_transcoders_need_no_name(run: Run, service: FakeService) -> None:
    assert run("graph", "abc").exit_code == 0
    assert service.graph_asked is not None
    assert service.graph_asked.transcoders is None


def test_options_are_asked(run: Run, service: FakeService) -> None:
    result = run(
        *(*ASKED, "--target", " b", "--target", "c", "--max-features", "9", "--node-threshold", "0.5"),
        *("--edge-threshold", "0.9", "--no-begin", "--model", "tiny"),
    )
    assert result.exit_code == 0, result.output
    asked = service.graph_asked
    assert asked is not None
    assert [target.token for target in asked.targets] == [" b", "c"]
    assert (asked.max_feature_nodes, asked.node_threshold, asked.edge_threshold) == (9, 0.5, 0.9)
    assert (asked.begin_token, asked.model) == (BeginToken.AS_GIVEN, "tiny")


def test_other_sources_than_features_are_asked(run: Run, service: FakeService) -> None:
    result = run("graph", "abc", "--nodes", "neurons", "--nodes", "latents", "--autoencoder", "tiny/attn")
    assert result.exit_code == 0, result.output
    asked = service.graph_asked
    assert asked is not None
    assert asked.sources == (GraphSource.NEURONS, GraphSource.LATENTS)
    assert (asked.autoencoders, asked.transcoders) == (("tiny/attn",), None)
    refused = run("graph", "abc", "--nodes", "neuron")
    assert refused.exit_code != 0
    assert "neurons" in refused.output


def test_it_writes_a_page_and_the_viewers_file(run: Run, client: Client, tmp_path: Path) -> None:
    page, file, labels = (tmp_path / name for name in ("g.html", "g.json", "labels.json"))
    labels.write_text(json.dumps({row.name: "capitals" for row in client.graph("abc", "tiny/plt").top(100)}))
    result = run(*ASKED, "--html", str(page), "--json", str(file), "--labels", str(labels))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [f"{file} is written", f"{page} is written"]
    assert "capitals" in page.read_text()
    found = json.loads(file.read_text())
    assert "capitals" in {node["clerp"] for node in found["nodes"]}


def test_labels_of_no_node_are_told(run: Run, client: Client, tmp_path: Path) -> None:
    first = client.graph("abc", "tiny/plt").top(1)[0].name
    own = {first: "a", first.partition("@")[0]: "b", "e0@1": "c", "e1": "d"}
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(own))
    assert run(*ASKED, "--labels", str(labels)).stderr == ""
    labels.write_text(json.dumps({**own, "f9.9": "e", "f0.9999@1": "f"}))
    result = run(*ASKED, "--labels", str(labels))
    assert result.exit_code == 0
    assert result.stderr == "--labels: 2 of 6 are of no node of this graph: f9.9, f0.9999@1\n"


@pytest.mark.parametrize("name", ["Mary", "f3", "f3.120@", "t5", "logit:7", ""])
def test_a_label_needs_the_name_of_a_feature_or_error(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "labels.json").write_text(json.dumps({name: "a"}))
    result = run(*ASKED, "--labels", str(tmp_path / "labels.json"))
    assert result.exit_code == 1
    assert f"--labels: {name!r} is no name: a feature is f3.120" in result.stderr


def test_a_threshold_that_is_no_share_is_told_with_its_value(run: Run) -> None:
    for option in ("--node-threshold", "--edge-threshold"):
        for value in ("nan", "2.0", "-0.5"):
            result = run(*ASKED, f"{option}={value}")
            assert result.exit_code == 1
            assert f"{option}: must be between 0 and 1, not {value}" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"), [("[1]", "must hold one object"), ('{"a": 1}', "must hold one object"), ("{", "is no JSON")]
)
def test_labels_are_texts_by_name(run: Run, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    result = run(*ASKED, "--labels", str(tmp_path / "labels.json"))
    assert result.exit_code != 0
    assert f"--labels: {tmp_path / 'labels.json'} {said}" in result.stderr


def test_what_cannot_be_read_or_written_is_told(run: Run, service: FakeService, tmp_path: Path) -> None:
    for option in ("--labels", "--json", "--html"):
        result = run(*ASKED, option, str(tmp_path / "none" / "file"))
        assert result.exit_code != 0
        assert f"{option}: cannot" in result.stderr
        assert service.graph_asked is None


def test_a_page_of_a_large_graph_has_what_matters_most(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = client.graph("abc", "tiny/plt")
    whole = graph_facts(graph, {})
    assert whole["units"] == "features"
    assert len(whole["edges"]) == len(graph.edges)
    monkeypatch.setattr(_graph_page, "MAX_NODES", 10)
    monkeypatch.setattr(_graph_page, "MAX_EDGES", 5)
    facts = graph_facts(graph, {})
    kinds = [node["kind"] for node in facts["nodes"]]
    assert (kinds.count("embedding"), kinds.count("target"), len(kinds)) == (4, 3, 10)
    kept = {node["name"] for node in facts["nodes"]}
    others = [row for row in graph.nodes if row.kind.value in {"feature", "error"}]
    assert max(row.cumulative_score for row in others if row.name in kept) <= min(
        row.cumulative_score for row in others if row.name not in kept
    )
    shares = [edge[3] for edge in facts["edges"]]
    assert len(shares) <= 5
    assert shares == sorted(shares, reverse=True)
