"""A real browser without a window: Debian's `chromium-headless-shell`, or any Chromium that DST_TEST_CHROMIUM names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@contextmanager
def alone(browser: Browser, path: Path) -> Iterator[Page]:
    """The page in a file, alone: any request, error or complaint of the browser fails the test."""
    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(path.as_uri())
    yield page
    page.close()
    assert [each for each in problems if not each.startswith("data:")] == []


@pytest.fixture(name="browser", scope="module")
def _browser() -> Iterator[Browser]:
    # For the module only: while it is open, its event loop runs on this thread, where no other test could have one.
    executable = os.environ.get("DST_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.fail("there is no Chromium: apt-get install chromium-headless-shell, or name one in DST_TEST_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        yield browser
        browser.close()
