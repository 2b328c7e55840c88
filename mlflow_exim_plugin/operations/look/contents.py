"""``ls`` and ``show``: what is in an archive, or in a source that is read like one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.operations.look.meaning import meant, one_meant, one_run_meant
from mlflow_exim_plugin.options import Selection, version_asked
from mlflow_exim_plugin.schema.objects import (
    Experiment,
    Failure,
    Kind,
    LoggedModel,
    Loss,
    ModelVersion,
    RegisteredModel,
    Run,
    Trace,
    Unpacked,
)
from mlflow_exim_plugin.schema.report import Report
from mlflow_exim_plugin.schema.runs import PARENT
from mlflow_exim_plugin.sinks.counting import CountingSink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.operations.ends import OpenSource
    from mlflow_exim_plugin.schema.envelope import VersionEnvelope
    from mlflow_exim_plugin.schema.objects import StreamObject
    from mlflow_exim_plugin.sources.archive.archive import Archive
    from mlflow_exim_plugin.sources.source import Source

__all__ = ["contents", "document_of", "runs_of"]

_KINDS = {
    "experiment": {Kind.EXPERIMENT},
    "run_id": {Kind.RUN},
    "model": {Kind.REGISTERED_MODEL, Kind.PROMPT},
    "logged_model": {Kind.LOGGED_MODEL},
    "trace": {Kind.TRACE},
}


def contents(source: OpenSource) -> dict[str, Any]:
    """Return what there is: ``experiments``, ``models``, ``prompts`` and ``counts`` by kind.

    Of an archive also its ``root``, its ``content_root`` where it states one, and ``size_bytes``.
    """
    if source.archive is not None:
        return _of_archive(source.archive)
    experiments: dict[str, dict[str, Any]] = {}
    named: dict[Kind, dict[str, list[int]]] = {Kind.REGISTERED_MODEL: {}, Kind.PROMPT: {}}
    aliases: dict[str, dict[str, int]] = {}
    report, counting = Report(), CountingSink()
    for item in _objects(source.names):
        counting.write(item, report)
        if isinstance(item, Experiment):
            experiments[item.id] = _listed(item.document) | dict.fromkeys(
                ("runs", "logged_models", "traces"), 0
            )
        elif isinstance(item, Run | LoggedModel | Trace):
            experiments[item.experiment_id][f"{item.kind}s"] += 1
        elif isinstance(item, RegisteredModel):
            named[item.kind][item.name] = []
            aliases[item.name] = item.aliases
        elif isinstance(item, ModelVersion):
            next(n for n in named.values() if item.name in n)[item.name].append(item.version)
    models, prompts = (
        [
            {"name": name, "versions": numbers, "aliases": aliases[name]}
            for name, numbers in sorted(named[kind].items())
        ]
        for kind in (Kind.REGISTERED_MODEL, Kind.PROMPT)
    )
    return {
        "experiments": list(experiments.values()),
        "models": models,
        "prompts": prompts,
        "counts": {str(kind): c.written for kind, c in report.counts.items() if c.written},
    }


def runs_of(source: OpenSource, experiment: str) -> list[dict[str, Any]]:
    """Return what is shown of the runs of the experiments that are meant.

    Args:
        source: Where to look.
        experiment: A name, id or glob.

    Raises:
        NotFoundError: There is no such experiment.
    """
    if (archive := source.archive) is None:
        taken = _objects(source.stream, Selection(experiments=(experiment,), traces=False))
        return [_shown(run) for run in taken if isinstance(run, Run)]
    names = {
        e.mlflow.experiment["experiment_id"]: e.mlflow.experiment["name"]
        for e in archive.experiments()
    }
    return [
        _row(
            Run(dict(envelope.mlflow.run)),
            envelope.info.metrics.rows if envelope.info.metrics else 0,
            len(envelope.info.artifacts),
        )
        for experiment_id in meant("experiment", experiment, names)
        for envelope in archive.runs(experiment_id)
    ]


def document_of(source: OpenSource, **asked: str | None) -> dict[str, Any]:
    """Return one object: its envelope in an archive, its document elsewhere.

    Args:
        source: Where to look.
        asked: Id or name of one, as ``experiment``, ``run_id``, ``model``, ``logged_model`` or
            ``trace``; without any what there is.

    Raises:
        NotFoundError: There is no such object.
    """
    ((kind, wanted),) = [(name, given) for name, given in asked.items() if given is not None] or [
        ("", "")
    ]
    if source.archive is not None:
        return _in_archive(source.archive, kind, wanted)
    if not kind:
        return contents(source)
    if kind == "model" and version_asked(wanted):
        of_version = _objects(source.names, Selection(models=(wanted,), traces=False))
        return next(dict(item.document) for item in of_version if isinstance(item, ModelVersion))
    found: dict[str, Any] = {}
    for item in _objects(source.names):
        names = {item.id, item.name} if isinstance(item, Experiment) else {item.id}
        if item.kind in _KINDS[kind] and wanted in names:
            found = dict(item.document)
            if isinstance(item, Trace):
                found["spans"] = item.spans
        elif isinstance(item, ModelVersion) and kind == "model" and item.name == wanted:
            found.setdefault("versions", []).append(item.document)
    if not found:
        raise NotFoundError(f"there is no {kind.removesuffix('_id').replace('_', ' ')} {wanted!r}")
    return found


def _in_archive(archive: Archive, kind: str, wanted: str) -> dict[str, Any]:
    match kind:
        case "experiment":
            envelopes = {e.mlflow.experiment["experiment_id"]: e for e in archive.experiments()}
            names = {id_: e.mlflow.experiment["name"] for id_, e in envelopes.items()}
            return envelopes[one_meant(kind, wanted, names)].to_json()
        case "run_id":
            return archive.run(one_run_meant(archive, wanted)).to_json()
        case "model":
            if version := _version_in(archive, wanted):
                return version.to_json()
            kinds = (Kind.REGISTERED_MODEL, Kind.PROMPT)
            models = [m.mlflow.registered_model["name"] for k in kinds for m in archive.models(k)]
            name = one_meant("registered model", wanted, dict(zip(models, models, strict=True)))
            document = archive.model(name).to_json()
            return document | {"versions": [v.to_json() for v in archive.versions(name)]}
        case "logged_model":
            try:
                return archive.logged_model(wanted).to_json()
            except NotFoundError:
                infos = [m.mlflow.logged_model["info"] for m in archive.logged_models()]
                names = {info["model_id"]: info["name"] for info in infos}
                return archive.logged_model(one_meant("logged model", wanted, names)).to_json()
        case "trace":
            try:
                found = archive.trace(wanted)
            except NotFoundError:
                ids = dict.fromkeys(archive.trace_ids(), "")
                found = archive.trace(one_meant(kind, wanted, ids))
            return {**found.document, "spans": found.spans}
        case _:
            return archive.summary.to_json()


def _version_in(archive: Archive, wanted: str) -> VersionEnvelope | None:
    """Return the version that ``MODEL/3``, ``MODEL@ALIAS`` or ``MODEL/latest`` is, if it is one."""
    if (asked := version_asked(wanted)) is None:
        return None
    for kind in (Kind.REGISTERED_MODEL, Kind.PROMPT):
        for envelope in archive.models(kind):
            model, numbers = (
                RegisteredModel(envelope.mlflow.registered_model),
                envelope.mlflow.versions,
            )
            if model.name == asked[0]:
                found = Selection(models=(wanted,)).versions_asked(
                    model.name, numbers, model.aliases
                )
                texts = [str(n) for taken in (found or {}).values() for n in taken]
                versions = {
                    v.mlflow.model_version["version"]: v for v in archive.versions(model.name)
                }
                return next((versions[text] for text in texts if text in versions), None)
    return None


def _of_archive(archive: Archive) -> dict[str, Any]:
    experiments = [
        _listed(e.mlflow.experiment)
        | {
            "runs": len(e.mlflow.runs),
            "logged_models": len(e.mlflow.logged_models),
            "traces": sum(
                part.mlflow.traces
                for part in archive.trace_parts(e.mlflow.experiment["experiment_id"])
            ),
        }
        for e in archive.experiments()
    ]
    models, prompts = (
        [
            {
                "name": m.mlflow.registered_model["name"],
                "versions": list(m.mlflow.versions),
                "aliases": RegisteredModel(m.mlflow.registered_model).aliases,
            }
            for m in archive.models(kind)
        ]
        for kind in (Kind.REGISTERED_MODEL, Kind.PROMPT)
    )
    info = archive.summary.info
    counted = info.counts.items()
    return {
        "root": archive.reader.root,
        "content_root": info.content_root,
        "size_bytes": archive.reader.size_bytes,
        "experiments": experiments,
        "models": models,
        "prompts": prompts,
        "counts": {kind: count.written for kind, count in counted if count.written},
    }


def _objects(source: Source, selection: Selection = Selection()) -> Iterator[StreamObject]:
    for item in source.stream(selection):
        if not isinstance(item, Failure | Loss | Unpacked):
            yield item


def _listed(experiment: dict[str, Any]) -> dict[str, Any]:
    return {
        "experiment_id": experiment["experiment_id"],
        "name": experiment["name"],
        "lifecycle_stage": experiment.get("lifecycle_stage", "active"),
    }


def _shown(run: Run) -> dict[str, Any]:
    rows = sum(part.num_rows for part in run.histories if not isinstance(part, Failure))
    return _row(run, rows, sum(1 for a in run.artifacts if not isinstance(a, Failure)))


def _row(run: Run, metric_rows: int, artifacts: int) -> dict[str, Any]:
    info, data = run.info, run.document.get("data", {})
    return {
        "run_id": info["run_id"],
        "run_name": info.get("run_name", ""),
        "status": info.get("status", ""),
        "lifecycle_stage": info.get("lifecycle_stage", "active"),
        "metric_rows": metric_rows,
        "artifacts": artifacts,
        "experiment_id": info["experiment_id"],
        "parent_run_id": run.tags.get(PARENT),
        "user_id": info.get("user_id"),
        "start_time": info.get("start_time"),
        "end_time": info.get("end_time"),
        "metrics": {entry["key"]: entry["value"] for entry in data.get("metrics") or ()},
        "params": run.params,
        "tags": run.tags,
    }
