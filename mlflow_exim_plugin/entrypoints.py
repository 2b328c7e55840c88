"""What MLflow and the shell load: the ``exim`` command, a script, the stores of ``exim:``.

MLflow has no entry point for commands, but every ``import mlflow`` loads the tracking stores that
plugins offer. Loading this module for that also arms the hook that adds ``exim`` to ``mlflow.cli``
if and when that module is imported. MLflow survives few kinds of failure here, and every
``import mlflow`` pays for what happens here: at module level there is only the standard library.
"""

from __future__ import annotations

import importlib
import logging
import sys
from contextlib import contextmanager
from importlib.machinery import PathFinder, SourceFileLoader
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    import click

    from mlflow_exim_plugin.cli.process import OwnProcess

__all__ = [
    "artifact_repository",
    "main",
    "model_registry_store",
    "tracking_store",
    "workspace_store",
]

_DEFECT = 70
"""Exit code of what nobody foresaw: 1 is an answer of `diff`."""
_HOST_MODULE = "mlflow.cli"
# Each after those that it imports itself, so that the broken one is named.
_RUNTIME_DEPENDENCIES = ("click", "zstandard", "pyarrow", "pydantic", "fsspec", "mlflow")


def main() -> None:
    """Run the command line: ``mlflow-exim`` and ``python -m mlflow_exim_plugin``."""
    with _every_end_in_one_line():
        exim, process = _load_commands()
        exim.main(prog_name="mlflow-exim", obj=process)


def tracking_store(store_uri: str, artifact_uri: str | None = None) -> Any:
    """Return MLflow's tracking store on an archive, which only reads.

    Args:
        store_uri: Address of the archive, ``exim:…``.
        artifact_uri: Where MLflow would keep artifacts; an archive has its own.

    Raises:
        MlflowException: The archive is not there, or cannot be read.
    """
    from mlflow_exim_plugin.plugins.stores import open_store

    del artifact_uri
    return open_store("tracking", store_uri)


def model_registry_store(store_uri: str, **options: Any) -> Any:
    """Return MLflow's model registry store on an archive, which only reads.

    Args:
        store_uri: Address of the archive, ``exim:…``.
        options: What else MLflow gives to a registry.

    Raises:
        MlflowException: The archive is not there, or cannot be read.
    """
    from mlflow_exim_plugin.plugins.stores import open_store

    del options
    return open_store("registry", store_uri)


def workspace_store(workspace_uri: str, **options: Any) -> Any:
    """Return MLflow's store of the workspaces of an archive, which only reads.

    Args:
        workspace_uri: Address of the archive, ``exim:…``.
        options: What else MLflow gives to such a store.

    Raises:
        MlflowException: The archive is not there, or cannot be read.
    """
    from mlflow_exim_plugin.plugins.stores import open_store

    del options
    return open_store("workspace", workspace_uri)


def artifact_repository(artifact_uri: str, *asked_by: Any, **options: Any) -> Any:
    """Return MLflow's artifact repository on an archive, which only reads.

    Args:
        artifact_uri: Address of a folder in the archive, ``exim:…!/…``.
        asked_by: Tracking URI, as MLflow 3.0 and 3.1 give it.
        options: What else MLflow gives to a repository.

    Raises:
        MlflowException: The archive is not there, or cannot be read.
    """
    from mlflow_exim_plugin.plugins.artifact_repository import ArchiveArtifactRepository

    del asked_by, options  # an archive answers all alike
    return ArchiveArtifactRepository(artifact_uri)


def _load_commands() -> tuple[click.Group, OwnProcess]:
    from mlflow_exim_plugin.cli.main import exim
    from mlflow_exim_plugin.cli.process import OwnProcess

    return exim, OwnProcess()


@contextmanager
def _every_end_in_one_line() -> Iterator[None]:
    """Say what nobody foresaw in place of a traceback: a broken installation, or a defect of ours.

    A dependency that cannot be imported is looked for only after something failed: a working
    installation pays nothing, and any way in which a package can break on import is covered.
    """
    try:
        yield
    except BrokenPipeError:  # click ends it quietly
        raise
    except Exception as error:  # whatever it is, it ends the process with one line
        if type(error).__module__.partition(".")[0] == "click":  # how commands end or refuse
            raise
        from mlflow_exim_plugin.redaction import redact_text

        broken = _first_broken_dependency()
        if broken is None:
            what = f"{type(error).__name__}: {redact_text(str(error))}"
            hint = "this is a defect; --verbose shows where, please report it"
            sys.stderr.write(f"Error: unexpected {what}\nHint: {hint}\n")
            raise SystemExit(_DEFECT) from error
        # With a text, SystemExit prints it on stderr and gives exit code 1.
        raise SystemExit(
            f"Error: mlflow-exim-plugin cannot run: {broken[1]}. "
            f"Reinstall it: pip install --force-reinstall {broken[0]}"
        ) from error


def _first_broken_dependency() -> tuple[str, str] | None:
    """Name it, and say how it breaks."""
    for name in _RUNTIME_DEPENDENCIES:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a broken package may raise anything
            reason = " ".join(str(error).split())
            return name, f"importing {name} fails ({type(error).__name__}: {reason})"
    return None


def _attach(host: ModuleType) -> None:
    """Add ``exim`` to the commands of ``mlflow``; what it does is imported when it is entered."""
    try:
        import click

        class EximInMlflow(click.Command):
            """Stands for the real group in MLflow's list, and hands everything over to it."""

            def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
                ctx.args = args
                return args

            def invoke(self, ctx: click.Context) -> object:
                with _every_end_in_one_line():
                    exim, process = _load_commands()
                    name, above = ctx.info_name, ctx.parent
                    with exim.make_context(name, ctx.args, parent=above, obj=process) as entered:
                        return exim.invoke(entered)

        help_line = "Pack, unpack, verify and compare MLflow archives."
        host.cli.add_command(EximInMlflow(name="exim", help=help_line))
    except Exception:  # a future MLflow must not lose its own commands through us
        logging.getLogger(__name__).warning(
            "`mlflow exim` is not available with this MLflow; use `mlflow-exim`", exc_info=True
        )


class _HostLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _attach(module)


class _HostFinder:
    """Finds ``mlflow.cli``, where Python would, and has the command attached once it has run.

    It stays on ``sys.meta_path``: taking it off would race with imports in other threads, and a
    reloaded ``mlflow.cli`` needs its command again.
    """

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _HOST_MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _HostLoader(spec.loader.name, spec.loader.path)
        return spec


def _arm() -> None:
    host = sys.modules.get(_HOST_MODULE)
    if host is not None and hasattr(host, "cli"):
        _attach(host)
    if not any(isinstance(finder, _HostFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _HostFinder())


_arm()
