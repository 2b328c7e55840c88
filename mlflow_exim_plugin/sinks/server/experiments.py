"""Single experiments of a deployment, also of one that takes less of them than MLflow today."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.open.absent import is_absent
from mlflow_exim_plugin.schema.objects import Kind, Loss, key_values
from mlflow_exim_plugin.schema.provenance import is_provenance
from mlflow_exim_plugin.sinks.server.texts import TextWriter

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.server.target import ServerTarget

__all__ = ["ExperimentWriter"]


class ExperimentWriter:
    """Makes, tags and deletes experiments.

    Args:
        target: The deployment and how to write to it.

    Attributes:
        takes_tags: Whether it has tags of experiments, as far as is known.
    """

    def __init__(self, target: ServerTarget) -> None:
        self._host = target.host
        self._writer = target.writer
        self._reader = target.reader
        self._is_strict = target.options.is_strict
        self._texts = TextWriter(target.host, target.options)
        self.takes_tags = True

    def create(
        self,
        source_name: str,
        name: str,
        location: str | None,
        tags: dict[str, str],
        report: Report,
    ) -> str:
        """Make an experiment; a tag that is refused costs no more than itself.

        Args:
            source_name: Its name at the source, for the report.
            name: Its name at the target.
            location: Where its files are to be, None for the target's choice.
            tags: Its own, and those by which it is known again.
            report: Told of tags that are left out or cut.

        Returns:
            Its id.

        Raises:
            ServerError: The target refuses it whatever its tags are.
        """
        missing: dict[str, str] = {}
        try:
            made = self._writer.create_experiment(name, location, tags)
        except ServerError as error:
            if self._is_strict or not self._host.refused(error):
                raise
            marks = {key: value for key, value in tags.items() if is_provenance(key)}
            made = self._writer.create_experiment(name, location, marks)
            missing = {key: value for key, value in tags.items() if key not in marks}
        if self._host.generation.lists_experiments:  # some of those drop tags unsaid
            there = key_values(self._reader.experiment(made).get("tags"))
            missing = {key: value for key, value in tags.items() if there.get(key) != value}
        self.set_tags(made, source_name, missing, report)
        return made

    def set_tags(
        self, experiment_id: str, source_name: str, tags: dict[str, str], report: Report
    ) -> None:
        """Set tags as far as the target takes them, and name what it does not take."""
        set_tag = partial(self._writer.set_experiment_tag, experiment_id)
        for key, value in tags.items():
            if not self.takes_tags:
                break
            try:
                set_tag(key, value)
            except ServerError as error:
                if is_absent(error):
                    self.takes_tags = False
                    continue
                taken, _ = self._texts.put(Kind.TAG, source_name, {key: value}, set_tag, report)
                if (kept := taken.get(key, value)) != value:
                    what = f"the target keeps {len(kept)} of {len(value)} characters"
                    report.lost(Loss(Kind.TAG, f"{source_name}/{key}", what))
        own = [key for key in tags if not is_provenance(key)]
        if own and not self.takes_tags:
            what = f"its tags {', '.join(own)}: the target has no tags of experiments"
            report.lost(Loss(Kind.EXPERIMENT, source_name, what))

    def delete(self, experiment_id: str) -> None:
        """Delete an experiment.

        Some servers want to delete its runs with it, and refuse where one is deleted already.

        Raises:
            ServerError: The target refuses.
        """
        delete = partial(self._writer.set_experiment_deleted, experiment_id, deleted=True)
        try:
            delete()
        except ServerError as error:
            deleted = self._deleted_runs(experiment_id) if self._host.refused(error) else set()
            if not deleted:
                raise
            for run_id in deleted:
                self._writer.set_run_deleted(run_id, deleted=False)
            try:
                delete()
            finally:
                for run_id in deleted - self._deleted_runs(experiment_id):
                    self._writer.set_run_deleted(run_id, deleted=True)

    def _deleted_runs(self, experiment_id: str) -> set[str]:
        found = self._reader.run_tags([experiment_id], "")
        return {str(info.run_id) for info, _ in found if info.lifecycle_stage == "deleted"}
