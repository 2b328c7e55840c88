"""How every command ends, and what it keeps from the output."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import click

from mlflow_exim_plugin.cli.output import show_error, show_error_json
from mlflow_exim_plugin.errors import ErrorCode, EximError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Command"]

# Python looks through all that is left for garbage before it ends: half a second for MLflow alone.
atexit.register(gc.freeze)


class Command(click.Command):
    """Ends every error in one line on standard error and the exit code of its kind.

    With ``--output json`` the error is also a document on standard output, with ``--verbose`` a
    traceback comes first.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; click says what is wrong with them."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            # `--output` is eager: it is there unless the arguments cannot even be told apart.
            _show_misuse(error, as_json=ctx.params.get("output") == "json")
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        verbose, as_json = ctx.params.pop("verbose"), ctx.params.get("output") == "json"
        try:
            with _ended_as_interrupted(), _seldom_collecting(), _own_output(verbose=verbose):
                return super().invoke(ctx)
        except click.UsageError as error:
            _show_misuse(error, as_json=as_json)
            raise
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise  # click knows how to end these
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            code = ExitCode.OTHER
        except EximError as error:
            if verbose:
                traceback.print_exc()
            show_error(error, as_json=as_json)
            code = error.exit_code
        except Exception as error:  # what nobody foresaw is shown, and goes on
            if verbose:
                traceback.print_exc()
            if as_json:
                show_error_json(ErrorCode.OTHER, f"{type(error).__name__}: {error}")
            raise  # `entrypoints` knows a broken installation from a bug
        raise click.exceptions.Exit(code)


def _show_misuse(error: click.UsageError, *, as_json: bool) -> None:
    """Print what click will say on standard error as a document as well."""
    if as_json:
        show_error_json(ErrorCode.USAGE, error.format_message())


@contextlib.contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """Let whoever ends the process find it as after Ctrl-C: nothing half done, no copies left."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    changed: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        there = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]  # not on Windows
        # `nohup` ignores one of them, and a program that calls us may have its own way with both.
        changed = [n for n in there if n is not None and signal.getsignal(n) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Look for garbage less often: nearly nothing needs it, and each search goes through MLflow.

    Of packing 10,000 small runs the three full searches were 0.5 s out of 3.2.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


@contextlib.contextmanager
def _own_output(*, verbose: bool) -> Iterator[None]:
    """Keep MLflow's log lines, warnings and progress bars away, unless asked for."""
    # A dead server should be a message within half a minute; users who set the variable decide.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if verbose:
        logging.basicConfig(
            stream=sys.stderr, level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s"
        )
        yield
        return
    # Levels are not enough: MLflow's migrations configure logging anew.
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
