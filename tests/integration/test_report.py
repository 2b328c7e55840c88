"""What is in an archive, or differs, on a page: complete, harmless, usable by keyboard too."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Metric

from mlflow_exim_plugin import open_archive, pack, plot, report
from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.errors import ArchiveExistsError, NotFoundError, UsageError
from mlflow_exim_plugin.schema.objects import Kind
from tests.browser import chromium, visiting
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator

    from tests.sources import Source

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
T0 = 1_780_000_000_000
HOSTILE = (
    "</script><script>alert(1)</script>",
    '<img src="http://evil.invalid/x.png" onerror="alert(2)">',
    "\u202egnp.exe \x1b[31m {{ 7 * 7 }} ${alert(3)} $\\frac{1}{",
    "<!--<script>",
    "postgresql://bea:hunter2@db/mlflow",
)
STEPS = 5000
SPIKE = 3210


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of 60 runs in which everything has a name that means harm."""
    folder = tmp_path_factory.mktemp("hostile")
    new_sqlite_database(folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri, uri)
    note = {"mlflow.note.content": HOSTILE[1]}
    experiment = client.create_experiment(HOSTILE[0], (folder / "files").as_uri(), note)
    runs = []
    for number in range(60):
        name = HOSTILE[number % len(HOSTILE)]
        run = client.create_run(experiment, T0 + 1000 * number, run_name=f"{name} {number}")
        runs.append(run.info.run_id)
        client.log_param(runs[-1], "depth", number)
        client.log_param(runs[-1], "long", "x" * 900)
        client.log_metric(runs[-1], "place", 1 / (1 + number), T0, 0)
    last = runs[-1]
    for number, text in enumerate(HOSTILE):
        client.log_param(last, f"p{number}", text)
        client.set_tag(last, f"t{number}", text)
    curve = [Metric("loss", 1 / (1 + step), T0 + step, step) for step in range(STEPS)]
    curve[SPIKE] = Metric("loss", 77.5, T0 + SPIKE, SPIKE)
    curve[100] = Metric("loss", math.nan, T0 + 100, 100)
    for begin in range(0, STEPS, 1000):
        client.log_batch(last, curve[begin : begin + 1000])
    client.log_batch(runs[-2], [Metric("loss", 5.0, T0 + 1000 * n, 0) for n in range(3)])
    client.log_batch(runs[-3], [Metric("once", float(n), T0 + 1000 * n, 0) for n in range(3)])
    client.set_terminated(last, "FAILED")
    client.create_registered_model("<b>churn", description=HOSTILE[1])
    client.create_model_version("<b>churn", f"runs:/{last}/model", last)
    client.set_registered_model_alias("<b>churn", "champion", "1")
    pack(str(folder / "hostile.tar.zst"), tracking_uri=uri)
    return folder / "hostile.tar.zst"


def data_of(page: Path) -> Any:
    text = page.read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def texts_of(place: Locator, column: int) -> list[str]:
    return place.locator(f"tbody tr td:nth-child({column})").all_text_contents()


