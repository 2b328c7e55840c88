"""What an old MLflow says of its own folder, over its own REST, is what is read from the files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin import open_archive, pack, verify
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.schema.objects import Kind
from tests.first_seed import FILES, MODEL, T0, TAGS_OF_SOURCE, fill, put_files, rows, told
from tests.first_servers import FirstServer, start_first_server
from tests.matched import plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.compat]

BY_DEFAULT = "1.4.0"
VERSIONS = [
    BY_DEFAULT,
    *(
        pytest.param(version, marks=pytest.mark.generations)
        for version in ("0.8.2", "1.0.0", "1.30.1", "2.9.2", "2.22.5", "3.12.0")
    ),
]
ODD = [("NaN", T0, 0), ("Infinity", T0 + 1, -2), (-0.1, T0 + 1, 7), (-0.1, T0 + 1, 7), (3e-9, 5, 7)]
Said = dict[str, Any]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_folder_says_what_its_own_mlflow_says(version: str, tmp_path: Path) -> None:
    server = start_first_server(version, tmp_path / "server", of_files=True)
    try:
        run_ids = fill(server)
        fill_more(server, run_ids)
        expected = {
            "experiments": experiments(server),
            "runs": {run_id: run_of(server, run_id) for run_id in run_ids},
            "models": models(server),
            "versions": versions(server),
            "logged models": logged_models(server),
            "traces": traces(server),
        }
    finally:
        server.stop()
    path = str(tmp_path / "a.tar.zst")

    report = pack(path, tracking_uri=str(server.directory / "mlruns"))

    assert report.failures == []
    # By hand no spans were written.
    spanless = {Kind.TRACE} if server.age >= (2, 22) else set()
    assert {loss.kind for loss in report.losses} == spanless
    assert verify(path).findings == []
    assert {name for name, of in expected.items() if of} == {
        "experiments",
        "runs",
        *(("models", "versions") if server.age >= (2, 0) else ()),
        *(("traces",) if server.age >= (2, 22) else ()),
        *(("logged models",) if server.age >= (3,) else ()),
    }
    found = found_in(path, expected["runs"], is_0x=server.age < (1, 0))
    assert list(differing(expected, found)) == []


def fill_more(server: FirstServer, run_ids: list[str]) -> None:
    """Add what the version's folders can hold beside what all can."""
    run = {server.run_id: run_ids[0]}
    server.call("runs/set-tag", run | {"key": "größe", "value": "zwei\nZeilen ✓"})
    server.call("runs/set-tag", run | {"key": "empty", "value": ""})
    for value, time, step in ODD:
        row = {"key": "odd/a b", "value": value, "timestamp": time}
        if server.age < (1, 0):
            row["timestamp"] = time // 1000
        else:
            row["step"] = step
        server.call("runs/log-metric", run | row)
    if server.age >= (1, 30):  # which broke the runs of earlier ones
        server.call("runs/log-parameter", run | {"key": "lines", "value": "a\nb"})
        server.call("runs/log-parameter", run | {"key": "nothing", "value": ""})
    if server.age >= (2, 0):
        told_of = {"name": MODEL, "tags": [{"key": "owner", "value": "ada"}], "description": "d"}
        server.call("registered-models/create", told_of)
        source = f"{told(server, run_ids[0])['info']['artifact_uri']}/folder"
        for number in ("1", "2", "3"):
            asked = {"name": MODEL, "source": source, "run_id": run_ids[0]}
            tag = {"key": "n", "value": number}
            server.call("model-versions/create", asked | {"tags": [tag], "description": number})
        stage = {"name": MODEL, "version": "2", "stage": "Production"}
        no_others = {"archive_existing_versions": False}
        server.call("model-versions/transition-stage", stage | no_others)
        server.call("model-versions/delete", {"name": MODEL, "version": "1"}, "DELETE")
    if server.age >= (1, 4):
        (wine,) = (e for e in experiments(server).values() if e["name"] == "wine")
        tag = {"experiment_id": wine["experiment_id"], "key": "team", "value": "red"}
        server.call("experiments/set-experiment-tag", tag)
    if server.age >= (2, 9):
        alias = {"name": MODEL, "alias": "champion", "version": "3"}
        server.call("registered-models/alias", alias)
        dataset = {"name": "d", "digest": "1", "source_type": "http", "source": "{}"}
        tags = [{"key": "mlflow.data.context", "value": "training"}]
        given = {"datasets": [{"dataset": dataset, "tags": tags}]}
        server.call("runs/log-inputs", run | given)
    if server.age >= (2, 22):
        add_trace(server, run_ids[0])
    if server.age >= (3,):
        info = told(server, run_ids[0])["info"]
        pairs = [{"key": "k", "value": "v"}]
        made = server.call(
            "logged-models",
            {
                "experiment_id": info["experiment_id"],
                "name": "net",
                "model_type": "agent",
                "source_run_id": run_ids[0],
                "params": pairs,
                "tags": pairs,
            },
        )["model"]["info"]
        done = {"model_id": made["model_id"], "status": "LOGGED_MODEL_READY"}
        server.call(f"logged-models/{made['model_id']}", done, "PATCH")
        metric = {"key": "acc", "value": 0.5, "timestamp": T0, "step": 1}
        server.call("runs/log-metric", run | metric | {"model_id": made["model_id"]})
        output = {"model_id": made["model_id"], "step": 1}
        server.call("runs/outputs", run | {"models": [output]})
        put_files(server.directory / made["artifact_uri"].removeprefix("file://"))


