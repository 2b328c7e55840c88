"""A browser for tests: Debian's Chromium without a window, by Playwright."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

__all__ = ["Visit", "chromium", "visiting"]

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium; a test without one is skipped by name, and with ``CI=true`` fails."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        if "CI" in os.environ:
            pytest.fail("there is no Chromium: apt-get install chromium")
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root has no sandbox, and containers have little shared memory.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page and all that it did beside being shown.

    Attributes:
        page: Playwright's page.
        requests: URLs that were asked for.
        dialogs: What a script said in a dialog.
        complaints: Errors of scripts, and what the console says of errors and broken policies.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", self._dialog)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._console)

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _console(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)


@contextmanager
def visiting(browser: Browser, **how: Any) -> Iterator[Visit]:
    """Open an empty page that knows nothing of others.

    Args:
        browser: A running one.
        how: Of the context, such as ``color_scheme`` and ``viewport``.
    """
    context = browser.new_context(**how)
    try:
        yield Visit(context.new_page())
    finally:
        context.close()
