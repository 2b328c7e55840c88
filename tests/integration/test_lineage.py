"""Source tags on copies: what each kind keeps, over several hops, and what a target refuses."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import ViewType

from mlflow_exim_plugin import copies, diff, lineage, open_archive, pack
from mlflow_exim_plugin.cli.main import exim as exim_command
from mlflow_exim_plugin.host.api.reading import Reader
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.schema.lineage import tags_of
from mlflow_exim_plugin.schema.objects import Kind, ModelVersion, RegisteredModel
from mlflow_exim_plugin.schema.provenance import is_provenance
from tests.everything import SERVER_ENV
from tests.integration.conftest import rows_of
from tests.new_ids import unpack
from tests.proxy import FaultyProxy, Request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_exim_plugin import Report
    from tests.conftest import MakeServer

pytestmark = pytest.mark.integration

IMPORT = "mlflow_exim."
EXPORT = "mlflow_export_import."
TAGGED = (
    Kind.EXPERIMENT,
    Kind.RUN,
    Kind.LOGGED_MODEL,
    Kind.REGISTERED_MODEL,
    Kind.MODEL_VERSION,
    Kind.PROMPT,
    Kind.PROMPT_VERSION,
    Kind.EVALUATION_DATASET,
)
PROVENANCE = ("origin", "origin_of_group", "content", "as_of_ms")


def source_tags(tags: dict[str, str], prefix: str = IMPORT) -> dict[str, str]:
    """Return the source tags of a copy without their prefix."""
    ours = {prefix + name for name in PROVENANCE}
    return {k[len(prefix) :]: v for k, v in tags.items() if k.startswith(prefix) and k not in ours}


def assert_taken(report: Report) -> None:
    """Assert that all arrived but what asks for secrets of the gateway."""
    assert not [failure for failure in report.failures if failure.kind in TAGGED]


def make_run(client: MlflowClient, name: str = "churn", **tags: str) -> str:
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    run = client.create_run(experiment_id, start_time=1_700_000_000_000, tags=tags, run_name="r1")
    client.log_metric(run.info.run_id, "loss", 0.5, timestamp=1_700_000_000_001, step=1)
    client.set_terminated(run.info.run_id, end_time=1_700_000_100_000)
    return str(run.info.run_id)


def carried(
    source: str, target: str, folder: Path, *, name: str = "hop", **options: Any
) -> dict[str, str]:
    """Pack a store, unpack it with source tags, and return the archive's system part."""
    archive = str(folder / f"{name}.tar.zst")
    assert pack(archive, tracking_uri=source).ok
    report = unpack(archive, tracking_uri=target, import_source_tags=True, **options)
    assert report.ok, report.failures
    with open_archive(archive) as opened:
        system: dict[str, str] = opened.summary.to_json()["system"]
        return system


def the_run(uri: str, name: str = "churn") -> Any:
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)
    return run


def run_fields(run: Any) -> dict[str, str]:
    """Return every field of MLflow's RunInfo as text, taken from MLflow's own document."""
    from google.protobuf.json_format import MessageToDict

    document = MessageToDict(run.info.to_proto(), preserving_proto_field_name=True)
    return {key: str(value) for key, value in document.items()}