def add_trace(server: FirstServer, run_id: str) -> None:
    experiment_id = told(server, run_id)["info"]["experiment_id"]
    pairs = [{"key": "a", "value": "b ✓"}]
    begun = {"experiment_id": experiment_id, "timestamp_ms": T0, "request_metadata": pairs}
    if server.age >= (3,):
        trace_id = f"tr-{'1' * 32}"
        place = {
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": experiment_id},
        }
        info = {
            "trace_id": trace_id,
            "trace_location": place,
            "request_time": "2020-09-13T12:26:40.123Z",
            "execution_duration": "1.5s",
            "state": "OK",
            "tags": {"a": "b ✓"},
            "trace_metadata": {"mlflow.sourceRun": run_id},
        }
        server.api = server.api.replace("2.0", "3.0")
        server.call("traces", {"trace": {"trace_info": info}})
        server.api = server.api.replace("3.0", "2.0")
        return
    made = server.call("traces", begun | {"tags": pairs})["trace_info"]["request_id"]
    ended = {"timestamp_ms": T0 + 9, "status": "OK", "request_metadata": pairs, "tags": pairs}
    server.call(f"traces/{made}", ended, "PATCH")


def experiments(server: FirstServer) -> Said:
    """Return each experiment by id, as the server says it."""
    if server.age < (2, 0):
        listed = server.call("experiments/list?view_type=ALL")["experiments"]
    else:
        asked = {"view_type": "ALL", "max_results": 9}
        listed = server.call("experiments/search", asked)["experiments"]
    return {one["experiment_id"]: in_words(one) for one in listed}


def run_of(server: FirstServer, run_id: str) -> Said:
    """Return a run with its histories and the paths of its files, as the server says it."""
    run = in_words(told(server, run_id))
    keys = list(run["data"].pop("metrics"))
    info = run["info"]
    if server.age < (1, 30):  # in that tag alone
        info["run_name"] = run["data"]["tags"]["mlflow.runName"]
    if server.age < (1, 0):
        info["run_id"] = info["run_uuid"]
        assert info.pop("name") == ""
    return run | {"histories": {key: sorted(rows(server, run_id, key), key=repr) for key in keys}}


def models(server: FirstServer) -> Said:
    if server.age < (2, 0):
        return {}
    found = server.call("registered-models/search?max_results=9")["registered_models"]
    return {m["name"]: in_words(m) for m in found}


def versions(server: FirstServer) -> Said:
    if server.age < (2, 0):
        return {}
    found = server.call("model-versions/search?max_results=9")["model_versions"]
    return {m["version"]: in_words(m) for m in found}


def logged_models(server: FirstServer) -> Said:
    if server.age < (3,):
        return {}
    asked = {"experiment_ids": list(experiments(server)), "max_results": 9}
    found = server.call("logged-models/search", asked)["models"]
    return {m["info"]["model_id"]: in_words(m) for m in found}


def traces(server: FirstServer) -> Said:
    if server.age < (2, 22):
        return {}
    asked = "&".join(f"experiment_ids={one}" for one in experiments(server))
    found = server.call(f"traces?{asked}&max_results=9")["traces"]
    return {t["request_id"]: (t["timestamp_ms"], t["status"], pairs(t["tags"])) for t in found}


def pairs(listed: list[dict[str, str]]) -> dict[str, str]:
    return {entry["key"]: entry["value"] for entry in listed}


def in_words(document: Said) -> Said:
    """Return a document of REST's without what repeats others, or stands in one form alone."""
    found: Said = plain(document)
    found.pop("latest_versions", None)
    if found.get("workspace") == "default":
        del found["workspace"]  # all were in one
    return {name: value for name, value in found.items() if value not in ("", [], {})}


def differing(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield where two values are not the same, and what they are there."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            yield from differing(a.get(key), b.get(key), f"{path}/{key}")
    elif as_text(a) != as_text(b):
        yield path, a, b


def as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # in which NaN is itself


def found_in(path: str, runs: Said, *, is_0x: bool) -> Said:
    """Return what an archive holds, in the words of ``expected``."""
    with ArchiveReader.open(path) as reader:
        documents = [
            json.loads(reader.read(member))["mlflow"]
            for member in reader.paths()
            if member.startswith("data/") and member.endswith(".json")
        ]

    def of(name: str) -> list[Said]:
        return [in_words(one[name]) for one in documents if name in one]

    found: dict[str, Said] = {
        "experiments": {one["experiment_id"]: one for one in of("experiment")},
        "runs": {},
        "models": {one["name"]: one for one in of("registered_model")},
        "versions": {one["version"]: one for one in of("model_version")},
        "logged models": {one["info"]["model_id"]: one for one in of("logged_model")},
        "traces": {},
    }
    with open_archive(path) as archive:
        for run_id in runs:
            envelope = archive.run(run_id)
            run = in_words(envelope.mlflow.run)
            keys = run["data"].pop("metrics")
            histories = {}
            for key in keys:
                table = archive.metric_history(run_id, key).to_pylist()
                points = [(row["value"], row["timestamp"], row["step"]) for row in table]
                if is_0x:
                    points = [(value, time // 1000, step) for value, time, step in points]
                histories[key] = sorted(points, key=repr)
            found["runs"][run_id] = run | {"histories": histories}
            assert {entry.path for entry in envelope.info.artifacts} == set(FILES)
            if is_0x:
                for key in TAGS_OF_SOURCE:
                    assert run["data"]["tags"].pop(key) == TAGS_OF_SOURCE[key]
        for experiment in archive.experiments():
            for trace in archive.traces(experiment.mlflow.experiment["experiment_id"]):
                info = trace.info
                found["traces"][trace.id] = (info["request_time_ms"], info["state"], info["tags"])
    return found
