"""Params and tags one by one: as much of each as a deployment takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.schema.objects import Failure, Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.kinds import Kind
    from mlflow_exim_plugin.options import Writing
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["TextWriter"]

_MOST_CHARACTERS = (8000, 6000, 5000, 500, 250)
"""What one MLflow or another holds of a param or tag."""


class TextWriter:
    """Puts texts that were refused together.

    Args:
        host: The deployment.
        options: Whether texts may be cut.
    """

    def __init__(self, host: Host, options: Writing) -> None:
        self._host = host
        self._is_strict = options.is_strict

    def put(
        self,
        kind: Kind,
        owner: str,
        texts: Mapping[str, str],
        put: Callable[[str, str], None],
        report: Report,
    ) -> tuple[dict[str, str], bool]:
        """Put texts.

        Args:
            kind: What they are.
            owner: Id of what they belong to.
            texts: They, by key.
            put: Puts one.
            report: Told of those of which the target takes nothing.

        Returns:
            What it took of each, and whether there is no more to be had.

        Raises:
            ServerLostError: It does not answer any more.
        """
        taken: dict[str, str] = {}
        whole = True
        for key, text in texts.items():
            error = self._put(key, text, put, taken)
            if error is None:
                continue
            if self._host.refused(error) and not self._is_strict:
                what = f"the target refuses it: {error.message}"
                report.lost(Loss(kind, f"{owner}/{key}", what))
            else:
                report.failed(Failure(kind, f"{owner}/{key}", error.message))
                whole = False
        return taken, whole

    def _put(
        self, key: str, text: str, put: Callable[[str, str], None], taken: dict[str, str]
    ) -> ServerError | None:
        """Put a text as it is or, where it may be cut, without its end; return the last refusal."""
        shorter = [] if self._is_strict else [most for most in _MOST_CHARACTERS if most < len(text)]
        last: ServerError | None = None
        for most in [len(text), *shorter]:
            try:
                put(key, text[:most])
            except ServerError as error:
                last = error
            else:
                taken[key] = text[:most]
                return None
        return last
