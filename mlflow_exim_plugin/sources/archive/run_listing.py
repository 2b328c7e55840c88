"""Lists an archive's runs for a ``Plan``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import InvalidArchiveError, NotFoundError
from mlflow_exim_plugin.host.api.together import each_alone
from mlflow_exim_plugin.options import ALL_IDS
from mlflow_exim_plugin.schema.envelope import RunEnvelope
from mlflow_exim_plugin.schema.runs import RunHeader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.schema.runs import Listed
    from mlflow_exim_plugin.sources.archive.archive import Archive, Tree

__all__ = ["ArchiveRuns"]


class ArchiveRuns:
    """The runs of one workspace, see ``stages.select.Catalog``.

    Args:
        archive: Open archive.
        tree: The workspace.
        segments: Segments of its experiments by id.
    """

    def __init__(self, archive: Archive, tree: Tree, segments: dict[str, str]) -> None:
        self._archive = archive
        self._tree = tree
        self._segments = segments

    def runs(self, experiment_id: str, filter_string: str = "") -> dict[str, RunHeader]:
        """Return the headers of an experiment's runs that match a filter, by run id."""
        documents = []
        for path in self._tree.runs.get(self._segments[experiment_id], {}).values():
            try:
                documents.append(dict(self._archive.document(RunEnvelope, path).mlflow.run))
            except InvalidArchiveError:
                continue  # the stream names it when it comes to it
        if filter_string:
            from mlflow_exim_plugin.host.documents import matching_runs

            documents = matching_runs(documents, filter_string)
        headers = (RunHeader.of(document) for document in documents)
        return {header.run_id: header for header in headers}

    def runs_of_each(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        ids: tuple[str, str] = ALL_IDS,
    ) -> Iterator[Listed]:
        """Yield the same of many experiments, of a range of ids."""
        return each_alone(experiment_ids, partial(self.runs, filter_string=filter_string), ids)

    def run(self, run_id: str) -> dict[str, Any]:
        """Return REST's ``Run``.

        Raises:
            NotFoundError: There is no such run, or it cannot be read.
        """
        try:
            return dict(self._archive.run(run_id).mlflow.run)
        except InvalidArchiveError as error:
            raise NotFoundError(error.message) from error  # the stream names it, see above
