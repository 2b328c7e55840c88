"""README and the pages say what the code says, and say it for everything; links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from docs import generate, plots
from mlflow_exim_plugin.comparison.rules import rules_table
from mlflow_exim_plugin.errors import ErrorCode, ExitCode
from mlflow_exim_plugin.kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = generate.commands()
GENERATED = generate.generated()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "spec").rglob("*.md")),
    *sorted((ROOT / "samples").glob("*.md")),
    *sorted((ROOT / "samples").glob("*/*.md")),
]
HINT = "run python docs/generate.py"
README_MAXIMUM_LINES = 150
SCREEN_LINES = 50


def page(path: str) -> str:
    return (DOCS / path).read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """Return a page without what is code."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(path: Path) -> Iterator[str]:
    yield from re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub and the site make of a page's headings."""
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings(path)}


@pytest.mark.parametrize("path", GENERATED)
def test_generated_pages_are_current(path: str) -> None:
    if path == "reference/cli.md":
        # Releases of click differ in how they break lines and mark defaults.
        words = r"[\w-]+"
        assert re.findall(words, page(path)) == re.findall(words, GENERATED[path]), HINT
    else:
        assert page(path) == GENERATED[path], HINT


def test_generator_checks_from_the_command_line() -> None:
    command = [sys.executable, "-W", "ignore", str(DOCS / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode in (0, 1)
    stale = done.stderr.strip().rpartition(": ")[2]
    assert stale in ("", "reference/cli.md"), HINT


def test_the_rules_of_diff_are_shown() -> None:
    assert f"\n{rules_table()}\n" in page("compare.md"), HINT


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_its_section_in_the_reference(name: str) -> None:
    _, _, section = page("reference/cli.md").partition(f"\n## {name}\n")

    assert section.startswith(f"\n```text\nUsage: mlflow exim {name} ")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_explained_outside_of_the_reference(name: str) -> None:
    told = [
        p for p in PAGES if p.name != "cli.md" and f"mlflow exim {name} " in p.read_text("utf-8")
    ]

    assert told


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_its_options_have_help(name: str) -> None:
    command = COMMANDS[name]
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]

    assert command.help
    assert options
    assert [o.name for o in options if not (o.help or "").endswith(".")] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_an_example_that_parses(name: str) -> None:
    command = COMMANDS[name]
    example = re.search(r"Example:\n\n +mlflow exim (.+)\Z", (command.help or "").rstrip())

    assert example
    said, *arguments = [word.strip('"') for word in example[1].split()]
    assert said == name
    command.make_context(name, arguments)


def test_every_exit_code_is_explained() -> None:
    rows = re.findall(r"^\| (\d) \| ", page("troubleshooting.md"), re.MULTILINE)

    assert [int(row) for row in rows] == [code.value for code in ExitCode]


def test_every_error_code_has_a_section() -> None:
    sections = re.findall(r"^## ([a-z_]+)$", page("troubleshooting.md"), re.MULTILINE)

    assert sorted(sections) == sorted(code.value for code in ErrorCode)


@pytest.mark.parametrize("path", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES])
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", prose(path))
    local = [
        (path.parent / target if target else path, anchor)
        for target, anchor in links
        if "://" not in target
    ]

    assert [str(target) for target, _ in local if not target.exists()] == []
    assert [(t.name, anchor) for t, anchor in local if anchor and anchor not in anchors(t)] == []


def test_readme_is_short_and_leads_to_every_page() -> None:
    assert len(README.splitlines()) <= README_MAXIMUM_LINES
    paths = [path.relative_to(ROOT).as_posix() for path in sorted(DOCS.rglob("*.md"))]
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [path for path in paths if f" {path}\n" not in navigation] == []
    # The one is the site's README, the other belongs to the guide.
    left_out = {"docs/index.md", "docs/reference/mlflow-export-import.md"}
    assert {path for path in paths if f"({path})" not in README} == left_out


def test_glossary_is_one_screen() -> None:
    assert len(page("glossary.md").splitlines()) <= SCREEN_LINES


def test_plots_show_numbers_of_the_page() -> None:
    tables = [line for line in page("speed.md").splitlines() if line.startswith("|")]
    for name, plot in plots.PLOTS.items():
        assert f"(images/{name}.svg)" in page("speed.md")
        for group in plot.groups.values():
            for bar in group:
                assert any(f" {bar.value} {plot.unit}" in line for line in tables), bar


def test_what_joins_a_namesake_is_told_of_each_kind() -> None:
    _, section = page("again.md").split("| namesake | what is added to it |")
    rows = dict(re.findall(r"^\| ([^|-]+) \| ([^|]+) \|$", section, re.MULTILINE))
    told = {kind.lower(): parts for kinds, parts in rows.items() for kind in kinds.split(", ")}
    named = {k: d for k, d in KINDS.items() if d.joins or d.unique}

    assert set(told) == {str(kind).replace("_", " ") for kind in named}
    for kind, described in named.items():
        for part in described.joins or ["nothing"]:
            assert part.replace("_", " ") in told[str(kind).replace("_", " ")]
