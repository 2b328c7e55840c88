"""Commands that need no server, called in this process on the samples of the format."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlflow_exim_plugin import __version__
from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.cli.output import say, show_report, size_text
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.schema.envelope import FORMAT_VERSION
from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss
from mlflow_exim_plugin.schema.report import Report
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLES = Path(__file__).parents[3] / "samples" / "v1"
MINIMAL = str(SAMPLES / "good" / "minimal.tar.zst")
MODELS = str(SAMPLES / "good" / "models.tar.zst")
NEW_MAJOR = str(SAMPLES / "bad" / "E019_version_unsupported" / "archive.tar.zst")
DAMAGED = str(SAMPLES / "bad" / "E029_member_digest" / "archive.tar.zst")
NO_ARCHIVE = __file__
FOLDER = str(SAMPLES)
SPAN = ("start", "end")
REPLACE = ("--overwrite",)


def call(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(exim, arguments, env=env)


def parsed(*arguments: str) -> Any:
    result = call(*arguments, "--output", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


REFUSALS = {
    "no such file": (["ls", "nowhere.tar.zst"], 4, "not_found"),
    "a folder": (["ls", FOLDER], 4, "not_found"),
    "no archive": (["verify", NO_ARCHIVE], 5, "invalid_archive"),
    "another root": (["verify", MINIMAL, "--root", "00"], 5, "digest_mismatch"),
    "newer format": (["ls", NEW_MAJOR], 7, "unsupported_format"),
    "unknown protocol": (["ls", "nowhere://x"], 2, "usage"),
    "a pipe": (["ls", "-"], 2, "usage"),
    "no name": (["pack", ""], 2, "usage"),
    "memory": (["pack", "memory://x.tar.zst"], 2, "usage"),
    "level": (["pack", "x.tar.zst", "--level", "23"], 2, "usage"),
    "jobs": (["verify", MINIMAL, "--jobs", "0"], 2, "usage"),
    "jobs as a word": (["verify", MINIMAL, "--jobs", "many"], 2, "usage"),
    "since": (["pack", "x.tar.zst", "--since", "long ago"], 2, "usage"),
    "two choices": (["show", MINIMAL, "-e", "0", "-m", "model"], 2, "usage"),
    "no rename file": (["unpack", MINIMAL, "--rename", "nowhere.json"], 4, "not_found"),
    "no JSON": (["unpack", MINIMAL, "--rename", NO_ARCHIVE], 2, "usage"),
    "experiment": (["show", MINIMAL, "-e", "nobody"], 4, "not_found"),
    "experiment of runs": (["ls", MINIMAL, "-e", "nobody"], 4, "not_found"),
    "run": (["show", MINIMAL, "-r", "nobody"], 4, "not_found"),
    "model": (["show", MINIMAL, "-m", "nobody"], 4, "not_found"),
}


@pytest.mark.parametrize(("arguments", "exit_code", "code"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_one_line_and_one_document(
    arguments: list[str], exit_code: int, code: str
) -> None:
    text = call(*arguments)
    document = call(*arguments, "--output", "json")

    assert text.exit_code == document.exit_code == exit_code
    assert text.stdout == ""
    (line,) = [line for line in text.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in text.stderr
    reply = json.loads(document.stdout)
    assert reply["ok"] is False
    assert reply["error"]["code"] == code
    assert line == f"Error: {reply['error']['message']}"


def test_what_is_not_an_archive_is_named_by_the_rule_it_breaks() -> None:
    result = call("verify", NO_ARCHIVE, "--output", "json")

    assert [finding["code"] for finding in json.loads(result.stdout)["findings"]] == ["E010"]


def test_a_member_that_is_not_there() -> None:
    result = call("cat", MINIMAL, "data/nothing")

    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.startswith("Error: ")


def test_verbose_shows_where_an_error_comes_from_and_keeps_the_exit_code() -> None:
    result = call("ls", "nowhere.tar.zst", "--verbose")

    assert result.exit_code == 4
    assert "Traceback" in result.stderr
    assert "NotFoundError" in result.stderr


def test_the_log_as_json_has_all_that_is_said_and_no_secret() -> None:
    command = [sys.executable, "-m", "mlflow_exim_plugin", "ls", "--log-json"]
    where = "http://bob:hunter2@127.0.0.1:9/a.tar.zst"
    done = subprocess.run([*command, where], capture_output=True, text=True, check=False)

    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 9
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert [line["level"] for line in lines].count("ERROR") == 1
    assert lines[-1]["code"] == "store"
    assert "StoreError" in lines[-1]["traceback"]
    assert "hunter2" not in done.stderr


def test_show_gives_the_envelope_that_is_in_the_archive() -> None:
    (experiment,) = parsed("ls", MINIMAL)["experiments"]
    (run,) = parsed("ls", MINIMAL, "-e", experiment["name"])
    (model,) = parsed("ls", MINIMAL)["models"]
    folder = f"data/experiments/{experiment['experiment_id']}/"

    def assert_shown(member: str, *choice: str) -> Any:
        shown = parsed("show", MINIMAL, *choice)
        stored = json.loads(call("cat", MINIMAL, member).stdout_bytes)
        assert shown["mlflow"] == stored["mlflow"]
        assert shown["system"] == stored["system"]
        assert shown["info"] == stored["info"]
        return shown

    assert_shown("data/archive.json")
    assert_shown(f"{folder}experiment.json", "-e", experiment["name"])
    assert_shown(f"{folder}runs/{run['run_id']}/run.json", "-r", run["run_id"])
    shown = assert_shown(f"data/models/{model['name']}/model.json", "-m", model["name"])
    assert [int(v["mlflow"]["model_version"]["version"]) for v in shown["versions"]] == (
        model["versions"]
    )
    with ArchiveReader.open(MINIMAL) as reader:
        assert f"root          {reader.root}" in call("show", MINIMAL).stdout
    whole = call("show", MINIMAL, "-r", run["run_id"], "--envelope").stdout
    assert f"run_id: {run['run_id']}" in whole


def test_verify_says_sound_or_damaged() -> None:
    sound = call("verify", MINIMAL)
    root = parsed("verify", MINIMAL)["root"]
    authentic = parsed("verify", MINIMAL, "--root", f"sha256:{root}")
    damaged = call("verify", DAMAGED)

    assert sound.exit_code == 0
    assert sound.stdout.startswith("Consistent: ")
    assert "authenticity not checked" in sound.stdout
    assert f"Root sha256:{root}" in sound.stdout
    assert authentic["authentic"] is True
    assert damaged.exit_code == 5
    assert damaged.stdout.startswith("E029 ")
    assert "Damaged: 13 members, 6.6 kB; 1 damaged, 12 as they were packed" in damaged.stdout


def test_nothing_damaged_is_authentic() -> None:
    claimed = json.loads(call("verify", DAMAGED, "--output", "json").stdout)["claimed_root"]
    asked = call("verify", DAMAGED, "--root", claimed, "--output", "json")
    told = json.loads(asked.stdout)

    assert asked.exit_code == 5
    assert (told["ok"], told["authentic"], told["root"]) == (False, False, None)
    assert [name.rpartition("/")[2] for name in told["damaged_members"]] == ["note.txt"]
    text = call("verify", DAMAGED, "--root", claimed).stdout
    assert f"Claimed root sha256:{claimed}" in text
    assert "expected root" not in text


def test_an_option_can_come_from_the_environment() -> None:
    result = call("ls", MINIMAL, env={"MLFLOW_EXIM_LS_OUTPUT": "json"})

    assert json.loads(result.stdout) == parsed("ls", MINIMAL)


def every_option() -> Iterator[Any]:
    group = click.Context(exim, info_name="exim")
    for name in exim.list_commands(group):
        command = exim.get_command(group, name)
        assert command is not None
        for option in command.params:
            if isinstance(option, click.Option):
                long = next(flag for flag in option.opts if flag.startswith("--"))
                yield pytest.param(command, option, id=f"{name} {long}")


@pytest.mark.parametrize(("command", "option"), [*every_option()])
def test_every_option_can_come_from_the_environment(
    command: click.Command, option: click.Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = next(flag for flag in option.opts if flag.startswith("--"))
    variable = f"MLFLOW_EXIM_{command.name}_{long[2:]}".upper().replace("-", "_")
    text: str = "x=1"
    expected: Any = text
    if option.is_flag:
        text = str(not option.default)
        expected = not option.default
    elif option.multiple:
        text, expected = '["a b=1", "c=[2]"]', ("a b=1", "c=[2]")
    elif isinstance(option.type, click.Choice):
        text = expected = option.type.choices[-1]
    elif isinstance(option.type, click.IntRange):
        expected = max(7, int(option.type.min or 0))
        text = str(expected)
    monkeypatch.setenv(variable, text)
    assert option.name is not None

    taken = [p.type for p in command.params if isinstance(p, click.Argument)]
    arguments = [t.choices[0] if isinstance(t, click.Choice) else MINIMAL for t in taken]
    others = [p for p in command.params if isinstance(p, click.Option) and p is not option]
    arguments += [word for p in others if p.required for word in (p.opts[0], "x")]
    group = click.Context(exim, info_name="exim", **exim.context_settings)
    context = command.make_context(command.name, arguments, parent=group)

    assert context.get_parameter_source(option.name) is click.core.ParameterSource.ENVIRONMENT
    assert context.params[option.name] == expected


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a b", ("a b",)),
        ("a b\n\n[cd]*\n", ("a b", "[cd]*")),
        ('["a\\nb", ""]', ("a\nb", "")),
        ("[ab]*", ("[ab]*",)),
    ],
)
def test_several_values_come_as_a_json_list_or_one_a_line(
    text: str, values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXIM_PACK_EXPERIMENT", text)
    group = click.Context(exim, info_name="exim", **exim.context_settings)
    command = exim.get_command(group, "pack")
    assert command is not None

    assert command.make_context("pack", ["a"], parent=group).params["experiment"] == values


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("MLFLOW_EXIM_PACK_EXPERIMENTS", "MLFLOW_EXIM_PACK_EXPERIMENT?"),
        ("MLFLOW_EXIM_LS_OUTPUTS", "MLFLOW_EXIM_LS_OUTPUT?"),
        ("MLFLOW_EXIM_JOBS", ""),
        ("MLFLOW_EXIM_", ""),
    ],
)
def test_a_variable_that_sets_nothing_is_refused(variable: str, hint: str) -> None:
    refused = call("ls", MINIMAL, env={variable: "x"})

    assert refused.exit_code == 2
    assert f"No option is set by {variable}." in refused.stderr
    assert hint in refused.stderr
    told = call("ls", MINIMAL, "--output", "json", env={variable: "x"})
    assert variable in json.loads(told.stdout)["error"]["message"]


def test_a_list_in_the_environment_holds_texts() -> None:
    refused = call("pack", "a.tar.zst", env={"MLFLOW_EXIM_PACK_RUN_ID": '["a", 1]'})

    assert refused.exit_code == 2
    assert "the JSON list in the environment holds more than texts" in refused.stderr


def test_a_name_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("run \x1b]0;owned\x07\r\nError: none\u202e\udcff größe 日本")

    assert capsys.readouterr().out == (
        "run \\x1b]0;owned\\x07\\r\\nError: none\\u202e\\udcff größe 日本\n"
    )


def test_a_long_report_names_some_and_counts_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    for number in range(25):
        report.failed(Failure(Kind.RUN, f"run{number}", "gone"))
    report.lost(Loss(Kind.RUN, "*", "ids are new"))

    show_report(report, title="Unpacked x", as_json=False)

    shown = capsys.readouterr().out
    assert shown.count("Failed: run run") == 20
    assert "Failed: and 5 more, see --output json" in shown
    assert "Lossy: run all: ids are new" in shown


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (2e12, "2,000.0 GB")],
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert size_text(size) == text


def test_what_looks_inside_imports_no_mlflow(tmp_path: Path) -> None:
    shutil.copy(MINIMAL, tmp_path / "a.tar.zst")
    code = (
        "import sys\n"
        "from mlflow_exim_plugin.cli.main import exim\n"
        "for command in ('ls', 'show', 'verify'):\n"
        "    exim([command, 'a.tar.zst'], standalone_mode=False)\n"
        "    assert 'mlflow' not in sys.modules, command\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from mlflow_exim_plugin.cli.main import exim\n"
        "for command in ('pack', 'unpack', 'ls', 'show', 'cat', 'verify'):\n"
        "    exim([command, '--help'], standalone_mode=False)\n"
        "heavy = {'mlflow', 'pyarrow', 'pandas', 'numpy', 'pydantic', 'fsspec', 'requests'}\n"
        "print(*(heavy & set(sys.modules)), file=sys.stderr)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""


def test_json_says_what_was_packed_from_where_when_and_by_whom(tmp_path: Path) -> None:
    name = f"{tmp_path}/of-{{date}}-{{time}}-{{x}}.tar.zst"
    began = datetime.now(timezone.utc)

    told = parsed("pack", name, "--tracking-uri", MINIMAL)

    (packed,) = tmp_path.iterdir()
    assert re.fullmatch(r"of-\d{4}-\d\d-\d\d-[\dT-]+Z-\{x\}\.tar\.zst", packed.name)
    members = parsed("ls", str(packed), "--members")
    assert told["archive"] == {
        "location": str(packed),
        "size_bytes": packed.stat().st_size,
        "members": len(members),
        "format_version": FORMAT_VERSION,
    }
    assert (told["source"], told["package_version"]) == (MINIMAL, __version__)
    start, end = (datetime.fromisoformat(told[f"{x}_time"].replace("Z", "+00:00")) for x in SPAN)
    assert began - timedelta(seconds=1) < start <= end < datetime.now(timezone.utc)
    assert told["duration_s"] == pytest.approx((end - start).total_seconds())
    text = call("pack", str(packed), "--tracking-uri", MINIMAL, "--overwrite").stdout
    assert f"From {MINIMAL} in " in text
    assert "`verify --root` proves later" in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str) -> None:
    told = call("completion", shell)

    assert told.exit_code == 0, told.stderr
    assert "_MLFLOW_EXIM_COMPLETE" in told.stdout
    assert "mlflow-exim" in told.stdout


def test_h_is_help() -> None:
    short, long = call("pack", "-h"), call("pack", "--help")

    assert short.exit_code == 0, short.stderr
    assert short.stdout == long.stdout


def test_a_name_that_is_not_there_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    archive = str(tmp_path / "a.tar.zst")
    asked = ["--tracking-uri", MINIMAL, "-e", "iris", "-e", "irsi", "-m", "nobody"]

    packed = call("pack", archive, *asked)

    assert packed.exit_code == 3, packed.stderr
    failed = [line for line in packed.stdout.splitlines() if line.startswith("Failed")]
    assert failed == [
        "Failed: experiment irsi: there is none of this name (did you mean 'iris'?)",
        "Failed: registered model nobody: there is none of this name",
    ]
    assert [e["name"] for e in parsed("ls", archive)["experiments"]] == ["iris"]
    assert call("verify", archive).exit_code == 0
    strict = call("pack", str(tmp_path / "b.tar.zst"), *asked, "--strict")
    assert strict.exit_code == 3
    assert "stopped at experiment irsi" in strict.stderr
    nothing = call("pack", str(tmp_path / "c.tar.zst"), *asked[:2], "-e", "irsi", "-m", "nobody")
    assert nothing.exit_code == 4
    assert "no experiment matches 'irsi'; no registered model or prompt matches" in nothing.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.zst"]


def test_what_one_side_of_a_diff_lacks_is_missing_there_and_nothing_is_unreadable() -> None:
    lacking = call("diff", MODELS, MINIMAL, "-m", "iris", "-m", "Iris")
    neither = call("diff", MODELS, MINIMAL, "-m", "iris", "-m", "nobody", "--output", "json")

    assert lacking.exit_code == 1, lacking.stderr
    assert "registered_model Iris: only in A" in lacking.stdout
    assert "nreadable" not in lacking.stdout
    assert neither.exit_code == 3
    assert [one["id"] for one in json.loads(neither.stdout)["unreadable"]] == ["nobody"]


VERSIONS = {
    "7": [7],
    "latest": [7],
    "latest:2": [3, 7],
    "latest:9": [1, 3, 7],
    "stage:production": [7],
    "stage:None|latest": [1, 3, 7],
    "alias:latest-good | 1": [1, 3],
}


@pytest.mark.parametrize(("which", "numbers"), VERSIONS.items(), ids=VERSIONS)
def test_versions_are_taken_by_number_newest_stage_and_alias(
    which: str, numbers: list[int], tmp_path: Path
) -> None:
    archive = str(tmp_path / "a.tar.zst")

    packed = call("pack", archive, "--tracking-uri", MODELS, "-m", "ir*", "--versions", which)

    assert packed.exit_code == 0, packed.stderr
    taken = {model["name"]: model["versions"] for model in parsed("ls", archive)["models"]}
    assert taken["iris"] == numbers
    assert call("verify", archive).exit_code == 0


def test_a_model_without_such_a_version_is_named(tmp_path: Path) -> None:
    archive = str(tmp_path / "a.tar.zst")
    asked = ["--tracking-uri", MODELS, "-m", "iris", "-m", "Iris", "--versions", "stage:Production"]

    packed = call("pack", archive, *asked)

    assert packed.exit_code == 3
    assert "Failed: registered model Iris: there is none of this name" in packed.stdout
    assert call("pack", str(tmp_path / "b"), *asked[:2], *asked[4:]).exit_code == 4


def test_an_evaluation_dataset_is_taken_by_its_name(tmp_path: Path) -> None:
    new_sqlite_database(tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri, uri)
    experiment_id = client.create_experiment("evaluated", str(tmp_path / "files"))
    for name in ("questions", "answers"):
        client.create_dataset(name, experiment_id)
    whole, archive = str(tmp_path / "whole.tar.zst"), str(tmp_path / "a.tar.zst")
    parsed("pack", whole, "--tracking-uri", uri)

    for source in (uri, whole):
        packed = parsed("pack", archive, "--tracking-uri", source, "--dataset", "ques*", *REPLACE)
        assert packed["counts"].keys() == {"evaluation_dataset"}
        assert packed["counts"]["evaluation_dataset"]["written"] == 1
        asked = ["--dataset", "questions", "--dataset", "question"]
        partly = call("pack", archive, "--tracking-uri", source, *asked, *REPLACE)
        assert partly.exit_code == 3
        absent = "Failed: evaluation dataset question: there is none of this name (did you mean 'q"
        assert absent in partly.stdout
        nothing = call("pack", str(tmp_path / "b"), "--tracking-uri", source, *asked[2:])
        assert nothing.exit_code == 4
        assert not (tmp_path / "b").exists()
    with_its_experiment = parsed("pack", archive, "--tracking-uri", uri, "-e", "eval*", *REPLACE)
    assert with_its_experiment["counts"]["evaluation_dataset"]["written"] == 2
