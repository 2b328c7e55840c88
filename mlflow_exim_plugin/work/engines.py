"""Engines: what runs tasks. Each is a ``concurrent.futures.Executor``, and schedules by itself.

Processes here are Python's own pool; Dask gives an executor; of Ray and Spark the few lines that
make one of them are below. What a task is given and gives back is plain data, so that each may send
it to another machine, and send it again where a worker is lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_exim_plugin.errors import EngineError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from mlflow_exim_plugin.options import Scaling

__all__ = ["Engine", "engine_asked", "engine_of"]

_Result = TypeVar("_Result")
_ENGINE = re.compile(r"(processes|dask|ray|spark)(?::([1-9][0-9]{0,3})|(://\S+))?")
_PARALLEL = 16
"""So many tasks at once are planned for where nobody says how many there will be."""
_RETRIES = 3
"""So often Dask, Ray and Spark run a task again whose worker is lost."""


@dataclass(frozen=True)
class Engine:
    """Opens an executor.

    Attributes:
        name: What to call it.
        parallel: How many tasks it runs at once; None where only the executor tells.
        open: Gives the executor, which ends with the block.
        opens_again: Whether a new one may stand for one that broke, as a pool of processes does
            when one of them ends.
    """

    name: str
    parallel: int | None
    open: Callable[[], AbstractContextManager[Executor]]
    opens_again: bool = False

    @property
    def planned_for(self) -> int:
        """How many tasks at once work is divided for."""
        return self.parallel or _PARALLEL


def engine_asked(scaling: Scaling) -> Engine:
    """Return what runs the tasks.

    Raises:
        UsageError: There is no such engine.
    """
    if (executor := scaling.executor) is not None:
        return Engine("executor", None, lambda: contextlib.nullcontext(executor))
    return engine_of(scaling.engine or "")


def engine_of(text: str) -> Engine:
    """Return the engine that a text means.

    Args:
        text: ``processes:4``; ``dask://HOST:PORT``, ``ray://HOST:PORT`` or ``spark://HOST:PORT``;
            ``dask:4``, ``ray:4`` or ``spark:4`` for one on this machine that ends with the work.

    Raises:
        UsageError: It means none.
    """
    found = _ENGINE.fullmatch(text)
    if found is None or (found[1] == "processes" and found[3]):
        raise UsageError(
            f"there is no engine {text!r}",
            "write processes:4, dask://HOST:8786, ray://HOST:10001 or spark://HOST:7077",
        )
    name, address = found[1], found[3]
    parallel = None if address else int(found[2] or os.cpu_count() or 1)
    if name == "processes":
        return Engine(name, parallel, lambda: _processes(parallel or 1), opens_again=True)
    open_it = {"dask": _dask, "ray": _ray, "spark": _spark}[name]
    return Engine(name, parallel, lambda: _translated(open_it, text, parallel))


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[Executor]:
    # They note something to be done when the program ends, which is not for whoever needs none.
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _translated(
    open_it: Callable[[str, int | None], AbstractContextManager[Executor]],
    text: str,
    parallel: int | None,
) -> Iterator[Executor]:
    name = text.partition(":")[0]
    with contextlib.ExitStack() as stack:
        try:
            executor = stack.enter_context(open_it(text, parallel))
        except ImportError as error:
            raise MissingDependencyError(
                f"{error.name or name} is not installed",
                f"pip install 'mlflow-exim-plugin[{name}]'",
            ) from error
        except Exception as error:  # whatever an engine raises where it cannot be reached
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EngineError(f"{text} cannot be used: {line}") from error
        yield executor


@contextlib.contextmanager
def _dask(text: str, parallel: int | None) -> Iterator[Executor]:
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        address: Any = text.replace("dask://", "tcp://", 1)
        if parallel is not None:
            address = stack.enter_context(
                LocalCluster(
                    n_workers=parallel,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address=None,
                )
            )
        client = stack.enter_context(Client(address))
        executor = client.get_executor(retries=_RETRIES)
        yield executor
        executor.shutdown()


@contextlib.contextmanager
def _ray(text: str, parallel: int | None) -> Iterator[Executor]:
    import ray

    if parallel is None:
        ray.init(address=text, log_to_driver=False)
    else:
        ray.init(num_cpus=parallel, include_dashboard=False, log_to_driver=False)
    try:
        yield _RayExecutor(ray.remote(max_retries=_RETRIES)(_called))
    finally:
        ray.shutdown()


class _RayExecutor(Executor):
    """Gives each call to Ray, which queues and repeats it."""

    def __init__(self, remote: Any) -> None:
        self._remote = remote

    def submit(self, fn: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        future: Future[_Result] = self._remote.remote(fn, args, kwargs).future()
        return future


@contextlib.contextmanager
def _spark(text: str, parallel: int | None) -> Iterator[Executor]:
    from pyspark import SparkConf, SparkContext

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    conf = SparkConf().setAppName("mlflow-exim-plugin").set("spark.ui.enabled", "false")
    if parallel is None:
        conf = conf.setMaster(text)
    else:
        conf = conf.setMaster(f"local[{parallel},{_RETRIES + 1}]")
        conf = conf.set("spark.driver.host", "127.0.0.1")
        conf = conf.set("spark.driver.bindAddress", "127.0.0.1")
    with SparkContext(conf=conf) as context:
        threads = parallel or int(context.defaultParallelism)
        with _SparkExecutor(context, threads) as executor:
            yield executor


class _SparkExecutor(ThreadPoolExecutor):
    """Waits for each call in a thread; Spark, which queues and repeats them, runs it as one job."""

    def __init__(self, context: Any, threads: int) -> None:
        super().__init__(threads, "exim-spark")
        self._context = context

    def submit(self, fn: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        return super().submit(self._run, fn, args, kwargs)

    def _run(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._context.parallelize([(fn, args, kwargs)], 1)
        (result,) = call.map(_called_with).collect()
        return result


def _called(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)


def _called_with(call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> Any:
    return _called(*call)
