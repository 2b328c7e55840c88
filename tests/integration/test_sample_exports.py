"""The samples of what servers hold are sound, arrive as they were logged, and come out again."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from mlflow_exim_plugin import verify
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.schema.provenance import is_provenance
from samples import exports, generate, wine
from tests.new_ids import unpack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from samples.exports import Sample

pytestmark = pytest.mark.integration

FOLDER = exports.FOLDER
PREFIX = "mlflow_exim."
FIRST_PACKED_MS = wine.START_MS + exports.DAY_MS
every_sample = pytest.mark.parametrize("sample", exports.SAMPLES, ids=lambda sample: sample.path)


def expected_paths() -> set[str]:
    notebooks = (
        "workspace_notebook",
        "repo_notebook",
        "automl_workspace_notebook",
        "job_repo_notebook",
        "workspace_notebook_src_tags",
    )
    return (
        {
            f"oss_mlflow/{many}/{kind}/{how}"
            for many in ("single", "bulk")
            for kind in ("experiments", "models")
            for how in ("basic", "src_tags")
        }
        | {
            f"databricks/single/experiments/{kind}/{notebook}"
            for kind in ("workspace_experiments", "notebook_experiments")
            for notebook in notebooks
        }
        | {"databricks/single/models", "databricks/bulk/experiments", "databricks/bulk/models"}
    )


def test_there_is_a_sample_of_everything() -> None:
    there = [*FOLDER.glob("oss_mlflow/**/*.tar.zst"), *FOLDER.glob("databricks/**/*.tar.zst")]

    assert {str(path.relative_to(FOLDER)).removesuffix(".tar.zst") for path in there} == (
        expected_paths()
    )
    assert {sample.path for sample in exports.SAMPLES} == expected_paths()


@every_sample
def test_the_archive_is_sound_and_its_folder_shows_its_members(sample: Sample) -> None:
    assert verify(str(sample.archive)).findings == []
    with ArchiveReader.open(str(sample.archive)) as reader:
        members = {path: reader.read(path) for path in reader.paths()}
    files = [path for path in sample.folder.rglob("*") if path.is_file()]

    assert {str(path.relative_to(sample.folder)): path.read_bytes() for path in files} == members


@every_sample
def test_what_was_logged_arrives(sample: Sample, sqlite_uri: str, tmp_path: Path) -> None:
    report = unpack(
        str(sample.archive), tracking_uri=sqlite_uri, artifact_location=str(tmp_path / "artifacts")
    )

    assert report.ok, report.failures
    target = Target(MlflowClient(sqlite_uri, sqlite_uri), sqlite_uri, sample)
    found = {e.name: e for e in target.client.search_experiments(ViewType.ALL) if e.name != DEFAULT}
    assert sorted(found) == sorted(e.name for e in sample.content.experiments)
    for experiment in sample.content.experiments:
        target.check_experiment(experiment, found[experiment.name])
    models = target.client.search_registered_models()
    assert sorted(m.name for m in models) == sorted(m.name for m in sample.content.models)
    for model in sample.content.models:
        target.check_model(model)


DEFAULT = "Default"


@dataclass
class Target:
    """A store that a sample was unpacked into."""

    client: Any
    uri: str
    sample: Sample

    def check_experiment(self, experiment: wine.Experiment, found: Any) -> None:
        own, of_source = apart(found.tags)
        assert own == experiment.tags
        if self.sample.source_tags:
            self.check_source(of_source, "field", experiment.tags)
            assert of_source["field.name"] == experiment.name
            assert of_source["field.creation_time"] == str(experiment.creation_ms)
            assert of_source["field.lifecycle_stage"] == "active"
        else:
            assert not of_source
        listed = self.client.search_runs([found.experiment_id], run_view_type=ViewType.ALL)
        runs = {run.info.run_name: self.client.get_run(run.info.run_id) for run in listed}
        assert len(runs) == len(listed)
        assert sorted(runs) == sorted(run.name for run in experiment.runs)
        for run in experiment.runs:
            self.check_run(run, runs[run.name], runs.get(run.parent))
            if self.sample.source_tags:
                experiment_id = of_source["field.experiment_id"]
                tags = runs[run.name].data.tags
                assert tags[f"{PREFIX}run_info.experiment_id"] == experiment_id

    def check_run(self, run: wine.Run, found: Any, parent: Any) -> None:
        info, data = found.info, found.data
        assert (info.status, info.start_time, info.end_time) == (
            run.status,
            run.start_ms,
            run.end_ms,
        )
        assert (info.user_id, info.lifecycle_stage) == (run.tags["mlflow.user"], "active")
        assert data.params == run.params
        assert sorted(data.metrics) == sorted(run.metrics)
        for key in run.metrics:
            history = self.client.get_metric_history(info.run_id, key)
            assert sorted((m.step, m.timestamp, m.value) for m in history) == run.rows(key)
        assert [(dataset_of(i), tags_of(i.tags)) for i in found.inputs.dataset_inputs] == [
            (d, {wine.CONTEXT: d.context}) for d in run.datasets
        ]
        own, of_source = apart(data.tags)
        linked = {"mlflow.parentRunId": parent.info.run_id} if run.parent else {}
        assert own == run.tags | linked
        if run.files:
            assert self.files(info.artifact_uri) == run.files
        else:
            assert self.client.list_artifacts(info.run_id) == []
        if self.sample.source_tags:
            self.check_source_of_run(run, of_source, parent)
        else:
            assert not of_source

    def check_source_of_run(self, run: wine.Run, of_source: dict[str, str], parent: Any) -> None:
        linked = {}
        if run.parent:
            first_id_of_parent = parent.data.tags[f"{PREFIX}run_info.run_id"]
            linked["mlflow.parentRunId"] = first_id_of_parent
        self.check_source(of_source, "run_info", run.tags | linked)
        experiment_id, run_id = of_source["run_info.experiment_id"], of_source["run_info.run_id"]
        assert {k[9:]: v for k, v in of_source.items() if k.startswith("run_info.")} == {
            "run_id": run_id,
            "run_uuid": run_id,
            "run_name": run.name,
            "experiment_id": experiment_id,
            "user_id": run.tags["mlflow.user"],
            "status": run.status,
            "start_time": str(run.start_ms),
            "end_time": str(run.end_ms),
            "artifact_uri": f"mlflow-artifacts:/{experiment_id}/{run_id}/artifacts",
            "lifecycle_stage": "active",
        }
        # The sample beside it is the first server's, where the run had this id.
        first = self.sample.folder.with_name(
            "basic" if self.sample.name == "src_tags" else "workspace_notebook"
        )
        assert (first / f"data/experiments/{experiment_id}/runs/{run_id}/run.json").is_file()

    def check_source(self, of_source: dict[str, str], part: str, tags: dict[str, str]) -> None:
        """Check what every kind's source tags say: the place, and MLflow's own tags there."""
        assert {key.partition(".")[0] for key in of_source} <= {part, "mlflow_tag", "src_client"}
        assert {k: v for k, v in of_source.items() if k.startswith("mlflow_tag.")} == {
            f"mlflow_tag.{k[7:]}": v for k, v in tags.items() if k.startswith("mlflow.")
        }
        assert {k: v for k, v in of_source.items() if k.startswith("src_client.")} == {
            "src_client.tracking_uri": exports.FIRST,
            "src_client.export_time_ms": str(FIRST_PACKED_MS),
        }

    def check_model(self, model: wine.Model) -> None:
        found = self.client.get_registered_model(model.name)
        own, of_source = apart(found.tags)
        assert own == model.tags
        assert (found.description or "") == model.description
        assert {k: str(v) for k, v in found.aliases.items()} == model.aliases
        if self.sample.source_tags:
            self.check_source(of_source, "field", model.tags)
            assert of_source["field.name"] == model.name
            assert of_source["field.creation_timestamp"] == str(model.creation_ms)
        else:
            assert not of_source
        listed = self.client.search_model_versions(f"name = '{model.name}'")
        versions = sorted(listed, key=lambda version: int(version.version))
        assert [int(v.version) for v in versions] == [*range(1, len(model.versions) + 1)]
        for version, there in zip(model.versions, versions, strict=True):
            self.check_version(version, there)

    def check_version(self, version: wine.Version, found: Any) -> None:
        own, of_source = apart(found.tags)
        assert own == version.tags
        assert (found.description or "") == version.description
        assert (found.current_stage, found.status) == (version.stage, "READY")
        run = self.client.get_run(found.run_id)
        experiment = self.client.get_experiment(run.info.experiment_id)
        assert (experiment.name, run.info.run_name) == (version.experiment, version.run)
        location = self.client.get_model_version_download_uri(found.name, found.version)
        assert self.files(location) == wine.MODEL_FILES
        if self.sample.source_tags:
            self.check_source(of_source, "field", version.tags)
            run_id = run.data.tags[f"{PREFIX}run_info.run_id"]
            root = run.data.tags[f"{PREFIX}run_info.artifact_uri"]
            expected = {
                "field.name": found.name,
                "field.version": str(found.version),
                "field.current_stage": version.stage,
                "field.creation_timestamp": str(version.creation_ms),
                "field.run_id": run_id,
                "field.source": f"{root}/model",
                "field.status": "READY",
            }
            assert {key: of_source.get(key) for key in expected} == expected
        else:
            assert not of_source

    def files(self, location: str) -> dict[str, bytes]:
        root = Path(
            mlflow.artifacts.download_artifacts(artifact_uri=location, tracking_uri=self.uri)
        )
        files = [path for path in root.rglob("*") if path.is_file()]
        return {str(path.relative_to(root)): path.read_bytes() for path in files}


def apart(tags: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return an object's own tags, and its source tags without their prefix."""
    own = {
        key: value
        for key, value in tags.items()
        if not key.startswith(PREFIX) and not is_provenance(key)
    }
    return own, {
        key[len(PREFIX) :]: value
        for key, value in tags.items()
        if key.startswith(PREFIX) and not is_provenance(key)
    }


