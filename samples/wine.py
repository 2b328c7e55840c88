"""What the servers of ``exports.py`` are filled with, as plain data: experiments, runs and models.

Tests compare what arrives at a server from a sample with this, not with the sample.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

START_MS = 1_790_000_000_000
"""2026-09-21 13:33:20 UTC, when the first server is started."""
MINUTE_MS = 60_000
CONTEXT = "mlflow.data.context"


@dataclass(frozen=True)
class Dataset:
    """A dataset that a run read."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str
    profile: str
    context: str


@dataclass(frozen=True)
class Run:
    """A run; ``metrics`` has the values at step 0, 1, …, ``parent`` the name of another run."""

    name: str
    start_ms: int
    end_ms: int
    params: dict[str, str]
    metrics: dict[str, tuple[float, ...]]
    tags: dict[str, str]
    files: dict[str, bytes] = field(default_factory=dict)
    parent: str = ""
    datasets: tuple[Dataset, ...] = ()
    status: str = "FINISHED"

    def rows(self, key: str) -> list[tuple[int, int, float]]:
        """Return the step, the timestamp and the value of each row of a metric."""
        return [
            (step, self.start_ms + 1_000 * (step + 1), value)
            for step, value in enumerate(self.metrics[key])
        ]


@dataclass(frozen=True)
class Experiment:
    """An experiment; names of its runs are unique."""

    name: str
    creation_ms: int
    tags: dict[str, str]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Version:
    """A model version, of the files that a run has below ``model``."""

    experiment: str
    run: str
    creation_ms: int
    description: str
    tags: dict[str, str]
    stage: str = "None"


@dataclass(frozen=True)
class Model:
    """A registered model; its versions count from 1."""

    name: str
    creation_ms: int
    description: str
    tags: dict[str, str]
    versions: tuple[Version, ...]
    aliases: dict[str, str]


@dataclass(frozen=True)
class Content:
    """What a server or a sample holds."""

    experiments: tuple[Experiment, ...]
    models: tuple[Model, ...] = ()

    def of_experiments(self, *names: str) -> Content:
        """Return these experiments with all their runs."""
        return Content(tuple(e for e in self.experiments if e.name in names))

    def of_models(self, *names: str) -> Content:
        """Return these models, the runs behind their versions, and the parents of those."""
        models = tuple(m for m in self.models if m.name in names)
        behind = {(v.experiment, v.run) for m in models for v in m.versions}
        for experiment in self.experiments:
            for run in experiment.runs:
                if run.parent and (experiment.name, run.name) in behind:
                    behind.add((experiment.name, run.parent))
        experiments = (
            replace(e, runs=tuple(run for run in e.runs if (e.name, run.name) in behind))
            for e in self.experiments
        )
        return Content(tuple(e for e in experiments if e.runs), models)


# A model's files as `mlflow.sklearn.log_model` lays them out; the pickle is a stand-in.
PYTHON, SKLEARN = "3.11.7", "1.5.2"
REQUIREMENTS = f"mlflow==3.17.2\nscikit-learn=={SKLEARN}\n"
MODEL_FILES = {
    "MLmodel": f"""artifact_path: model
flavors:
  python_function:
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: mlflow.sklearn
    model_path: model.pkl
    predict_fn: predict
    python_version: {PYTHON}
  sklearn:
    code: null
    pickled_model: model.pkl
    serialization_format: cloudpickle
    sklearn_version: {SKLEARN}
mlflow_version: 3.17.2
signature:
  inputs: '[{{"type": "double", "name": "alcohol", "required": true}}, {{"type": "double",
    "name": "pH", "required": true}}]'
  outputs: '[{{"type": "tensor", "tensor-spec": {{"dtype": "float64", "shape": [-1]}}}}]'
  params: null
""".encode(),
    "conda.yaml": f"""channels:
- conda-forge
dependencies:
- python={PYTHON}
- pip<=24.0
- pip:
  - mlflow==3.17.2
  - scikit-learn=={SKLEARN}
name: mlflow-env
""".encode(),
    "input_example.json": b'{"columns": ["alcohol", "pH"], "data": [[8.8, 3.0]]}',
    "model.pkl": b"A stand-in for a pickled model: these samples are to be read, not loaded.\n",
    "python_env.yaml": f"""python: {PYTHON}
build_dependencies:
- pip==24.0
- setuptools==69.0.3
- wheel==0.42.0
dependencies:
- -r requirements.txt
""".encode(),
    "requirements.txt": REQUIREMENTS.encode(),
}


