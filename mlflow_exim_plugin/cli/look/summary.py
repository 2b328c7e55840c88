"""What people want to know of one object first: a few lines, then its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.cli.look.runs import duration_text, moment_text
from mlflow_exim_plugin.cli.look.table import show_table
from mlflow_exim_plugin.cli.output import named, say, size_text
from mlflow_exim_plugin.kinds.kind import Kind
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.runs import PARENT

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["show_summary"]

_LONGEST = 200
"""Characters of a text that are shown."""
_OF_MLFLOW = "mlflow."


def show_summary(document: dict[str, Any], root: str | None = None) -> None:
    """Print what matters of a document.

    Args:
        document: As ``operations.look.contents.document_of`` gives it.
        root: Root digest of the archive that it is of, hex.
    """
    own = document.get("mlflow", document)
    if "counts" in document.get("info", {}):
        _archive(document, root)
    elif "counts" in document:
        _table(("", "held"), [(kind.replace("_", " "), n) for kind, n in own["counts"].items()])
    elif "experiment" in own:
        _experiment(own["experiment"], own)
    elif "run" in own:
        _run(own["run"], document.get("info", {}))
    elif "registered_model" in own:
        versions = [version["mlflow"]["model_version"] for version in document["versions"]]
        _model(own["registered_model"], versions)
    elif "model_version" in own:
        _version(own["model_version"], document.get("info", {}))
    elif "logged_model" in own:
        _logged_model(own["logged_model"], document.get("info", {}))
    elif "spans" in own:
        _trace(own)
    elif "run_id" in own.get("info", {}):
        _run(own, {})
    elif "model_id" in own.get("info", {}):
        _logged_model(own, {})
    elif "experiment_id" in own:
        _experiment(own, {})
    elif "version" in own:
        _version(own, {})
    else:
        _model(own, own.get("versions", []))


def _archive(document: dict[str, Any], root: str | None) -> None:
    system, info = document["system"], document["info"]
    _facts(
        ("packed", f"{system['_export_time']} UTC by {system.get('user') or 'somebody'}"),
        ("from", redact_url(system.get("mlflow_tracking_uri") or "")),
        ("by", f"{system['script']}, package {system['package_version']}"),
        ("MLflow", system.get("mlflow_version")),
        ("format", system.get("format_version")),
        ("root", root),
        ("content root", info.get("content_root")),
        ("metric rows", f"{info.get('metric_rows', 0):,}"),
        ("artifacts", size_text(info.get("artifact_bytes", 0))),
    )
    rows = [
        (kind.replace("_", " "), count["written"], count["failed"])
        for kind, count in info["counts"].items()
        if count["found"]
    ]
    _table(("", "held", "failed"), rows)
    for seen in info.get("not_packed", ()):
        say(f"Not packed: {seen['kind']} ({seen['reason']})")
    for rules in info.get("redacted", ()):
        say(f"Redacted by {rules.get('name') or 'rules'} sha256:{rules.get('sha256')}")
    known = {str(kind) for kind in Kind}
    for title, entries, why in (("Lossy", "lossy", "what"), ("Failed", "failures", "reason")):
        of_kinds = [entry for entry in info.get(entries, ()) if entry["kind"] in known]
        named(title, [(entry["kind"], entry["id"], entry[why]) for entry in of_kinds])


def _experiment(experiment: dict[str, Any], own: dict[str, Any]) -> None:
    _facts(
        ("experiment", experiment["name"]),
        ("id", experiment["experiment_id"]),
        ("stage", experiment.get("lifecycle_stage", "active")),
        ("created", _moment(experiment.get("creation_time"))),
        ("changed", _moment(experiment.get("last_update_time"))),
        ("files", experiment.get("artifact_location")),
        ("runs", _count(own.get("runs"))),
        ("logged models", _count(own.get("logged_models"))),
    )
    _tags(experiment.get("tags"))


def _run(run: dict[str, Any], stored: dict[str, Any]) -> None:
    info, data = run["info"], run.get("data", {})
    tags = {tag["key"]: tag["value"] for tag in data.get("tags") or ()}
    start_ms, end_ms = info.get("start_time"), info.get("end_time")
    took = "" if start_ms is None or end_ms is None else f", {duration_text(end_ms - start_ms)}"
    stage = "" if info.get("lifecycle_stage", "active") == "active" else ", deleted"
    rows = (stored.get("metrics") or {}).get("rows", 0)
    _facts(
        ("run", info.get("run_name") or tags.get("mlflow.runName")),
        ("id", info["run_id"]),
        ("experiment", info["experiment_id"]),
        ("status", f"{info.get('status', '')}{took}{stage}"),
        ("started", f"{moment_text(start_ms)} by {info.get('user_id') or 'somebody'}"),
        ("made by", tags.get("mlflow.source.name")),
        ("parent", tags.get(PARENT)),
        ("metric rows", f"{rows:,}" if rows else None),
        ("artifacts", _files(stored)),
    )
    metrics = sorted(data.get("metrics") or (), key=lambda metric: str(metric["key"]))
    _table(
        ("metric", "last", "step"),
        [(m["key"], _number(m["value"]), m.get("step", 0)) for m in metrics],
    )
    _table(("param", ""), _entries(data.get("params")))
    for used in (run.get("inputs") or {}).get("dataset_inputs") or ():
        say(f"dataset {used['dataset'].get('name')} {used['dataset'].get('digest')}")
    _tags(data.get("tags"))


def _model(model: dict[str, Any], versions: list[dict[str, Any]]) -> None:
    aliases: dict[str, list[str]] = {}
    for entry in model.get("aliases") or ():
        aliases.setdefault(str(entry["version"]), []).append(entry["alias"])
    _facts(
        ("name", model["name"]),
        ("created", _moment(model.get("creation_timestamp"))),
        ("changed", _moment(model.get("last_updated_timestamp"))),
        ("description", _short(model.get("description"))),
        ("versions", f"{len(versions):,}"),
    )
    _table(
        ("version", "aliases", "stage", "status", "created", "run"),
        [
            (
                str(v["version"]),
                ", ".join(sorted(aliases.get(str(v["version"]), []))),
                v.get("current_stage"),
                v.get("status"),
                _moment(v.get("creation_timestamp")),
                v.get("run_id"),
            )
            for v in versions
        ],
    )
    _tags(model.get("tags"))


def _version(version: dict[str, Any], stored: dict[str, Any]) -> None:
    tags = {tag["key"]: tag["value"] for tag in version.get("tags") or ()}
    _facts(
        ("name", version["name"]),
        ("version", str(version["version"])),
        ("aliases", ", ".join(map(str, version.get("aliases") or ()))),
        ("stage", version.get("current_stage")),
        ("status", version.get("status")),
        ("created", _moment(version.get("creation_timestamp"))),
        ("run", version.get("run_id")),
        ("source", redact_url(version.get("source") or "")),
        ("files", _files(stored)),
        ("description", _short(version.get("description"))),
        ("text", _short(tags.get("mlflow.prompt.text"))),
    )
    _tags(version.get("tags"))


def _logged_model(model: dict[str, Any], stored: dict[str, Any]) -> None:
    info, data = model["info"], model.get("data", {})
    _facts(
        ("logged model", info.get("name")),
        ("id", info["model_id"]),
        ("experiment", info.get("experiment_id")),
        ("type", info.get("model_type")),
        ("status", info.get("status")),
        ("created", _moment(info.get("creation_timestamp_ms"))),
        ("run", info.get("source_run_id")),
        ("files", _files(stored)),
    )
    metrics = sorted(data.get("metrics") or (), key=lambda metric: str(metric["key"]))
    _table(
        ("metric", "value", "dataset"),
        [(m["key"], _number(m["value"]), m.get("dataset_name")) for m in metrics],
    )
    _table(("param", ""), _entries(data.get("params")))
    _tags(info.get("tags"))


def _trace(trace: dict[str, Any]) -> None:
    info = trace["info"]
    spans = trace["spans"] or []
    _facts(
        ("trace", (info.get("tags") or {}).get("mlflow.traceName")),
        ("id", info["trace_id"]),
        ("state", info.get("state")),
        ("started", _moment(info.get("request_time_ms"))),
        ("took", duration_text(info.get("execution_duration_ms"))),
        ("run", (info.get("trace_metadata") or {}).get("mlflow.sourceRun")),
        ("request", _short(info.get("request_preview"))),
        ("response", _short(info.get("response_preview"))),
    )
    depths = _depths(spans)
    _table(
        ("span", "type", "status", "took"),
        [
            (
                "  " * depths[span["span_id"]] + str(span.get("name")),
                str((span.get("attributes") or {}).get("mlflow.spanType") or "").strip('"'),
                span.get("status_code"),
                _span_text(span),
            )
            for span in spans
        ],
    )
    _table(
        ("assessment", "value", "by"),
        [
            (
                str(a.get("assessment_name")),
                _short(str((a.get("feedback") or a.get("expectation") or {}).get("value"))),
                str((a.get("source") or {}).get("source_id") or ""),
            )
            for a in trace.get("assessments") or ()
        ],
    )


def _depths(spans: list[dict[str, Any]]) -> dict[str, int]:
    """Return how deep each span is; parents that go in a circle end it."""
    parents = {span["span_id"]: span.get("parent_span_id") for span in spans}
    depths = {}
    for span_id, parent in parents.items():
        above, seen = parent, {span_id}
        while above in parents and above not in seen:
            seen.add(above)
            above = parents[above]
        depths[span_id] = len(seen) - 1
    return depths


def _span_text(span: dict[str, Any]) -> str:
    start_ns, end_ns = span.get("start_time_ns"), span.get("end_time_ns")
    return "" if not start_ns or not end_ns else duration_text((end_ns - start_ns) // 1_000_000)


def _facts(*facts: tuple[str, str | None]) -> None:
    known = [(name, text) for name, text in facts if text]
    width = max(len(name) for name, _ in known)
    for name, text in known:
        say(f"{name:<{width}}  {text}")


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    if rows:
        say("")
        show_table(header, rows)


def _tags(tags: Iterable[dict[str, Any]] | None) -> None:
    own = [(key, text) for key, text in _entries(tags) if not key.startswith(_OF_MLFLOW)]
    _table(("tag", ""), own)


def _entries(entries: Iterable[dict[str, Any]] | None) -> list[tuple[str, str]]:
    return [(str(e["key"]), _short(str(e.get("value", "")))) for e in entries or ()]


def _short(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _number(value: Any) -> float:
    return float(value)


def _moment(time_ms: Any) -> str:
    return moment_text(int(time_ms)) if time_ms else ""


def _count(listed: list[Any] | None) -> str | None:
    return None if listed is None else f"{len(listed):,}"


def _files(stored: dict[str, Any]) -> str | None:
    """Return how many files an envelope lists."""
    if not (files := stored.get("artifacts")):
        return None
    size = size_text(sum(file["size_bytes"] for file in files))
    return f"{len(files):,} file{'' if len(files) == 1 else 's'}, {size}"
