"""The page for readers of mlflow-export-import names only what the code and MLflow have."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema import lineage, tables, traces
from mlflow_exim_plugin.schema.envelope import System
from mlflow_exim_plugin.schema.lineage import export_tags, import_tags, is_source_tag, sources_of
from mlflow_exim_plugin.schema.objects import (
    ENTITY_KINDS,
    Entity,
    Experiment,
    Kind,
    LoggedModel,
    ModelVersion,
    RegisteredModel,
    Run,
)
from spec import generate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.schema.lineage import Tagged

PAGE = generate.ROOT / "docs" / "reference" / "mlflow-export-import.md"
TEXT = PAGE.read_text("utf-8")
SPEC = (generate.FOLDER / "archive.md").read_text("utf-8")

SCHEMAS = {
    "every document": "run",
    "archive.json": "archive",
    "experiment.json": "experiment",
    "run.json": "run",
    "logged_model.json": "logged_model",
    "part-<nnnnn>.json": "trace_part",
    "model.json": "model",
    "version.json": "version",
    "datasets/<entity id>.json": "entity",
}
"""Our documents as the page calls them, and the names of their JSON Schemas."""
OF_MLFLOW = {
    f"mlflow.{name}"
    for name in ("experiment", "run", "logged_model", "registered_model", "model_version")
}
"""What REST returns: of its fields the schemas list those that the format needs."""
COLUMNS = {"metrics/part-<nnnnn>.parquet": tables.METRICS.names} | {
    f"{name}-<nnnnn>.parquet": columns.names for name, columns in traces.TABLES.items()
}


@dataclass(frozen=True)
class Row:
    """What one row says of fields of theirs."""

    theirs: tuple[str, ...]
    ours: tuple[tuple[str, str], ...]
    """Document or Parquet file, and path."""
    how: str
    where: str


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" |")]


def rows_under(*, header: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the rows of every table whose header begins so, each with the header."""
    for table in re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE):
        lines = table.splitlines()
        head = cells(lines[0])
        if head[0].startswith(header):
            yield from ((head, cells(line)) for line in lines[2:])


def literals(cell: str) -> list[str]:
    """Return what stands in backticks; names of older layouts are in brackets and left out."""
    return re.findall(r"`([^`]+)`", re.sub(r" \([^)]*\)", "", cell))


def field_rows() -> list[Row]:
    made = []
    for head, (theirs, ours, how) in rows_under(header="theirs: "):
        document, _, paths = ours.rpartition(": ")
        document = document or head[1].removeprefix("ours: ")
        named = tuple((document, path) for path in literals(paths))
        made.append(Row(tuple(literals(theirs)), named, how, head[0]))
    return made


def tag_rows() -> list[list[str]]:
    return [[name.strip("`"), *rest] for _, (name, *rest) in rows_under(header="name")]


ROWS = field_rows()
PATHS = sorted({path for row in ROWS for path in row.ours})
TAGS = tag_rows()


# Files and fields.


def test_the_page_is_whole() -> None:
    assert len(ROWS) > 200
    assert len(TAGS) > 30
    documents = {document for document, _ in PATHS}
    assert documents == SCHEMAS.keys() | COLUMNS.keys()


def test_files_are_those_of_the_layout() -> None:
    layout = SPEC.partition("## Layout")[2].partition("```\n")[2].partition("```")[0]
    places = {line.split("  ")[0] for line in layout.splitlines()}
    files = list(rows_under(header="theirs"))
    named = {
        path
        for head, row in files
        if head == ["theirs", "ours"]
        for path in literals(row[1])
        if path.startswith("data/")
    }
    assert len(named) > 15
    assert {path.removesuffix("...") for path in named} <= {p.removesuffix("...") for p in places}
    assert ENTITY_KINDS[Kind.EVALUATION_DATASET].folder == "datasets"


@pytest.mark.parametrize("document", [*SCHEMAS, *COLUMNS])
def test_every_field_of_ours_exists(document: str) -> None:
    paths = [path for name, path in PATHS if name == document]
    assert paths
    if document in COLUMNS:
        assert set(paths) <= set(COLUMNS[document])
        return
    for path in paths:
        if (found := within_schema(schema_of(SCHEMAS[document]), path)) is not None:
            assert_in_object(*found)


@pytest.mark.parametrize("document", [name for name in SCHEMAS if name != "every document"])
def test_no_field_of_ours_is_left_out(document: str) -> None:
    schema = schema_of(SCHEMAS[document])
    there = {path for name, path in PATHS if name == document}
    for part in ("info", "mlflow"):
        for name in properties(schema, part):
            path = f"{part}.{name}"
            assert any(re.match(rf"{re.escape(path)}(\W|$)", other) for other in there), path
    for name, path in PATHS:
        assert name != document or not path.startswith("system.")


