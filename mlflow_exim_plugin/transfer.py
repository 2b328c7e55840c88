"""The pipe: a stream goes from a source through stages into a sink, and a report says how."""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mlflow_exim_plugin.errors import (
    InvalidArchiveError,
    NotFoundError,
    PartialTransferError,
    ServerError,
)
from mlflow_exim_plugin.schema.objects import (
    Experiment,
    Failure,
    LoggedModel,
    Loss,
    Run,
    StreamItem,
    StreamObject,
    Unpacked,
    closed_after,
)
from mlflow_exim_plugin.schema.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.sinks.sink import Sink
    from mlflow_exim_plugin.sources.source import Source

    Stage: TypeAlias = Callable[[Iterator[StreamItem]], Iterator[StreamItem]]

__all__ = ["SumsUp", "stopped", "transfer"]


@runtime_checkable
class SumsUp(Protocol):
    """A stage that has something to say of the stream as a whole."""

    def losses(self) -> Iterable[Loss]:
        """Return what was lost, once the stream is at its end."""


_log = logging.getLogger(__name__)


def transfer(
    source: Source,
    sink: Sink,
    selection: Selection,
    *,
    stages: Sequence[Stage] = (),
    report: Report | None = None,
    strict: bool = False,
    progress: Callable[[Report], None] | None = None,
) -> Report:
    """Move a stream from a source to a sink.

    A failure of one object never stops the others; a server or an output that is gone does.

    Args:
        source: Where the objects come from.
        sink: Where they go.
        selection: Which objects to take.
        stages: Applied in order.
        report: Filled and returned; a new one by default.
        strict: Stop at the first object that fails.
        progress: Called after each object.

    Returns:
        The report, for which ``found == written + skipped + failed`` holds for every kind.

    Raises:
        PartialTransferError: An object failed and ``strict`` was asked for.
        ServerLostError: A server does not answer any more.
        StoreError: The output cannot be written.
    """
    report = report or Report()
    stream: Iterator[StreamItem] = source.stream(selection)
    for stage in stages:
        stream = stage(stream)
    pool = ThreadPoolExecutor(sink.parallel, "exim-write")
    under_way: deque[tuple[StreamObject, Future[None]]] = deque()

    def settle(item: StreamObject, call: Callable[[], None]) -> None:
        failed = len(report.failures)
        began_s = time.monotonic()
        try:
            call()
        except (ServerError, InvalidArchiveError, NotFoundError) as error:
            report.failed(Failure(item.kind, _named(item), error.message))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # A source is not trusted: its documents may lack what MLflow's always have.
            what = f"its document is not as MLflow has it: {type(error).__name__} {error}"
            report.failed(Failure(item.kind, _named(item), what))
        if _log.isEnabledFor(logging.INFO):
            _say(item, report, time.monotonic() - began_s, report.failures[failed:])
        if strict and report.failures:
            raise stopped(report)
        if progress:
            progress(report)

    def drain(most: int) -> None:
        while len(under_way) > most:
            item, future = under_way.popleft()
            settle(item, future.result)

    try:
        with closed_after(stream):
            for item in stream:
                if isinstance(item, Failure):
                    report.failed(item)
                elif isinstance(item, Loss):
                    report.lost(item)
                elif isinstance(item, Unpacked):
                    report.not_packed(item)
                elif sink.parallel > 1 and isinstance(item, Run | LoggedModel):
                    if under_way and under_way[-1][0].kind is not item.kind:
                        drain(0)  # what comes next may need the ids of all that came before
                    under_way.append((item, pool.submit(sink.write, item, report)))
                    drain(2 * sink.parallel)
                    continue
                else:
                    drain(0)
                    settle(item, partial(sink.write, item, report))
                    continue
                if strict and report.failures:
                    raise stopped(report)
        drain(0)
        for stage in stages:
            if isinstance(stage, SumsUp):
                for loss in stage.losses():
                    report.lost(loss)
        sink.finish(report)
        sink.capabilities.say_what_is_new(report)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if strict and report.failures:
        raise stopped(report)
    return report


def _say(item: StreamObject, report: Report, took_s: float, failures: list[Failure]) -> None:
    for failure in failures:
        _log.warning("%s %s: %s", failure.kind.words, failure.id, failure.reason)
    so_far = took_s, report.artifact_bytes / 1e6, report.metric_rows
    _log.info(
        "%s %s took %.2f s; %.1f MB and %d rows so far", item.kind.words, _named(item), *so_far
    )


def _named(item: StreamObject) -> str:
    return item.name if isinstance(item, Experiment) else item.id


def stopped(report: Report) -> PartialTransferError:
    """Return the error for a transfer that ends at the first object that failed."""
    failure = report.failures[0]
    error = PartialTransferError(
        f"stopped at {failure.kind} {failure.id}: {failure.reason}",
        "leave --strict out to go on with everything else",
    )
    error.report = report
    return error
