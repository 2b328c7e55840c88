"""Documents in archives are foreign: they may be anything that is JSON."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import EximError, InvalidArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["as_mlflow_has_them"]


@contextlib.contextmanager
def as_mlflow_has_them() -> Iterator[None]:
    """Say that a document is not as MLflow has it, where what is made of it cannot be.

    Raises:
        InvalidArchiveError: It is not.
    """
    try:
        yield
    except EximError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InvalidArchiveError(
            f"a document is not as MLflow has it: {type(error).__name__} {error}",
            "show --envelope and --output json show it as it is",
        ) from error
