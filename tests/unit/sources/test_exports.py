"""Exports of mlflow-export-import arrive in an archive as their files say, whatever their age."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mlflow_exim_plugin import Archive, Report, convert, diff, open_archive, verify
from mlflow_exim_plugin.errors import (
    ArchiveExistsError,
    InvalidArchiveError,
    NotFoundError,
    UsageError,
)
from mlflow_exim_plugin.schema.objects import Kind, key_values
from tests import old_exports
from tests.old_exports import EXPERIMENT, GENERATIONS, MODEL, RUNS, VERSIONS, Export

SAMPLES = Path(__file__).parents[3] / "samples"
GOLDEN = Path(__file__).parents[2] / "golden" / "everything.tar.zst"
FIRST, SECOND = RUNS
every_generation = pytest.mark.parametrize("generation", GENERATIONS)


def converted(folder: Path | str, tmp_path: Path, **how: Any) -> tuple[Report, Path]:
    archive = tmp_path / "converted.tar.zst"
    report = convert(str(folder), str(archive), overwrite=True, **how)
    assert [f for f in verify(str(archive)).findings if f.code.startswith("E")] == []
    return report, archive


def losses(report: Report) -> list[tuple[str, str]]:
    return [(loss.id, loss.what) for loss in report.losses]


def history(archive: Archive, run_id: str, key: str) -> list[tuple[int, int, float]]:
    table = archive.metric_history(run_id, key)
    columns = [table.column(name).to_pylist() for name in ("step", "timestamp", "value")]
    return list(zip(*columns, strict=True))


def same(a: list[tuple[int, int, float]], b: list[tuple[int, int, float]]) -> bool:
    return [repr(row) for row in a] == [repr(row) for row in b]


@every_generation
def test_every_generation_arrives(generation: str, tmp_path: Path) -> None:
    report, path = converted(Export(tmp_path / "e", generation).write_all(), tmp_path)

    assert report.ok, report.failures
    assert report.read_as == f"export of mlflow-export-import, layout {generation}"
    with open_archive(str(path)) as archive:
        assert archive.summary.info.read_as == report.read_as
        uri = archive.summary.system.mlflow_tracking_uri
        assert uri == (str(tmp_path / "e") if generation == "0" else "http://old:5000")
        (experiment,) = (e.mlflow.experiment for e in archive.experiments())
        assert experiment["name"] == "wine"
        assert experiment["experiment_id"] == "7"
        assert key_values(experiment["tags"]) == EXPERIMENT["tags"]
        if generation not in {"0", "1a"}:
            assert experiment["creation_time"] == EXPERIMENT["creation_time"]
        for run_id, truth in RUNS.items():
            envelope = archive.run(run_id)
            run = envelope.mlflow.run
            wanted = {k: v for k, v in truth["info"].items() if v is not None}
            if generation == "0" and run_id == SECOND:
                del wanted["run_name"]  # which only a tag says there, and this run has none
            assert {k: run["info"].get(k) for k in wanted} == wanted
            assert "end_time" in run["info"] or truth["info"]["end_time"] is None
            assert key_values(run["data"]["params"]) == truth["params"]
            assert key_values(run["data"]["tags"]) == truth["tags"]
            there = {entry.path: entry.size_bytes for entry in envelope.info.artifacts}
            assert there == {p: len(c) for p, c in truth["artifacts"].items()}
            for name, content in truth["artifacts"].items():
                with archive.open_artifact(run_id, name) as stream:
                    assert stream.read() == content
            for key, rows in truth["metrics"].items():
                if generation == "0":
                    rows = [(0, truth["info"]["end_time"], rows[-1][2])]  # noqa: PLW2901
                assert same(history(archive, run_id, key), rows)
        datasets = archive.run(FIRST).mlflow.run.get("inputs", {}).get("dataset_inputs", [])
        assert len(datasets) == (1 if generation in {"2.1", "2.2"} else 0)
        model = archive.model("wine model").mlflow.registered_model
        assert model["description"] == MODEL["description"]
        assert key_values(model["tags"]) == {"owner": "ada"}
        if generation in {"2.1", "2.2"}:
            assert model["aliases"] == MODEL["aliases"]
        versions = {v.mlflow.model_version["version"]: v for v in archive.versions("wine model")}
        assert list(versions) == ["1", "2", "10"]
        for truth in VERSIONS:
            found = versions[truth["version"]].mlflow.model_version
            assert found["source"] == truth["source"]
            assert found["current_stage"] == truth["current_stage"]
            assert key_values(found["tags"]) == truth["tags"]
    said = {what for _, what in losses(report)}
    assert any("latest version of each stage" in what for what in said) == (
        generation in {"0", "1a"}
    )
    assert any("last value of each metric" in what for what in said) == (generation == "0")


def test_forks_are_read_as_the_layout_that_they_took(tmp_path: Path) -> None:
    """mlflow-migration has prompts beside layout 2.1, the fork for Databricks its own progress."""
    convert(str(GOLDEN), str(tmp_path / "with prompts"))
    fork = Export(tmp_path / "e", "2.1").write_all()
    prompts = shutil.copytree(tmp_path / "with prompts" / "prompts", fork / "prompts")
    (fork / "checkpoint").mkdir()
    (fork / "checkpoint" / "experiments.parquet").write_bytes(b"PAR1")

    report, _ = converted(fork, tmp_path)

    assert report.ok, report.failures
    assert (report.read_as or "").startswith("export of mlflow-export-import, layout 2.1")
    assert report.counts[Kind.RUN].written == len(RUNS)
    assert report.counts[Kind.MODEL_VERSION].written == len(VERSIONS)
    there = len(list(prompts.glob("*/prompt.json")))
    assert report.counts[Kind.PROMPT_VERSION].written == there > 10


def test_what_the_latest_metrics_are_is_told_from_their_rows(tmp_path: Path) -> None:
    _, path = converted(Export(tmp_path / "e", "2.2").write_all(), tmp_path)

    with open_archive(str(path)) as archive:
        latest = {m["key"]: m for m in archive.run(FIRST).mlflow.run["data"]["metrics"]}
    loss = {"key": "loss", "value": 0.25, "timestamp": 1_600_000_002_000, "step": 1}
    odd = {"key": "odd", "value": "Infinity", "timestamp": 1_600_000_004_000, "step": 3}
    assert latest == {"loss": loss, "odd": odd}


def test_a_run_alone_gets_an_experiment_and_says_so(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.2")
    export.write_run(FIRST, tmp_path / "e")

    report, path = converted(tmp_path / "e", tmp_path)

    assert report.ok
    assert (
        "7",
        "the export does not have it itself: what belongs to it stands in 'experiment-7'",
    ) in (losses(report))
    with open_archive(str(path)) as archive:
        assert archive.run(FIRST).mlflow.run["info"]["experiment_id"] == "7"


def test_a_model_names_the_experiment_of_its_runs(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.0")
    export.write_model()
    export.write_run(FIRST, tmp_path / "e" / "models" / "wine model" / FIRST)

    _, path = converted(tmp_path / "e", tmp_path)

    with open_archive(str(path)) as archive:
        (experiment,) = archive.experiments()
    assert experiment.mlflow.experiment["name"] == "wine"


def test_a_broken_file_costs_itself_and_says_where(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.1")
    folder = export.write_all()
    broken = export.run_folder(SECOND) / "run.json"
    broken.write_text(broken.read_text().replace('"tags": {', '"tags": {{'))
    line = broken.read_text().splitlines().index('    "tags": {{') + 1

    report, path = converted(folder, tmp_path)

    (failure,) = report.failures
    name = str(broken.relative_to(folder))
    assert (failure.kind, failure.id) == (Kind.RUN, name)
    assert f"{name} is no JSON" in failure.reason
    assert f"line {line}," in failure.reason
    with open_archive(str(path)) as archive:
        assert archive.run(FIRST).mlflow.run["info"]["run_id"] == FIRST
        (experiment,) = archive.experiments()
        assert experiment.mlflow.runs == (FIRST,)
    with pytest.raises(InvalidArchiveError, match="is no JSON"):
        convert(str(folder), str(tmp_path / "strict.tar.zst"), strict=True)
    assert not (tmp_path / "strict.tar.zst").exists()


def test_a_file_over_the_limit_is_named_and_not_read(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.1")
    folder = export.write_all()
    with (export.run_folder(SECOND) / "run.json").open("r+b") as file:
        file.truncate((1 << 30) + 1)  # of which the disk holds nothing

    report, _ = converted(folder, tmp_path)

    (failure,) = report.failures
    assert "over the limit of 1073741824" in failure.reason


def test_a_broken_experiment_leaves_its_runs(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.2")
    folder = export.write_all()
    (export.experiment_folder() / "experiment.json").write_text("{")

    report, path = converted(folder, tmp_path)

    assert [f.kind for f in report.failures] == [Kind.EXPERIMENT]
    with open_archive(str(path)) as archive:
        assert {run.mlflow.run["info"]["run_id"] for run in archive.runs("7")} == set(RUNS)
        (experiment,) = archive.experiments()
    assert experiment.mlflow.experiment["name"] == "wine"  # its model's versions say so


def test_a_run_that_is_listed_and_not_there_is_named(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.0")
    export.write_experiment([FIRST, "9" * 32])
    export.write_run(FIRST)

    report, _ = converted(tmp_path / "e", tmp_path)

    what = "experiments/7/experiment.json lists it, and the export does not have it"
    assert ("9" * 32, what) in losses(report)


def test_what_the_export_failed_to_read_is_named(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.0")
    export.write_all()
    file = export.experiment_folder() / "experiment.json"
    document = json.loads(file.read_text())
    document["info"]["failed_runs"] = ["8" * 32]
    file.write_text(json.dumps(document))

    report, _ = converted(tmp_path / "e", tmp_path)

    what = "experiments/7/experiment.json says that it could not be exported"
    assert ("8" * 32, what) in losses(report)


def test_what_lists_of_an_export_say_is_compared_with_it(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.2")
    folder = export.write_all()
    said: dict[str, dict[str, Any]] = {
        "experiments/experiments.json": {
            "info": {"experiment_names": ["wine", "7", "never"], "failed_runs": 1},
            "mlflow": {"experiments": [{"id": "7", "name": "wine"}, {"id": "8", "name": "gone"}]},
        },
        "experiments/7/experiment.json": {
            "info": {"failed_runs": ["8" * 32], "failed_logged_models": 2, "failed_traces": 1},
            "mlflow": {"logged_models": ["m-1"], "traces": ["tr-1"]},
        },
        "experiments/7/traces/traces.json": {
            "info": {"failed_traces": ["tr-2"]},
            "mlflow": {"experiments": [{"id": "7", "name": "wine", "traces": ["tr-1"]}]},
        },
        "models/models.json": {
            "info": {"failed_models": ["refused"]},
            "mlflow": {"models": ["wine model", "lost model"]},
        },
        "models/wine model/model.json": {
            "info": {"failed_versions": [{"message": "deleted run", "version": {"version": "3"}}]},
        },
        "prompts/prompts_summary.json": {"mlflow": {"total_prompts": 2, "failed_exports": 1}},
        "evaluation_datasets/evaluation_datasets_summary.json": {
            "mlflow": {"failed_exports": 0, "datasets": [{"name": "d", "dataset_id": "d-1"}]}
        },
    }
    for place, parts in said.items():
        file = folder / place
        document = json.loads(file.read_text()) if file.exists() else {"system": {}}
        for part, found in parts.items():
            document[part] = document.get(part, {}) | found
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document))
    (folder / "experiments" / "7" / "logged_models.json").write_text("[")

    report, path = converted(folder, tmp_path)

    (failure,) = report.failures
    assert "7/logged_models.json is no JSON: Expecting value at line 1," in failure.reason
    absent = "lists it, and the export does not have it"
    failed = "says that it could not be exported"
    expected = {
        ("experiment", "never", f"experiments/experiments.json {absent}"),
        ("experiment", "gone", f"experiments/experiments.json {absent}"),
        ("run", "8" * 32, f"experiments/7/experiment.json {failed}"),
        ("logged_model", "m-1", f"experiments/7/experiment.json {absent}"),
        ("trace", "tr-1", f"experiments/7/traces/traces.json {absent}"),
        ("trace", "tr-2", f"experiments/7/traces/traces.json {failed}"),
        ("registered_model", "lost model", f"models/models.json {absent}"),
        ("registered_model", "refused", f"models/models.json {failed}"),
        ("model_version", "wine model/3", f"models/wine model/model.json {failed}"),
    }
    countless = "it says that {} could not be exported, and not which"
    expected |= {
        ("logged_model", "experiments/7/experiment.json", countless.format(2)),
        ("prompt", "prompts/prompts_summary.json", countless.format(1)),
        ("evaluation_dataset", "d-1", f"{list(said)[-1]} {absent}"),
    }
    assert {(str(loss.kind), loss.id, loss.what) for loss in report.losses} == expected
    with open_archive(str(path)) as archive:
        assert len(list(archive.experiments())) == 1


def test_the_first_lists_of_runs_and_models_are_compared_too(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "0")
    export.write_all()
    file = export.experiment_folder() / "manifest.json"
    document = json.loads(file.read_text())
    document |= {"run_ids": [FIRST, "9" * 32], "failed_run_ids": ["8" * 32]}
    file.write_text(json.dumps(document))
    (tmp_path / "e" / "manifest.json").write_text(json.dumps({"models": ["lost", MODEL["name"]]}))

    report, _ = converted(tmp_path / "e", tmp_path)

    place = "experiments/7/manifest.json"
    assert {
        ("9" * 32, f"{place} lists it, and the export does not have it"),
        ("8" * 32, f"{place} says that it could not be exported"),
        ("lost", "manifest.json lists it, and the export does not have it"),
    } <= set(losses(report))


def test_the_same_run_twice_comes_once(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.0")
    folder = export.write_all()
    second = export.write_run(FIRST, folder / "models" / "wine model" / FIRST)

    report, path = converted(folder, tmp_path)

    assert losses(report) == []
    assert report.counts[Kind.RUN].written == 2
    document = json.loads((second / "run.json").read_text())
    document["mlflow"]["params"]["depth"] = "5"
    (second / "run.json").write_text(json.dumps(document))
    report, path = converted(folder, tmp_path)
    ((identity, what),) = losses(report)
    assert identity == FIRST
    assert "differ" in what
    with open_archive(str(path)) as archive:
        assert key_values(archive.run(FIRST).mlflow.run["data"]["params"])["depth"] == "4"


def test_the_export_of_a_run_that_has_its_files_is_taken(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.0")
    folder = export.write_all()
    export.write_run(FIRST, folder / "models" / "wine model" / FIRST)
    for file in (export.run_folder(FIRST) / "artifacts").rglob("*"):
        if file.is_file():
            file.unlink()

    _, path = converted(folder, tmp_path)

    with open_archive(str(path)) as archive:
        assert len(archive.run(FIRST).info.artifacts) == 2


def test_a_run_whose_file_has_the_id_of_another_is_kept_by_its_folder(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.0")
    export.write_all()
    file = export.run_folder(SECOND) / "run.json"
    document = json.loads(file.read_text())
    document["mlflow"]["info"]["run_id"] = FIRST
    file.write_text(json.dumps(document))

    report, path = converted(tmp_path / "e", tmp_path)

    ((identity, what),) = losses(report)
    assert identity == SECOND
    assert "it is kept as its folder says" in what
    with open_archive(str(path)) as archive:
        assert archive.run(SECOND).mlflow.run["info"]["status"] == "FAILED"


def test_a_run_that_logged_a_model_and_has_no_files_is_named(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.0")
    export.write_all()
    file = export.run_folder(SECOND) / "run.json"
    document = json.loads(file.read_text())
    document["mlflow"]["tags"]["mlflow.log-model.history"] = "[]"
    file.write_text(json.dumps(document))

    report, _ = converted(tmp_path / "e", tmp_path)

    assert (SECOND, "it logged a model, and the export has no files of it") in losses(report)


def test_tags_may_be_a_list_and_stand_there_twice(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.1")
    export.write_all()
    file = export.experiment_folder() / "experiment.json"
    document = json.loads(file.read_text())
    document["mlflow"]["experiment"]["tags"] = [
        {"key": "b", "value": "1"},
        {"key": "a", "value": "2"},
        {"key": "b", "value": "1"},
    ]
    file.write_text(json.dumps(document))

    report, path = converted(tmp_path / "e", tmp_path)

    assert report.ok
    with open_archive(str(path)) as archive:
        (experiment,) = archive.experiments()
    assert experiment.mlflow.experiment["tags"] == [
        {"key": "a", "value": "2"},
        {"key": "b", "value": "1"},
    ]


def test_a_bad_metric_row_costs_itself(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.1")
    export.write_all()
    file = export.run_folder(FIRST) / "run.json"
    document = json.loads(file.read_text())
    document["mlflow"]["metrics"]["loss"].insert(1, {"value": "high", "timestamp": 1, "step": 0})
    file.write_text(json.dumps(document))

    report, path = converted(tmp_path / "e", tmp_path)

    (failure,) = report.failures
    assert (failure.kind, failure.id) == (Kind.METRIC_HISTORY, f"{FIRST}/loss")
    assert failure.reason == "row 2 is damaged; the others are read"
    with open_archive(str(path)) as archive:
        assert same(history(archive, FIRST, "loss"), RUNS[FIRST]["metrics"]["loss"])


def test_an_id_that_is_no_number_is_replaced_and_said(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.0")
    export.write_all()
    for file in (tmp_path / "e").rglob("*.json"):
        text = file.read_text().replace('"experiment_id": "7"', f'"experiment_id": "{"e" * 32}"')
        file.write_text(text)

    report, path = converted(tmp_path / "e", tmp_path)

    ((identity, what),) = [entry for entry in losses(report) if "no number" in entry[1]]
    assert identity.isdecimal()
    assert f"its id {'e' * 32} is no number" in what
    with open_archive(str(path)) as archive:
        assert {run.mlflow.run["info"]["run_id"] for run in archive.runs(identity)} == set(RUNS)


def test_permissions_are_kept_and_said(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.0")
    export.write_all()
    file = export.experiment_folder() / "experiment.json"
    document = json.loads(file.read_text())
    document["mlflow"]["permissions"] = {"acl": [{"user": "ada"}]}
    file.write_text(json.dumps(document))

    report, path = converted(tmp_path / "e", tmp_path)

    assert ("7", "its permissions are in the archive, and not applied") in losses(report)
    with open_archive(str(path)) as archive:
        (experiment,) = archive.experiments()
        assert experiment.mlflow.experiment["permissions"] == {"acl": [{"user": "ada"}]}
        assert [loss.what for loss in experiment.info.lossy] == [
            "its permissions are in the archive, and not applied"
        ]


def test_the_first_exports_zipped_runs_and_laid_notebooks_beside(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "0")
    export.write_experiment()
    export.zip_run(FIRST)
    (export.write_run(SECOND) / "notebook.source").write_text("# code")

    report, path = converted(tmp_path / "e", tmp_path)

    assert report.ok
    with open_archive(str(path)) as archive:
        with archive.open_artifact(FIRST, "plots/a b.txt") as stream:
            assert stream.read() == b"\x00\xff"
        with archive.open_artifact(SECOND, "notebooks/notebook.source") as stream:
            assert stream.read() == b"# code"


def test_artifacts_may_have_any_name(tmp_path: Path) -> None:
    export = Export(tmp_path / "e", "2.2")
    folder = export.write_all()
    names = ["run.json", "inner/experiment.json", "run.zip", "artifacts/model.json"]
    for name in names:
        file = export.run_folder(FIRST) / "artifacts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")

    report, path = converted(folder, tmp_path)

    assert report.ok, report.failures
    with open_archive(str(path)) as archive:
        there = {entry.path for entry in archive.run(FIRST).info.artifacts}
    assert there == {*RUNS[FIRST]["artifacts"], *names}


@pytest.mark.filterwarnings("ignore:Exception ignored in")  # fsspec closes no zip file
@pytest.mark.parametrize("store", ["memory", "zip"])
def test_exports_lie_on_any_store(store: str, tmp_path: Path) -> None:
    folder = Export(tmp_path / "e", "2.2").write_all()
    if store == "memory":
        url = "memory://exports/one"
        fsspec.filesystem("memory").put(str(folder), url, recursive=True)
    else:
        url = f"zip://::{tmp_path / 'e.zip'}"
        with zipfile.ZipFile(tmp_path / "e.zip", "w") as packed:
            for file in folder.rglob("*"):
                packed.write(file, file.relative_to(folder))

    report, path = converted(url, tmp_path)

    assert report.ok, report.failures
    direct = tmp_path / "direct.tar.zst"
    convert(str(folder), str(direct))
    assert diff(str(path), str(direct)).equal


def test_an_export_is_a_source_like_any_other(tmp_path: Path) -> None:
    folder = Export(tmp_path / "e", "2.1").write_all()
    _, path = converted(folder, tmp_path)

    assert diff(str(folder), str(path)).equal
    file = Export(folder, "2.1").run_folder(FIRST) / "run.json"
    file.write_text(file.read_text().replace('"depth": "4"', '"depth": "5"'))
    (difference,) = diff(str(folder), str(path)).differences
    assert (difference.a, difference.b) == ("5", "4")


def test_what_is_taken_can_be_chosen(tmp_path: Path) -> None:
    folder = Export(tmp_path / "e", "2.1").write_all()

    report, _ = converted(folder, tmp_path, runs=(SECOND,))
    assert report.counts[Kind.RUN].written == 2  # with its parent
    report, _ = converted(folder, tmp_path, experiments=("wine",), filter="params.depth = '4'")
    assert report.counts[Kind.RUN].written == 1
    report, path = converted(folder, tmp_path, models=("wine*",))
    assert report.counts[Kind.MODEL_VERSION].written == 3
    with open_archive(str(path)) as archive:
        assert [run.mlflow.run["info"]["run_id"] for run in archive.runs("7")] == [FIRST]
    with pytest.raises(NotFoundError, match="no experiment matches 'beer'"):
        converted(folder, tmp_path, experiments=("beer",))


def test_what_holds_no_export_is_said(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NotFoundError, match="no export"):
        convert(str(empty), str(tmp_path / "a.tar.zst"))
    with pytest.raises(NotFoundError):
        convert(str(tmp_path / "nothing"), str(tmp_path / "a.tar.zst"))
    folder = Export(tmp_path / "e", "2.1").write_all()
    with pytest.raises(UsageError, match="are both folders"):
        convert(str(folder), str(tmp_path / "other"))
    _, path = converted(folder, tmp_path)
    with pytest.raises(UsageError, match="are both archives"):
        convert(str(path), str(tmp_path / "b.tar.zst"))


@pytest.mark.parametrize(
    "archive",
    [
        *(
            SAMPLES / "v1" / "good" / f"{name}.tar.zst"
            for name in ("experiments", "models", "mlflow3", "unknown_fields")
        ),
        Path(old_exports.__file__).with_name("golden") / "everything.tar.zst",
    ],
    ids=lambda path: path.name.partition(".")[0],
)
def test_an_archive_comes_back_from_an_export(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"

    there = convert(str(archive), str(folder))
    again, back = converted(folder, tmp_path)

    named = {(str(loss.kind), loss.id) for loss in there.losses}
    # One dataset lacks its times, without which no MLflow would read it.
    mended = [loss for loss in again.losses if loss.kind is Kind.EVALUATION_DATASET]
    named |= {(str(loss.kind), loss.id) for loss in mended}
    named |= {(str(one.kind), one.id) for one in (*there.failures, *there.skips)}
    kinds = {kind for kind, identity in named if identity == "*"}
    for difference in diff(str(archive), str(back), limit=None).differences:
        kind = str(difference.kind)
        owner = difference.id.partition("/")[0]
        file = difference.path.partition(".artifacts.")[2]
        said = {("prompt", owner), (kind, difference.id), ("artifact", f"{difference.id}/{file}")}
        said.add((kind, str(difference.a)))  # an experiment by its name
        is_same = difference.a in ("", f"tr-{difference.b}")
        assert kind in kinds or said & named or is_same, difference
    with pytest.raises(ArchiveExistsError, match="is not empty"):
        convert(str(archive), str(folder))


@pytest.mark.parametrize(
    "archive",
    [p for f in ("oss_mlflow", "databricks") for p in sorted((SAMPLES / f).rglob("*.tar.zst"))],
    ids=lambda path: str(path.relative_to(SAMPLES)).removesuffix(".tar.zst"),
)
def test_what_servers_hold_comes_back_from_an_export(archive: Path, tmp_path: Path) -> None:
    there = convert(str(archive), str(tmp_path / "out"))
    back, path = converted(tmp_path / "out", tmp_path)

    assert there.losses == back.losses == []
    assert diff(str(archive), str(path)).equal


def test_an_export_that_is_written_is_of_the_current_layout(tmp_path: Path) -> None:
    _, path = converted(Export(tmp_path / "e", "2.2").write_all(), tmp_path)
    folder = tmp_path / "out"

    report = convert(str(path), str(folder))

    assert report.ok, report.failures
    assert report.losses == []
    run = json.loads((folder / "experiments" / "7" / "runs" / FIRST / "run.json").read_text())
    assert run["system"]["export_file_version"] == "2"
    found = run["mlflow"]
    truth = Export(tmp_path, "2.2").run_payload(FIRST)
    truth["info"] = {k: v for k, v in truth["info"].items() if v is not None}
    assert {k: v for k, v in found["info"].items() if k[0] != "_"} == truth["info"]
    assert found["info"]["_start_time"] == "2020-09-13 12:26:40"
    assert (found["params"], found["tags"]) == (truth["params"], truth["tags"])
    assert found["metrics"].keys() == truth["metrics"].keys()
    assert found["metrics"]["loss"] == truth["metrics"]["loss"]
    assert math.isnan(found["metrics"]["odd"][0]["value"])
    del truth["inputs"]["dataset_inputs"][0]["dataset"]["schema"]
    assert found["inputs"] == truth["inputs"]
    files = {
        str(file.relative_to(folder / "experiments" / "7" / "runs" / FIRST / "artifacts")): (
            file.read_bytes()
        )
        for file in (folder / "experiments" / "7" / "runs" / FIRST / "artifacts").rglob("*")
        if file.is_file()
    }
    assert files == RUNS[FIRST]["artifacts"]
    experiments = json.loads((folder / "experiments" / "experiments.json").read_text())
    assert [e["name"] for e in experiments["mlflow"]["experiments"]] == ["wine"]
    model = json.loads((folder / "models" / "wine model" / "model.json").read_text())
    versions = model["mlflow"]["registered_model"]["versions"]
    assert [v["version"] for v in versions] == ["1", "2", "10"]
    assert old_exports.EXPORTED_MS  # the truth that both are made of


def test_a_dataset_without_times_gets_those_that_the_export_tells(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    file = folder / "evaluation_dataset.json"
    folder.mkdir()
    record = {"inputs": {"q": "?"}, "targets": {"a": "!"}}
    dataset = {
        "dataset_id": "d-1",
        "name": "questions",
        "create_time": 1_730_000_000_000,
        "_create_time": "2024-10-27",
        "source": {"type": "code"},
        "records": [record, record | {"inputs": {"q": "!"}, "created_time": 7, "tags": {}}],
    }
    system = {"export_time": 1_800_000_000}
    file.write_text(json.dumps({"system": system, "mlflow": {"evaluation_dataset": dataset}}))

    report, path = converted(folder, tmp_path)

    assert report.ok, report.failures
    assert {loss.what for loss in report.losses} == {
        "the export does not tell all of its times: others that it tells stand for them",
        "MLflow has no such fields and keeps none of them: targets",
    }
    with open_archive(str(path)) as archive:
        (entity,) = archive.entities(Kind.EVALUATION_DATASET)
    document = entity.mlflow["evaluation_dataset"]
    assert document.keys() == {
        *("dataset_id", "name", "created_time", "last_update_time"),
        *("tags", "experiment_ids", "records"),
    }
    times = [(one["created_time"], one["last_update_time"]) for one in document["records"]]
    assert times == [(1_730_000_000_000, 1_730_000_000_000), (7, 7)]
    assert all(one["targets"] == {"a": "!"} for one in document["records"])
    assert document["last_update_time"] == document["created_time"] == 1_730_000_000_000
