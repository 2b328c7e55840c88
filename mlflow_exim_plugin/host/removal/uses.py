"""Who uses a run: what names it, or names what would go with it, is told by name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from mlflow_exim_plugin.kinds.tables import MAPPED
from mlflow_exim_plugin.schema.runs import PARENT
from mlflow_exim_plugin.storage.urls import path_of_uri

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from mlflow_exim_plugin.host.removal.tables import RemovalTables, RunParts

__all__ = [
    "IS_DELETED",
    "SOURCE_OF_ASSESSMENT",
    "Use",
    "folders_of",
    "ids_in",
    "in_use",
    "is_own_folder",
    "uses_in_tables",
]

_NAMED = re.compile(r"(?<![0-9a-f])(?:m-|tr-)?[0-9a-f]{32}(?![0-9a-f])")
"""Ids of runs, logged models and traces inside of texts."""
_RUN_COLUMNS = ("run_id", "run_uuid", "source_run_id")
SOURCE_OF_ASSESSMENT = "mlflow.assessment.sourceRunId"
IS_DELETED = "Deleted_Internal"
"""Stage of the versions that are deleted; their rows stay."""


@dataclass(frozen=True)
class Use:
    """That something uses a run.

    Attributes:
        of: The run's id.
        by: What uses it, for people.
        run_id: The run that does, empty where it is something else: if that goes too, it is none.
    """

    of: str
    by: str
    run_id: str = ""


def in_use(
    uses: Iterable[Use], leaving: Iterable[str], gone: Collection[str] = ()
) -> dict[str, list[str]]:
    """Return which of some runs have to stay, and what uses them.

    What is used by a run that has to stay has to stay as well.

    Args:
        uses: All that is known.
        leaving: The runs that are to go.
        gone: Runs that went that way before: what they use may follow them.
    """
    goes = set(leaving)
    listed = [use for use in uses if use.of != use.run_id and use.run_id not in gone]
    while stays := {use.of for use in listed if use.of in goes and use.run_id not in goes}:
        goes -= stays
    found: dict[str, list[str]] = {}
    for use in listed:
        if use.of not in goes and use.run_id not in goes:
            reasons = found.setdefault(use.of, [])
            if use.by not in reasons:
                reasons.append(use.by)
    wanted = set(leaving)
    return {run_id: reasons for run_id, reasons in found.items() if run_id in wanted}


def uses_in_tables(
    tables: RemovalTables, registry: RemovalTables, runs: Mapping[str, RunParts]
) -> Iterator[Use]:
    """Yield what uses runs of a database.

    Args:
        tables: The database.
        registry: That of the model registry, often the same.
        runs: The runs.
    """
    models = {model_id: run_id for run_id, of in runs.items() for model_id in of.models}
    traces = {trace_id: run_id for run_id, of in runs.items() for trace_id in of.traces}
    yield from _by_children(tables, runs)
    yield from _by_models(tables, runs, models)
    yield from _by_versions(registry, runs, models)
    yield from _by_traces(tables, runs, traces)
    yield from _by_others(tables, runs)
    yield from _by_folders(tables, runs)


def _by_children(tables: RemovalTables, runs: Mapping[str, RunParts]) -> Iterator[Use]:
    for row in tables.select_of("tags", "value", runs, key=PARENT):
        yield Use(row["value"], f"run {row['run_uuid']} is a child of it", row["run_uuid"])


def _by_models(
    tables: RemovalTables, runs: Mapping[str, RunParts], models: Mapping[str, str]
) -> Iterator[Use]:
    if not tables.has("logged_models"):
        return
    for link in tables.select_of("inputs", "destination_id", models):
        model, user = link["destination_id"], link["source_id"]
        yield Use(models[model], f"run {user} uses its logged model {model}", user)
    measured = "logged_model_metrics"
    for row in tables.select_of(measured, "model_id", models):
        user = row["run_id"]
        by = f"run {user} measured its logged model {row['model_id']}"
        yield Use(models[row["model_id"]], by, user)
    for row in tables.select_of(measured, "run_id", runs):
        if (model := row["model_id"]) not in models:
            owner = tables.one("logged_models", model_id=model) or {}
            user = str(owner.get("source_run_id") or "")
            yield Use(row["run_id"], f"logged model {model} has metrics of it", user)


def _by_versions(
    registry: RemovalTables, runs: Mapping[str, RunParts], models: Mapping[str, str]
) -> Iterator[Use]:
    folders = {_plain(place): run for run, of in runs.items() for place in of.folders.values()}
    for row in registry.select("model_versions"):
        if row.get("current_stage") == IS_DELETED:
            continue
        told = [str(row.get(name) or "") for name in ("run_id", "source", "storage_location")]
        named = {*ids_in(told), *folders_of(told[1]), *folders_of(told[2])}
        users = {models.get(found, found) for found in named}
        for place in told[1:]:
            users |= {folders[above] for above in _above(place) if above in folders}
        for run_id in sorted(users & {*runs}):
            yield Use(run_id, f"registered model {row['name']!r} version {row['version']}")


def _by_traces(
    tables: RemovalTables, runs: Mapping[str, RunParts], traces: Mapping[str, str]
) -> Iterator[Use]:
    if tables.has("assessments"):
        for row in tables.assessments_of_runs():
            trace = row["trace_id"]
            named = {str(row.get("run_id") or ""), _source_run(row.get("assessment_metadata"))}
            for run_id in sorted(named & {*runs}):
                what = f"an assessment of trace {trace} comes from it"
                yield Use(run_id, what, traces.get(trace, ""))
    if tables.has("entity_associations"):
        for wanted in (runs, traces):
            for row in tables.select_of("entity_associations", "destination_id", wanted):
                kind, by = row["source_type"], row["source_id"]
                end = row["destination_id"]
                of = traces.get(end, end)
                user = by if kind == "run" else traces.get(by, "")
                yield Use(of, f"{kind.replace('_', ' ')} {by} is linked to it", user)
    for row in tables.select_of("review_queue_items", "item_id", traces):
        yield Use(traces[row["item_id"]], f"review queue {row['queue_id']} has a trace of it")
    if traces and tables.has("evaluation_dataset_records"):
        for row in tables.select("evaluation_dataset_records"):
            named = {str(row.get("source_id") or "")}
            named |= {*ids_in(row.get("source"))}
            for trace in sorted(named & {*traces}):
                by = f"evaluation dataset {row['dataset_id']} has a record of its trace {trace}"
                yield Use(traces[trace], by)


def _by_others(tables: RemovalTables, runs: Mapping[str, RunParts]) -> Iterator[Use]:
    """Yield issues, and whatever else has a column for runs that no kind is made of."""
    for row in tables.select_of("issues", "source_run_id", runs):
        yield Use(row["source_run_id"], f"issue {row['issue_id']} comes from it")
    for table in tables.names:
        for column in _RUN_COLUMNS:
            known = column in MAPPED.get(table, ()) or not tables.has(table, column)
            for row in () if known else tables.select_of(table, column, runs):
                by = f"table {table}, of which no archive holds anything, names it"
                yield Use(row[column], by)


def _by_folders(tables: RemovalTables, runs: Mapping[str, RunParts]) -> Iterator[Use]:
    """Yield what has its files where those of a run are, and folders that are nobody's own."""
    owners, around, within = dict[str, str](), dict[str, set[str]](), dict[str, set[str]]()
    for run_id, of in runs.items():
        for owner, place in of.folders.items():
            owners[owner] = run_id
            if not is_own_folder(owner, place):
                yield Use(run_id, f"its files lie in {place}, which is no folder of its own")
            for above in _above(place):
                around.setdefault(above, set()).add(run_id)
            for name in folders_of(place) - {owner}:
                within.setdefault(name, set()).add(run_id)
    for other in tables.owners_among(within):
        user = tables.run_of(other)
        for run_id in sorted(within[other.owner] - {user}):
            yield Use(run_id, f"its files lie in the folder of {other.what} {other.owner}", user)
    for other in tables.places(owners):
        inside = folders_of(other.place) & owners.keys() - {other.owner}
        users = {owners[owner] for owner in inside}
        if other.what != "experiment":
            users |= around.get(_plain(other.place), set())
        if users and users != {user := tables.run_of(other)}:
            for run_id in sorted(users - {user}):
                by = f"files of {other.what} {other.owner} lie in its folder, or around it"
                yield Use(run_id, by, user)


def is_own_folder(owner: str, place: str) -> bool:
    """Say whether a place is a folder of an owner alone, by the id that is to be in it."""
    folders = folders_of(place)
    return owner in folders and not folders & {".", ".."}


def folders_of(place: str) -> set[str]:
    """Return the names of the folders that a place is made of, as a URI and as a path has them."""
    return {*place.split("/"), *unquote(place).split("/")}


def _above(place: str) -> Iterator[str]:
    """Yield a place and all folders that it lies in."""
    place = _plain(place)
    while place:
        yield place
        place = place.rpartition("/")[0]


def _plain(place: str) -> str:
    """Return a place as it is compared: one of this machine as a path."""
    return (path_of_uri(place) or place).rstrip("/")


def _source_run(metadata: Any) -> str:
    try:
        told = json.loads(metadata) if isinstance(metadata, str) else metadata
    except ValueError:
        return ""
    return str(told.get(SOURCE_OF_ASSESSMENT) or "") if isinstance(told, dict) else ""


def ids_in(value: Any) -> Iterator[str]:
    """Yield the ids of runs, logged models and traces in texts, and in JSON of any depth."""
    if isinstance(value, str):
        yield from _NAMED.findall(value)
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from ids_in(inner)
