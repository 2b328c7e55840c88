"""The plugin inside this interpreter's MLflow, each time in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.depth import one_of

pytestmark = [pytest.mark.integration, pytest.mark.compat]

_SCRIPTS = Path(sys.executable).parent
PYTHON = [sys.executable]
MLFLOW = [str(_SCRIPTS / "mlflow")]
MLFLOW_EXIM = [str(_SCRIPTS / "mlflow-exim")]

LOAD_BUDGET_MS = 5


def run(*command: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program; ``path`` shadows installed packages."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "GIT_PYTHON_REFRESH": "quiet"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def python(code: str, path: Path | None = None) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = run(*PYTHON, "-c", code, path=path)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ([*MLFLOW, "exim"], "mlflow exim"),
        ([*PYTHON, "-m", "mlflow", "exim"], "python -m mlflow exim"),
        (MLFLOW_EXIM, "mlflow-exim"),
        ([*PYTHON, "-m", "mlflow_exim_plugin"], "mlflow-exim"),
    ],
)
def test_help(command: list[str], name: str) -> None:
    done = run(*command, "--help")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: {name} [OPTIONS] COMMAND")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [[*MLFLOW, "exim"], MLFLOW_EXIM])
def test_usage_errors_are_clicks(command: list[str]) -> None:
    done = run(*command, "no-such-command")

    assert done.returncode == 2
    assert "No such command 'no-such-command'" in done.stderr


def test_mlflow_lists_the_command_without_importing_it() -> None:
    loaded = python(
        "import sys, mlflow.cli\n"
        "from click.testing import CliRunner\n"
        "shown = CliRunner().invoke(mlflow.cli.cli, ['--help'])\n"
        "assert shown.exit_code == 0 and ' exim ' in shown.output, shown.output\n"
        "print(*sorted(name for name in sys.modules if name.startswith('mlflow_exim_plugin')))"
    )

    assert loaded == "mlflow_exim_plugin mlflow_exim_plugin.entrypoints"


def test_import_mlflow_loads_nothing_more_of_ours() -> None:
    loaded = python(
        "import sys, mlflow\n"
        "print(*sorted(name for name in sys.modules\n"
        "              if name.startswith(('mlflow_exim_plugin', 'mlflow.cli.', 'zstandard'))))"
    )

    assert loaded == "mlflow_exim_plugin mlflow_exim_plugin.entrypoints"


def test_import_mlflow_pays_little() -> None:
    # What MLflow itself imports anyway is imported before the clock starts, which counts the
    # processor's time: other tests run beside this one.
    code = (
        "import __future__, contextlib, logging, sys, time\n"
        "import importlib.machinery, importlib.metadata\n"
        "(entry,) = importlib.metadata.entry_points(group='mlflow.tracking_store', name='exim')\n"
        "before = set(sys.modules)\n"
        "start = time.process_time()\n"
        "entry.load()\n"
        "print(time.process_time() - start, *sorted(set(sys.modules) - before))"
    )
    measured = [python(code).split() for _ in range(7)]

    assert {tuple(modules) for _, *modules in measured} == {
        ("mlflow_exim_plugin", "mlflow_exim_plugin.entrypoints")
    }
    # Noise only adds: the least of them is what loading costs.
    assert min(float(seconds) for seconds, *_ in measured) * 1000 < LOAD_BUDGET_MS


def test_reloaded_mlflow_cli_has_the_command_again() -> None:
    assert (
        python(
            "import importlib, mlflow.cli\n"
            "importlib.reload(mlflow.cli)\n"
            "print('exim' in mlflow.cli.cli.commands)"
        )
        == "True"
    )


def test_mlflow_cli_that_was_there_first_gets_the_command() -> None:
    assert (
        python(
            "import sys, types, click\n"
            "host = sys.modules['mlflow.cli'] = types.ModuleType('mlflow.cli')\n"
            "host.cli = click.Group()\n"
            "import mlflow_exim_plugin.entrypoints\n"
            "print(*host.cli.commands)"
        )
        == "exim"
    )


def test_source_of_mlflow_cli_can_still_be_read() -> None:
    assert (
        python("import inspect, mlflow.cli\nprint('def server(' in inspect.getsource(mlflow.cli))")
        == "True"
    )


BREAKAGES = {
    "missing": "raise ModuleNotFoundError(\"No module named 'zstandard'\", name='zstandard')",
    "anything": "raise RuntimeError('first line\\nsecond line')",
}


@pytest.fixture(params=one_of(*BREAKAGES.values()), ids=list(BREAKAGES))
def broken_zstandard(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder for PYTHONPATH in which zstandard breaks on import."""
    package = tmp_path / "zstandard"
    package.mkdir()
    (package / "__init__.py").write_text(request.param)
    return tmp_path


def test_mlflow_survives_a_broken_dependency(broken_zstandard: Path) -> None:
    assert python("import mlflow; print(mlflow.__version__)", broken_zstandard)
    shown = run(*MLFLOW, "--help", path=broken_zstandard)
    assert shown.returncode == 0, shown.stderr
    assert " exim " in shown.stdout


@pytest.mark.parametrize("command", [[*MLFLOW, "exim"], MLFLOW_EXIM])
def test_a_broken_dependency_is_one_line(
    command: list[str], broken_zstandard: Path, tmp_path: Path, sqlite_uri: str
) -> None:
    archive = tmp_path / "x.tar.zst"

    done = run(*command, "pack", str(archive), "--tracking-uri", sqlite_uri, path=broken_zstandard)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "zstandard" in line
    assert "pip install" in line
    assert not archive.exists()


def test_an_unknown_mlflow_keeps_working_without_the_command() -> None:
    done = run(
        *PYTHON,
        "-c",
        "import sys, types\n"
        "host = sys.modules['mlflow.cli'] = types.ModuleType('mlflow.cli')\n"
        "host.cli = 'no group of commands'\n"
        "import mlflow_exim_plugin.entrypoints\n",
    )

    assert done.returncode == 0, done.stderr
    assert "`mlflow exim` is not available with this MLflow" in done.stderr


def test_an_archive_that_is_not_there_is_said_by_mlflow() -> None:
    with pytest.raises(MlflowException, match=r"backup\.tar\.zst") as refusal:
        MlflowClient("exim:///no/backup.tar.zst").search_experiments()

    assert refusal.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def test_a_broken_dependency_costs_archives_alone(broken_zstandard: Path) -> None:
    told = python(
        "import mlflow\n"
        "from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository\n"
        "for open_it in (mlflow.MlflowClient, get_artifact_repository):\n"
        "    try:\n"
        "        open_it('exim:///backup.tar.zst')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__)\n"
        "print(mlflow.MlflowClient('sqlite:///mlflow.db').search_experiments()[0].name)",
        broken_zstandard,
    )

    assert told.splitlines()[-1] == "Default"
    assert len(told.splitlines()) == 3
