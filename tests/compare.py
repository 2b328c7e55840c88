"""Everything the API returns for a deployment, and what may differ at the other end.

A snapshot is read with MLflow's own client, never with the package under test. Two snapshots are
equal, or each difference stands in ``MAY_DIFFER`` below, or the report names it as lossy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.provenance import ORIGIN, TAGS, is_provenance
from tests.compare_models import (
    logged_models,
    models_put_back,
    origins,
    prompts,
    prompts_put_back,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.schema.report import Report

__all__ = [
    "MAY_DIFFER",
    "Snapshot",
    "as_default",
    "assert_count_law",
    "assert_foreseen",
    "assert_same",
    "differences",
    "snapshot",
]

ARTIFACT_RUNS = "mlflow_exim.model_versions"

MAY_DIFFER: dict[tuple[str, str], str] = {
    ("experiment", "experiment_id"): "the server counts them; runs are matched by origin",
    ("experiment", "creation_time"): "REST cannot set it",
    ("experiment", "last_update_time"): "REST cannot set it",
    ("experiment", "artifact_location"): "the target's own root",
    ("experiment", "workspace"): "the target's own; absent before 3.10",
    ("run", "artifact_uri"): "the target's own root; the files are compared",
    ("registered_model", "creation_timestamp"): "REST cannot set it",
    ("registered_model", "last_updated_timestamp"): "REST cannot set it",
    ("registered_model", "latest_versions"): "repeats the versions, which are compared",
    ("registered_model", "workspace"): "the target's own; absent before 3.10",
    ("model_version", "creation_timestamp"): "REST cannot set it",
    ("model_version", "last_updated_timestamp"): "REST cannot set it",
    ("model_version", "source"): "re-homed; the files it leads to are compared",
    ("model_version", "workspace"): "the target's own; absent before 3.10",
}
"""What REST cannot keep: kind and field to reason. All other fields must be equal."""

FIELDS_OF_MLFLOW_3 = {"model_id", "params", "metrics", "deployment_job_id", "deployment_job_state"}
"""Fields of registered models and versions that servers before 3.0 leave out."""


@dataclass
class Snapshot:
    """What a deployment holds; keys are names and source ids, values are plain data."""

    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    logged_models: dict[str, dict[str, Any]] = field(default_factory=dict)
    prompts: dict[str, dict[str, Any]] = field(default_factory=dict)
    prompt_versions: dict[str, dict[str, Any]] = field(default_factory=dict)

    def counted(self) -> dict[Kind, int]:
        """How many objects of each kind a complete transfer finds."""
        return {
            Kind.EXPERIMENT: len(self.experiments),
            Kind.RUN: len(self.runs),
            Kind.METRIC_HISTORY: sum(len(run["histories"]) for run in self.runs.values()),
            Kind.ARTIFACT: sum(
                len(owner["files"])
                for of in (self.runs, self.logged_models)
                for owner in of.values()
            ),
            Kind.LOGGED_MODEL: len(self.logged_models),
            Kind.PROMPT: len(self.prompts),
            Kind.PROMPT_VERSION: len(self.prompt_versions),
            Kind.REGISTERED_MODEL: len(self.models),
            Kind.MODEL_VERSION: len(self.versions),
        }


def snapshot(uri: str, *, files: bool = True) -> Snapshot:
    """Read everything.

    Args:
        uri: Tracking URI of a server or store.
        files: Whether to download the artifacts.
    """
    client = MlflowClient(uri, uri)
    found = Snapshot()
    experiments = list(
        _pages(lambda token: client.search_experiments(ViewType.ALL, page_token=token))
    )
    for experiment in experiments:
        found.experiments[experiment.name] = _plain(experiment)
    # Old servers answer no more than some ids at once.
    for experiment in experiments:
        for listed in _pages(
            lambda token, id_=experiment.experiment_id: client.search_runs(
                [id_], run_view_type=ViewType.ALL, page_token=token
            )
        ):
            found.runs[listed.info.run_id] = _run(client, uri, listed.info.run_id, files=files)
    found.logged_models = logged_models(
        client,
        [experiment.experiment_id for experiment in experiments],
        found.runs,
        lambda root: _files(root, uri) if files else {},
        _bits,
    )
    found.prompts, found.prompt_versions = prompts(client)
    models = _pages(lambda token: client.search_registered_models(page_token=token))
    for listed in models:
        model = client.get_registered_model(listed.name)
        found.models[model.name] = _plain(model)
        quoted = f'"{model.name}"' if "'" in model.name else f"'{model.name}'"
        for version in client.search_model_versions(f"name = {quoted}"):
            whole = client.get_model_version(model.name, version.version)
            of_version = _plain(whole) | {"aliases": sorted(whole.aliases)}
            if files:
                location = client.get_model_version_download_uri(model.name, version.version)
                try:
                    if location.startswith("runs:/"):
                        # Today's client would ask an old server for logged models on the way.
                        run_id, _, path = location.removeprefix("runs:/").partition("/")
                        location = f"{client.get_run(run_id).info.artifact_uri}/{path}"
                    of_version["files"] = _files(location, uri)
                except MlflowException as error:
                    of_version["files"] = f"unreadable: {error.error_code}"
            found.versions[f"{model.name}/{version.version}"] = of_version
    return found


def differences(source: Snapshot, target: Snapshot) -> list[tuple[str, str, str, Any, Any]]:
    """Return kind, source id, field and both values of all that differs and may not.

    The target's ids are put back to the source's first, through the tag that names the origin.
    """
    back = {
        target_id: run["data"]["tags"][ORIGIN].split(" ", 1)[0]
        for target_id, run in target.runs.items()
        if ORIGIN in run["data"]["tags"]
    }
    experiment_names = {e["experiment_id"]: e["name"] for e in target.experiments.values()}
    source_ids = {e["name"]: e["experiment_id"] for e in source.experiments.values()}
    experiments_back = {i: source_ids.get(n, n) for i, n in experiment_names.items()}
    back |= origins(target.logged_models)
    carried = {
        run_id
        for run_id, run in target.runs.items()
        if experiment_names[run["info"]["experiment_id"]] == ARTIFACT_RUNS
    }
    found: list[tuple[str, str, str, Any, Any]] = []

    def compare(kind: str, id_: str, one: dict[str, Any], two: dict[str, Any]) -> None:
        for name in sorted({*one, *two}):
            if (kind, name) in MAY_DIFFER:
                continue
            if (
                kind in {"registered_model", "model_version"}
                and name in FIELDS_OF_MLFLOW_3
                and not (one.get(name) and two.get(name))
            ):
                continue
            if one.get(name) != two.get(name):
                found.append((kind, id_, name, one.get(name), two.get(name)))

    duplicates = [id_ for id_, times in Counter(back.values()).items() if times > 1]
    assert not duplicates, f"runs that came twice: {duplicates}"
    targets = {
        name: _without_ours(e) for name, e in target.experiments.items() if name != ARTIFACT_RUNS
    }
    # A source may itself have been unpacked: what its tags say of that is put anew, not copied.
    sources = {name: _without_ours(e) for name, e in source.experiments.items()}
    _match("experiment", sources, targets, compare, found)
    runs: dict[str, dict[str, Any]] = {}
    for target_id, run in target.runs.items():
        if target_id in carried:
            continue
        name = experiment_names[run["info"]["experiment_id"]]
        source_experiment = source_ids.get(name, f"unknown {name}")
        runs[back.get(target_id, target_id)] = _run_put_back(run, back, source_experiment)
    for id_ in sorted({*source.runs, *runs}):
        one, two = source.runs.get(id_), runs.get(id_)
        if one is None or two is None:
            found.append(("run", id_, "*", one and "there", two and "there"))
            continue
        one = _run_put_back(one, {}, one["info"]["experiment_id"])
        compare("run", id_, one["info"], two["info"])
        for part in ("data", "inputs", "outputs", "histories", "files"):
            compare("run", id_, _flat(part, one[part]), _flat(part, two[part]))
    _match(
        "registered_model",
        {name: _without_ours(model) for name, model in source.models.items()},
        {name: _without_ours(model) for name, model in target.models.items()},
        compare,
        found,
    )
    versions = {}
    for id_, version in target.versions.items():
        put_back = _without_ours(version)
        run_id = version["run_id"]
        put_back["run_id"] = None if run_id in carried else back.get(run_id, run_id)
        versions[id_] = put_back
    of_source = {id_: _without_ours(version) for id_, version in source.versions.items()}
    _match("model_version", of_source, versions, compare, found)
    _match(
        "logged_model",
        models_put_back(source.logged_models, {}, {}),
        models_put_back(target.logged_models, back, experiments_back),
        compare,
        found,
    )
    for kind in ("prompt", "prompt_version"):
        _match(
            kind,
            prompts_put_back(getattr(source, f"{kind}s"), {}),
            prompts_put_back(getattr(target, f"{kind}s"), experiments_back),
            compare,
            found,
        )
    return found


def assert_same(source: Snapshot, target: Snapshot, *reports: Report) -> None:
    """Assert that nothing differs but what may, and what the reports name as lossy."""
    named = [(str(loss.kind), loss.id, loss.what) for r in reports for loss in r.losses]
    silent = []
    for kind, id_, name, one, two in differences(source, target):
        if not any(_names(loss, kind, id_, name) for loss in named):
            silent.append(f"{kind} {id_} {name}: {_short(one)} became {_short(two)}")
    assert not silent, "changed silently:\n" + "\n".join(silent[:40])


def assert_count_law(report: Report, found: Snapshot | None = None) -> None:
    """Assert that each kind's found = written + skipped + failed, each of them named.

    Args:
        report: Of any transfer.
        found: What the source holds, when all of it was asked for.
    """
    for kind, counts in report.counts.items():
        assert counts.found == counts.written + counts.skipped + counts.failed, (kind, counts)
        for number, named in ((counts.failed, report.failures), (counts.skipped, report.skips)):
            assert number == sum(entry.count for entry in named if entry.kind is kind), (
                kind,
                counts,
                named,
            )
    assert {entry.kind for entry in report.failures} <= set(report.counts)
    assert all(entry.reason and entry.id for entry in [*report.failures, *report.skips])
    assert report.ok == (not report.failures)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["ok"] == report.ok
    if found is not None:
        told = {kind: counts.found for kind, counts in report.counts.items()}
        expected = {kind: number for kind, number in found.counted().items() if number}
        assert {kind: told.get(kind, 0) for kind in expected} == expected


SERVERS_OWN = re.compile(
    "files that mention its old ids"  # which stand in bytes that a dry run does not read
    r"|the target (adds|makes) |spansLocation|is another at the target|reads differently"
    r"|the target keeps [0-9]+ of|the target does not keep|the server answered 4|shows no deleted"
)
"""What only the answers of a target tell, or bytes: no dry run can say it."""


def assert_foreseen(planned: Report, done: Report) -> None:
    """Assert that a dry run said what the run after it said, but for what a server does itself."""
    (was, of_plan), (is_, of_run) = _foreseeable(planned), _foreseeable(done)
    assert was == is_
    assert of_plan - of_run == Counter()
    unforeseen = of_run - of_plan
    lines = [line for line in unforeseen if not SERVERS_OWN.search(line)]
    assert lines == [], lines


def _foreseeable(report: Report) -> tuple[dict[str, Any], Counter[str]]:
    """Return the numbers of a report, and its lines without new ids."""
    told = report.to_dict()
    numbers = {name: told[name] for name in ("completed", "metric_rows", "artifact_bytes")}
    numbers["counts"] = {kind: of for kind, of in told["counts"].items() if of["found"]}
    lines = [str(line) for name in ("failures", "lossy", "skips") for line in told[name]]
    new_id = r"\(new id of [^)]*\)|(?:[a-z]+-)?[0-9a-f]{32}"
    lines = [re.sub(new_id, "<id>", line) for line in lines]
    return numbers, Counter(re.sub(r"[^ ]*<id>/artifacts", "<root>", line) for line in lines)


def _names(loss: tuple[str, str, str], kind: str, id_: str, name: str) -> bool:
    """Whether a loss speaks of this very field of this very object."""
    loss_kind, loss_id, what = loss
    if loss_kind in {"param", "tag", "metric_history"}:
        part, _, key = name.partition(" ")
        of = {"param": "params", "tag": "tags", "metric_history": "histories"}[loss_kind]
        return part == of and loss_id == f"{id_}/{key}"
    if loss_kind != kind or loss_id not in {id_, "*"}:
        return False
    words = {
        "user_id": "user",
        "status_message": "status",
        "current_stage": "stage",
        "run_id": "run",
        "start_time": "start",
    }
    return words.get(name, name.split(" ", maxsplit=1)[0]) in what


def _match(
    kind: str,
    one: dict[str, dict[str, Any]],
    two: dict[str, dict[str, Any]],
    compare: Any,
    found: list[tuple[str, str, str, Any, Any]],
) -> None:
    for id_ in sorted({*one, *two}):
        if id_ in one and id_ in two:
            compare(kind, id_, one[id_], two[id_])
        else:
            found.append((kind, id_, "*", id_ in one, id_ in two))


def _flat(part: str, value: Any) -> dict[str, Any]:
    """Give every param, tag, metric and file a name of its own, so that reports can be exact."""
    if part == "data":
        return {f"{kind} {key}": v for kind, of in value.items() for key, v in of.items()}
    if isinstance(value, dict):
        return {f"{part} {key}": v for key, v in value.items()}
    return {part: value}


def _run(client: MlflowClient, uri: str, run_id: str, *, files: bool) -> dict[str, Any]:
    run = client.get_run(run_id)
    histories = {}
    for key in run.data.metrics:
        points = client.get_metric_history(run_id, key)
        histories[key] = sorted((m.step, m.timestamp, _bits(m.value)) for m in points)
    outputs = getattr(run, "outputs", None)
    return {
        "info": _plain(run.info),
        "data": {
            "params": dict(run.data.params),
            "tags": dict(run.data.tags),
            "metrics": {
                m.key: (m.step, m.timestamp, _bits(m.value)) for m in run.data._metric_objs
            },
        },
        "histories": histories,
        "inputs": {
            "dataset_inputs": sorted(
                json.dumps(_plain_deep(i), sort_keys=True) for i in run.inputs.dataset_inputs
            ),
            "model_inputs": [_plain(m) for m in getattr(run.inputs, "model_inputs", None) or ()],
        },
        "outputs": {"model_outputs": [_plain(m) for m in outputs.model_outputs] if outputs else []},
        "files": _files(run.info.artifact_uri, uri) if files else {},
    }


def _run_put_back(run: dict[str, Any], back: dict[str, str], experiment_id: str) -> dict[str, Any]:
    info = dict(run["info"])
    for name in ("run_id", "run_uuid"):
        if name in info:
            info[name] = back.get(info[name], info[name])
    info["experiment_id"] = experiment_id
    tags = {key: value for key, value in run["data"]["tags"].items() if key not in TAGS}
    if "mlflow.parentRunId" in tags:
        tags["mlflow.parentRunId"] = back.get(
            tags["mlflow.parentRunId"], tags["mlflow.parentRunId"]
        )
    if history := tags.get("mlflow.log-model.history"):
        tags["mlflow.log-model.history"] = re.sub(
            r"[0-9a-f]{32}", lambda found: back.get(found[0], found[0]), history
        )
    links = {
        part: {
            **run[part],
            f"model_{part}": sorted(
                (
                    {**link, "model_id": back.get(link["model_id"], link["model_id"])}
                    for link in listed
                ),
                key=repr,
            ),
        }
        for part in ("inputs", "outputs")
        for listed in [run[part][f"model_{part}"]]
    }
    return {**run, **links, "info": info, "data": {**run["data"], "tags": tags}}


def _without_ours(document: dict[str, Any]) -> dict[str, Any]:
    tags = {key: value for key, value in document["tags"].items() if not is_provenance(key)}
    return {**document, "tags": tags}


def _plain(entity: Any) -> dict[str, Any]:
    """All properties of an MLflow entity, alike from a server and from a database.

    Servers give numbers of versions as text and an absent description as an empty one.
    """
    plain: dict[str, Any] = {}
    for name, value in entity:
        if hasattr(value, "items"):
            plain[name] = {key: str(item) for key, item in value.items()}
        elif isinstance(value, list | tuple):
            plain[name] = [str(item) for item in value]
        else:
            plain[name] = value if isinstance(value, int | float | str) or not value else str(value)
    if "version" in plain:
        plain["version"] = str(plain["version"])
    for name in {"description", "run_link", "status_message"} & set(plain):
        plain[name] = plain[name] or ""
    if "version" in plain:
        plain["user_id"] = plain["user_id"] or ""
        plain["run_id"] = plain["run_id"] or None
    return plain


def _plain_deep(dataset_input: Any) -> dict[str, Any]:
    return {
        "dataset": _plain(dataset_input.dataset),
        "tags": sorted((tag.key, tag.value) for tag in dataset_input.tags),
    }


def _files(root: str, uri: str) -> dict[str, tuple[int, str]]:
    """Download a tree as a user would and return size and digest by path."""
    parts = urlsplit(root)
    if parts.scheme in {"", "file"}:
        # MLflow unquotes names such as ``%41`` on its way to a local file and does not find it.
        tree = Path(unquote(parts.path) if parts.scheme else root)
        return {
            str(path.relative_to(tree)): _sized_digest(path.read_bytes())
            for path in sorted(tree.rglob("*"))
            if path.is_file()
        }
    if root.startswith("mlflow-artifacts:") and not uri.startswith("http"):
        raise ValueError(f"{root} cannot be read through {uri}")
    with tempfile.TemporaryDirectory() as folder, as_default(uri):
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository = get_artifact_repository(root)
        found = {}
        for path in _walk(repository, None):
            local = Path(repository.download_artifacts(path, folder))
            found[path] = _sized_digest(local.read_bytes())
            local.unlink()
    return found


def _sized_digest(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()


def _walk(repository: Any, folder: str | None) -> Iterator[str]:
    for entry in repository.list_artifacts(folder):
        if entry.is_dir:
            yield from _walk(repository, entry.path)
        else:
            yield entry.path


@contextlib.contextmanager
def as_default(uri: str) -> Iterator[None]:
    """``mlflow-artifacts:`` and ``runs:`` are resolved through the default tracking URI alone."""
    from mlflow.tracking import fluent

    # What becomes MLflow's own experiment in here is gone afterwards, too.
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID")
    before = {name: os.environ.get(name) for name in names}
    experiment_id = fluent._active_experiment_id
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        fluent._active_experiment_id = experiment_id
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _pages(page: Any) -> Iterable[Any]:
    token = None
    while True:
        found = page(token)
        yield from found
        token = found.token
        if not token:
            return


def _bits(value: float) -> str:
    """Bits of a double, one for all NaN: equality that knows -0.0 and NaN."""
    return "nan" if value != value else struct.pack(">d", value).hex()  # noqa: PLR0124


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}… ({len(text)} characters)"