def test_a_run_keeps_every_field_and_every_tag_of_mlflow(
    make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    laptop, server = make_sqlite(), make_sqlite()
    run_id = make_run(
        MlflowClient(laptop, laptop),
        **{
            "mlflow.user": "ana",
            "mlflow.source.git.commit": "c0ffee",
            "mlflow.mlflow.x": "twice",
            "mlflow.x": "once",
            "team": "risk",
        },
    )
    before = the_run(laptop)

    system = carried(laptop, server, tmp_path)

    after = the_run(server).data.tags
    fields = run_fields(before)
    assert fields["run_id"] == run_id
    assert {
        "experiment_id",
        "user_id",
        "status",
        "start_time",
        "end_time",
        "artifact_uri",
        "lifecycle_stage",
        "run_name",
    } <= set(fields)
    assert source_tags(after) == (
        {f"run_info.{key}": value for key, value in fields.items()}
        | {f"mlflow_tag.{k[7:]}": v for k, v in before.data.tags.items() if k[:7] == "mlflow."}
        | {
            "src_client.tracking_uri": system["mlflow_tracking_uri"],
            "src_client.export_time_ms": str(system["export_time_ms"]),
        }
    )  # fmt: skip
    assert source_tags(after)["mlflow_tag.mlflow.x"] == "twice"
    assert source_tags(after)["mlflow_tag.x"] == "once"
    own = {k: v for k, v in after.items() if not k.startswith(IMPORT) and not is_provenance(k)}
    assert own == before.data.tags
    assert the_run(server).info.user_id == before.info.user_id


def test_the_importer_becomes_the_user_and_the_tags_keep_the_first(
    make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    laptop, server = make_sqlite(), make_sqlite()
    make_run(MlflowClient(laptop, laptop), **{"mlflow.user": "ana"})

    carried(laptop, server, tmp_path, importer="bea")

    run = the_run(server)
    assert run.info.user_id == run.data.tags["mlflow.user"] == "bea"
    assert run.data.tags["mlflow_exim.mlflow_tag.user"] == "ana"
    assert run.data.tags["mlflow_exim.run_info.user_id"] == the_run(laptop).info.user_id


def test_a_second_hop_leaves_the_first_as_it_is(
    make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    laptop, staging, production = make_sqlite(), make_sqlite(), make_sqlite()
    make_run(MlflowClient(laptop, laptop), **{"mlflow.user": "ana"})
    carried(laptop, staging, tmp_path, name="first")
    first = source_tags(the_run(staging).data.tags)

    system = carried(staging, production, tmp_path, name="second")

    tags = source_tags(the_run(production).data.tags)
    assert {key: tags[key] for key in first} == first
    second = {k[len("hop_2.") :]: v for k, v in tags.items() if k not in first}
    assert all(key.startswith("hop_2.") for key in set(tags) - set(first))
    assert second["run_info.run_id"] == the_run(staging).info.run_id
    assert second["mlflow_tag.user"] == "ana"
    assert second["src_client.tracking_uri"] == system["mlflow_tracking_uri"]
    assert set(second) == set(first)


@pytest.fixture(autouse=True)
def _as_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores that this process opens itself take what the server takes."""
    for name, value in SERVER_ENV.items():
        monkeypatch.setenv(name, value)


def test_every_kind_keeps_its_fields(
    everything: tuple[str, str], make_sqlite: Callable[[], str]
) -> None:
    (source, archive), target = everything, make_sqlite()

    report = unpack(archive, tracking_uri=target, import_source_tags=True)

    assert_taken(report)
    result = diff(archive, target)
    told = [f"{d.kind} {d.path}" for d in result.differences if "tags" in d.path]
    assert not told
    assert result.rules.applied["source tags"]
    client, copied = MlflowClient(source, source), MlflowClient(target, target)
    reader = Reader(Host(target, create=False))
    experiments = {e.name: e for e in client.search_experiments(view_type=ViewType.ALL)}
    for copy in copied.search_experiments(view_type=ViewType.ALL):
        if copy.name == "mlflow_exim.model_versions":
            continue
        fields = source_tags(copy.tags)
        old = experiments.pop(copy.name)
        assert fields["field.experiment_id"] == old.experiment_id
        assert fields["field.creation_time"] == str(old.creation_time)
        assert fields["field.artifact_location"] == old.artifact_location
        assert fields["field.lifecycle_stage"] == old.lifecycle_stage
    assert not experiments
    with open_archive(archive) as opened:
        for kind in (Kind.REGISTERED_MODEL, Kind.PROMPT):
            for envelope in opened.models(kind):
                model = envelope.mlflow.registered_model
                there = RegisteredModel(reader.registered_model(model["name"]))
                fields = source_tags(tags_of(there))
                assert fields["field.name"] == model["name"]
                assert fields["field.creation_timestamp"] == str(model["creation_timestamp"])
                listed = reader.model_versions(model["name"], {}, kind)
                versions = {int(v["version"]): ModelVersion(v) for v in listed}
                for version in opened.versions(model["name"]):
                    document = version.mlflow.model_version
                    number = document["version"]
                    fields = source_tags(tags_of(versions[int(number)]))
                    assert fields["field.version"] == number
                    assert fields["field.source"] == document["source"]
                    assert fields["field.creation_timestamp"] == str(document["creation_timestamp"])
                    assert "field.tags" not in fields
        logged = copied.search_logged_models(
            [e.experiment_id for e in copied.search_experiments()], max_results=100
        )
        assert len(logged) > 3
        for model in logged:
            fields = source_tags(model.tags)
            old_id = model.tags["mlflow.exim.origin"]
            assert fields["field.model_id"] == old_id
            old_info = opened.logged_model(old_id).mlflow.logged_model["info"]
            assert fields["field.creation_timestamp_ms"] == str(old_info["creation_timestamp_ms"])
    from mlflow.genai.datasets import search_datasets

    from tests.compare import as_default

    with as_default(target):
        datasets = list(search_datasets())
        assert len(datasets) > 1
        for dataset in datasets:
            tags = dataset.tags
            assert tags["mlflow_exim.field.dataset_id"] == tags["mlflow.exim.origin"]
            assert tags["mlflow_exim.field.created_time"].isdecimal()


@pytest.mark.exhaustive
def test_source_tags_asked_for_later_are_added_and_then_nothing_changes(
    everything: tuple[str, str], make_sqlite: Callable[[], str]
) -> None:
    (_, archive), target = everything, make_sqlite()
    assert_taken(unpack(archive, tracking_uri=target))

    report = unpack(archive, tracking_uri=target, import_source_tags=True)

    assert_taken(report)
    assert not any(report.counts[kind].written for kind in TAGGED)
    client = MlflowClient(target, target)
    ids = [
        e.experiment_id
        for e in client.search_experiments(view_type=ViewType.ALL)
        if e.name != "mlflow_exim.model_versions"
    ]
    runs = client.search_runs(ids, run_view_type=ViewType.ALL, max_results=1000)
    assert runs
    for run in runs:
        tags = run.data.tags
        assert tags["mlflow_exim.run_info.run_id"] == tags["mlflow.exim.origin"], run.info
    before = rows_of(target)
    for wanted in (True, False):
        assert_taken(unpack(archive, tracking_uri=target, import_source_tags=wanted))
        assert rows_of(target) == before


def exim(*arguments: str) -> Any:
    """Run the command and return its exit code and output."""
    return CliRunner().invoke(exim_command, arguments)


def test_both_hops_are_shown_and_found(make_sqlite: Callable[[], str], tmp_path: Path) -> None:
    laptop, staging, production = make_sqlite(), make_sqlite(), make_sqlite()
    first = make_run(MlflowClient(laptop, laptop), **{"mlflow.user": "ana"})
    made = carried(laptop, staging, tmp_path, name="first")
    second = the_run(staging).info.run_id
    carried(staging, production, tmp_path, name="second", importer="bea")
    third = the_run(production).info.run_id
    archive = str(tmp_path / "third.tar.zst")
    pack(archive, tracking_uri=production)

    for a, b in ((laptop, production), (production, laptop), (staging, archive)):
        assert diff(a, b, ignore=("run.info.user_id", "run.data.tags.mlflow.user")).equal
    client = MlflowClient(production, production)
    client.delete_tag(third, "mlflow_exim.run_info.status")
    lost = diff(staging, production, ignore=("run.info.user_id", "run.data.tags.mlflow.user"))
    assert [d.path for d in lost.differences] == ["run.data.tags.mlflow_exim.run_info.status"]
    client.set_tag(third, "mlflow_exim.run_info.status", "FINISHED")

    for place in (production, archive):
        shown = exim("show", place, "--run-id", third, "--lineage", "--output", "json")
        assert shown.exit_code == 0, shown.output
        (occurrence,) = json.loads(shown.stdout)
        assert occurrence["id"] == third
        assert occurrence["user"] == "bea"
        assert [hop["origin"] for hop in occurrence["sources"]] == [first, second]
        assert [hop["fields"]["run_id"] for hop in occurrence["sources"]] == [first, second]
        assert occurrence["sources"][0]["tags"]["user"] == "ana"
        assert occurrence["sources"][0]["server"]["tracking_uri"] == made["mlflow_tracking_uri"]
        text = exim("show", place, "--run-id", third, "--lineage").stdout
        assert text.index(first) < text.index(second) < text.index(third)
        assert "start_time: 2023-11-14 22:13:20 UTC" in text

    places = [laptop, staging, production, archive]
    for identity, where in ((first, places), (second, places[1:]), (third, places[2:])):
        found = exim("find", identity, *places, "--output", "json")
        assert found.exit_code == 0, found.output
        ids = [first, second, third, third][-len(where) :]
        assert [entry["id"] for entry in json.loads(found.stdout)["objects"]] == ids
    nowhere = exim("find", "0" * 32, *places)
    assert nowhere.exit_code == 4
    assert "0" * 32 in nowhere.stderr
    assert exim("find", "it's", archive).exit_code == 2


def test_a_hop_without_source_tags_is_still_known(
    make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    laptop, staging, production = make_sqlite(), make_sqlite(), make_sqlite()
    first = make_run(MlflowClient(laptop, laptop))
    archive = str(tmp_path / "first.tar.zst")
    pack(archive, tracking_uri=laptop)
    unpack(archive, tracking_uri=staging)
    carried(staging, production, tmp_path, name="second")

    (occurrence,) = lineage(production, run_id=the_run(production).info.run_id)

    assert [hop.origin for hop in occurrence.sources] == [first, the_run(staging).info.run_id]
    assert [bool(hop.fields) for hop in occurrence.sources] == [False, True]


def test_models_experiments_and_datasets_show_their_hops(
    everything: tuple[str, str], make_sqlite: Callable[[], str]
) -> None:
    (_, archive), target = everything, make_sqlite()
    unpack(archive, tracking_uri=target, import_source_tags=True)
    with open_archive(archive) as opened:
        model = next(iter(opened.models()))
        name, numbers = model.mlflow.registered_model["name"], model.mlflow.versions
        logged = next(
            e.mlflow.logged_model["info"]["model_id"]
            for e in opened.logged_models()
            if e.mlflow.logged_model["info"].get("lifecycle_stage") != "deleted"
        )
        experiment = next(iter(opened.experiments())).mlflow.experiment

    sightings = lineage(target, model=name)
    assert [s.id for s in sightings] == [name, *(f"{name}/{n}" for n in numbers)]
    assert all(len(s.sources) == 1 for s in sightings)
    assert [s.sources[0].fields["version"] for s in sightings[1:]] == [str(n) for n in numbers]
    (of_experiment,) = lineage(target, experiment=experiment["name"])
    (hop,) = of_experiment.sources
    assert hop.fields["experiment_id"] == experiment["experiment_id"]
    (copy,) = copies(logged, [target])
    assert copy.kind is Kind.LOGGED_MODEL
    assert copy.id != logged
    assert lineage(target, logged_model=logged) == [copy]
    assert [hop.fields["model_id"] for hop in copy.sources] == [logged]


def test_the_command_line_has_the_old_names(
    make_sqlite: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "bea")
    laptop, kept, owned = make_sqlite(), make_sqlite(), make_sqlite()
    make_run(MlflowClient(laptop, laptop), **{"mlflow.user": "ana"})
    archive = str(tmp_path / "a.tar.zst")
    packed = exim("pack", archive, "--tracking-uri", laptop, "--export-source-tags")
    assert packed.exit_code == 0, packed.output

    looked = exim("unpack", archive, "--tracking-uri", kept, "--import-source-tags", "--dry-run")
    assert looked.exit_code == 0, looked.output
    assert MlflowClient(kept, kept).get_experiment_by_name("churn") is None
    for target, options in (
        (kept, ["--import-source-tags", "--use-src-user-id"]),
        (owned, ["--import-source-tags", "--user", "importer"]),
    ):
        done = exim("unpack", archive, "--tracking-uri", target, *options)
        assert done.exit_code == 0, done.output
    assert the_run(kept).data.tags["mlflow.user"] == "ana"
    assert the_run(owned).data.tags["mlflow.user"] == "bea"
    for target in (kept, owned):
        tags = the_run(target).data.tags
        assert tags["mlflow_exim.mlflow_tag.user"] == "ana"
        assert tags["mlflow_export_import.mlflow.user"] == "ana"
        (occurrence,) = lineage(target, run_id=the_run(target).info.run_id)
        assert [hop.names for hop in occurrence.sources] == [
            ["mlflow_export_import", "mlflow_exim"]
        ]

    both = exim("unpack", archive, "--use-src-user-id", "--user", "importer")
    assert both.exit_code == 2
    assert exim("show", archive, "--lineage").exit_code == 2
    assert exim("show", archive, "--lineage", "-r", "0" * 32).exit_code == 4


def test_a_packed_run_carries_the_older_generation(
    make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    laptop, staging = make_sqlite(), make_sqlite()
    make_run(MlflowClient(laptop, laptop), **{"mlflow.user": "ana", "team": "risk"})
    before = the_run(laptop)
    archive = str(tmp_path / "exported.tar.zst")

    assert pack(archive, tracking_uri=laptop, export_source_tags=True).ok

    with open_archive(archive) as opened:
        (envelope,) = opened.runs()
        system = opened.summary.system
        tags = {t["key"]: t["value"] for t in envelope.mlflow.run["data"]["tags"]}
    assert {k: v for k, v in tags.items() if not k.startswith(EXPORT)} == before.data.tags
    assert source_tags(tags, EXPORT) == (
        {f"run_info.{key}": value for key, value in run_fields(before).items()}
        | {f"mlflow.{k[7:]}": v for k, v in before.data.tags.items() if k[:7] == "mlflow."}
        | {
            "metadata.mlflow_version": system.mlflow_version,
            "metadata.tracking_uri": system.mlflow_tracking_uri,
            "metadata.experiment_name": "churn",
            "metadata.timestamp": str(system.export_time),
            "metadata.timestamp_nice": system.export_time_text,
        }
    )
    assert the_run(laptop).data.tags == before.data.tags, "the source is only read"

    unpack(archive, tracking_uri=staging)
    again = str(tmp_path / "again.tar.zst")
    pack(again, tracking_uri=staging, export_source_tags=True)
    with open_archive(again) as opened:
        (envelope,) = opened.runs()
        later = {t["key"]: t["value"] for t in envelope.mlflow.run["data"]["tags"]}
    first = {k: v for k, v in tags.items() if k.startswith(EXPORT)}
    assert {key: later[key] for key in first} == first
    assert later[f"{EXPORT}hop_2.run_info.run_id"] == the_run(staging).info.run_id


DOTTED_TAG = re.compile(rb'"key": ?"[^"]*\.[^"]*"')


def losses_of(report: Report, kind: Kind = Kind.TAG) -> dict[str, str]:
    return {loss.id: loss.what for loss in report.losses if loss.kind is kind}


def test_source_tags_that_a_server_refuses_cost_nothing_else(
    make_sqlite: Callable[[], str], make_server: MakeServer, tmp_path: Path
) -> None:
    source, target = make_sqlite(), make_server().url
    client = MlflowClient(source, source)
    just_fits = "mlflow." + "k" * (250 - len("mlflow."))
    run_id = make_run(client, **{just_fits: "1", "mlflow.long": "v" * 8000})
    experiment_id = client.get_run(run_id).info.experiment_id
    client.set_experiment_tag(experiment_id, just_fits, "1")
    client.create_registered_model("m", tags={just_fits: "1"})
    client.create_model_version("m", f"runs:/{run_id}/model", run_id, tags={just_fits: "1"})
    archive = str(tmp_path / "hop.tar.zst")
    pack(archive, tracking_uri=source)

    report = unpack(archive, tracking_uri=target, import_source_tags=True)

    assert report.ok, report.failures
    too_long = f"mlflow_exim.mlflow_tag.{just_fits[7:]}"
    lost = losses_of(report)
    assert {f"{run_id}/{too_long}", f"{experiment_id}/{too_long}", f"m/{too_long}"} <= set(lost)
    assert f"m/1/{too_long}" in lost
    assert all("the archive keeps the whole value" in what for what in lost.values())
    run = the_run(target)
    assert run.data.tags[just_fits] == "1"
    assert run.data.tags["mlflow_exim.mlflow_tag.long"] == "v" * 8000
    assert run.data.tags["mlflow_exim.run_info.run_id"] == run_id
    assert run.data.tags["mlflow.exim.content"], "the run is whole"
    with open_archive(archive) as opened:
        kept = {t["key"]: t["value"] for t in opened.run(run_id).mlflow.run["data"]["tags"]}
    assert kept[just_fits] == "1"
    again = unpack(archive, tracking_uri=target, import_source_tags=True)
    assert again.ok
    assert not any(counts.written for counts in again.counts.values())


@pytest.mark.exhaustive
def test_a_registry_that_refuses_dots_gets_underscores(
    make_sqlite: Callable[[], str], make_server: MakeServer, tmp_path: Path
) -> None:
    source, target = make_sqlite(), make_server().url
    client = MlflowClient(source, source)
    run_id = make_run(client)
    client.create_registered_model("m", tags={"team": "risk", "a.b": "lost", "mlflow.a.b": "1"})
    client.set_registered_model_tag("m", "mlflow.a_b", "2")
    for number in (1, 2):
        tags = {"number": str(number)}
        client.create_model_version("m", f"runs:/{run_id}/model", run_id, tags=tags)
    archive = str(tmp_path / "hop.tar.zst")
    pack(archive, tracking_uri=source)

    def refuse(request: Request) -> int | None:
        is_registry = "registered-models" in request.path or "model-versions" in request.path
        return 400 if is_registry and DOTTED_TAG.search(request.body) else None

    with FaultyProxy(target, refuse) as proxy:
        report = unpack(archive, tracking_uri=proxy.url, import_source_tags=True)
        assert report.ok, report.failures
        assert "its tag a.b" in [loss.what.split(":")[0] for loss in report.losses]
        assert any("underscores" in loss.what for loss in report.losses)
        tags = MlflowClient(target, target).get_registered_model("m").tags
        assert tags["team"] == "risk"
        assert tags["mlflow_exim_field_name"] == "m"
        assert not [key for key in tags if "." in key]
        (collision,) = [k for k, v in losses_of(report).items() if "another tag's" in v]
        assert collision.startswith("m/mlflow_exim.mlflow_tag.a")
        version = MlflowClient(target, target).get_model_version("m", "2")
        assert version.tags["number"] == "2"
        assert version.tags["mlflow_exim_field_version"] == "2"
        model, first, second = lineage(target, model="m")
        assert model.sources[0].fields["name"] == "m"
        assert [s.sources[0].fields["version"] for s in (first, second)] == ["1", "2"]

        again = unpack(archive, tracking_uri=proxy.url, import_source_tags=True)
        assert again.ok, again.failures
        assert not any(counts.written for counts in again.counts.values())
        assert diff(source, target, ignore=("registered_model.tags.*",)).equal
