"""Processes that start at once: they are forked from one that has MLflow and the package loaded."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import ForkServerProcess

__all__ = ["new_process"]

_LOADED = [
    "mlflow",
    "mlflow.store.model_registry.rest_store",
    "mlflow.store.tracking.rest_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow_exim_plugin.operations.unpack",
    "mlflow_exim_plugin.sinks.database.sink",
    "mlflow_exim_plugin.sinks.server.sink",
]


def new_process(call: Callable[..., object], *args: object, **kwargs: Any) -> ForkServerProcess:
    """Return a process, not yet started, in which a function is called."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LOADED)
    return context.Process(target=call, args=args, kwargs=kwargs)