def dataset_of(dataset_input: Any) -> wine.Dataset:
    found = dataset_input.dataset
    return wine.Dataset(
        name=found.name,
        digest=found.digest,
        source_type=found.source_type,
        source=found.source,
        schema=found.schema,
        profile=found.profile,
        context=tags_of(dataset_input.tags)[wine.CONTEXT],
    )


def tags_of(tags: Iterable[Any]) -> dict[str, str]:
    return {tag.key: tag.value for tag in tags}


@pytest.mark.exhaustive
@pytest.mark.timeout(900)  # two servers start, on a busy machine each takes a minute
def test_making_them_again_changes_no_root(tmp_path: Path) -> None:
    made_with = json.loads(exports.GENERATED_WITH.read_text())
    here = generate.generated_with() | exports.generated_with()
    if made_with["mlflow"] != here["mlflow"]:
        pytest.skip(f"they were made with MLflow {made_with['mlflow']}, whose answers differ")

    made = exports.archives(generate.SYSTEM)

    assert set(made) == {sample.path for sample in exports.SAMPLES}
    for sample in exports.SAMPLES:
        again = tmp_path / "again.tar.zst"
        again.write_bytes(made[sample.path])
        # Roots cover Parquet files and the digits of numbers, which others than these may change.
        digest = root_of if made_with == here else content_digests
        assert digest(again) == digest(sample.archive), f"{sample.path}: generate.py exports"


def root_of(archive: Path) -> str:
    with ArchiveReader.open(str(archive)) as reader:
        return str(reader.root)


def content_digests(archive: Path) -> dict[str, str]:
    with ArchiveReader.open(str(archive)) as reader:
        documents = {
            path: json.loads(reader.read(path))
            for path in reader.paths("data/")
            if re.search(r"/(experiment|run|model|version)\.json$", path)
        }
    return {path: document["info"]["content_digest"] for path, document in documents.items()}


@pytest.mark.parametrize("page", ["README.md", "databricks/README.md"])
def test_links_of_the_pages_lead_somewhere(page: str) -> None:
    path = FOLDER / page
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8"))

    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_pages_show_every_sample() -> None:
    shown = {
        (page.parent / link).resolve()
        for page in (FOLDER / "README.md", FOLDER / "databricks" / "README.md")
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
    }

    assert {sample.folder for sample in exports.SAMPLES} <= shown
