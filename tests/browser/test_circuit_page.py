"""The page of a circuit in a real browser: it loads alone, draws every edge, answers to mouse and keys, and fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from dst_grpc._gen.dst.v1.circuit_pb2 import CircuitFrame, CircuitResponse
from dst_grpc.cli._circuit_page import circuit_page
from dst_grpc.client import make_circuit_request
from dst_grpc.client._circuits import CircuitCollector
from dst_grpc.wire.frames import ValueCutter
from tests.fake_causal import circuit_parts

from .conftest import alone

NASTY = "</script><script>alert(1)</script> <b>John</b>"
MINUS = "\N{MINUS SIGN}"
WIDTHS = (320, 768, 1280)


@pytest.fixture(name="text", scope="module")
def _text() -> str:
    """The page of a circuit of three edges."""
    collector, cutter = CircuitCollector(""), ValueCutter(CircuitFrame)
    frames = [CircuitFrame.FromString(b"".join(f)) for p in circuit_parts(has_curve=True) for f in cutter.cut(p)]
    answer = collector.add(CircuitResponse(frames=frames))
    assert answer is not None
    return circuit_page(make_circuit_request(NASTY, "Mary", target=" Mary"), answer)


@pytest.fixture(name="page")
def _page(browser: Browser, text: str, tmp_path: Path) -> Iterator[Page]:
    """The page, alone: any request, error or complaint of the browser fails the test."""
    path = tmp_path / "circuit.html"
    path.write_text(text, encoding="utf-8")
    with alone(browser, path) as page:
        yield page


def test_it_draws_the_graph_the_curve_and_the_tables(page: Page) -> None:
    assert page.title() == "A circuit of 3 of 8 edges"
    titles = page.locator(".graph .edge title").all_text_contents()
    assert titles == [f"m0 → logits: {MINUS}3", f"input → m0: {MINUS}2", "input → a0.h0<q>: 0.5"]
    assert page.locator(".graph .edge.q").count() == 1
    assert page.locator(".graph .spot").count() == 4
    assert page.locator(".curve circle").count() == 2
    assert "0.875" in page.locator("tr.chosen").inner_text()
    assert NASTY in page.locator("header").first.inner_text()


def test_a_node_shows_its_edges_by_mouse_and_by_key(page: Page) -> None:
    edges = page.locator("section[aria-label='Its edges'] tbody tr, section[aria-label^='Edges of'] tbody tr")
    assert edges.count() == 3
    page.locator(".spot[aria-label='a0.h0']").click()
    assert page.locator("section[aria-label='Edges of a0.h0'] code").all_text_contents() == ["input->a0.h0<q>"]
    page.locator(".spot[aria-label='a0.h0']").focus()
    page.keyboard.press("Enter")
    assert edges.count() == 3
    page.keyboard.press(" ")
    assert edges.count() == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_every_screen(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