def test_a_page_of_hostile_text_in_the_browser(
    browser: Browser, hostile: Path, tmp_path: Path
) -> None:
    page_file = tmp_path / "page.html"

    told = report(str(hostile), str(page_file))

    assert (told.ok, told.experiments, told.runs) == (True, 2, 60)
    assert page_file.stat().st_size == told.size_bytes
    assert "hunter2" not in page_file.read_text("utf-8")
    with visiting(browser, viewport={"width": 1280, "height": 900}) as visit:
        page = visit.page
        page.goto(page_file.as_uri())
        section = page.locator(".experiment").last
        section.scroll_into_view_if_needed()
        section.locator("canvas").first.wait_for()
        page.emulate_media(color_scheme="dark")
        assert section.locator("h2").text_content() == HOSTILE[0]
        assert page.locator(".note").text_content() == HOSTILE[1]
        assert page.locator(".models tbody th bdi").first.text_content() == "<b>churn"
        assert page.locator(".models .tag").text_content() == "champion"
        assert section.locator("figcaption bdi").all_text_contents() == ["loss", "once"]
        assert "1 are NaN or infinite, such as nan at step 100" in str(
            section.locator(".told").first.text_content()
        )
        assert section.locator("[role=status]").text_content() == "50 of 60 runs"
        assert "\\u202e" in texts_of(section, 2)[2]
        assert section.locator("td.failed").count() == 1

        # By keyboard: search, sort, show more.
        section.locator("input[type=search]").focus()
        page.keyboard.type("failed")
        assert section.locator("[role=status]").text_content() == "1 run found of 60"
        page.keyboard.press("Control+A")
        page.keyboard.press("Delete")
        depth = section.locator("thead th", has_text="depth")
        depth.locator("button").focus()
        page.keyboard.press("Enter")
        assert depth.get_attribute("aria-sort") == "ascending"
        column = 1 + section.locator("thead th").all_text_contents().index("paramdepth")
        assert texts_of(section, column)[:3] == ["0", "1", "2"]
        page.keyboard.press("Space")
        assert texts_of(section, column)[:3] == ["59", "58", "57"]
        section.locator(".more button").press("Enter")
        assert len(texts_of(section, column)) == 60
        dot = section.locator("td.dot button").first
        dot.press("Enter")
        assert dot.get_attribute("aria-pressed") == "false"

        section.locator(".u-over").first.hover()
        assert "step" in str(section.locator(".readout").first.text_content())
        page.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
        assert visit.dialogs == []
        assert visit.complaints == []
        assert visit.requests == [page_file.as_uri()]
    assert (tmp_path / "page.pdf").stat().st_size > 20_000


def test_a_page_keeps_extremes_and_says_what_it_leaves_out(hostile: Path, tmp_path: Path) -> None:
    report(str(hostile), str(tmp_path / "page.html"))

    _default, experiment = data_of(tmp_path / "page.html")
    loss, once = experiment["drawn"]
    by_run = {curve["run"]: curve for curve in loss["curves"]}
    values = by_run[0]["y"]
    assert 150 <= len(values) <= 310
    assert max(v for v in values if v is not None) == 77.5
    assert min(v for v in values if v is not None) == float(f"{1 / STEPS:.5g}")
    assert None in values
    steps = [sum(by_run[0]["x"][: n + 1]) for n in range(len(values))]
    assert (steps[0], steps[-1], steps == sorted(steps)) == (0, STEPS - 1, True)
    assert steps[values.index(77.5)] == SPIKE
    assert (by_run[1]["y"], loss["by"]) == ([5.0] * 3, "step")
    assert (once["by"], once["curves"][0]["x"]) == ("seconds since the first", [0, 1.0, 1.0])
    with open_archive(str(hostile)) as archive:
        rows = archive.search_runs()
    assert [row[1] for row in experiment["table"]["rows"]] == list(rows.run_id)


def test_a_page_of_everything(browser: Browser, sqlite_source: Source, tmp_path: Path) -> None:
    """Steps at both ends of 64 bits, names in every script, infinities."""
    done = CliRunner().invoke(
        exim, ["report", sqlite_source.archive, "-o", f"{tmp_path}/all.html", "--output", "json"]
    )

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["runs"] == len(sqlite_source.snapshot.runs)
    with visiting(browser, color_scheme="dark") as visit:
        visit.page.goto((tmp_path / "all.html").as_uri())
        sections = visit.page.locator(".experiment")
        runs = sqlite_source.snapshot.runs.values()
        assert sections.count() == len({run["info"]["experiment_id"] for run in runs})
        for section in sections.all():
            section.scroll_into_view_if_needed()
            section.locator("[role=status]").wait_for()
        assert (visit.dialogs, visit.complaints) == ([], [])


