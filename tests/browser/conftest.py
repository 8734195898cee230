"""A real browser without a window: Debian's `chromium-headless-shell`, or any Chromium that DST_CHROMIUM names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(name="browser", scope="module")
def _browser() -> Iterator[Browser]:
    # For the module only: while it is open, its event loop runs on this thread, where no other test could have one.
    executable = os.environ.get("DST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.fail("there is no Chromium: apt-get install chromium-headless-shell, or name one in DST_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        yield browser
        browser.close()
