"""The ``exim`` command group; each command is imported when it is called."""

from __future__ import annotations

import importlib

import click

from mlflow_exim_plugin import __version__

_MODULES = {
    "pack": "pack",
    "unpack": "unpack",
    "copy": "copy",
    "convert": "convert",
    "diff": "diff",
    "ls": "look.ls",
    "show": "look.show",
    "find": "look.lineage",
    "cat": "look.cat",
    "report": "look.report",
    "plot": "look.plot",
    "extract": "look.extract",
    "serve": "look.serve",
    "verify": "verify",
    "leftovers": "leftovers",
}


class _Exim(click.Group):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _MODULES:
            return None
        module = importlib.import_module(f"mlflow_exim_plugin.cli.{_MODULES[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(cls=_Exim, context_settings={"auto_envvar_prefix": "MLFLOW_EXIM"})
@click.version_option(__version__, prog_name="mlflow-exim", allow_from_autoenv=False)
def exim() -> None:
    """Pack, unpack, copy, convert, compare, serve, verify and look into MLflow archives.

    Every option can also be set by an environment variable, such as MLFLOW_EXIM_PACK_JOBS for
    `pack --jobs`: what may be given several times as a JSON list, or one a line.

    Example:

      mlflow exim pack backup.tar.zst --tracking-uri sqlite:///mlflow.db
    """
