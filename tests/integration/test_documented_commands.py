"""What README and the pages tell users to type does what they say, in the order of the page."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from docs import example_store
from mlflow_exim_plugin.cli.main import exim
from tests.servers import new_sqlite_database, start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
WITH_COMMANDS = [page for page, text in PAGES.items() if "```console" in text]
EXAMPLE = re.compile(r"^```python\n(from .*?)```", re.DOTALL | re.MULTILINE)
WITH_PYTHON = [page for page, text in PAGES.items() if EXAMPLE.search(text)]
RUN_ID = "88652be7c6e44a2aac3ca10ec5010a8a"
"""The run of the example, as the pages call it."""
FILLED = {"http://old-server:5000": "old", "http://changed-server:5000": "changed"}
"""Servers that hold the example already."""
BLOCK = re.compile(r"(?:<!-- exit code: (\d) -->\n)?```console\n(.*?)```", re.DOTALL)
IDS = re.compile(r"\b(?:[0-9a-f]{64}|[0-9a-f]{32})\b")
MADE_BY_README = "python3 -m venv"  # test_quickstart.py and CI


class Command(NamedTuple):
    """A command of a page."""

    text: str
    output: list[str]
    """The lines that the page shows of its output; ``...`` stands for any."""
    exit_code: int
    is_first: bool
    """Whether it is the first of its block: each block begins in the same folder."""


def commands_of(page: str) -> Iterator[Command]:
    for code, block in BLOCK.findall(PAGES[page]):
        parts = re.split(r"^\w*\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)
        assert parts[0] == "", f"{page}: a block of console begins with a prompt"
        for number, part in enumerate(parts[1:]):
            text, *output = part.strip().splitlines()
            if not text.startswith(MADE_BY_README):
                yield Command(text, output, int(code or 0), number == 0)


class Filled(NamedTuple):
    """A store that holds the example, which nobody changes."""

    folder: Path
    run_id: str

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    folder = tmp_path_factory.mktemp("example")
    new_sqlite_database(folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    run_id = example_store.fill(uri, (folder / "artifacts").as_uri())
    with pytest.MonkeyPatch.context() as allowed:
        allowed.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(str(folder / "mlruns"))
        client.set_terminated(client.create_run(client.create_experiment("old")).info.run_id)
    return Filled(folder, run_id)


@pytest.fixture(scope="module")
def start_filled(filled: Filled) -> Iterator[Callable[[str], str]]:
    """Start the servers that hold the example, which no page changes, when a page names them."""
    with ExitStack() as running:

        @cache
        def start(name: str) -> str:
            folder = filled.folder / FILLED[name]
            folder.mkdir()
            shutil.copy(filled.database, folder / "mlflow.db")
            if FILLED[name] == "changed":
                with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
                    database.execute("UPDATE params SET value = '9' WHERE value = '8'")
            return running.enter_context(start_server(folder)).url

        yield start


@dataclass
class World:
    """What the names of a page stand for while its commands run."""

    folder: Path
    start_filled: Callable[[str], str]
    elsewhere: dict[str, str]
    """By what a page writes, what is meant."""
    running: ExitStack
    ids: dict[str, str] = field(default_factory=dict)
    root: str = ""
    server_urls: dict[str, str] = field(default_factory=dict)

    def real(self, text: str) -> str:
        """Return a command with the names of this world."""
        text = re.sub(r"http://[\w-]+:\d+", lambda found: self._server(found[0]), text)
        text = re.sub(r"sqlite:///(?=\w)", f"sqlite:///{self.folder}/", text)
        text = re.sub(r"\b[0-9a-f]{32}\b", lambda found: self.ids[found[0]], text)
        text = re.sub(r"\b[0-9a-f]{64}\b", self.root, text)
        for name, meant in self.elsewhere.items():
            text = text.replace(name, meant)
        return text

    def documented(self, output: str) -> str:
        """Return an output with the names of the page."""
        for name, url in self.server_urls.items():
            output = output.replace(url, name)
        for name, meant in self.elsewhere.items():
            output = output.replace(meant, name)
        return output.replace(f"sqlite:///{self.folder}/", "sqlite:///")

    def _server(self, name: str) -> str:
        if name not in self.server_urls:
            folder = self.folder / f"server-{len(self.server_urls)}"
            self.server_urls[name] = (
                self.start_filled(name)
                if name in FILLED
                else self.running.enter_context(start_server(folder)).url
            )
        return self.server_urls[name]

    def compare(self, shown: list[str], output: str) -> None:
        """Assert that an output has the lines that a page shows, and learn its ids."""
        lines = iter(self.documented(output).splitlines())
        for wanted in shown:
            if wanted.strip() == "...":
                continue
            pattern = like(wanted)
            found = next(filter(None, (pattern.fullmatch(line.strip()) for line in lines)), None)
            assert found, f"{wanted!r} is not in\n{output}"
            self.ids.update(zip(IDS.findall(wanted), found.groups(), strict=True))


def like(line: str) -> re.Pattern[str]:
    """Return what matches a line with other ids, times and numbers."""
    parts = re.split(rf"({IDS.pattern}|\d+|\s+)", line.strip())
    for number, part in enumerate(parts):
        if IDS.fullmatch(part):
            parts[number] = "([0-9a-f]+)"
        elif number % 2:
            parts[number] = r"\s+" if part.isspace() else r"\d+"
        else:
            parts[number] = re.escape(part)
    return re.compile("".join(parts))


@pytest.fixture
def world(
    request: pytest.FixtureRequest,
    filled: Filled,
    start_filled: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    text = PAGES[request.param]
    if "--zstd" in text and shutil.which("zstd") is None and "CI" not in os.environ:
        pytest.skip("tar needs zstd")
    elsewhere = {}
    if "s3://" in text:
        bucket = request.getfixturevalue("s3_bucket").url
        elsewhere = {"s3://backups": f"{bucket}/backups", "s3://bucket": bucket}
    if "postgresql://" in text:
        elsewhere["postgresql://mlflow@db/mlflow"] = request.getfixturevalue("postgres_uri")
    shutil.copy(filled.database, tmp_path / "mlflow.db")
    shutil.copytree(filled.folder / "mlruns", tmp_path / "mlruns")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LOGNAME", "bea")
    monkeypatch.chdir(tmp_path)
    with ExitStack() as running:
        yield World(tmp_path, start_filled, elsewhere, running, {RUN_ID: filled.run_id})


@pytest.mark.timeout(600)  # a page is many commands
@pytest.mark.parametrize("world", WITH_COMMANDS, indirect=True)
def test_commands_of_a_page_run(world: World, request: pytest.FixtureRequest) -> None:
    page = request.node.callspec.params["world"]
    for command in commands_of(page):
        if command.is_first:
            os.chdir(world.folder)
        exit_code, output = run(world.real(command.text), world.folder)
        assert exit_code == command.exit_code, f"{command.text}\n{output}"
        if root := re.search(r"^Root sha256:(\w+)$", output, re.MULTILINE):
            world.root = root[1]
        world.compare(command.output, output)


def run(command: str, folder: Path) -> tuple[int, str]:
    """Run a command, in this process where it needs no shell: MLflow is imported already."""
    if command.startswith("mlflow exim ") and not re.search(r"[|<>;&]", command):
        result = CliRunner().invoke(exim, shlex.split(command)[2:])
        return result.exit_code, result.output
    where = folder / ".where"
    script = f"{command}\ncode=$?; pwd > {shlex.quote(str(where))}; exit $code"
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, check=False)
    os.chdir(where.read_text().strip())
    return done.returncode, done.stdout + done.stderr


def test_every_page_with_python_is_known() -> None:
    assert {"README.md", "docs/format.md", "docs/reference/python.md"} <= set(WITH_PYTHON)


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_of_a_page_runs(
    page: str, filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed: list[tuple[object, ...]] = []

    for code in EXAMPLE.findall(PAGES[page]):
        exec(  # noqa: S102 - the example itself
            code.replace("sqlite:///mlflow.db", f"sqlite:///{filled.database}"),
            {"print": lambda *values: printed.append(values)},
        )

    client = MlflowClient(f"sqlite:///{filled.database}")
    (experiment,) = (e for e in client.search_experiments() if e.name == example_store.EXPERIMENT)
    run_ids = {run.info.run_id for run in client.search_runs([experiment.experiment_id])}
    assert printed
    if page == "docs/guides/platform-engineer.md":
        assert printed == [(True, True)]
        return
    (listed,) = (value for values in printed for value in values if isinstance(value, list))
    assert set(listed) == run_ids
