"""The samples below ``oss_mlflow`` and ``databricks``: what MLflow servers hold, packed.

Two real servers are started, one after the other: the first is filled through MLflow's own client,
the second from an archive of all of the first, with source tags. Their clock stands and their ids
repeat (``frozen/sitecustomize.py``), so that packing them gives the same archives every time.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin import unpack
from mlflow_exim_plugin.sinks.archive.log import Step
from mlflow_exim_plugin.sinks.archive.sink import ArchiveSink
from mlflow_exim_plugin.sources.server.source import ServerSource
from mlflow_exim_plugin.options import (Selection)
from mlflow_exim_plugin.transfer import transfer
from samples import wine
from tests.servers import start_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.schema.envelope import System

FOLDER = Path(__file__).resolve().parent
FROZEN = FOLDER / "frozen"
GENERATED_WITH = FOLDER / "exports-generated-with.json"
DAY_MS = 86_400_000
FIRST, SECOND = "http://localhost:5000", "http://localhost:5001"
"""What the archives call the two servers, whose real ports are any that are free."""


@dataclass(frozen=True)
class Sample:
    """A sample: an archive, and its members as files in a folder beside it.

    Attributes:
        path: Below ``samples``, without ``.tar.zst``.
        of: What the first server was filled with for it.
        experiments: Names of the experiments that are packed.
        models: Names of the registered models that are packed.
        source_tags: Whether it is packed from the second server.
    """

    path: str
    of: wine.Content
    experiments: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    source_tags: bool = False

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def selection(self) -> Selection:
        """What is packed."""
        return Selection(experiments=self.experiments, models=self.models)

    @property
    def archive(self) -> Path:
        """Where the archive lies."""
        return FOLDER / f"{self.path}.tar.zst"

    @property
    def folder(self) -> Path:
        """Where the archive's members lie as files."""
        return FOLDER / self.path

    @property
    def content(self) -> wine.Content:
        """What is to arrive where it is unpacked."""
        if self.models:
            return self.of.of_models(*self.models)
        return self.of.of_experiments(*self.experiments)


def _samples() -> Iterator[Sample]:
    oss = wine.OSS
    chosen: dict[str, dict[str, Any]] = {
        "single/experiments": {"experiments": ("sklearn_wine",)},
        "single/models": {"models": ("sklearn_wine",)},
        "bulk/experiments": {"experiments": tuple(e.name for e in oss.experiments)},
        "bulk/models": {"models": tuple(m.name for m in oss.models)},
    }
    for path, names in chosen.items():
        yield Sample(f"oss_mlflow/{path}/basic", oss, **names)
        yield Sample(f"oss_mlflow/{path}/src_tags", oss, **names, source_tags=True)
    databricks = wine.DATABRICKS
    kinds = {
        "workspace_experiments": wine.WORKSPACE_EXPERIMENTS,
        "notebook_experiments": wine.NOTEBOOK_EXPERIMENTS,
    }
    for kind, experiments in kinds.items():
        folder = f"databricks/single/experiments/{kind}"
        for name, experiment in experiments.items():
            yield Sample(f"{folder}/{name}", databricks, (experiment.name,))
        first = (experiments["workspace_notebook"].name,)
        yield Sample(f"{folder}/workspace_notebook_src_tags", databricks, first, source_tags=True)
    yield Sample("databricks/single/models", databricks, models=(databricks.models[0].name,))
    experiments_of_bulk = tuple(e.name for e in wine.WORKSPACE_EXPERIMENTS.values())
    yield Sample("databricks/bulk/experiments", databricks, experiments_of_bulk)
    models_of_bulk = tuple(m.name for m in databricks.models)
    yield Sample("databricks/bulk/models", databricks, models=models_of_bulk)


SAMPLES = tuple(_samples())


class Clock:
    """The time that servers see; it moves when it is told to.

    Args:
        path: File that holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(wine.START_MS)

    def set(self, now_ms: int) -> None:
        """Let it be this time, in milliseconds since the Unix epoch."""
        moved = self.path.with_suffix(".new")
        moved.write_text(str(now_ms))
        moved.replace(self.path)


@contextmanager
def _server(directory: Path, clock: Clock) -> Iterator[str]:
    """Start a server whose clock is this one; gives its address."""
    env = {"PYTHONPATH": str(FROZEN), "FROZEN_CLOCK": str(clock.path)}
    with start_server(directory, env=env) as server:
        yield server.url


def archives(system: System) -> dict[str, bytes]:
    """Return the archive of every sample by its path.

    Args:
        system: Who packed them, and with what; when and from where is theirs to say.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clock = Clock(folder / "clock")
        with _server(folder / "first", clock) as url:
            fill(MlflowClient(url, url), clock, wine.OSS)
            fill(MlflowClient(url, url), clock, wine.DATABRICKS)
            first = _seen_from(system, FIRST, days=1)
            (folder / "all.tar.zst").write_bytes(_packed(url, Selection(), first, "all"))
            made = {
                s.path: _packed(url, s.selection, first, s.name)
                for s in SAMPLES
                if not s.source_tags
            }
        clock.set(wine.START_MS + 2 * DAY_MS)
        with _server(folder / "second", clock) as url:
            report = unpack(
                str(folder / "all.tar.zst"), tracking_uri=url, import_source_tags=True, jobs=1
            )
            assert report.ok, report.failures
            second = _seen_from(system, SECOND, days=3)
            made |= {
                s.path: _packed(url, s.selection, second, s.name) for s in SAMPLES if s.source_tags
            }
        return made


