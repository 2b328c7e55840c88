"""Documents: strict in what they know, lossless for what they do not."""

from __future__ import annotations

import copy
import json
from typing import Any

import pydantic
import pytest

from mlflow_exim_plugin import __version__
from mlflow_exim_plugin.errors import InvalidArchiveError, UsageError
from mlflow_exim_plugin.schema.canonical import canonical_bytes, document_bytes, parse_json
from mlflow_exim_plugin.schema.envelope import (
    ArchiveEnvelope,
    ArchiveHeader,
    Document,
    ExperimentEnvelope,
    ModelEnvelope,
    RunEnvelope,
    System,
    VersionEnvelope,
    check_document,
)

SYSTEM = System.now("test", "3.1.0", "sqlite:///x.db").to_json()
DIGEST = "sha256:" + "0" * 64
COUNTERS = {"num_total_runs": 1, "num_ok_runs": 1, "num_failed_runs": 0, "failed_runs": []}
DOCUMENTS: dict[type[Document], dict[str, Any]] = {
    ExperimentEnvelope: {
        "system": SYSTEM,
        "info": {"content_digest": DIGEST, **COUNTERS},
        "mlflow": {"experiment": {"experiment_id": "1", "name": "e", "tags": []}, "runs": ["r"]},
    },
    RunEnvelope: {
        "system": SYSTEM,
        "info": {
            "content_digest": DIGEST,
            "metrics": {
                "digest": DIGEST,
                "keys": 1,
                "rows": 1,
                "parts": [{"member": "data/x", "first_row": 0, "rows": 1}],
            },
            "artifacts": [{"path": "a", "member": "data/a", "size_bytes": 1, "sha256": "0" * 64}],
        },
        "mlflow": {
            "run": {
                "info": {"run_id": "r", "experiment_id": "1", "start_time": 5},
                "data": {"params": [{"key": "p"}], "tags": [], "metrics": [{"key": "m"}]},
            }
        },
    },
    ModelEnvelope: {
        "system": SYSTEM,
        "info": {"content_digest": DIGEST},
        "mlflow": {
            "registered_model": {"name": "m", "aliases": [{"alias": "a", "version": "1"}]},
            "versions": [1],
        },
    },
    VersionEnvelope: {
        "system": SYSTEM,
        "info": {"content_digest": DIGEST},
        "mlflow": {"model_version": {"name": "m", "version": "1"}},
    },
    ArchiveEnvelope: {
        "system": SYSTEM,
        "info": {
            "counts": {"run": {"found": 1, "written": 1, "skipped": 0, "failed": 0}},
            "metric_rows": 0,
            "artifact_bytes": 0,
            **COUNTERS,
        },
        "mlflow": {"experiments": [{"experiment_id": "1", "name": "e"}], "models": ["m"]},
    },
}


def parsed(model: type[Document], document: dict[str, Any]) -> Document:
    return check_document(model, parse_json(document_bytes(document), "data/x.json"), "data/x.json")


def refused(model: type[Document], document: dict[str, Any]) -> str:
    with pytest.raises(InvalidArchiveError) as caught:
        parsed(model, document)
    assert {finding.code for finding in caught.value.findings} == {"E051"}
    return str(caught.value)


def objects_in(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value, *(o for child in value.values() for o in objects_in(child))]
    if isinstance(value, list):
        return [o for child in value for o in objects_in(child)]
    return []


@pytest.mark.parametrize("model", DOCUMENTS, ids=lambda model: model.__name__)
def test_unknown_fields_survive_reading_and_writing(model: type[Document]) -> None:
    document = copy.deepcopy(DOCUMENTS[model])
    for number, node in enumerate(objects_in(document)):
        if "written" not in str(list(node.values())) or "found" in node:
            node["x_later"] = [None, {"number": number, "none": None}, "é", 1.5]
            node["x_nothing"] = None
    document["info"].pop("counts", None)
    if model is ArchiveEnvelope:
        document["info"]["counts"] = {}
    again = parsed(model, document).to_json()
    assert canonical_bytes(again) == canonical_bytes(document)
    assert parsed(model, again).to_json() == again


@pytest.mark.parametrize("model", DOCUMENTS, ids=lambda model: model.__name__)
@pytest.mark.parametrize("part", ["system", "info", "mlflow"])
def test_every_part_is_required(model: type[Document], part: str) -> None:
    document = {key: value for key, value in DOCUMENTS[model].items() if key != part}
    assert part in refused(model, document)


@pytest.mark.parametrize("field", sorted(set(SYSTEM) - {"format_version", "export_time_ms"}))
def test_every_field_of_system_is_required(field: str) -> None:
    document = copy.deepcopy(DOCUMENTS[RunEnvelope])
    del document["system"][field]
    assert f"system.{field}" in refused(RunEnvelope, document)


Path = tuple[Any, ...]


