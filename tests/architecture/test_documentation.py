"""README and the commands' own help say the same, and say it for everything."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.comparison.rules import rules_table
from mlflow_exim_plugin.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BEGIN = (
    "<!-- commands: written by `python tests/architecture/test_documentation.py`; do not edit -->\n"
)
END = "<!-- end of commands -->"
RULES_BEGIN = (
    "<!-- rules: written by `python tests/architecture/test_documentation.py`; do not edit -->\n"
)
RULES_END = "<!-- end of rules -->"


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(exim)
    for name in exim.list_commands(context):
        command = exim.get_command(context, name)
        assert command is not None
        yield name, command


COMMANDS = dict(commands())


def help_text(name: str, command: click.Command) -> str:
    parent = click.Context(exim, info_name="mlflow exim", terminal_width=96, max_content_width=96)
    return command.get_help(click.Context(command, info_name=name, parent=parent))


def reference() -> str:
    blocks = (
        f"### {name}\n\n```text\n{help_text(name, command)}\n```\n"
        for name, command in COMMANDS.items()
    )
    return "\n" + "\n".join(blocks) + "\n"


def between_markers(text: str, begin: str = BEGIN, end: str = END) -> tuple[str, str, str]:
    before, begins, rest = text.partition(begin)
    shown, ends, after = rest.partition(end)
    assert begins
    assert ends
    return before + begin, shown, end + after


def test_readme_shows_the_help_of_every_command() -> None:
    _, shown, _ = between_markers(README.read_text(encoding="utf-8"))

    # Releases of click differ in how they break lines and mark defaults.
    assert re.findall(r"[\w-]+", shown) == re.findall(r"[\w-]+", reference()), (
        "run python tests/architecture/test_documentation.py"
    )


def test_readme_shows_the_rules_of_diff() -> None:
    _, shown, _ = between_markers(README.read_text(encoding="utf-8"), RULES_BEGIN, RULES_END)

    assert shown == f"\n{rules_table()}\n\n", "run python tests/architecture/test_documentation.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_its_options_have_help(name: str) -> None:
    command = COMMANDS[name]
    options = [p for p in command.params if isinstance(p, click.Option)]

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


def test_readme_has_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d) \| ", README.read_text(encoding="utf-8"), re.MULTILINE)

    assert [int(row) for row in rows] == [code.value for code in ExitCode]


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", README.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]

    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_python_of_readme_runs(
    tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    client = mlflow.MlflowClient(sqlite_uri)
    run = client.create_run(client.create_experiment("e", str(tmp_path / "artifacts")))
    monkeypatch.chdir(tmp_path)
    printed: list[object] = []

    exec(  # noqa: S102 - the example itself
        code.replace("sqlite:///mlflow.db", sqlite_uri), {"print": printed.append}
    )

    assert printed[1] == [run.info.run_id]


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    before, _, after = between_markers(text)
    before, _, after = between_markers(before + reference() + after, RULES_BEGIN, RULES_END)
    README.write_text(f"{before}\n{rules_table()}\n\n{after}", encoding="utf-8")
    sys.stdout.write("README.md is up to date\n")
