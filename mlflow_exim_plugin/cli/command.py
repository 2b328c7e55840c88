"""How every command ends."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import click

from mlflow_exim_plugin.cli.options import refuse_unknown
from mlflow_exim_plugin.cli.output import (
    QUIET,
    show_error,
    show_error_json,
    show_error_logged,
    show_traceback,
)
from mlflow_exim_plugin.cli.process import OwnProcess, interrupted_code
from mlflow_exim_plugin.errors import ErrorCode, EximError
from mlflow_exim_plugin.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = ["-h", "--help"]
__all__ = ["HELP", "Command", "asks_json", "misuse"]


class Command(click.Command):
    """Ends every error in one line on standard error and the exit code of its kind.

    With ``--output json`` the error is also a document on standard output, with ``--verbose`` a
    traceback comes first.
    """

    def __init__(self, *arguments: Any, **how: Any) -> None:
        how.setdefault("context_settings", {"help_option_names": HELP})
        super().__init__(*arguments, **how)

    @property
    def _takes_uri(self) -> bool:
        return any(param.name == "tracking_uri" for param in self.params)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; click says what is wrong with them."""
        given = tuple(args)  # click takes them out of the list
        try:
            rest = super().parse_args(ctx, args)
            if ctx.parent is not None:
                refuse_unknown(ctx.parent)
        except click.UsageError as error:
            if self._takes_uri and "unexpected extra argument" in error.message:
                hint = "A server or store is given as --tracking-uri."
                error = click.UsageError(f"{error.message}. {hint}", error.ctx)
            # `--output` is eager: it is there unless the arguments cannot even be told apart.
            as_json = ctx.params.get("output") == "json" or asks_json(given)
            raise misuse(error, as_json=as_json) from None
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        verbose, as_json = ctx.params.pop("verbose"), ctx.params.get("output") == "json"
        log_json = ctx.params.pop("log_json", False)
        ctx.meta[QUIET] = ctx.params.pop("quiet", False)
        process = ctx.find_object(OwnProcess)
        try:
            with contextlib.ExitStack() as running:
                if process is not None:
                    logged = process.running(verbose=verbose or log_json, log_json=log_json)
                    running.enter_context(logged)
                return super().invoke(ctx)
        except click.UsageError as error:
            raise misuse(error, as_json=as_json) from None
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise  # click knows how to end these
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            code = interrupted_code()
        except EximError as error:
            if log_json:
                show_error_logged(error)
            elif verbose:
                show_traceback()
            show_error(error, as_json=as_json, said=not log_json)
            code = error.exit_code
        except Exception as error:  # what nobody foresaw is shown, and goes on
            if verbose:
                show_traceback()
            if as_json:
                show_error_json(ErrorCode.OTHER, f"{type(error).__name__}: {error}")
            raise  # `entrypoints` knows a broken installation from a bug
        raise click.exceptions.Exit(code)


def asks_json(args: Sequence[str]) -> bool:
    """Whether arguments that may be wrong otherwise ask for JSON."""
    return re.search(r"(?:^|\n)--output[=\n]json(?:\n|$)", "\n".join(args)) is not None


def misuse(error: click.UsageError, *, as_json: bool) -> click.UsageError:
    """Return what click is to say on standard error, printed as a document as well."""
    message = redact(error.format_message())
    if as_json:
        show_error_json(ErrorCode.USAGE, message)
    return click.UsageError(message, error.ctx)
