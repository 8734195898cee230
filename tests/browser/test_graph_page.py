"""The page of an attribution graph in a real browser: it loads alone, draws all, filters, pins, and fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from dst_grpc._gen.dst.v1.graph_pb2 import GraphFrame, GraphResponse
from dst_grpc.cli._graph_page import graph_facts, graph_page
from dst_grpc.client import GraphAnswer, GraphNodeKind, GraphScoredFeature, GraphSource, GraphTokenScore
from dst_grpc.client._graphs import GraphCollector
from dst_grpc.wire.frames import ValueCutter
from tests.fake_answers import SUMMARY
from tests.fake_graphs import graph_parts

from .conftest import alone

NASTY = "</script><script>alert(1)</script> <b>John</b>"
WIDTHS = (320, 768, 1280)


@pytest.fixture(name="graph", scope="module")
def _graph() -> GraphAnswer:
    """A random graph of 12 features, with all edges."""
    collector, cutter = GraphCollector(""), ValueCutter(GraphFrame)
    parts = (*graph_parts(), SUMMARY)
    cut = [frame for part in parts for frame in cutter.cut(part)]  # type: ignore[arg-type]  # a part, or the summary
    answer = collector.add(GraphResponse(frames=[GraphFrame.FromString(b"".join(frame)) for frame in cut]))
    assert answer is not None
    return answer


@pytest.fixture(name="page")
def _page(browser: Browser, graph: GraphAnswer, tmp_path: Path) -> Iterator[Page]:
    """The page, alone: any request, error or complaint of the browser fails the test."""
    path = tmp_path / "graph.html"
    token = GraphTokenScore(token_id=1, token=NASTY, score=1.0)
    scored = GraphScoredFeature(node=graph.names[0], promoted=(token,), suppressed=(token, token))
    labels = {graph.names[0].partition("@")[0]: NASTY}
    path.write_text(graph_page(graph, labels, [scored]), encoding="utf-8")
    with alone(browser, path) as page:
        yield page


def test_it_draws_every_node_and_the_strong_edges(page: Page, graph: GraphAnswer) -> None:
    facts = graph_facts(graph, {})
    assert page.title() == facts["title"]
    assert page.locator(".features .spot").count() == len(facts["nodes"])
    assert page.locator(".features .spot.error").count() == sum(node["kind"] == "error" for node in facts["nodes"])
    strong = [edge for edge in facts["edges"] if edge[3] >= 0.1]
    assert page.locator(".features .edge").count() == len(strong)
    assert page.locator(".features .edge.k").count() == sum(edge[2] < 0 for edge in strong)


def test_neurons_are_circles_and_heads_diamonds(browser: Browser, graph: GraphAnswer, tmp_path: Path) -> None:
    kinds, names = graph.table.kinds.copy(), list(graph.table.names)
    for place, (kind, letter) in enumerate([(GraphNodeKind.HEAD, "h"), (GraphNodeKind.NEURON, "n")]):
        kinds[place], names[place] = kind.number, letter + names[place][1:]
    header = replace(graph.header, transcoders="", sources=(GraphSource.NEURONS, GraphSource.HEADS))
    other = replace(graph, header=header, table=replace(graph.table, kinds=kinds, names=tuple(names)))
    path = tmp_path / "graph.html"
    path.write_text(graph_page(other, {}), encoding="utf-8")
    with alone(browser, path) as page:
        assert page.locator(f".spot.head[aria-label='{names[0]}'] path").count() == 1
        assert page.locator(f".spot.neuron[aria-label='{names[1]}'] circle").count() == 1
        assert "circles and diamonds: neurons and heads" in page.inner_text("body")
        page.locator(".spot.head").click()
        assert "head, " in page.locator(f"section[aria-label^='{names[0]}']").inner_text()


def test_a_node_shows_its_edges_by_mouse_and_by_key(page: Page, graph: GraphAnswer) -> None:
    name = graph.names[0]
    edges = graph.neighbours(name, 1000)
    spot = page.locator(f".spot[aria-label='{name}']")
    spot.focus()
    page.keyboard.press("Enter")
    assert page.locator(".features .edge").count() == len(edges)
    details = page.locator(f"section[aria-label^='{name}']")
    assert NASTY in details.inner_text()
    kinds = [details.locator(f"p[aria-label='{kind} tokens'] .token").count() for kind in ("reads", "raises", "lowers")]
    assert kinds == [0, 1, 2]
    assert f"From ({sum(edge.target == name for edge in edges)})" in details.inner_text()
    spot.click()
    assert details.count() == 0


def test_filters_leave_nodes_and_edges_out(page: Page, graph: GraphAnswer) -> None:
    spots = page.locator(".features .spot")
    whole = spots.count()
    page.get_by_role("button", name="errors").click()
    errors = sum(node["kind"] == "error" for node in graph_facts(graph, {})["nodes"])
    assert spots.count() == whole - errors
    page.get_by_label("token", exact=True).select_option("1")
    assert page.locator(".features .spot.embedding").count() == 1
    page.get_by_label("token", exact=True).select_option("")
    page.get_by_label("edges of at least").fill("1")
    assert page.locator(".features .edge").count() == sum(edge[3] >= 1 for edge in graph_facts(graph, {})["edges"])
    page.get_by_label("from layer").fill("2")
    layers = [node["layer"] for node in graph_facts(graph, {})["nodes"] if node["kind"] == "feature"]
    assert page.locator(".features .spot.feature").count() == sum(layer == 2 for layer in layers)


def test_pinned_nodes_form_groups_whose_edges_add_up(page: Page, graph: GraphAnswer) -> None:
    target = graph.names[-3]
    sources = [edge.source for edge in graph.neighbours(target, 2, direction="inputs")]
    for name in (*sources, target):
        page.locator(f".spot[aria-label='{name}']").click()
        page.get_by_role("button", name="pin").click()
        page.locator(f".spot[aria-label='{name}']").click()
    for name in sources:
        page.get_by_label(f"group of {name}").fill("both")
        page.keyboard.press("Enter")
    weights = {edge.source: edge.weight for edge in graph.neighbours(target, 1000, direction="inputs")}
    rows = page.locator("table[aria-label='Edges of groups'] tbody tr").all_inner_texts()
    (row,) = [row for row in rows if row.split("\t")[0] == "both"]
    total = float(row.split("\t")[2].replace("\N{MINUS SIGN}", "-"))
    assert total == pytest.approx(sum(weights[name] for name in sources), rel=1e-3)


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_every_screen(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_long_tokens_among_the_edges_of_a_node_fit_a_small_screen(
    browser: Browser, graph: GraphAnswer, tmp_path: Path
) -> None:
    path = tmp_path / "graph.html"
    long = replace(graph.header, token_strings=("<|endoftext|><|endoftext|>",) * 4)
    path.write_text(graph_page(replace(graph, header=long), {}, ()), encoding="utf-8")
    with alone(browser, path) as page:
        page.set_viewport_size({"width": 320, "height": 800})
        spots = page.locator(".features .spot")
        for i in range(spots.count()):
            spots.nth(i).dispatch_event("click")
            if page.get_by_role("button", name="pin", exact=True).count():
                page.get_by_role("button", name="pin", exact=True).click()
            assert page.evaluate("document.documentElement.scrollWidth") <= 320
