"""Files of viewers, of golden graphs over a socket: those that circuit-tracer writes, and fit the viewers' schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dst_grpc.client import AsyncClient, viewer_json
from tests.e2e.test_graph import question
from tests.graph_goldens import FOLDER, NAMES, golden_graph

SCHEMA = json.loads((FOLDER / "graph-schema.json").read_text())
FREE = {"clerp"}
"""Texts for readers."""


def close(found: Any, golden: Any) -> bool:
    """Whether values are equal, numbers to 1e-4."""
    if isinstance(golden, float):
        return bool(found == pytest.approx(golden, rel=1e-4, abs=1e-4))
    return bool(found == golden)


@pytest.mark.parametrize("name", NAMES)
async def test_files_are_those_of_circuit_tracer(graphs_address: str, name: str) -> None:
    case = golden_graph(name)
    async with AsyncClient(graphs_address) as client:
        found = viewer_json(await client.graph_request(question(case)), slug="golden", scan="golden")
    golden = case.viewer
    jsonschema.validate(found, SCHEMA)
    assert found["metadata"] == golden["metadata"]
    assert found["qParams"] == golden["qParams"]
    assert len(found["nodes"]) == len(golden["nodes"])
    for node, wanted in zip(found["nodes"], golden["nodes"], strict=True):
        assert node.keys() == wanted.keys()
        assert all(close(node[key], wanted[key]) for key in wanted if key not in FREE), (node, wanted)
    assert [(one["source"], one["target"]) for one in found["links"]] == [
        (one["source"], one["target"]) for one in golden["links"]
    ]
    largest = max(abs(one["weight"]) for one in golden["links"])
    for link, wanted in zip(found["links"], golden["links"], strict=True):
        assert link["weight"] == pytest.approx(wanted["weight"], abs=1e-6 + 1e-4 * largest)


async def test_labels_are_passed_through_and_directions_named(graphs_address: str, tmp_path: Path) -> None:
    case = golden_graph("gpt2_plt_relu_whole")
    async with AsyncClient(graphs_address) as client:
        width = case.tensors["adjacency_matrix"].dtype.type(1)
        d_model = (await client.model("gpt2")).dimensions.d_model
        graph = await client.graph_request(question(case, targets=(35,), directions={"up": [width] * d_model}))
    feature = next(row.name for row in graph.top(1))
    found = viewer_json(graph, labels={feature.partition("@")[0]: "a label"})
    jsonschema.validate(found, SCHEMA)
    assert any(node["clerp"] == "a label" for node in found["nodes"])
    assert [node["node_id"] for node in found["nodes"]][-2:] == ["4_35_8", "4_up_8"]
    (tmp_path / "graph.json").write_text(json.dumps(found))