@pytest.mark.parametrize(
    ("model", "path", "value"),
    [
        (RunEnvelope, ("info", "content_digest"), "sha1:0"),
        (RunEnvelope, ("info", "content_digest"), DIGEST.upper()),
        (RunEnvelope, ("info", "metrics", "rows"), -1),
        (RunEnvelope, ("info", "metrics", "rows"), 1.0),
        (RunEnvelope, ("info", "metrics", "rows"), "1"),
        (RunEnvelope, ("info", "metrics", "rows"), True),
        (RunEnvelope, ("info", "artifacts", 0, "sha256"), "g" * 64),
        (RunEnvelope, ("info", "artifacts"), None),
        (RunEnvelope, ("mlflow", "run"), []),
        (RunEnvelope, ("mlflow", "run", "info"), None),
        (RunEnvelope, ("mlflow", "run", "info", "run_id"), 5),
        (RunEnvelope, ("mlflow", "run", "info", "experiment_id"), None),
        (RunEnvelope, ("mlflow", "run", "info", "start_time"), "1"),
        (RunEnvelope, ("mlflow", "run", "info", "end_time"), True),
        (RunEnvelope, ("mlflow", "run", "data"), 3),
        (RunEnvelope, ("mlflow", "run", "data", "tags"), {"key": "x"}),
        (RunEnvelope, ("mlflow", "run", "data", "params"), ["x"]),
        (RunEnvelope, ("mlflow", "run", "data", "metrics", 0, "key"), 1),
        (RunEnvelope, ("mlflow", "run", "inputs"), 5),
        (RunEnvelope, ("mlflow", "run", "inputs"), {"model_inputs": {}}),
        (RunEnvelope, ("mlflow", "run", "outputs"), {"model_outputs": ["m-1"]}),
        (RunEnvelope, ("mlflow", "run", "outputs"), {"model_outputs": [{"step": 1}]}),
        (ExperimentEnvelope, ("mlflow", "experiment", "experiment_id"), 1),
        (ExperimentEnvelope, ("mlflow", "experiment", "name"), None),
        (ExperimentEnvelope, ("mlflow", "runs"), [1]),
        (ExperimentEnvelope, ("info", "num_ok_runs"), None),
        (ModelEnvelope, ("mlflow", "registered_model", "aliases"), "a"),
        (ModelEnvelope, ("mlflow", "registered_model", "aliases", 0, "version"), "x"),
        (ModelEnvelope, ("mlflow", "registered_model", "aliases", 0, "alias"), None),
        (ModelEnvelope, ("mlflow", "versions"), ["1"]),
        (VersionEnvelope, ("mlflow", "model_version", "version"), "\u00b2"),
        (VersionEnvelope, ("mlflow", "model_version", "version"), "01"),
        (VersionEnvelope, ("mlflow", "model_version", "version"), "9" * 5000),
        (VersionEnvelope, ("mlflow", "model_version", "version"), 1),
        (VersionEnvelope, ("mlflow", "model_version", "name"), None),
        (ArchiveEnvelope, ("info", "counts", "run", "found"), -1),
        (ArchiveEnvelope, ("info", "counts", "run"), 5),
        (ArchiveEnvelope, ("mlflow", "experiments"), [{"name": "e"}]),
    ],
)
def test_fields_of_another_type_are_refused(model: type[Document], path: Path, value: Any) -> None:
    document = copy.deepcopy(DOCUMENTS[model])
    node: Any = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    refused(model, document)


def test_a_run_without_rows_has_no_metrics() -> None:
    document = copy.deepcopy(DOCUMENTS[RunEnvelope])
    del document["info"]["metrics"]
    assert "metrics" not in parsed(RunEnvelope, document).to_json()["info"]


def test_documents_do_not_change() -> None:
    system = System.now("test", "3", "x")
    with pytest.raises(pydantic.ValidationError):
        setattr(system, "user", "mallory")  # noqa: B010 - mypy knows that it is read-only


def test_system_describes_this_process() -> None:
    system = System.now("pack", "3.1.0", "https://host")
    assert system.package_version == __version__
    assert system.export_time == system.export_time_ms // 1000
    assert (system.script, system.mlflow_version) == ("pack", "3.1.0")
    assert set(system.to_json()) == {
        "package_version", "script", "format_version", "export_time", "export_time_ms",
        "_export_time", "mlflow_version", "mlflow_tracking_uri", "user", "platform",
    }  # fmt: skip


def test_header_says_how_to_read_the_archive_without_us() -> None:
    header = json.loads(document_bytes(ArchiveHeader.now().to_json()))
    assert header["format"] == "mlflow-exim-archive"
    assert "sha256sum -c" in header["read_me"]


def test_a_time_that_is_given_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1790000000")
    by_environment = System.now("pack", "3", "x")
    by_option = System.now("pack", "3", "x", 1_790_000_000_123)
    assert by_environment.export_time == by_option.export_time == 1_790_000_000
    assert by_environment.export_time_ms == 1_790_000_000_000
    assert by_option.export_time_ms == 1_790_000_000_123
    assert by_option.export_time_text == "2026-09-21 14:13:20"


@pytest.mark.parametrize("text", ["yesterday", "-1", "1e9", "253402300800", " 5"])
def test_a_time_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(UsageError):
        System.now("pack", "3", "x")
