"""Traces that an unpack wrote where they could not keep their ids."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.provenance import CONTENT, ORIGIN, newest, told
from mlflow_exim_plugin.sinks.server.ids import Planned

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.traces.listing import TraceListing

__all__ = ["KnownTraces"]


class KnownTraces:
    """Recognises them by their tags; each experiment is listed once.

    Args:
        listing: Lists the traces of a deployment.
    """

    def __init__(self, listing: TraceListing) -> None:
        self._listing = listing
        self._of_experiment: dict[str, dict[str, tuple[str, str | None]]] = {}
        self._lock = threading.Lock()

    def of(self, experiment_id: str) -> dict[str, tuple[str, str | None]]:
        """Return target id and ``CONTENT`` by source id of an experiment's traces.

        What no unpack wrote stands under its own id, without ``CONTENT``: it may come back.

        Raises:
            ServerError: They cannot be listed.
        """
        with self._lock:
            if experiment_id not in self._of_experiment:
                found: dict[str, tuple[str, str | None]] = {}
                is_new = isinstance(experiment_id, Planned)
                for trace in () if is_new else self._listing.all(experiment_id):
                    tags = trace.info["tags"]
                    if origin := told(tags, ORIGIN):
                        found[newest(origin)] = (trace.id, told(tags, CONTENT))
                    else:
                        found[trace.id] = (trace.id, None)
                self._of_experiment[experiment_id] = found
            return self._of_experiment[experiment_id]
