"""What people see in a browser of an archive that is served: what its source shows and draws."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import pack
from tests.browser import chromium, visiting
from tests.filled import copy_of_server
from tests.live import served
from tests.pages import EXPERIMENT, fill
from tests.servers import start_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

pytestmark = pytest.mark.integration

_WAITED_S = 60
_STILL_S = 1.0
_CURVES = ".scatterlayer path.js-line"
_TOAST = re.compile(r"notification-notice-(error|warning)|is refused|PERMISSION_DENIED")
_OF_ITS_OWN = re.compile(
    r"\s*|Path: mlflow-artifacts:.*|\d+ \w+ ago|MLflow Assistant|Beta|Ollama|[0-9a-f]{8}\.\.\."
)
"""Where files are, how long ago it is, and the assistant, which a server of an archive has not."""


class Look(NamedTuple):
    """One page.

    Attributes:
        path: Where it is.
        expected: Texts on it.
        clicks: Texts that are clicked on before.
        drawn: Selector of what is drawn, and how often it is there at least.
    """

    path: str
    expected: list[str]
    clicks: tuple[str, ...] = ()
    drawn: tuple[str, int] = ("body", 1)


@pytest.fixture(scope="module")
def deployments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server with what pages draw, and an archive of it that is served."""
    folder = tmp_path_factory.mktemp("pages")
    copy_of_server(folder / "source", fill)
    archive = str(folder / "pages.tar.zst")
    with start_server(folder / "source") as server:
        assert pack(archive, tracking_uri=server.url).ok
        with served(folder / "served", archive) as url:
            yield server.url, url


def looks(client: MlflowClient) -> dict[str, Look]:
    """Return the pages."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    number = experiment.experiment_id
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs([number])}
    (trace,) = client.search_traces([number])
    within = f"experiments/{number}/"
    long = f"{within}runs/{runs['long']}"
    chart = {
        "runs": [runs["long"], runs["short"]],
        "metric": "loss",
        "experiments": [number],
        "plot_metric_keys": ["loss", "accuracy"],
        "plot_layout": {"autosize": True, "yaxis": {"type": "log"}},
        "deselected_curves": [],
        "last_linear_y_axis_range": [],
    }
    asked = "&".join(f"{name}={quote(json.dumps(value))}" for name, value in chart.items())
    asked += "&x_axis=step&y_axis_scale=log&line_smoothness=1&show_point=false"
    of_trace = f"startTimeLabel=ALL&selectedEvaluationId={trace.info.trace_id}"
    picture = ("img[src^='blob:']", 1)
    return {
        "runs": Look(f"{within}runs?startTime=ALL", ["long", "short", "fruits of may"]),
        "run": Look(long, ["depth", "accuracy", "fruits of may", "Finished"]),
        "charts": Look(f"{long}/model-metrics", ["Model metrics", "loss"], drawn=(_CURVES, 2)),
        "chart": Look(f"metric?{asked}", ["0.02", "0.05", "short (loss)"], drawn=(_CURVES, 4)),
        "picture": Look(f"{long}/artifacts", ["line.png"], ("plots", "line.png"), picture),
        "table": Look(f"{long}/artifacts", ["weight", "apple", "pear"], ("fruits.json",)),
        "traces": Look(f"{within}traces?startTimeLabel=ALL", ["which fruit?", "1 of 1"]),
        "spans": Look(f"{within}traces?{of_trace}", ["answer", "look up"]),
        "datasets": Look(f"{within}datasets", ["asked fruits"]),
        "evaluations": Look(f"{within}evaluation-runs", ["graded", "correctness/mean", "0.75"]),
        "models": Look("models", ["fruits"]),
        "version": Look("models/fruits/versions/1", ["Version 1", "long", "champion"]),
        "prompt": Look("prompts/greeting", ["Hello {{name}}, which fruit?"]),
    }


@pytest.mark.timeout(900)
def test_the_pages_of_mlflow_show_what_the_source_shows(deployments: tuple[str, str]) -> None:
    source, archive = deployments
    pages = looks(MlflowClient(source, source))
    with chromium() as browser:
        shown = []
        for url in deployments:
            with visiting(browser, viewport={"width": 1600, "height": 1200}) as visit:
                shown.append({name: seen(visit.page, url, look) for name, look in pages.items()})
                banner = visit.page.locator("#mlflow-exim").all_text_contents()
                assert len(banner) == (url == archive)
                assert all("Archive of 2" in text for text in banner)
    there, here = shown
    differing = {name: (there[name] - here[name], here[name] - there[name]) for name in pages}
    assert {name: found for name, found in differing.items() if any(found)} == {}


def seen(page: Page, url: str, look: Look) -> set[str]:
    """Return the lines of a page, once it is whole and has been still for a moment."""
    page.goto("about:blank")
    page.goto(f"{url}/#/{look.path}")
    for text in look.clicks:
        page.get_by_text(text, exact=True).first.click(timeout=_WAITED_S * 1000)
    selector, times = look.drawn
    before: Any = None
    still_since_s = until_s = time.monotonic()
    until_s += _WAITED_S
    while time.monotonic() - still_since_s < _STILL_S:
        page.wait_for_timeout(200)
        text, drawn = page.inner_text("body"), page.locator(selector).count()
        missing = [words for words in look.expected if words not in text]
        if missing or drawn < times or (text, drawn) != before:
            before, still_since_s = (text, drawn), time.monotonic()
        assert time.monotonic() < until_s, (missing, drawn, look, text)
    assert not _TOAST.search(page.content()), (look, text)
    banner = page.locator("#mlflow-exim")
    own = banner.inner_text() if banner.count() else ""
    lines = {line for line in text.replace(own, "").splitlines() if not _OF_ITS_OWN.fullmatch(line)}
    return {*lines, f"{drawn} are drawn"}
