"""The page of `examples/mesh` in a real browser: it asks a server by gRPC-Web, through Envoy."""

from __future__ import annotations

from playwright.sync_api import Browser, expect

from tests.browser.conftest import _browser  # noqa: F401  the fixture
from tests.mesh.proxy import Proxy
from tests.mesh.test_envoy import envoy  # noqa: F401  likewise

SECONDS = 60


def test_every_word_is_coloured_by_its_effect(browser: Browser, envoy: Proxy) -> None:  # noqa: F811  the fixture
    page = browser.new_page(ignore_https_errors=True)
    errors: list[object] = []
    page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108  it marks what it calls
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"https://{envoy.address}/")
    page.get_by_role("button", name="Ask").click()
    words = page.locator("#answer span")
    expect(words).to_have_count(14, timeout=1000 * SECONDS)
    assert words.all_inner_texts()[1:4] == [" Mary", " and", " John"]
    backgrounds = {word.evaluate("word => getComputedStyle(word).backgroundColor") for word in words.all()}
    assert len(backgrounds) > 5
    expect(page.locator("#answer")).to_contain_text("14.7")
    page.get_by_label("rather than").fill("two words")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer")).to_contain_text("invalid_argument", timeout=1000 * SECONDS)
    assert not [error for error in errors if "400" not in str(error)]
    page.close()