def test_no_field_of_system_and_no_column_is_left_out() -> None:
    schema = schema_of("run")
    system = {path for name, path in PATHS if name == "every document"}
    platform = {f"system.platform.{name}" for name in properties(schema, "system", "platform")}
    others = {f"system.{name}" for name in properties(schema, "system")} - {"system.platform"}
    assert system == others | platform
    for file, columns in COLUMNS.items():
        assert {path for name, path in PATHS if name == file} == set(columns), file


def test_every_row_is_as_its_word_says() -> None:
    for row in ROWS:
        word = re.match(r"kept|renamed|derived|not kept: \w|new", row.how)
        assert word, row
        assert bool(row.theirs) is (word[0] != "new"), row
        assert bool(row.ours) is not word[0].startswith("not kept"), row
        if word[0] in ("kept", "renamed"):
            same = {last(path) for path in row.theirs} == {last(path) for _, path in row.ours}
            assert same is (word[0] == "kept"), row


def last(path: str) -> str:
    return path.removesuffix("[]").rpartition(".")[2]


def test_no_field_of_theirs_stands_twice() -> None:
    seen = [(row.where, field) for row in ROWS for field in row.theirs]
    assert len(seen) == len(set(seen))


def test_links_lead_somewhere() -> None:
    for target, anchor in re.findall(r"\]\(([^)#]+)#?([^)]*)\)", TEXT):
        headings = re.findall(r"^#+ (.+)$", (PAGE.parent / target).read_text("utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
        assert not anchor or anchor in anchors, anchor
    for page in ("v1/archive.md", "README.md"):
        assert f"{PAGE.name})" in (generate.FOLDER.parent / page).read_text("utf-8")


@cache
def schema_of(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(generate.schema(name))
    return schema


def resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return what a part of a schema describes, an entry of it where it is a list."""
    while True:
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
        elif "anyOf" in part:
            part = next(choice for choice in part["anyOf"] if choice.get("type") != "null")
        elif "items" in part:
            part = part["items"]
        else:
            return part


def properties(schema: dict[str, Any], *names: str) -> Iterable[str]:
    part = schema
    for name in names:
        part = resolved(schema, resolved(schema, part)["properties"][name])
    return list(part.get("properties", {}))


def within_schema(schema: dict[str, Any], path: str) -> tuple[str, list[str]] | None:
    """Follow a path; return where it leads out of the schema, and what then remains of it."""
    part = schema
    names = path.replace("[]", "").split(".")
    for place, name in enumerate(names):
        if ".".join(names[:place]) in OF_MLFLOW:
            break
        part = resolved(schema, part)
        if name in part.get("properties", {}):
            part = part["properties"][name]
        elif isinstance(part.get("additionalProperties"), dict) and names[place - 1] == "counts":
            assert name in set(Kind), path
            part = part["additionalProperties"]
        else:
            assert "properties" not in part, path
            break
    else:
        return None
    return ".".join(names[:place]), names[place:]


def assert_in_object(parent: str, names: list[str]) -> None:
    """Assert that an object that the format leaves open has a field: MLflow's own, or options."""
    if parent == "mlflow.selection":
        assert names[0] in {field.name for field in fields(Selection)}
        return
    if parent == "mlflow":
        parent, names = f"mlflow.{names[0]}", names[1:]
        assert names, "an entity has one field, named for its kind"
    message = messages()[parent]
    for name in names:
        if (message.name, name) == ("Dataset", "records"):
            message = messages()["record"]
            continue
        assert name in message.fields_by_name, f"{parent}: {name}"
        message = message.fields_by_name[name].message_type


def messages() -> dict[str, Any]:
    """Return what REST returns under each name, as MLflow declares it."""
    datasets = pytest.importorskip("mlflow.protos.datasets_pb2", reason="MLflow is too old")
    from mlflow.protos import model_registry_pb2, service_pb2

    if "effective_trace_archival_retention" not in service_pb2.Experiment.DESCRIPTOR.fields_by_name:
        pytest.skip("this MLflow is older than the page")
    return {
        "mlflow.experiment": service_pb2.Experiment.DESCRIPTOR,
        "mlflow.run": service_pb2.Run.DESCRIPTOR,
        "mlflow.logged_model": service_pb2.LoggedModel.DESCRIPTOR,
        "mlflow.registered_model": model_registry_pb2.RegisteredModel.DESCRIPTOR,
        "mlflow.model_version": model_registry_pb2.ModelVersion.DESCRIPTOR,
        "mlflow.evaluation_dataset": datasets.Dataset.DESCRIPTOR,
        "record": datasets.DatasetRecord.DESCRIPTOR,
    }


# Tags.

SYSTEM = System.now("mlflow exim pack", "3.17.0", "https://old.example.org")
MLFLOW_TAGS = [
    {"key": "mlflow.a.mlflow.b", "value": "nested"},
    {"key": "mlflow.user", "value": "alice"},
    {"key": "team", "value": "iris"},
]
RUN = Run(
    {
        "info": {"run_id": "r1", "experiment_id": "1", "user_id": "alice", "start_time": 1},
        "data": {"tags": MLFLOW_TAGS},
    }
)
ITEMS: list[Tagged] = [
    Experiment({"experiment_id": "1", "name": "e", "creation_time": 5, "tags": MLFLOW_TAGS}),
    RUN,
    LoggedModel({"info": {"model_id": "m-1", "experiment_id": "1", "tags": MLFLOW_TAGS}}),
    RegisteredModel({"name": "m", "creation_timestamp": 6, "tags": MLFLOW_TAGS}),
    ModelVersion({"name": "m", "version": "2", "run_id": "r1", "tags": MLFLOW_TAGS}),
    Entity(
        Kind.EVALUATION_DATASET,
        {"dataset_id": "d-1", "experiment_ids": ["1", "2"], "tags": MLFLOW_TAGS},
    ),
]
SAMPLE_NAMES = {"<field>": "run_id", "<rest>": "source", "<word>": "tracking_uri", "<n>": "3"}
ANY_NAME = {"<field>": r"[a-z_]+", "<rest>": r".+", "<word>": r"[a-z_]+", "<n>": r"[2-9]"}


def with_tags(item: Tagged, tags: dict[str, str]) -> Tagged:
    """Return a copy of an object as a target holds it that took the tags."""
    copy = deepcopy(item)
    document = copy.document
    if isinstance(copy, Run):
        document = copy.document["data"]
    elif isinstance(copy, LoggedModel):
        document = copy.info
    document["tags"] = document["tags"] + [{"key": k, "value": v} for k, v in tags.items()]
    return copy


def example(pattern: str) -> str:
    for placeholder, name in SAMPLE_NAMES.items():
        pattern = pattern.replace(placeholder, name)
    return pattern


def matches(pattern: str, name: str) -> bool:
    expression = re.escape(pattern)
    for placeholder, any_name in ANY_NAME.items():
        expression = expression.replace(re.escape(placeholder), any_name)
    return re.fullmatch(expression, name) is not None


def written(option: str) -> dict[str, set[str]]:
    """Return the names that three hops write, and the classes of the objects that get them."""
    names: dict[str, set[str]] = {}
    for item in ITEMS:
        carried = item
        for _ in range(3):
            if option == "--import-source-tags":
                made = import_tags(carried, SYSTEM)
            elif isinstance(carried, Run):
                made = export_tags(carried, "e", SYSTEM)
            else:
                break
            for name in made:
                names.setdefault(name, set()).add(type(item).__name__)
            carried = with_tags(carried, made)
    return names


def read_back(name: str) -> dict[str, dict[str, str]]:
    """Return where the value of a tag of this name is found again."""
    assert is_source_tag(name)
    (hop,) = sources_of(with_tags(RUN, {name: "the value"}))
    parts = {"fields": hop.fields, "tags": hop.tags, "server": hop.server}
    return {part: found for part, found in parts.items() if found}


@pytest.mark.parametrize(("pattern", "read_as"), [(row[0], row[4]) for row in TAGS])
def test_every_name_is_read_as_the_page_says(pattern: str, read_as: str) -> None:
    name = example(pattern)
    word = re.match(r"fields|tags|server|nothing", read_as)
    assert word
    wanted = {} if word[0] == "nothing" else {word[0]: "the value"}
    for form in (name, name.replace(".", "_")):
        found = read_back(form)
        assert {part: next(iter(values.values())) for part, values in found.items()} == wanted
    if wanted and "." in name:
        ((key, _),) = read_back(name)[word[0]].items()
        assert name.endswith(f".{key}")


@pytest.mark.parametrize("option", ["--import-source-tags", "--export-source-tags"])
def test_every_name_that_is_written_stands_in_the_table_and_no_other(option: str) -> None:
    rows = {row[0]: row[3] for row in TAGS if option in row[3]}
    every = {type(item).__name__ for item in ITEMS}
    on = {"runs": {"Run"}, "all others": every - {"Run"}, "all": every}
    names = written(option)
    assert len(names) > 20
    for name in names:
        assert any(matches(pattern, name) for pattern in rows), name
    for pattern, cell in rows.items():
        kinds = set().union(*(names[name] for name in names if matches(pattern, name)))
        assert kinds == on[cell.split(",")[0]], pattern


def test_differences_from_theirs_are_real() -> None:
    made = import_tags(RUN, SYSTEM)
    assert made["mlflow_exim.mlflow_tag.a.mlflow.b"] == "nested"
    dataset = import_tags(ITEMS[-1], SYSTEM)
    assert dataset["mlflow_exim.field.experiment_ids"] == '["1", "2"]'
    assert '`["1", "2"]`' in TEXT
    described = with_tags(ITEMS[3], {})
    described.document.update(description="d", aliases=[{"alias": "a", "version": "1"}])
    assert import_tags(described, SYSTEM) == import_tags(ITEMS[3], SYSTEM)
    (sentence,) = re.findall(r"has no tag\*\*: (.+?)\. ", TEXT, re.DOTALL)
    assert set(literals(sentence)) == lineage._KEPT_AS_THEMSELVES
    for tag in ("origin", "content", "as_of_ms"):
        assert not is_source_tag(f"mlflow_exim.{tag}")
