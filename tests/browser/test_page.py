"""The page of an explanation in a real browser: it loads alone, draws everything, sorts, and fits every screen."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from dst_grpc.cli._explain import explain_request_of
from dst_grpc.cli._page import page as page_text
from tests.explanations import ATTENTION, TOKENS, explanation_of

NASTY = ("</script><script>alert(1)</script>", "<!--", " <b>Mary</b>\n", "\u202eJohn" + "x" * 200)
MINUS = "\N{MINUS SIGN}"
WIDTHS = (320, 400, 768, 1280, 1920)
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const pixel = (...colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((x) => x / 255).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const worst = [];
  for (const element of document.querySelectorAll("main *")) {
    const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!says || element.closest(".hidden, option") || !element.getClientRects().length) continue;
    const grounds = [];
    for (let at = element; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const ground = light(pixel("white", ...grounds));
    const ink = light(pixel("white", ...grounds, getComputedStyle(element).color));
    const contrast = (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
    worst.push([contrast, element.className, element.textContent.slice(0, 30)]);
  }
  return worst.sort((a, b) => a[0] - b[0])[0];
}"""

"""The text that stands out least from its ground: contrast, class, words."""
PAINTED = """async (image) => {
  const bitmap = await createImageBitmap(await (await fetch(`data:image/png;base64,${image}`)).blob());
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  canvas.drawImage(bitmap, 0, 0);
  const { data } = canvas.getImageData(0, 0, bitmap.width, bitmap.height);
  const colours = new Set();
  let painted = 0;
  for (let i = 0; i < data.length; i += 4) {
    colours.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
    if (Math.max(...[0, 1, 2].map((j) => Math.abs(data[i + j] - data[j]))) > 40) painted += 1;
  }
  return [data[0], colours.size, painted / (data.length / 4)];
}"""
"""Of a screenshot: brightness of its corner, number of colours, share of what differs from the corner."""


