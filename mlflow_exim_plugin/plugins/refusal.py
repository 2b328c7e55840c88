"""What MLflow says when somebody writes to an archive, and of what goes wrong while it is read."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_DOES_NOT_EXIST,
)

from mlflow_exim_plugin.errors import EximError, NotFoundError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["READ_ONLY", "as_mlflow", "refused"]

READ_ONLY = (
    "This is an archive, which is read only. To go on with what is in it, put it into a database "
    "or onto a server: `mlflow exim unpack ARCHIVE --tracking-uri URI`."
)
"""Said to who writes."""


def refused(what: str) -> MlflowException:
    """Return the error for a call that writes: 403 over HTTP, which no client tries again."""
    return MlflowException(f"{what} is refused. {READ_ONLY}", error_code=PERMISSION_DENIED)


@contextlib.contextmanager
def as_mlflow() -> Iterator[None]:
    """Turn an error of ours into one of MLflow's, as its clients and its server expect.

    Raises:
        MlflowException: An ``EximError`` came.
    """
    try:
        yield
    except NotFoundError as error:
        raise _told(error, RESOURCE_DOES_NOT_EXIST) from error
    except StoreError as error:
        raise _told(error, INTERNAL_ERROR) from error
    except EximError as error:
        raise _told(error, INVALID_PARAMETER_VALUE) from error


def _told(error: EximError, code: int) -> MlflowException:
    hint = f" ({error.hint})" if error.hint else ""
    return MlflowException(f"{error.message}{hint}", error_code=code)
