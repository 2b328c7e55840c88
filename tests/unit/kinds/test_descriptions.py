"""Each kind is described once: what is described is there, in archives and in MLflow's tables."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.store.db.base_sql_model import Base
from mlflow.store.model_registry.dbmodels import models as registry_tables
from mlflow.store.tracking.dbmodels import models as tracking_tables

import mlflow_exim_plugin
from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.kinds import ENTITY_KINDS, KINDS, VERSION_KINDS, Kind
from mlflow_exim_plugin.kinds.description import ArtifactUri, Json, Listed, TableRows
from mlflow_exim_plugin.kinds.tables import MAPPED
from mlflow_exim_plugin.sources.archive.archive import Archive
from tests.pinned import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES = Base.metadata.tables
assert registry_tables.Base is tracking_tables.Base  # both families of tables are known now
# The archive of everything is of 3.17, and a workspace is a tree there rather than an entity.
NOT_IN_ARCHIVE = {Kind.SKILL, Kind.WORKSPACE}
# What our seed does not set, or only some releases.
SELDOM = {
    (Kind.LOGGED_MODEL, "info.status_message"),
    (Kind.MODEL_VERSION, "model_id"),
    (Kind.PROMPT_VERSION, "model_id"),
    (Kind.PROMPT_VERSION, "run_id"),
    (Kind.PROMPT_VERSION, "tags._mlflow_experiment_ids"),
    (Kind.EVALUATION_DATASET, "records[].dataset_id"),
    (Kind.TRACE, "info.linked_prompts"),
    (Kind.TRACE, "info.linked_prompts[]"),
    (Kind.TRACE, "info.unlinked_prompts"),
    (Kind.TRACE, "info.unlinked_prompts[]"),
}


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of each value of a document, tags and the like by their keys too."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, path + "[]")
            if isinstance(inner, dict) and inner.keys() <= {"key", "value"}:
                yield f"{path}.{inner.get('key')}"


@cache
def in_archive() -> dict[Kind, set[str]]:
    """Return the paths of all documents of the archive of everything, by kind."""
    found: dict[Kind, set[str]] = defaultdict(set)
    with Archive.open(str(ARCHIVE)) as archive:
        for kind in ENTITY_KINDS:
            for entity in archive.entities(kind):
                found[kind].update(paths(entity.mlflow[str(kind)]))
        for experiment in archive.experiments():
            found[Kind.EXPERIMENT].update(paths(experiment.mlflow.experiment))
        for run in archive.runs():
            found[Kind.RUN].update(paths(run.mlflow.run))
        for model in archive.logged_models():
            found[Kind.LOGGED_MODEL].update(paths(model.mlflow.logged_model))
        for trace in archive.traces():
            whole: dict[str, Any] = {"experiment_id": trace.experiment_id, "info": trace.info}
            whole |= {"spans": trace.spans, "assessments": trace.assessments}
            found[Kind.TRACE].update(paths(whole))
        for owner, of in VERSION_KINDS.items():
            for registered in archive.models(owner):
                document = registered.mlflow.registered_model
                found[owner].update(paths(document))
                for version in archive.versions(document["name"]):
                    found[of].update(paths(version.mlflow.model_version))
    return found


def described_paths(kind: Kind) -> set[str]:
    of = KINDS[kind]
    return {
        *of.lists,
        *of.refers,
        *of.needs,
        *of.drops,
        *of.only,
        *of.names.split(),
        *of.secrets.split(),
    }


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NOT_IN_ARCHIVE], ids=str)
def test_every_path_leads_somewhere(kind: Kind) -> None:
    nowhere = {(kind, path) for path in described_paths(kind) - in_archive()[kind]}
    assert nowhere == {(of, path) for of, path in SELDOM if of is kind}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_missing_reference_has_one_outcome(kind: Kind) -> None:
    of = KINDS[kind]
    assert not of.needs.keys() & of.drops.keys()
    assert {*of.needs, *of.drops, *of.only} <= of.refers.keys()
    for path in (*of.needs, *of.drops):
        assert not isinstance(of.refers[path], ArtifactUri | Json | Listed)


def tables_of(rows: TableRows) -> Iterator[tuple[str, set[str]]]:
    shared = {name.rpartition("=")[2] for name in rows.owner}
    yield rows.table, {*rows.columns, *shared}
    for part in rows.parts:
        yield from tables_of(part)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_tables_and_columns_are_mlflows(kind: Kind) -> None:
    of = KINDS[kind]
    wanted = dict(tables_of(of.rows)) if of.rows else {}
    wanted |= {table: {*columns.split()} for table, columns in of.unlike.items()}
    if of.growth:
        wanted |= {table: {*part.key} for table, part in of.growth.parts.items()}
    known = {table: columns for table, columns in wanted.items() if table in TABLES}
    for table, columns in known.items():
        assert columns <= MAPPED[table], table  # of which this MLflow may lack some
    if kind is not Kind.SKILL or "skills" in TABLES:
        assert known == wanted


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_kinds_that_have_rows_of_their_own_are_known_by_a_column(kind: Kind) -> None:
    of = KINDS[kind]
    if of.table in TABLES and not of.is_named:
        assert of.id_column in TABLES[of.table].columns


def test_every_kind_has_its_folder_in_the_archive() -> None:
    for kind, of in ENTITY_KINDS.items():
        folder = "data/experiments/1/" if of.of_experiment else layout.TREE
        member = layout.entity_member(kind, "a b", experiment=folder)
        found = layout.object_at(member)
        assert found is not None
        assert found.kind is kind
    for kind, of_version in VERSION_KINDS.items():
        model = layout.model_folder("name", kind=kind)
        found = layout.object_at(layout.version_member(model, 7))
        assert found is not None
        assert (found.kind, found.segment, found.model) == (of_version, "7", (kind, "name"))


# Kinds that others treat in no way of their own.
PLAIN = [Kind.BUDGET_POLICY, Kind.SKILL]


@pytest.mark.parametrize("kind", PLAIN, ids=str)
def test_a_plain_kind_stands_in_its_description_its_reader_and_its_writer(kind: Kind) -> None:
    root = Path(mlflow_exim_plugin.__file__).parent
    name = re.compile(rf"\bKind\.{kind.name}\b")
    found = {
        file.relative_to(root).parts[:2]
        for file in root.rglob("*.py")
        if name.search(file.read_text("utf-8"))
    }
    places = {parts[:1] if parts[0] == "kinds" else parts for parts in found}
    assert places == {("kinds",), ("host", "entities"), ("sinks", "server")}
