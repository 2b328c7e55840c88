"""What people see in a browser of an archive that is served: the texts of MLflow's own pages."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from tests.live import served

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

_PAGE_S = 240
_VIRTUAL_MS = 30_000
_TOAST = re.compile(r"notification-notice-(error|warning)|is refused|PERMISSION_DENIED")


@pytest.fixture
def browser() -> str:
    """Chromium; where it is absent the test is skipped, but never in CI."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    if os.environ.get("CI") == "true":
        pytest.fail("chromium must be installed in CI")
    pytest.skip("chromium is not installed")


def page(browser: str, url: str, profile: Path) -> str:
    """Return a page as it stands once all that it asked for has come."""
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", f"--user-data-dir={profile}"),
            *("--window-size=1400,1000", f"--virtual-time-budget={_VIRTUAL_MS}"),
            *("--dump-dom", url),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PAGE_S,
        check=True,
    )
    return done.stdout


def text_of(document: str) -> str:
    """Return what can be read on a page."""
    shown = re.sub(r"<(script|style)[^>]*>.*?</\1>", " ", document, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", shown)).split())


@pytest.mark.timeout(900)
def test_the_pages_of_mlflow_show_what_was_packed(
    everything: tuple[str, str], browser: str, tmp_path: Path
) -> None:
    _, archive = everything
    with served(tmp_path / "served", archive) as url:
        client = MlflowClient(url, url)
        ids = {e.name: e.experiment_id for e in client.search_experiments(ViewType.ALL)}
        runs = {r.info.run_name: r.info.run_id for r in client.search_runs([ids["plain"]])}
        run = f"experiments/{ids['plain']}/runs/"
        pages = {
            "experiments": ["plain", "agent ✓", "judged", "nothing in it"],
            f"{run}{runs['run: params and tags ✓']}": ["run: params and tags ✓", "Parameters"],
            f"{run}{runs['run: metrics ✓']}/model-metrics": [
                "run: metrics ✓",
                "Model metrics (12)",
            ],
            f"{run}{runs['run: artifacts ✓']}/artifacts": ["Ünï 日本語 ✓", "note.txt", "MLmodel"],
            "models": ["churn ✓ model", "@ champion", "shop"],
            "models/shop/versions/1": ["Version 1", "run: train ✓", "champion"],
            "prompts": ["agent.system", "greet.user", "Version 12"],
            f"experiments/{ids['agent ✓']}/traces?startTimeLabel=ALL": ["session ✓", "3 of 3"],
        }
        for number, (path, expected) in enumerate(pages.items()):
            document = page(browser, f"{url}/#/{path}", tmp_path / f"profile-{number}")
            text = text_of(document)
            assert [words for words in expected if words not in text] == [], (path, text)
            assert not _TOAST.search(document), (path, text)
            assert "Archive of 2" in text, path
            assert "traces?startTimeLabel=ALL" in document, path