def model_folder(**more: str) -> dict[str, bytes]:
    """Return a model folder and further files of a run; ``__`` in a name is a dot."""
    files = {f"model/{name}": data for name, data in MODEL_FILES.items()}
    return files | {name.replace("__", "."): text.encode() for name, text in more.items()}


def wine(context: str) -> Dataset:
    """Return the dataset that the wine runs read."""
    columns = ["alcohol", "pH", "quality"]
    return Dataset(
        name="winequality-white",
        digest="2c6b9e1f",
        source_type="http",
        source=json.dumps({"url": "https://example.com/data/winequality-white.csv"}),
        schema=json.dumps(
            {"mlflow_colspec": [{"type": "double", "name": c, "required": True} for c in columns]}
        ),
        profile=json.dumps({"num_rows": 4898, "num_elements": 14694}),
        context=context,
    )


def at(minute: int) -> int:
    """Return a time after the start of the first server."""
    return START_MS + minute * MINUTE_MS


# A plain server: OSS.

USER = "ana"
COMMIT = "1d0e9f2c4b7a68d3e5f1029384756abcdef01234"


def local_tags(
    name: str, *, user: str = USER, script: str = "train.py", **more: str
) -> dict[str, str]:
    """Return the tags that MLflow gives a run that is started from a git checkout."""
    return {
        "mlflow.runName": name,
        "mlflow.user": user,
        "mlflow.source.name": script,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": COMMIT,
        **more,
    }


def depth_run(depth: int, minute: int, rmse: float, r2: float) -> Run:
    """Return a child run of the grid search."""
    name = f"max_depth={depth}"
    return Run(
        name=name,
        start_ms=at(minute),
        end_ms=at(minute) + 9_250,
        params={"max_depth": str(depth), "max_leaf_nodes": "32", "criterion": "squared_error"},
        metrics={
            "rmse": (rmse + 0.081, rmse + 0.0275, rmse),
            "r2": (r2,),
            "mae": (round(rmse * 0.79, 6),),
        },
        tags=local_tags(name, estimator_name="DecisionTreeRegressor"),
        files=model_folder(feature_importance__csv=f"alcohol,0.8{depth}\npH,0.1{depth}\n"),
        parent="grid search",
        datasets=(wine("training"),),
    )


SKLEARN_WINE = Experiment(
    name="sklearn_wine",
    creation_ms=at(1),
    tags={"mlflow.note.content": "Quality of white wine from what a laboratory measures."},
    runs=(
        Run(
            name="grid search",
            start_ms=at(2),
            end_ms=at(8),
            params={"grid": "max_depth=[4, 8]", "cv": "5", "random_state": "42"},
            metrics={"best_rmse": (0.7986004372118107, 0.7213)},
            tags=local_tags("grid search", **{"mlflow.note.content": "Keeps the best depth."}),
            files={"cv_results.csv": b"max_depth,mean_test_rmse\n4,0.7986\n8,0.7213\n"},
            datasets=(wine("training"),),
        ),
        depth_run(4, 3, 0.7986004372118107, 0.1553172302194683),
        depth_run(8, 5, 0.7213, 0.3108),
        Run(
            name="no limit",
            start_ms=at(9),
            end_ms=at(9) + 1_500,
            params={"max_depth": "None"},
            metrics={},
            tags=local_tags("no limit", reason="out of memory"),
            status="FAILED",
        ),
    ),
)
KERAS_MNIST = Experiment(
    name="keras_mnist",
    creation_ms=at(12),
    tags={"team": "vision"},
    runs=(
        Run(
            name="two layers",
            start_ms=at(13),
            end_ms=at(15),
            params={"epochs": "5", "batch_size": "128", "optimizer": "adam"},
            metrics={
                "loss": (0.4821, 0.2213, 0.1604, 0.1277, 0.1062),
                "val_loss": (0.2509, 0.1741, 0.1398, 0.1215, 0.1127),
                "val_accuracy": (0.9284, 0.9486, 0.9581, 0.9633, 0.9659),
            },
            tags=local_tags("two layers", user="ben", script="mnist/train.py"),
            files=model_folder(summary__txt="dense 512\ndense 10\n"),
        ),
    ),
)
IRIS = Experiment(
    name="iris",
    creation_ms=at(16),
    tags={},
    runs=(
        Run(
            name="baseline",
            start_ms=at(17),
            end_ms=at(17) + 900,
            params={"strategy": "most_frequent"},
            metrics={"accuracy": (0.3333333333333333,)},
            tags=local_tags("baseline", user="ben", script="baseline.ipynb"),
        ),
    ),
)
OSS = Content(
    experiments=(SKLEARN_WINE, KERAS_MNIST, IRIS),
    models=(
        Model(
            name="sklearn_wine",
            creation_ms=at(20),
            description="Predicts the quality of white wine.",
            tags={"task": "regression"},
            versions=(
                Version("sklearn_wine", "max_depth=4", at(21), "The first tree.", {}, "Archived"),
                Version(
                    "sklearn_wine",
                    "max_depth=8",
                    at(22),
                    "Deeper, and better.",
                    {"validated_by": "ben"},
                    "Production",
                ),
                Version("sklearn_wine", "max_depth=4", at(23), "The first again.", {}),
            ),
            aliases={"champion": "2", "challenger": "3"},
        ),
        Model(
            name="keras_mnist",
            creation_ms=at(24),
            description="",
            tags={},
            versions=(Version("keras_mnist", "two layers", at(25), "", {}, "Staging"),),
            aliases={},
        ),
    ),
)