def fill(client: MlflowClient, clock: Clock, content: wine.Content) -> None:
    """Log this content through MLflow's own client."""
    run_ids: dict[tuple[str, str], str] = {}
    for experiment in content.experiments:
        clock.set(experiment.creation_ms)
        experiment_id = client.create_experiment(experiment.name, tags=experiment.tags)
        for run in experiment.runs:
            parent = run_ids[experiment.name, run.parent] if run.parent else ""
            run_ids[experiment.name, run.name] = _log(client, clock, experiment_id, run, parent)
    for model in content.models:
        clock.set(model.creation_ms)
        client.create_registered_model(model.name, model.tags, model.description)
        for version in model.versions:
            clock.set(version.creation_ms)
            run_id = run_ids[version.experiment, version.run]
            made = client.create_model_version(
                model.name,
                f"{client.get_run(run_id).info.artifact_uri}/model",
                run_id,
                version.tags,
                description=version.description,
            )
            with warnings.catch_warnings():  # stages are old, and what many registries are full of
                warnings.simplefilter("ignore", FutureWarning)
                client.transition_model_version_stage(model.name, made.version, version.stage)
        for alias, number in model.aliases.items():
            client.set_registered_model_alias(model.name, alias, number)


def _log(client: MlflowClient, clock: Clock, experiment_id: str, run: wine.Run, parent: str) -> str:
    clock.set(run.start_ms)
    tags = run.tags | ({"mlflow.parentRunId": parent} if parent else {})
    run_id: str = client.create_run(experiment_id, run.start_ms, tags, run.name).info.run_id
    client.log_batch(
        run_id,
        metrics=[
            Metric(key, value, timestamp, step)
            for key in run.metrics
            for step, timestamp, value in run.rows(key)
        ],
        params=[Param(key, value) for key, value in run.params.items()],
    )
    datasets = [
        DatasetInput(
            Dataset(d.name, d.digest, d.source_type, d.source, d.schema, d.profile),
            [InputTag(wine.CONTEXT, d.context)],
        )
        for d in run.datasets
    ]
    if datasets:
        client.log_inputs(run_id, datasets)
    with tempfile.TemporaryDirectory() as folder:
        for path, data in run.files.items():
            file = Path(folder) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        client.log_artifacts(run_id, folder)
    clock.set(run.end_ms)
    client.set_terminated(run_id, run.status, run.end_ms)
    return run_id


def _seen_from(system: System, uri: str, *, days: int) -> System:
    """Return who packs a server, some days after the first one was started."""
    now_ms = wine.START_MS + days * DAY_MS
    day = 21 + days
    return system.model_copy(
        update={
            "export_time": now_ms // 1000,
            "export_time_ms": now_ms,
            "export_time_text": f"2026-09-{day} 13:33:20",
            "mlflow_version": mlflow.__version__,
            "mlflow_tracking_uri": uri,
        }
    )


def _packed(url: str, selection: Selection, system: System, name: str) -> bytes:
    """Pack as ``operations.pack`` does, but for who does it, when and from where."""
    file = io.BytesIO()
    chosen = {"experiments": list(selection.experiments), "models": list(selection.models)}
    bag_info = {
        "Source-Organization": system.mlflow_tracking_uri,
        "Bag-Software-Agent": "mlflow-exim-plugin samples",
    }
    with ArchiveWriter(file, base_directory=name, workers=0, bag_info=bag_info) as writer:
        selected = {kind: names for kind, names in chosen.items() if names}
        sink = ArchiveSink(writer, system, selected, step=Step(system))
        report = transfer(ServerSource(Host(url, url, create=False)), sink, selection)
    assert report.ok, report.failures
    assert not report.losses, report.losses
    return file.getvalue()


def generated_with() -> dict[str, str]:
    """Return the libraries whose versions change what is packed."""
    return {"mlflow": mlflow.__version__}


def write(made: dict[str, bytes], tools: dict[str, str]) -> None:
    """Write archives, their members as files, and what they were made with."""
    shutil.rmtree(FOLDER / "oss_mlflow", ignore_errors=True)
    for name in ("single", "bulk"):  # beside a page that nobody generates
        shutil.rmtree(FOLDER / "databricks" / name, ignore_errors=True)
    for sample in SAMPLES:
        sample.folder.mkdir(parents=True)
        sample.archive.write_bytes(made[sample.path])
        with ArchiveReader.open(str(sample.archive)) as reader:
            for path in reader.paths():
                file = sample.folder / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(reader.read(path))
    GENERATED_WITH.write_text(json.dumps(tools, indent=2) + "\n")
