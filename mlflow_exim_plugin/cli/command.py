"""How every command ends."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from mlflow_exim_plugin.cli.options import refuse_unknown
from mlflow_exim_plugin.cli.output import show_error, show_error_json, show_traceback
from mlflow_exim_plugin.cli.process import OwnProcess
from mlflow_exim_plugin.errors import ErrorCode, EximError, ExitCode
from mlflow_exim_plugin.redaction import redact

__all__ = ["Command"]


class Command(click.Command):
    """Ends every error in one line on standard error and the exit code of its kind.

    With ``--output json`` the error is also a document on standard output, with ``--verbose`` a
    traceback comes first.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; click says what is wrong with them."""
        try:
            rest = super().parse_args(ctx, args)
            if ctx.parent is not None:
                refuse_unknown(ctx.parent)
        except click.UsageError as error:
            # `--output` is eager: it is there unless the arguments cannot even be told apart.
            raise _misuse(error, as_json=ctx.params.get("output") == "json") from None
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        verbose, as_json = ctx.params.pop("verbose"), ctx.params.get("output") == "json"
        process = ctx.find_object(OwnProcess)
        running = process.running(verbose=verbose) if process else contextlib.nullcontext()
        try:
            with running:
                return super().invoke(ctx)
        except click.UsageError as error:
            raise _misuse(error, as_json=as_json) from None
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise  # click knows how to end these
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            code = ExitCode.OTHER
        except EximError as error:
            if verbose:
                show_traceback()
            show_error(error, as_json=as_json)
            code = error.exit_code
        except Exception as error:  # what nobody foresaw is shown, and goes on
            if verbose:
                show_traceback()
            if as_json:
                show_error_json(ErrorCode.OTHER, f"{type(error).__name__}: {error}")
            raise  # `entrypoints` knows a broken installation from a bug
        raise click.exceptions.Exit(code)


def _misuse(error: click.UsageError, *, as_json: bool) -> click.UsageError:
    """Return what click is to say on standard error, printed as a document as well."""
    message = redact(error.format_message())
    if as_json:
        show_error_json(ErrorCode.USAGE, message)
    return click.UsageError(message, error.ctx)
