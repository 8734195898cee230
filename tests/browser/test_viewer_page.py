"""A graph in circuit-tracer's own page: every node is drawn, and a click shows the edges of one.

The page is that of the package on PyPI, which `make browser` unpacks into .venv-circuit-tracer. It loads libraries from
other hosts; npm's copies of them are served in their place. All requests are answered here, and none goes anywhere.
"""

from __future__ import annotations

import json
import mimetypes
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route

from tests.e2e.conftest import environment_with, served

ENVIRONMENT = Path(__file__).parents[2] / ".venv-circuit-tracer"
LIBRARIES = ENVIRONMENT / "node_modules"
SCRIPTS: dict[str, tuple[str, ...]] = {
    "d3.js": ("d3/dist/d3.js", "d3-collection/dist/d3-collection.js"),
    "jetpack_2024-07-20.js": ("d3-jetpack/build/d3-jetpack.cjs",),
    "dagre.min.js": ("dagre/dist/dagre.min.js",),
    "pako.min.js": ("pako/dist/pako.min.js",),
    "npy_v0.js": (),  # for files of arrays, of which a graph has none
    "hotserver-client-ws.js": (),  # reloads the page while it is developed
}
"""Scripts of other hosts, and where npm's copies are: none of those that a graph does not need."""
AS_A_SCRIPT = (
    "(() => {{ const exports = {{}}, module = {{}}, require = () => d3; {}\nObject.assign(d3, exports); }})();"
)
"""How a page runs a module for Node that extends d3."""
AXES = """{
  const { conventions, drawAxis } = d3;
  d3.conventions = (given) => {
    const found = conventions(given);
    return Object.assign(found, { drawAxis: (svg) => drawAxis({ ...found, svg }) });
  };
}"""
"""The page's jetpack is newer than npm's newest: what `conventions` makes can draw its axes into a selection."""
EXAMPLES = {"examples_quantiles": [], "top_logits": [" up"], "bottom_logits": [" down"]}
"""What the page asks another host for when a feature is looked at: where it is active, which nobody has collected."""
PROMPT = "When Mary and John went to the store, John gave a drink to"
AT_ENDS = {"embedding", "logit"}
"""Kinds of nodes that are always drawn, as squares."""
ORIGIN = "http://viewer.invalid"


@pytest.fixture(name="assets", scope="module")
def _assets() -> Path:
    found = [*ENVIRONMENT.glob("lib/python*/site-packages/circuit_tracer/frontend/assets")]
    if not found or not LIBRARIES.exists():
        pytest.fail("circuit-tracer's page is not here: `make browser` unpacks it")
    return found[0]


@pytest.fixture(name="graph", scope="module")
def _graph(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The file that the command writes."""
    path = tmp_path_factory.mktemp("graph") / "graph.json"
    with served() as address:
        command = [sys.executable, "-m", "dst_grpc.cli", "graph", PROMPT, "--json", str(path), "--server", address]
        subprocess.run(command, check=True, capture_output=True, env=environment_with())
    found: dict[str, Any] = json.loads(path.read_text())
    ids = Counter(node["node_id"] for node in found["nodes"])
    assert max(ids.values()) == 1, "two nodes have one id, of which the page draws one"
    return found


@pytest.fixture(name="page")
def _page(browser: Browser, assets: Path, graph: dict[str, Any]) -> Iterator[Page]:
    """The page, with the graph; any other request, error or complaint of the browser fails the test."""
    metadata = {"graphs": [graph["metadata"]]}
    data = {"/data/graph-metadata.json": metadata, f"/graph_data/{graph['metadata']['slug']}.json": graph}
    unknown: list[str] = []

    def answer(route: Route) -> None:
        host, path = route.request.url.split("/", 3)[2], "/" + route.request.url.split("/", 3)[3].partition("?")[0]
        name = path.rpartition("/")[2]
        if f"http://{host}" == ORIGIN and path in data:
            route.fulfill(json=data[path])
        elif f"http://{host}" == ORIGIN and (assets / path[1:]).is_file():
            route.fulfill(path=assets / path[1:], content_type=mimetypes.guess_type(name)[0])
        elif name in SCRIPTS:
            route.fulfill(body="\n".join(map(script, SCRIPTS[name])), content_type="text/javascript")
        elif "/features/" in path:
            # First it asks whether a model's features are on the hub, then for those of one feature.
            if route.request.method == "HEAD":
                route.fulfill(status=404, headers={"Access-Control-Allow-Origin": "*"})
            else:
                route.fulfill(json=EXAMPLES, headers={"Access-Control-Allow-Origin": "*"})
        else:
            unknown.append(route.request.url)
            route.abort()

    page = browser.new_page(viewport={"width": 1600, "height": 1200})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.route("**/*", answer)
    page.goto(f"{ORIGIN}/index.html")
    page.wait_for_selector(".link-graph text.node")
    yield page
    page.close()
    assert unknown == []
    # A file that is not on the hub is no fault of the graph.
    assert [each for each in problems if "404" not in each] == []


def script(library: str) -> str:
    """A library, as a page can run it."""
    text = (LIBRARIES / library).read_text()
    return AS_A_SCRIPT.format(text) + AXES if library.endswith(".cjs") else text


def drawn(graph: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes that the page draws. The one with which influence passes the threshold is in the file, as in those of
    circuit-tracer, and not drawn."""
    threshold = graph["metadata"]["node_threshold"]
    return [node for node in graph["nodes"] if node["feature_type"] in AT_ENDS or node["influence"] <= threshold]


def nodes(page: Page) -> Locator:
    return page.locator(".link-graph text.node")


def test_it_draws_every_node(page: Page, graph: dict[str, Any]) -> None:
    expected = drawn(graph)
    assert nodes(page).count() == page.locator(".link-graph circle").count() == len(expected)
    assert len(graph["nodes"]) - len(expected) <= 1
    shapes = Counter(nodes(page).all_text_contents())
    kinds = Counter("square" if node["feature_type"] in AT_ENDS else node["feature_type"] for node in expected)
    assert sorted(shapes.values()) == sorted(kinds.values())
    assert PROMPT in page.locator(".graph-prompt-select").inner_text()


def shown_ids(page: Page) -> list[str]:
    """The ids of the nodes that are drawn, in the order of the drawing."""
    found: list[str] = page.evaluate("d3.selectAll('.link-graph text.node').data().map((node) => node.nodeId)")
    return found


def choose(page: Page, node: str) -> None:
    """Click on a node."""
    box = nodes(page).nth(shown_ids(page).index(node)).bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_url(lambda url: url.endswith(f"clickedId={node}"))


def test_a_click_shows_the_edges_of_a_node(page: Page, graph: dict[str, Any]) -> None:
    ids = {node["node_id"] for node in drawn(graph)}
    assert {*shown_ids(page)} == ids
    links = [link for link in graph["links"] if {link["source"], link["target"]} <= ids]
    into, out_of = (Counter(link[end] for link in links) for end in ("target", "source"))
    features = [node["node_id"] for node in drawn(graph) if node["feature_type"] == "cross layer transcoder"]
    busiest = max(features, key=lambda each: min(into[each], out_of[each]))
    assert into[busiest] > 0 < out_of[busiest]
    for each in (busiest, graph["nodes"][-1]["node_id"]):
        choose(page, each)
        rows = [page.locator(f".node-connections .features.{side} .feature-row") for side in ("input", "output")]
        assert [side.count() for side in rows] == [into[each], out_of[each]]
        assert page.locator(".link-graph text.node.clicked").count() == 1
