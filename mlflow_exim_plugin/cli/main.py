"""The ``exim`` command group; each command is imported when it is called."""

from __future__ import annotations

import difflib
import importlib

import click

from mlflow_exim_plugin import __version__
from mlflow_exim_plugin.cli.output import put

_MODULES = {
    "pack": "pack",
    "plan": "keeping.plan",
    "unpack": "unpack",
    "copy": "copy",
    "move": "retention.move",
    "retain": "retention.retain",
    "restore": "retention.restore",
    "convert": "convert",
    "diff": "diff",
    "ls": "look.ls",
    "show": "look.show",
    "find": "look.find",
    "index": "keeping.index",
    "cat": "look.cat",
    "report": "look.report",
    "plot": "look.plot",
    "extract": "look.extract",
    "serve": "look.serve",
    "verify": "proving",
    "sign": "proving",
    "keygen": "proving",
    "repack": "repack",
    "scan": "scan",
    "forget": "keeping.snapshots",
    "prune": "keeping.snapshots",
    "hold": "keeping.snapshots",
    "release": "keeping.snapshots",
    "leftovers": "leftovers",
    "completion": "main",
}
_SETTINGS = {"auto_envvar_prefix": "MLFLOW_EXIM", "help_option_names": ["-h", "--help"]}


class _Exim(click.Group):
    """Imports a command when it is asked for."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from mlflow_exim_plugin.cli.command import asks_json, misuse

            near = difflib.get_close_matches(args[0], _MODULES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            message = f"No such command {args[0]!r}.{hint}"
            unknown = click.UsageError(message, error.ctx)
            raise misuse(unknown, as_json=asks_json(args)) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _MODULES:
            return None
        if _MODULES[cmd_name] == "main":
            return completion
        module = importlib.import_module(f"mlflow_exim_plugin.cli.{_MODULES[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(cls=_Exim, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="mlflow-exim", allow_from_autoenv=False)
def exim() -> None:
    """Pack, unpack, copy, convert, compare, serve, verify and look into MLflow archives.

    Every option can also be set by an environment variable, such as MLFLOW_EXIM_PACK_JOBS for
    `pack --jobs`: what may be given several times as a JSON list, or one a line.

    Example:

      mlflow exim pack backup.tar.zst --tracking-uri sqlite:///mlflow.db
    """


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option(
    "--program",
    metavar="NAME",
    default="mlflow-exim",
    show_default=True,
    help="Name by which the program is called.",
)
def completion(shell: str, program: str) -> None:
    """Print what lets SHELL complete the words of `mlflow-exim` when the tab key is pressed.

    Put it where the shell reads such files, or into its startup file:

    \b
      bash: eval "$(mlflow-exim completion bash)" in ~/.bashrc
      zsh:  eval "$(mlflow-exim completion zsh)" in ~/.zshrc
      fish: mlflow-exim completion fish > ~/.config/fish/completions/mlflow-exim.fish

    Example:

      mlflow exim completion bash
    """  # noqa: D301 - click's sign for lines that stay
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    if made is None:  # click knows all three
        raise click.UsageError(f"No completion for {shell}.")
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()
    put(made(exim, {}, program, variable).source() + "\n")