def test_a_damaged_archive_costs_what_is_damaged(sqlite_source: Source, tmp_path: Path) -> None:
    hurt = sqlite_source.damaged(tmp_path / "hurt.tar.zst")

    told = report(str(hurt), str(tmp_path / "page.html"))

    assert not told.ok
    lost = sum(failure.count for failure in told.unreadable if failure.kind is Kind.RUN)
    listed = sum(len(part["table"]["rows"]) for part in data_of(tmp_path / "page.html"))
    assert (lost > 0, lost + listed) == (True, len(sqlite_source.snapshot.runs))
    text = (tmp_path / "page.html").read_text("utf-8")
    assert f"Unreadable now ({len(told.unreadable)})" in text
    done = CliRunner().invoke(exim, ["report", str(hurt), "-o", str(tmp_path / "again.html")])
    named = re.findall(r"^Unreadable: (.*)", done.output, re.MULTILINE)
    assert (done.exit_code, len(named)) == (3, len(told.unreadable))


def test_differences_in_the_browser(browser: Browser, hostile: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.db"
    with closing(sqlite3.connect(hostile.parent / "mlflow.db")) as source:
        source.execute(f"VACUUM INTO '{changed}'")
    with closing(sqlite3.connect(changed)) as database, database:
        database.execute("UPDATE params SET value = ? WHERE value = '7'", (HOSTILE[0],))
    uri = f"sqlite:///{changed}"

    done = CliRunner().invoke(exim, ["diff", str(hostile), uri, "--output", "html"])

    assert done.exit_code == 1
    (tmp_path / "diff.html").write_bytes(done.stdout_bytes)
    with visiting(browser) as visit:
        visit.page.goto((tmp_path / "diff.html").as_uri())
        assert visit.page.locator("h1").text_content() == "Different: 1 difference"
        (row,) = visit.page.locator(".grid tbody tr").all()
        assert row.locator("td").all_text_contents()[2:] == ["data.params.depth", "7", HOSTILE[0]]
        assert (visit.dialogs, visit.complaints) == ([], [])
        assert visit.requests == [(tmp_path / "diff.html").as_uri()]
    done = CliRunner().invoke(exim, ["diff", str(hostile), str(hostile), "--output", "html"])
    assert (done.exit_code, "Equal under the rules" in done.stdout) == (0, True)


def test_pictures(hostile: Path, tmp_path: Path) -> None:
    with open_archive(str(hostile)) as archive:
        last = archive.search_runs(max_results=2).run_id.iloc[0]
    svg, png = str(tmp_path / "loss.svg"), str(tmp_path / "all.png")

    (curve,) = plot(str(hostile), svg, runs=last[:8], keys="loss").curves
    assert (curve.run_id, curve.rows, curve.gaps) == (last, STEPS, 1)
    text = (tmp_path / "loss.svg").read_text("utf-8")
    assert "<script" not in text
    done = CliRunner().invoke(exim, ["plot", str(hostile), "-r", "*", "-k", "*o*", "-o", png])
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, f"Wrote {png}")
    assert (tmp_path / "all.png").read_bytes()[:4] == b"\x89PNG"
    plot(str(hostile), svg, runs=("*",), keys=("loss", "place"), by="time", overwrite=True)

    with pytest.raises(ArchiveExistsError):
        plot(str(hostile), svg, runs=last, keys="loss")
    for keys, runs in (("lose", last), ("loss", f"{last[:-1]}!")):
        done = CliRunner().invoke(
            exim, ["plot", str(hostile), "-r", runs, "-k", keys, "-o", f"{tmp_path}/no.svg"]
        )
        assert (done.exit_code, "did you mean" in done.output) == (4, True), done.output
    with pytest.raises(UsageError, match="svg"):
        plot(str(hostile), str(tmp_path / "loss.jpg"), runs=last, keys="loss")
    with pytest.raises(NotFoundError) as misspelt:
        report(str(hostile), str(tmp_path / "no.html"), experiments="Defualt")
    assert misspelt.value.hint == "did you mean 'Default'?"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.png", "loss.svg"]


def test_a_page_says_what_was_taken_out(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    report(str(ROOT / "samples" / "v1" / "good" / "redacted.tar.zst"), str(page))
    text = page.read_text()
    assert "drop run.data.params.customer: 1 fields, 0 files" in text
    assert "drop run.artifacts.private/*: 0 fields, 1 files" in text
    assert "hash *.tags.mlflow.user: 1 fields" in text
    for secret in ("Mallory", "bob"):
        assert secret not in text
