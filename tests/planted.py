"""The archive of everything with a secret in every place that a user of MLflow can write to."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlflow_exim_plugin.operations.deliver import deliver
from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.operations.targets import open_target
from mlflow_exim_plugin.options import Opening, Packing, Selection, Work
from mlflow_exim_plugin.schema.metric_rows import RunRows
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Failure,
    Kind,
    LoggedModel,
    Loss,
    ModelVersion,
    Run,
    Trace,
    Unpacked,
)
from mlflow_exim_plugin.schema.tables import HISTORY
from tests.pinned import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.schema.objects import StreamItem

__all__ = ["PATTERN", "SECRET", "WITH_UMLAUT", "plant"]

SECRET = "AKIAZQ7HUSH42PLANTED"
"""A key of AWS, as far as anybody can tell."""
WITH_UMLAUT = "Zq7Gehèim"
"""JSON may escape it."""
PATTERN = f"{SECRET}|{WITH_UMLAUT}"
KEPT = 'artifacts of a run that say nothing: {"lr": 0.1}\n'

# What MLflow makes itself or chooses among a few: nobody can put a secret there.
_MLFLOWS = re.compile(
    r"(\w+_)?(id|uuid|ids|digest|status|state|stage|type|code|version|strategy|action|entity|unit"
    r"|severity|scope|overrides|workspace|mimeType|key|linkage_type|target_value|provider"
    r"|transport_type|linked_runs)|metrics\.value|target_scope|budget_action|icons\.source"
)
_PEOPLES = re.compile(r"(info|versions?|.*_version)?\.?user_id|source\.source_id|client_request_id")
_TAGS_OF_MLFLOW = re.compile(r"mlflow_exim\.(origin|content|as_of)|mlflow\.(parentRunId|sourceRun)")
_REFERRING = {"mlflow.modelId", "mlflow.assessment.sourceRunId", "_mlflow_experiment_ids"}
_NAMES = {"name", "scorer_name", "alias", "aliases", "action_endpoint_id", "secret_name"}


def plant(archive: str) -> None:
    """Write the archive.

    Args:
        archive: Path of the new archive.
    """
    packing, work = Packing(), Work(script=f"pack {SECRET}")
    selection = Selection()
    with (
        open_target(archive, Opening(), packing, selection, work) as target,
        open_source(str(ARCHIVE)) as source,
    ):
        deliver(source, target, selection, [_planted], work)


def _planted(stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
    is_first = True
    for item in stream:
        if isinstance(item, Failure | Unpacked):
            yield replace(item, reason=f"{item.reason} {SECRET}")
            continue
        if isinstance(item, Loss):
            yield replace(item, what=f"{item.what} {SECRET}")
            continue
        document = _in_document(item.document, "")
        if item.kind is Kind.WORKSPACE:
            document["name"] = item.document["name"]  # MLflow takes nothing like a secret there
        lost = Loss(item.kind, item.kind.words, f"of {SECRET}")
        if isinstance(item, Trace):
            spans = None if item.spans is None else _in_document(item.spans, "spans")
            yield replace(item, document=document, spans=spans, issues=(lost,))
            continue
        planted = replace(item, document=document, digest=None, issues=(lost,))
        if isinstance(planted, Run | LoggedModel | ModelVersion):
            planted.artifacts = [*_files(), *planted.artifacts]
        if isinstance(planted, Run) and is_first:
            planted.artifacts = [*planted.artifacts, _across_blocks()]
            is_first = False
            rows = pa.table([[f"{SECRET} loss"], [1], [2], [0.5]], schema=HISTORY)
            planted.histories, planted.doubles = [RunRows.of(planted.id, rows)], None
            metric = {"key": f"{SECRET} loss", "value": 0.5, "timestamp": 2, "step": 1}
            planted.document["data"] = {**planted.document["data"], "metrics": [metric]}
        yield planted


def _files() -> list[Artifact]:
    contents = {
        f"of {SECRET}.txt": b"",
        "conf/key.txt": f"the key is {WITH_UMLAUT}".encode(),
        "kept.txt": KEPT.encode(),
    }
    return [Artifact(path, len(data), partial(io.BytesIO, data)) for path, data in contents.items()]


def _across_blocks() -> Artifact:
    data = b"\0" * ((1 << 20) - 4) + SECRET.encode() + b"\0" * 9
    return Artifact("z/across blocks.bin", len(data), partial(io.BytesIO, data))


def _in_document(value: Any, place: str) -> Any:
    """Return a document with the secret in each text, and in keys where those are free."""
    last = place.rpartition(".")[2]
    if isinstance(value, dict):
        planted = {k: _in_document(v, f"{place}.{k}".lstrip(".")) for k, v in value.items()}
        if last in ("attributes", "inputs", "expectations", "trace_metadata") or (
            last == "tags" and "info" in place
        ):
            planted |= {f"key {SECRET}": "x"}
        return planted
    if isinstance(value, list):
        entries = [_in_entry(entry, place) for entry in value]
        if last in ("tags", "params"):
            entries.append({"key": f"key {SECRET}", "value": "x"})
        return entries
    return _in_text(value, place) if isinstance(value, str) else value


def _in_entry(entry: Any, place: str) -> Any:
    if isinstance(entry, dict) and entry.keys() == {"key", "value"}:
        return entry | {"value": _in_text(entry["value"], f"{place}.{entry['key']}")}
    return _in_document(entry, place)


def _in_text(text: str, place: str) -> str:
    last = place.rpartition(".")[2]
    is_given = _MLFLOWS.fullmatch(last) or _MLFLOWS.fullmatch(".".join(place.split(".")[-2:]))
    if last == "serialization_format" or text in ("NaN", "Infinity", "-Infinity"):
        return text
    owned = ("attributes", "records.inputs", "tags.", "metadata.", "params.")
    is_own = any(part in place for part in owned)
    if is_given and not is_own and not _PEOPLES.search(place):
        return text
    if any(place.endswith(name) for name in _REFERRING) or _TAGS_OF_MLFLOW.search(place):
        return text
    if place.endswith("linked_prompts"):
        name, _, number = text.rpartition("/")
        return f"{name}-{SECRET}/{number}"
    if last == "assessment_name" or last in _NAMES:
        return f"{text}-{SECRET}"
    try:
        value = json.loads(text)
    except ValueError:
        return f"{text} {SECRET}, {WITH_UMLAUT}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value[0]["planted"] = WITH_UMLAUT
        if "name" in value[0] and "linkedPrompts" in place:
            value = [entry | {"name": f"{entry['name']}-{SECRET}"} for entry in value]
    elif isinstance(value, dict):
        value[f"planted {SECRET}"] = [WITH_UMLAUT, {"deep": f'"{SECRET}"\n'}]
    else:
        return f"{text} {SECRET}"
    return json.dumps(value)
