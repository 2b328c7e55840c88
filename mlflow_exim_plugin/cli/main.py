"""The ``exim`` command group; each command is imported when it is called."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from mlflow_exim_plugin import __version__
from mlflow_exim_plugin.errors import EximError, ExitCode

_COMMANDS = {
    "pack": "pack",
    "unpack": "unpack",
    "ls": "look",
    "show": "look",
    "cat": "look",
    "verify": "verify",
}


class _Exim(click.Group):
    """Loads its commands lazily and ends every error of ours in one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"mlflow_exim_plugin.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        from mlflow_exim_plugin.cli.output import show_error

        try:
            return super().invoke(ctx)
        except EximError as error:
            if "--verbose" in sys.argv:
                raise
            show_error(error, as_json=_wants_json(sys.argv))
            raise SystemExit(int(error.exit_code)) from None
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            raise SystemExit(int(ExitCode.OTHER)) from None


@click.group(cls=_Exim)
@click.version_option(__version__, prog_name="mlflow-exim")
def exim() -> None:
    """Pack, unpack, verify and look into MLflow archives.

    Example:

      mlflow exim pack backup.tar.zst --tracking-uri sqlite:///mlflow.db
    """


def _wants_json(arguments: list[str]) -> bool:
    return "--output=json" in arguments or any(
        pair == ("--output", "json") for pair in zip(arguments, arguments[1:], strict=False)
    )
