"""Experiments to a database: under their own number where it is free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.open.roots import make_root
from mlflow_exim_plugin.host.sql.run_rows import experiment_rows
from mlflow_exim_plugin.schema.objects import Experiment, Kind, Loss, key_values
from mlflow_exim_plugin.schema.provenance import (
    ORIGIN,
    chained,
    experiment_origin,
    kinship,
    names_of,
    origins,
)
from mlflow_exim_plugin.sinks.database.states import State
from mlflow_exim_plugin.sinks.database.target import DatabaseTarget, TargetExperiment
from mlflow_exim_plugin.sinks.left_out import DELETED_THERE
from mlflow_exim_plugin.sinks.policy import (
    NOT_DELETED,
    Meetings,
    TargetNames,
    experiment_keeps,
    find_name,
    taken,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlflow_exim_plugin.schema.report import Report

__all__ = ["ExperimentTables"]

_DEFAULT = 0


class ExperimentTables:
    """Finds or makes the place of each experiment.

    Args:
        target: The database.
        source_ids: Gives the ids of all experiments that may come.

    Attributes:
        was_unused: Whether the target had nothing but what MLflow makes by itself.
    """

    def __init__(self, target: DatabaseTarget, source_ids: Callable[[], Iterable[str]]) -> None:
        self._target = target
        self._source_ids = source_ids
        self._there: dict[int, dict[str, Any]] | None = None
        self._names: dict[str, int] | None = None
        self._loaded = self.was_unused = False
        self._origins: dict[int, list[str]] = {}
        self._meetings = Meetings()
        self._tags_of_new: dict[int, dict[str, str]] = {}

    def enter_workspace(self) -> None:
        """Look again, and let nothing meet what came before: it is in another workspace."""
        self.reset()
        self._meetings = Meetings()

    def load(self) -> None:
        """Look once at what the target has.

        Raises:
            ServerError: The target cannot be read.
        """
        tables = self._target.tables
        is_first = not self._loaded
        self._loaded = True
        found = {int(row["experiment_id"]): row for row in tables.select("experiments")}
        tags: dict[int, dict[str, str]] = {}
        for tag in tables.select("experiment_tags", key=names_of(ORIGIN)):
            tags.setdefault(int(tag["experiment_id"]), {})[tag["key"]] = str(tag["value"])
        for number, row in found.items():
            own = experiment_origin(row | {"experiment_id": str(number)})
            self._origins[number] = origins(own, tags.get(number, {}))
        self._there = found
        if is_first:
            self.was_unused = set(found) <= {_DEFAULT} and not self._has_content(_DEFAULT)

    def reset(self) -> None:
        """Look again when it is needed: what was written was taken back."""
        self._there = self._names = None
        self._origins, self._tags_of_new = {}, {}

    @property
    def there(self) -> dict[int, dict[str, Any]]:
        """The target's experiments by number."""
        if self._there is None:
            self.load()
        assert self._there is not None  # noqa: S101 - load() filled it
        return self._there

    def write(self, experiment: Experiment, report: Report) -> TargetExperiment | str:
        """Find or make the place of an experiment.

        Returns:
            The place, or why there is none.

        Raises:
            ConflictError: The number or name is another's and the policy is ``fail``.
            ServerError: The target cannot take it.
        """
        found, is_copy = self._same(experiment), False
        if found is None:
            found = self._kin(experiment)
            is_copy = found is not None
        if found is not None:
            if self._is_deleted(found) and not experiment.is_deleted:
                report.skipped(Kind.EXPERIMENT, experiment.name, DELETED_THERE)
                return DELETED_THERE
            if is_copy or not self._takes_edits(experiment, found, report):
                reason = "it is there already"
                if keeps := ", ".join(self._keeps(experiment, found)):
                    reason += f" and keeps its own {keeps}"
                report.skipped(Kind.EXPERIMENT, experiment.name, reason)
            into = self._known(experiment, found)
            into.is_copy = is_copy
            return into
        namesake = self._named(experiment.name)
        if namesake is not None and self._is_untouched_default(namesake, experiment):
            return self._new(experiment, experiment.name, report)
        return self._named_or_new(experiment, report)

    def _takes_edits(self, experiment: Experiment, number: int, report: Report) -> bool:
        """Let an experiment follow its edits at the source; return whether there was any."""
        target, there = self._target, self.there[number]
        if not target.options.takes_edits:
            return False
        name = str(there["name"])
        if experiment.name != name and self._named(experiment.name) is None:
            name = experiment.name
        tags = key_values(experiment.document.get("tags")) | experiment.source_tags
        place = str(there["artifact_location"])
        rows = experiment_rows(experiment, number, name, place, target.workspace, tags)
        rows = target.fit(Kind.EXPERIMENT, experiment.name, rows, report)
        compared = target.compare(Kind.EXPERIMENT, rows, {"experiment_id": number})
        if compared is None or compared.state is not State.EARLIER:
            return False
        target.require(rows)
        target.grow(Kind.EXPERIMENT, experiment.name, compared, report)
        self.there[number] = there | compared.update
        self._names = None
        target.count(Kind.EXPERIMENT, report)
        return True

    def _same(self, experiment: Experiment) -> int | None:
        """Return the number of the target's experiment that is this very one."""
        document = experiment.document
        number = int(experiment.id)
        there = self.there.get(number)
        if there is not None and self._is_here(there):
            created = document.get("creation_time")
            if there["creation_time"] == created and (
                created is not None or there["name"] == experiment.name
            ):
                return number
        return None

    def _kin(self, experiment: Experiment) -> int | None:
        """Return the number of what the experiment was made of, or what was made of it."""
        tags = key_values(experiment.document.get("tags"))
        wanted = origins(experiment_origin(experiment.document), tags)
        near = [
            (distance, number)
            for number, its in self._origins.items()
            if (distance := kinship(wanted, its)) is not None and self._is_here(self.there[number])
        ]
        return min(near)[1] if near else None

    def _is_here(self, there: dict[str, Any]) -> bool:
        return str(there.get("workspace", "default")) == self._target.workspace

    def _named(self, name: str) -> int | None:
        if self._names is None:
            self._names = {
                str(row["name"]): n for n, row in self.there.items() if self._is_here(row)
            }
        return self._names.get(name)

    def _is_untouched_default(self, number: int, experiment: Experiment) -> bool:
        """Whether it is the experiment that MLflow makes by itself and nobody has used."""
        if number != _DEFAULT or int(experiment.id) != _DEFAULT:
            return False
        if self.there[number]["lifecycle_stage"] != "active":
            return False
        return not self._has_content(number)

    def _has_content(self, number: int) -> bool:
        tables = ("experiment_tags", "runs", "trace_info", "logged_models", "label_schemas")
        return any(
            self._target.tables.has(t) and self._target.tables.was_there(t, experiment_id=number)
            for t in tables
        )

    def _named_or_new(self, experiment: Experiment, report: Report) -> TargetExperiment | str:
        if not experiment.is_deleted:
            self._restore_met(experiment.name, report)
        names = TargetNames(
            self._named,
            meetings=self._meetings,
            keeps=lambda number: self._keeps(experiment, number),
            is_deleted=self._is_deleted,
            longest=self._target.longest_name,
        )
        policy = self._target.options.on_conflict
        named = find_name(experiment, experiment.name, names, policy, report)
        if named.is_left:
            return named.reason
        if named.there is None:
            return self._new(experiment, named.name, report)
        report.skipped(Kind.EXPERIMENT, experiment.name, named.reason)
        return self._known(experiment, named.there)

    def _keeps(self, experiment: Experiment, number: int) -> Iterator[str]:
        is_deleted = self._is_deleted(number)
        return experiment_keeps(experiment, self._tags(number), is_deleted=is_deleted)

    def _is_deleted(self, number: int) -> bool:
        return bool(self.there[number]["lifecycle_stage"] == "deleted")

    def _restore_met(self, name: str, report: Report) -> None:
        """Restore a deleted experiment that was made just now, where one that is not joins it."""
        number = self._named(self._meetings.at(Kind.EXPERIMENT, name))
        if number not in self._tags_of_new or not self._is_deleted(number):
            return
        if not self._target.options.dry_run:
            self._target.tables.update(
                "experiments", {"lifecycle_stage": "active"}, experiment_id=number
            )
        self.there[number] = self.there[number] | {"lifecycle_stage": "active"}
        report.lost(Loss(Kind.EXPERIMENT, str(self.there[number]["name"]), NOT_DELETED))

    def _tags(self, number: int) -> dict[str, str]:
        if number in self._tags_of_new:
            return self._tags_of_new[number]
        rows = self._target.tables.select("experiment_tags", experiment_id=number)
        return {row["key"]: row["value"] for row in rows}

    def _known(self, experiment: Experiment, number: int) -> TargetExperiment:
        location = str(self.there[number]["artifact_location"])
        return self._known_experiment(experiment, number, location, is_new=False)

    def _known_experiment(
        self, experiment: Experiment, number: int, location: str, *, is_new: bool
    ) -> TargetExperiment:
        source = str(experiment.document.get("artifact_location") or "")
        self._target.know_experiment(number, source, location)
        self._target.ids[Kind.EXPERIMENT][experiment.id] = str(number)
        name = str(self.there[number]["name"])
        self._meetings.went(Kind.EXPERIMENT, experiment.name, name)
        return TargetExperiment(number, location, source, is_new)

    def _new(self, experiment: Experiment, name: str, report: Report) -> TargetExperiment | str:
        target = self._target
        number = self._free_number(experiment, report)
        if isinstance(number, str):
            return number
        source_location = str(experiment.document.get("artifact_location") or "")
        location = target.experiment_folder(number, source_location)
        if target.keeps_locations:
            location = source_location or location
        tags = key_values(experiment.document.get("tags")) | experiment.source_tags
        if number != int(experiment.id) or name != experiment.name:
            tags[ORIGIN] = chained(experiment_origin(experiment.document), tags)
        rows = experiment_rows(experiment, number, name, location, target.workspace, tags)
        rows = target.fit(Kind.EXPERIMENT, experiment.name, rows, report)
        target.require(rows)
        if not target.options.dry_run:
            if not target.keeps_locations:
                make_root(target.artifact_root)
            if number in self.there:  # MLflow's own default experiment, which nobody has used
                target.tables.update("experiments", rows[0][1], experiment_id=number)
            else:
                target.tables.add_experiment(rows[0][1])
            target.add(rows[1:])
        self.there[number] = rows[0][1]
        self._tags_of_new[number] = tags
        if self._names is not None:
            self._names[name] = number
        target.count(Kind.EXPERIMENT, report)
        return self._known_experiment(experiment, number, location, is_new=True)

    def _free_number(self, experiment: Experiment, report: Report) -> int | str:
        """Return the number to use: its own if that is to be had."""
        own = int(experiment.id)
        largest = self._target.tables.largest_experiment_id
        is_default = self._is_untouched_default(own, experiment) if own in self.there else False
        if own <= largest and (own not in self.there or is_default):
            return own
        if own in self.there:
            policy, called = self._target.options.on_conflict, f"experiment of number {own}"
            if reason := taken(Kind.EXPERIMENT, experiment.name, called, policy, report):
                return reason
            reason = f"the target has another {called}"
        else:
            reason = f"the target's numbers end at {largest}"
        reserved = {int(i) for i in self._source_ids() if int(i) <= largest}
        number = max({*self.there, *reserved, _DEFAULT}) + 1
        what = f"its experiment_id is {number} at the target: {reason}"
        report.lost(Loss(Kind.EXPERIMENT, experiment.name, what))
        return number