@dataclass
class Seen:
    """An open page, and what it did that it should not."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


Open = Callable[..., Seen]


@pytest.fixture(name="open_page")
def _open_page(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    opened: list[Seen] = []

    def open_page(
        *, width: int = 1280, scheme: str = "light", tokens: tuple[str, ...] = TOKENS, residual: str = "none"
    ) -> Seen:
        request = explain_request_of(
            "x", target=[" Mary"], distractor=[" John"], ablate=["0.h1"], groups=["all"], residual=residual
        )
        attention = {(0, 1): ATTENTION, (1, 0): np.eye(len(ATTENTION))}
        if len(tokens) != len(ATTENTION):
            attention = {(0, 1): np.eye(len(tokens))}
        file = tmp_path / "why.html"
        file.write_text(page_text(request, explanation_of(request, tokens=tokens), attention), encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]  # light or dark
        seen = Seen(page)
        page.on("console", lambda message: seen.complaints.append(message.text))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("dialog", lambda dialog: seen.complaints.append(dialog.message))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(file.as_uri())
        opened.append(seen)
        return seen

    yield open_page
    for seen in opened:
        assert seen.complaints == []
        # Nothing but the page itself, from the disk.
        assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []
        assert len([url for url in seen.requests if url.startswith("file:")]) == 1
        seen.page.close()


def nodes(page: Page) -> list[str]:
    return page.locator(".nodes tbody .node").all_inner_texts()


def test_it_shows_the_prompt_the_nodes_and_the_comparison(open_page: Open) -> None:
    page = open_page().page
    assert page.title() == "When Mary saw John ... why Mary and not John?"
    assert page.locator(".strip .token").all_inner_texts() == ["When", "·Mary", "·saw", "·John"]
    assert page.locator(".strip .number").all_inner_texts() == [f"{MINUS}2.00", "+2.00", f"{MINUS}1.00", "+4.00"]
    assert nodes(page) == ["0.h1@3,1", "1.h0@3,2", "1.n4@3", "1.a7@3", "emb@1"]
    text = page.locator("main").inner_text()
    assert "The 5 listed nodes account for +4.00 of +5.00" in text
    assert "With 0.h1=0" in text
    assert "+2.50" in text
    # " Mary" in the first run and in the second: 0.88 and 0.73 of what is listed, which is 0.8 of the vocabulary.
    assert "·Mary\t70%\t58%" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_residual_is_shown_by_layer(open_page: Open, width: int) -> None:
    page = open_page(width=width, residual="latents").page
    page.get_by_role("button", name="Direct effects of the residual (final norm frozen)").click()
    table = page.get_by_role("table", name="Direct effects of the residual (final norm frozen) by layer")
    assert [row.locator("th, td").all_inner_texts() for row in table.locator("tr").all()] == [
        ["layer", "residual", "= latents", "+ error", "+ decoder bias", "listed"],
        *([str(layer), "+1.75", "+2.00", f"{MINUS}0.50", "+0.25", "+1.00"] for layer in range(2)),
    ]
    # Tokens without numbers: the layers say the same thing again.
    assert page.locator(".strip .token").count() == 4
    assert page.locator(".strip .number").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_what_a_node_reads_and_writes_stands_beside_it(open_page: Open) -> None:
    page = open_page().page
    cells = [row.locator("td").all_inner_texts() for row in page.locator(".nodes tbody tr").all()]
    by_name = {name: [cell.split() for cell in rest] for name, *rest in cells}
    assert by_name["0.h1@3,1"][0] == ["·John", "←", "·Mary"]
    assert by_name["1.n4@3"][2:] == [["↑", "·Mary", "</script>", "↓", "·John"], ["·Mary", "</script>"]]
    # A latent of attention: the tokens of the prompt that it comes from.
    assert by_name["1.a7@3"][3] == ["·Mary", "When"]


def test_tables_can_be_sorted(open_page: Open) -> None:
    page = open_page().page
    effect = page.get_by_role("columnheader", name="effect")
    assert effect.get_attribute("aria-sort") == "other"
    effect.get_by_role("button").click()
    assert nodes(page) == ["0.h1@3,1", "1.n4@3", "1.a7@3", "emb@1", "1.h0@3,2"]
    assert effect.get_attribute("aria-sort") == "descending"
    # The button keeps the focus, so that the keyboard can go on.
    page.keyboard.press("Enter")
    assert nodes(page) == ["1.h0@3,2", "emb@1", "1.a7@3", "1.n4@3", "0.h1@3,1"]
    assert effect.get_attribute("aria-sort") == "ascending"
    page.get_by_role("columnheader", name="node").get_by_role("button").click()
    assert nodes(page) == ["emb@1", "0.h1@3,1", "1.h0@3,2", "1.a7@3", "1.n4@3"]


def test_another_group_can_be_chosen(open_page: Open) -> None:
    page = open_page().page
    button = page.get_by_role("button", name="Activations")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator(".strip .number").first.inner_text() == f"{MINUS}2.00"
    assert "sum to 4.00, all nodes to 4.50" in page.locator("main").inner_text()
    assert page.get_by_role("columnheader", name="value").count() == 1


def test_a_head_shows_its_attention(open_page: Open) -> None:
    page = open_page().page
    assert page.locator("#head").input_value() == "0.h1"
    cell = page.locator('.grid [data-at="3,1"]')
    assert cell.inner_text() == "97%"
    cell.hover()
    assert page.locator("output").inner_text() == '" John" (3) reads " Mary" (1): 97%'
    page.get_by_role("button", name="1.h0@3,2").click()
    assert page.locator("#head").input_value() == "1.h0"
    assert page.locator('.grid [data-at="3,1"]').inner_text() == "0%"
    assert page.locator("tr.chosen .node").inner_text() == "1.h0@3,2"
    page.locator("#head").select_option("0.h1")
    assert page.locator("tr.chosen .node").inner_text() == "0.h1@3,1"


def test_a_long_prompt_has_its_attention_as_a_list(open_page: Open) -> None:
    page = open_page(tokens=tuple(f" t{i}" for i in range(80)), width=400).page
    assert page.locator(".grid").count() == 0
    assert page.locator("#attention li").last.inner_text().split() == ["·t79", "reads", "·t79", "100%"]
    assert overflow(page) == 0


def test_tokens_are_text_whatever_they_say(open_page: Open) -> None:
    page = open_page(tokens=NASTY, width=400).page
    assert page.locator("script").count() == 2
    assert page.locator("main b").count() == 0
    assert page.locator(".strip .token").first.inner_text() == NASTY[0]
    assert page.locator(".strip .token").nth(2).inner_text() == "·<b>Mary</b>⏎"
    assert overflow(page) == 0


def overflow(page: Page) -> int:
    """Columns of pixels by which the page is wider than the screen."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_every_screen(open_page: Open, width: int, scheme: str) -> None:
    page = open_page(width=width, scheme=scheme).page
    assert overflow(page) == 0
    # Nothing is cut off either: every node's name lies within the screen.
    for box in page.locator(".nodes .node").all():
        place = box.bounding_box()
        assert place is not None
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(open_page: Open, scheme: str) -> None:
    """Contrast of at least 4.5, as WCAG 2 asks for, on whatever ground a text stands."""
    ratio, name, text = open_page(scheme=scheme).page.evaluate(CONTRAST)
    assert ratio >= 4.5, (name, text)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_something_is_painted(browser: Browser, open_page: Open, width: int, scheme: str) -> None:
    image = open_page(width=width, scheme=scheme).page.screenshot()
    reader = browser.new_page()
    ground, colours, painted = reader.evaluate(PAINTED, base64.b64encode(image).decode())
    reader.close()
    assert (ground > 128) is (scheme == "light")
    # Texts, bars and cards: many colours, and a good part of the screen.
    assert colours > 50
    assert painted > 0.02


def test_everything_can_be_reached_and_has_a_name(open_page: Open) -> None:
    page = open_page().page
    names = page.evaluate(
        """() => [...document.querySelectorAll("button, select, [tabindex]")].map((element) =>
          element.innerText || element.getAttribute("aria-label") || element.labels?.[0]?.innerText || "")"""
    )
    assert len(names) >= 8
    assert all(names)
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, select")].filter((element) =>
          element.getBoundingClientRect().height < 24).length"""
    )
    assert small == 0
