"""Train a model on a laptop, carry it to the team in one file, and check that nothing was lost.

    python samples/quickstart.py [FOLDER]

FOLDER (a temporary one by default) gets two MLflow servers' worth of data, each an SQLite database
with its artifacts: `laptop`, where two models are trained and registered, and `team`, where they
arrive. No server is started and nothing leaves the machine. The exit code is 1 when the two differ.
"""

import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ["PATH"] = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

import mlflow
from mlflow import MlflowClient
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

EXPERIMENT, MODEL, ALIAS = "handwriting", "digits", "champion"
LAPTOP, TEAM = "sqlite:///laptop/mlflow.db", "sqlite:///team/mlflow.db"
EPOCHS = 20
IMAGES, LABELS = load_digits(return_X_y=True)


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="mlflow-exim-"))
    for side in ("laptop", "team"):
        (folder / side).mkdir(parents=True)
    os.chdir(folder)
    print(f"Training two models in {folder}")
    train()
    run(f"mlflow exim pack backup.tar.zst --tracking-uri {LAPTOP}")
    run("mlflow exim ls backup.tar.zst")
    run("mlflow exim verify backup.tar.zst")
    run(f"mlflow exim unpack backup.tar.zst --tracking-uri {TEAM} --artifact-location team/artifacts")
    return compare()


def train() -> None:
    mlflow.set_tracking_uri(LAPTOP)
    mlflow.set_experiment(
        experiment_id=mlflow.create_experiment(EXPERIMENT, Path("laptop/artifacts").resolve().as_uri())
    )
    seen, unseen, seen_labels, unseen_labels = train_test_split(IMAGES, LABELS, random_state=0)
    where = "name" if mlflow.__version__ >= "3" else "artifact_path"
    for alpha in (0.1, 0.001):
        with mlflow.start_run(run_name=f"alpha {alpha}"):
            mlflow.log_params({"alpha": alpha, "epochs": EPOCHS})
            model = SGDClassifier(alpha=alpha, random_state=0)
            for epoch in range(EPOCHS):
                model.partial_fit(seen, seen_labels, classes=range(10))
                mlflow.log_metric("accuracy", model.score(unseen, unseen_labels), step=epoch)
            mlflow.log_dict({"errors": int((model.predict(unseen) != unseen_labels).sum())}, "errors.json")
            mlflow.sklearn.log_model(
                model,
                **{where: "model"},
                registered_model_name=MODEL,
                pip_requirements=["scikit-learn"],
                serialization_format="cloudpickle",
            )
    MlflowClient().set_registered_model_alias(MODEL, ALIAS, "2")


def run(command: str) -> None:
    print(f"\n$ {command}", flush=True)
    if subprocess.run(command.split()).returncode:
        sys.exit(f"failed: {command}")


def compare() -> int:
    """Read both sides through MLflow alone and print what is equal."""
    laptop, team = contents(LAPTOP), contents(TEAM)
    # The team's model has to work without the laptop.
    Path("laptop").rename("laptop-is-gone")
    mlflow.set_tracking_uri(TEAM)
    mlflow.set_registry_uri(TEAM)
    model = mlflow.sklearn.load_model(f"models:/{MODEL}@{ALIAS}")
    laptop["predictions of the champion"] = laptop.pop("champion").predict(IMAGES).tolist()
    team["predictions of the champion"] = model.predict(IMAGES).tolist()
    team.pop("champion")
    print("\nLaptop and team, as MLflow reads them:")
    for what, here in laptop.items():
        verdict = "equal" if here == team[what] else f"DIFFERENT\n  {here}\n  {team[what]}"
        print(f"  {what + ':':<29} {len(here):>4}  {verdict}")
    return 0 if laptop == team else 1


def contents(uri: str) -> dict:
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client = MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    versions = sorted(client.search_model_versions(f"name='{MODEL}'"), key=lambda v: int(v.version))
    return {
        "runs, with their times": [
            (r.info.run_name, r.info.status, r.info.start_time, r.info.end_time) for r in runs
        ],
        "parameters": [sorted(r.data.params.items()) for r in runs],
        "metric rows": [
            (run.info.run_name, m.key, m.step, m.timestamp, m.value)
            for run in runs
            for m in client.get_metric_history(run.info.run_id, "accuracy")
        ],
        "files of runs": [files(f"runs:/{r.info.run_id}/errors.json") for r in runs],
        "files of model versions": [
            (v.version, name, content)
            for v in versions
            for name, content in files(f"models:/{MODEL}/{v.version}")
        ],
        "aliases": sorted(client.get_registered_model(MODEL).aliases.items()),
        "champion": mlflow.sklearn.load_model(f"models:/{MODEL}@{ALIAS}"),
    }


def files(uri: str) -> list[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
        return [
            (path.name, path.read_bytes())
            for path in sorted([root, *root.rglob("*")])
            # MLflow writes the last of these itself, while it downloads.
            if path.is_file() and path.name != "registered_model_meta"
        ]


if __name__ == "__main__":
    sys.exit(main())