# A server whose tags are those of Databricks.

OWNER = "ana@example.com"
HOME = f"/Users/{OWNER}"
REPO = f"/Repos/{OWNER}/mlflow-examples"
CHECKOUT = "/Repos/.internal/5d1f0c7a2b_commits/" + COMMIT
NOTEBOOK = "notebooks/Sklearn_Wine"
WORKSPACE = {
    "mlflow.databricks.webappURL": "https://workspace.example.com",
    "mlflow.databricks.workspaceID": "2556758628403379",
    "mlflow.databricks.workspaceURL": "workspace.example.com",
}
CLUSTER = {
    "mlflow.databricks.cluster.id": "0920-101433-wine7k2q",
    "mlflow.databricks.cluster.info": json.dumps(
        {
            "cluster_name": "wine",
            "spark_version": "15.4.x-cpu-ml-scala2.12",
            "node_type_id": "i3.xlarge",
            "driver_node_type_id": "i3.xlarge",
            "autotermination_minutes": 60,
            "disk_spec": {"disk_count": 0},
            "num_workers": 1,
        }
    ),
    "mlflow.databricks.cluster.libraries": json.dumps({"installable": [], "redacted": []}),
}
GIT_REPO = {
    "mlflow.databricks.gitRepoCommit": COMMIT,
    "mlflow.databricks.gitRepoProvider": "gitHub",
    "mlflow.databricks.gitRepoReference": "main",
    "mlflow.databricks.gitRepoReferenceType": "branch",
    "mlflow.databricks.gitRepoRelativePath": NOTEBOOK,
    "mlflow.databricks.gitRepoStatus": "clean",
    "mlflow.databricks.gitRepoUrl": "https://git.example.com/wine/mlflow-examples",
}
JOB = {
    "mlflow.databricks.jobID": "810242",
    "mlflow.databricks.jobRunID": "4417093",
    "mlflow.databricks.jobType": "NORMAL",
}
AUTOML = {
    "_databricks_automl": "True",
    "_databricks_automl.best_trial_notebook_id": "1765187885495752",
    "_databricks_automl.evaluation_metric": "val_r2_score",
    "_databricks_automl.evaluation_metric_order_by_asc": "False",
    "_databricks_automl.exploration_notebook_id": "1765187885495751",
    "_databricks_automl.problem_type": "regression",
    "_databricks_automl.start_time": str(START_MS // 1000),
    "_databricks_automl.state": "SUCCESS",
    "_databricks_automl.table_name": "main.wine.quality",
    "_databricks_automl.target_col": "quality",
}


@dataclass(frozen=True)
class Notebook:
    """A notebook of Databricks, and what its runs and its experiment are tagged with."""

    path: str
    notebook_id: str
    workspace_experiment: str
    run_tags: dict[str, str]
    experiment_tags: dict[str, str] = field(default_factory=dict)


NOTEBOOKS = {
    "workspace_notebook": Notebook(
        path=f"{HOME}/Sklearn_Wine",
        notebook_id="1765187885495747",
        workspace_experiment=f"{HOME}/experiments/Sklearn_Wine",
        run_tags=CLUSTER,
    ),
    "repo_notebook": Notebook(
        path=f"{REPO}/{NOTEBOOK}",
        notebook_id="1765187885495748",
        workspace_experiment=f"{HOME}/experiments/Sklearn_Wine_repo",
        run_tags=CLUSTER | GIT_REPO,
    ),
    "automl_workspace_notebook": Notebook(
        path=f"{HOME}/databricks_automl/Wine_quality/trials/LightGBM",
        notebook_id="1765187885495752",
        workspace_experiment=f"{HOME}/databricks_automl/Wine_quality-2026_09_21-13_33",
        run_tags={"estimator_class": "sklearn.pipeline.Pipeline", "estimator_name": "Pipeline"},
        experiment_tags=AUTOML,
    ),
    "job_repo_notebook": Notebook(
        path=f"{CHECKOUT}/{NOTEBOOK}",
        notebook_id="1765187885495749",
        workspace_experiment=f"{HOME}/experiments/Sklearn_Wine_job",
        run_tags=CLUSTER | GIT_REPO | JOB,
    ),
}


def databricks_run(notebook: Notebook, start_ms: int) -> Run:
    """Return a run of a notebook."""
    end_ms = start_ms + 6_124
    return Run(
        name="wine tree",
        start_ms=start_ms,
        end_ms=end_ms,
        params={"max_depth": "4", "max_leaf_nodes": "32"},
        metrics={"rmse": (0.8796, 0.8261, 0.7986004372118107), "r2": (0.1553172302194683,)},
        tags={
            "mlflow.runName": "wine tree",
            "mlflow.user": OWNER,
            "mlflow.source.name": notebook.path,
            "mlflow.source.type": "NOTEBOOK",
            "mlflow.databricks.notebook.commandID": "6934812075835057189_8813927112301034901",
            "mlflow.databricks.notebookID": notebook.notebook_id,
            "mlflow.databricks.notebookPath": notebook.path,
            "mlflow.databricks.notebookRevisionID": str(end_ms),
            **WORKSPACE,
            **notebook.run_tags,
        },
        files=model_folder(),
        datasets=(wine("training"),),
    )


def databricks_experiment(name: str, minute: int, notebook: Notebook, kind: str) -> Experiment:
    """Return an experiment with one run of a notebook.

    Args:
        name: Its path in the workspace.
        minute: When it is made.
        notebook: What ran.
        kind: ``NOTEBOOK``: the notebook's own; ``MLFLOW_EXPERIMENT``: one that stands by itself.
    """
    tags = {
        "mlflow.experimentType": kind,
        "mlflow.experiment.sourceName": name,
        "mlflow.ownerEmail": OWNER,
        "mlflow.ownerId": "4566812440727830",
        **notebook.experiment_tags,
    }
    if kind == "NOTEBOOK":
        of_repo = notebook.path.startswith("/Repos")
        tags["mlflow.experiment.sourceId"] = notebook.notebook_id
        tags["mlflow.experiment.sourceType"] = "REPO_NOTEBOOK" if of_repo else "NOTEBOOK"
    run = databricks_run(notebook, at(minute) + 20_000)
    return Experiment(name, at(minute), tags, (run,))


WORKSPACE_EXPERIMENTS = {
    name: databricks_experiment(
        notebook.workspace_experiment, 30 + minute, notebook, "MLFLOW_EXPERIMENT"
    )
    for minute, (name, notebook) in enumerate(NOTEBOOKS.items())
}
NOTEBOOK_EXPERIMENTS = {
    name: databricks_experiment(notebook.path, 40 + minute, notebook, "NOTEBOOK")
    for minute, (name, notebook) in enumerate(NOTEBOOKS.items())
}


def databricks_version(name: str, minute: int, description: str, stage: str = "None") -> Version:
    """Return a version of the model that a workspace experiment's run made."""
    experiment = WORKSPACE_EXPERIMENTS[name]
    return Version(
        experiment.name, experiment.runs[0].name, at(minute), description, {"from": name}, stage
    )


DATABRICKS = Content(
    experiments=(*WORKSPACE_EXPERIMENTS.values(), *NOTEBOOK_EXPERIMENTS.values()),
    models=(
        Model(
            name="Sklearn_WineQuality",
            creation_ms=at(50),
            description="Quality of white wine.",
            tags={"sample_tag": "hi"},
            versions=(
                databricks_version("workspace_notebook", 51, "By hand.", "Archived"),
                databricks_version("job_repo_notebook", 52, "By the nightly job.", "Production"),
            ),
            aliases={"champion": "2"},
        ),
        Model(
            name="AutoML_WineQuality",
            creation_ms=at(53),
            description="",
            tags={},
            versions=(databricks_version("automl_workspace_notebook", 54, "", "Staging"),),
            aliases={},
        ),
    ),
)
