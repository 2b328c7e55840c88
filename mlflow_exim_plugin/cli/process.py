"""The process of our own command. A program that only embeds the commands is left as it is."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from datetime import datetime, timezone
from typing import TYPE_CHECKING, TextIO

from mlflow_exim_plugin.errors import NOTICE
from mlflow_exim_plugin.redaction import redact
from mlflow_exim_plugin.storage.leftovers import remove_held

if TYPE_CHECKING:
    from collections.abc import Iterator

    _Stream = logging.StreamHandler[TextIO]
else:  # it takes no type before Python 3.11
    _Stream = logging.StreamHandler

__all__ = ["OwnProcess", "interrupted_code"]

_DEFAULTS = {
    # Arrow keeps some 20 MB less by this one. It looks once, when a command imports it.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    # Arrow imports NumPy, whose linear algebra starts a thread for each core, and nobody asks it
    # anything: a tenth of the CPU of a short command on two cores.
    "OPENBLAS_NUM_THREADS": "1",
    # A dead server should be a message within half a minute.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Variables that are set where the user has not decided."""

_LAST_S = 1.5
"""So long an interrupted command has to end in good order."""
_HEARD_S = 0.1
"""So long a main thread has to hear a signal."""


_SIGNALLED = 128
"""What shells add to the number of a signal that ended a process."""
_heard = [signal.SIGINT]
"""The last signal that ended a command."""


def interrupted_code() -> int:
    """Return the exit code of a command that a signal ended, as shells have it."""
    return _SIGNALLED + _heard[-1]


class OwnProcess:
    """Sets the process up for one command of ours; the entry points hand it to click's context."""

    def __init__(self) -> None:
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        # Nearly nothing needs to be looked for as garbage, and each search goes through MLflow. Of
        # packing 10,000 small runs the three full searches were 0.5 s out of 3.2. What the imports
        # leave alone is some 300,000 objects.
        gc.set_threshold(500_000, 50, 100)
        # Python looks through all that is left before it ends: half a second for MLflow alone.
        atexit.register(gc.freeze)
        sys.meta_path.insert(0, _WithoutPandas())

    @contextlib.contextmanager
    def running(self, *, verbose: bool, log_json: bool = False) -> Iterator[None]:
        """Run a command: it can be ended cleanly, and only its own output is shown.

        Args:
            verbose: Whether log lines and warnings of all that is used are shown as well.
            log_json: Whether those are JSON.
        """
        with _ended_as_interrupted():
            if verbose:
                shown = logging.StreamHandler(sys.stderr)
                words = _Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s")
                shown.setFormatter(_JsonLines() if log_json else words)
                logging.basicConfig(level=logging.DEBUG, handlers=[shown])
                logging.captureWarnings(capture=True)
                yield
                return
            # Levels are not enough: MLflow's migrations configure logging anew.
            logging.disable(logging.CRITICAL)
            told = _Notices(sys.stderr)
            told.setLevel(NOTICE)
            logging.getLogger("mlflow_exim_plugin").addHandler(told)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield


class _WithoutPandas:
    """Finds no pandas as long as MLflow is not loaded, which needs it.

    Arrow loads it for the first list that it makes an array of, to see whether the list is one of
    its objects, and goes on without. That takes longer, and more memory, than to pack a small
    database.
    """

    @staticmethod
    def find_spec(fullname: str, *_: object) -> None:
        if fullname == "pandas" and "mlflow" not in sys.modules:
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")


class _Redacting(logging.Formatter):
    """Log lines of all that is used, without what is secret in them."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _JsonLines(logging.Formatter):
    """The same for programs."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        line |= {name: vars(record)[name] for name in ("code", "hint") if vars(record).get(name)}
        if record.exc_info:
            line["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class _Notices(_Stream):
    """What a person is told at once, in the place of the line that says how far it is."""

    def emit(self, record: logging.LogRecord) -> None:
        from mlflow_exim_plugin.cli.progress import clear_line

        clear_line()
        super().emit(record)


@contextlib.contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """Let whoever ends the process find it as after Ctrl-C: nothing half done, no copies left."""
    begun = threading.Event()

    def interrupt(number: int, _frame: object) -> None:
        _heard[:] = [signal.Signals(number)]
        begun.set()
        # A thread that waits for a server that hangs cannot be ended, and would be waited for.
        ending = threading.Timer(_LAST_S, _end)
        ending.daemon = True
        ending.start()
        raise KeyboardInterrupt

    changed: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        there = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]  # not on Windows
        # `nohup` ignores one of them.
        changed = [n for n in there if n is not None and signal.getsignal(n) is signal.SIG_DFL]
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            changed.append(signal.SIGINT)
    before = {number: signal.signal(number, interrupt) for number in changed}
    with _woken(begun) if changed else contextlib.nullcontext():
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _woken(begun: threading.Event) -> Iterator[None]:
    """Let a signal be heard by a main thread that waits, whatever other libraries made of it.

    Polars, which MLflow loads where it is installed, has a call that waits go on after a signal.

    Args:
        begun: Set when the signal was heard.
    """
    if not hasattr(signal, "siginterrupt"):  # Windows
        yield
        return
    main = threading.get_ident()
    told, tells = socket.socketpair()
    tells.settimeout(0)

    def wake() -> None:
        while number := told.recv(1):
            if not begun.wait(_HEARD_S):
                signal.siginterrupt(number[0], True)  # noqa: FBT003 - its only way
                signal.pthread_kill(main, number[0])

    before = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    waking = threading.Thread(target=wake, name="exim-signals", daemon=True)
    waking.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        tells.close()
        waking.join()
        told.close()


def _end() -> None:
    """End the process as it is, without what it has half done."""
    remove_held()
    os.write(2, b"\nEnded without waiting for the calls that are under way.\n")
    os._exit(interrupted_code())
