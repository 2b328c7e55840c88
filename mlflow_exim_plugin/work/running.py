"""Tasks given to an engine, and what each gives back, in the order in which they are done."""

from __future__ import annotations

import logging
from concurrent.futures import BrokenExecutor, CancelledError, as_completed
from typing import TYPE_CHECKING, TypeVar

from mlflow_exim_plugin.errors import NOTICE, EngineError, EximError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor, Future

    from mlflow_exim_plugin.work.engines import Engine

__all__ = ["done_by", "done_by_engine"]

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


def done_by(
    executor: Executor, call: Callable[[_Task], _Result | EximError], tasks: Sequence[_Task]
) -> Iterator[tuple[_Task, _Result]]:
    """Yield tasks with what they give back, as they are done.

    Args:
        executor: Runs them.
        call: Does one; a function at the top of a module.
        tasks: What it is called with; plain data.

    Raises:
        EximError: One failed, and said why; the others that were under way are not waited for.
        EngineError: The engine lost one, and does not run it again.
    """
    under_way: dict[Future[_Result | EximError], _Task] = {
        executor.submit(call, task): task for task in tasks
    }
    try:
        for future in as_completed(under_way):
            result = _result_of(future)
            if isinstance(result, EximError):
                raise result
            yield under_way[future], result
    finally:
        for future in under_way:
            future.cancel()


def _result_of(future: Future[_Result]) -> _Result:
    try:
        return future.result()
    except (BrokenExecutor, EximError):
        raise
    except CancelledError as error:
        raise EngineError("the engine gave up a task") from error
    except Exception as error:  # each engine has errors of its own for workers that it lost
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EngineError(f"the engine lost a task: {line}") from error


def done_by_engine(
    engine: Engine,
    call: Callable[[_Task], _Result | EximError],
    rounds: Sequence[Sequence[_Task]],
) -> Iterator[tuple[_Task, _Result]]:
    """Do the same with an engine that is opened for it.

    Where a process ends, its pool ends with it; a second pool gets what is not done.

    Args:
        engine: Runs the tasks.
        call: Does one; a function at the top of a module.
        rounds: What it is called with; none of a round before all of the one before are done.

    Raises:
        EximError: See ``done_by``.
    """
    left = [[*tasks] for tasks in rounds if tasks]
    all_of_them = _count(left)
    while left:
        before = _count(left)
        try:
            with engine.open() as executor:
                while left:
                    for task, result in done_by(executor, call, left[0].copy()):
                        left[0].remove(task)
                        yield task, result
                    del left[0]
        except BrokenExecutor as error:
            count = _count(left)
            if not engine.opens_again or (count == before and before != all_of_them):
                raise EngineError(
                    f"a worker process ended: {count} tasks are not done",
                    "run the same command again: what is done stays; a killed process may have had "
                    "too little memory",
                ) from error
            _log.log(NOTICE, "A worker process ended: %d tasks go to new ones.", count)


def _count(rounds: Sequence[Sequence[object]]) -> int:
    return sum(map(len, rounds))
