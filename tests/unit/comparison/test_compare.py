"""Two streams beside each other: what is paired with what, and which fields are told."""

from __future__ import annotations

import io
import json
import math
import tempfile
import tracemalloc
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin.comparison.compare import compare
from mlflow_exim_plugin.comparison.result import ABSENT, Comparison
from mlflow_exim_plugin.comparison.rules import RuleSet
from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.metric_rows import RunRows
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Entity,
    Experiment,
    Failure,
    Kind,
    LoggedModel,
    Loss,
    ModelVersion,
    RegisteredModel,
    Run,
    StreamItem,
    Trace,
    Unpacked,
)
from mlflow_exim_plugin.schema.provenance import (
    ARTIFACT_RUNS,
    CONTENT,
    ORIGIN,
    experiment_origin,
    model_origin,
)
from mlflow_exim_plugin.schema.tables import history_table, sort_history

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa


class Items:
    """A source of what it is given."""

    def __init__(self, items: list[StreamItem]) -> None:
        self._items = items

    def stream(self, selection: Selection) -> Iterator[StreamItem]:
        del selection
        yield from self._items


def compared(
    a: list[Any], b: list[Any], *ignore: str, rules: str = "rest", limit: int | None = None
) -> Comparison:
    result = Comparison("a", "b", RuleSet(rules, ignore))
    compare(Items(a), Items(b), result, Selection(), limit=limit)
    json.dumps(result.to_dict(), allow_nan=False)
    for counts in result.counts.values():
        assert counts.compared == counts.equal + counts.different
    return result


def paths(a: list[Any], b: list[Any], *ignore: str, rules: str = "rest") -> list[str]:
    return [difference.path for difference in compared(a, b, *ignore, rules=rules).differences]


def entries(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def experiment(number: str, name: str = "e", origin: str = "", **tags: str) -> Experiment:
    if origin:
        tags[ORIGIN] = origin
    return Experiment(
        {
            "experiment_id": number,
            "name": name,
            "creation_time": 100 + int(number),
            "artifact_location": f"mlflow-artifacts:/{number}",
            "lifecycle_stage": "active",
            "tags": entries(tags),
        }
    )


def run(
    run_id: str,
    experiment_id: str = "1",
    *,
    origin: str = "",
    params: dict[str, str] | None = None,
    info: dict[str, Any] | None = None,
    parent: str = "",
) -> Run:
    tags = {"mlflow.parentRunId": parent} if parent else {}
    if origin:
        tags |= {ORIGIN: origin, CONTENT: "sha256:0"}
    return Run(
        {
            "info": {
                "run_id": run_id,
                "run_uuid": run_id,
                "experiment_id": experiment_id,
                "artifact_uri": f"mlflow-artifacts:/{experiment_id}/{run_id}/artifacts",
                **(info or {}),
            },
            "data": {"params": entries(params or {}), "tags": entries(tags), "metrics": []},
        }
    )


def hex_id(number: int) -> str:
    return f"{number:032x}"


ONE, TWO, THREE = hex_id(1), hex_id(2), hex_id(3)
ORIGINAL = experiment("1")
FINGERPRINT = experiment_origin(ORIGINAL.document)
SOURCE: list[StreamItem] = [ORIGINAL, run(ONE, params={"lr": "0.1"}), run(TWO, parent=ONE)]


def copy_of_source(**params: str) -> list[StreamItem]:
    return [
        experiment("7", origin=FINGERPRINT),
        run(hex_id(21), "7", origin=ONE, params=params or {"lr": "0.1"}),
        run(hex_id(22), "7", origin=TWO, parent=hex_id(21)),
    ]


def test_a_copy_is_equal_whatever_its_ids_are() -> None:
    result = compared(SOURCE, copy_of_source())

    assert result.equal
    assert result.counts[Kind.RUN].equal == 2
    assert result.rules.applied["times"] == 1


def test_exact_rules_count_ids() -> None:
    found = paths(SOURCE, copy_of_source(), rules="exact")

    assert "run.info.run_id" in found
    assert "run.data.tags.mlflow.parentRunId" in found
    assert "experiment.experiment_id" in found
    assert paths(SOURCE, deepcopy(SOURCE), rules="exact") == []


def test_two_hops_meet_at_their_oldest_origin() -> None:
    first, second = copy_of_source(), copy_of_source()
    assert isinstance(first[0], Experiment)
    fingerprint = experiment_origin(first[0].document)
    second[0] = experiment("9", origin=f"{fingerprint} {FINGERPRINT}")
    second[1] = run(hex_id(31), "9", origin=f"{hex_id(21)} {ONE}", params={"lr": "0.1"})
    second[2] = run(hex_id(32), "9", origin=f"{hex_id(22)} {TWO}", parent=hex_id(31))

    assert paths(SOURCE, second) == []
    assert paths(first, second) == []
    assert paths(second, first) == []


def test_a_reference_to_another_object_is_told_with_the_ids_of_a() -> None:
    copy = copy_of_source()
    copy[2] = run(hex_id(22), "7", origin=TWO, parent=hex_id(22))

    (difference,) = compared(SOURCE, copy).differences

    assert difference.path == "run.data.tags.mlflow.parentRunId"
    assert (difference.id, difference.id_b) == (TWO, hex_id(22))
    assert (difference.a, difference.b) == (ONE, TWO)


def test_a_run_and_its_own_copy_on_one_side() -> None:
    both = [*SOURCE, run(THREE, origin=ONE, params={"lr": "0.1"})]

    (difference,) = compared(SOURCE, both).differences
    assert (difference.id, difference.path, difference.b) == (THREE, "run", THREE)
    assert paths(both, deepcopy(both)) == []


def test_what_one_side_lacks() -> None:
    result = compared(SOURCE, copy_of_source()[:2])

    (difference,) = result.differences
    assert (difference.kind, difference.id, difference.path) == (Kind.RUN, TWO, "run")
    assert difference.to_dict() == {"kind": "run", "id": TWO, "path": "run", "a": TWO}
    assert result.counts[Kind.RUN].only_in_a == 1
    assert compared(copy_of_source()[:2], SOURCE).counts[Kind.RUN].only_in_b == 1
    assert compared(SOURCE, copy_of_source()[:2], "run").equal


def test_namesakes_meet_by_name_and_start() -> None:
    info = {"run_name": "a", "start_time": 5}
    one = [experiment("1"), run(ONE, info=info, params={"p": "1"})]
    other = [experiment("4"), run(TWO, "4", info=info, params={"p": "2"})]

    assert paths(one, other) == ["run.data.params.p"]


def test_namesakes_in_experiments_of_other_names_do_not_meet() -> None:
    info = {"run_name": "a", "start_time": 5}
    one = [experiment("1", "one"), run(ONE, info=info)]
    other = [experiment("4", "other"), run(TWO, "4", info=info)]

    assert paths(one, other) == ["experiment", "run", "experiment", "run"]


def test_a_renamed_experiment_is_told_once() -> None:
    copy = copy_of_source()
    copy[0] = experiment("7", "renamed", FINGERPRINT)

    (difference,) = compared(SOURCE, copy).differences
    assert (difference.path, difference.a, difference.b) == ("experiment.name", "e", "renamed")


def test_two_experiments_that_became_one() -> None:
    source = [experiment("1", "one"), run(ONE), experiment("2", "two"), run(TWO, "2")]
    origin = experiment_origin(experiment("1", "one").document)
    merged = [
        experiment("7", "one", origin),
        run(THREE, "7", origin=ONE),
        run(hex_id(4), "7", origin=TWO),
    ]

    result = compared(source, merged)

    told = [(d.path, d.id, d.a, bool(d.b) and d.b) for d in result.differences]
    assert told == [
        ("experiment", "2", "two", False),
        ("run.info.experiment_id", TWO, "2", "1"),
    ]


def history(key: str, *rows: tuple[int, int, float]) -> pa.Table:
    step, timestamp, value = zip(*rows, strict=True)
    return sort_history(history_table(key, step, timestamp, value))


def with_rows(*tables: pa.Table | Failure) -> list[StreamItem]:
    found = run(ONE)
    found.histories = [t if isinstance(t, Failure) else RunRows.of(ONE, t) for t in tables]
    return [experiment("1"), found]


def test_histories_are_compared_key_by_key() -> None:
    three = history("loss", (0, 1, 1.0), (1, 2, 0.5), (2, 3, 0.25))
    other = history("loss", (0, 1, 1.0), (1, 2, 0.5), (2, 3, 0.26))
    short = history("loss", (0, 1, 1.0), (1, 2, 0.5))
    acc = history("acc", (0, 1, 1.0))

    assert paths(with_rows(three), with_rows(three.slice(0, 1), three.slice(1))) == []
    assert paths(with_rows(three), with_rows(other)) == ["run.histories.loss"]
    assert paths(with_rows(acc, three), with_rows(three)) == ["run.histories.acc"]
    (difference,) = compared(with_rows(three), with_rows(short)).differences
    assert (difference.a["rows"], difference.b["rows"]) == (3, 2)


@pytest.mark.parametrize("rules", ["rest", "exact"])
def test_rows_as_a_database_keeps_them(rules: str) -> None:
    largest = 1.7976931348623157e308
    nan = math.nan
    logged = history(
        "m", (0, 0, math.inf), (0, 0, largest), (1, 0, -math.inf), (2, 0, -0.0), (3, 0, nan)
    )
    kept = history("m", (0, 0, largest), (1, 0, -largest), (2, 0, 0.0), (3, 0, nan))
    # The same rows in tables that part them in the middle of a moment.
    parted = with_rows(logged.slice(0, 1), logged.slice(1, 2), logged.slice(3))

    result = compared(parted, with_rows(kept), rules=rules)

    assert result.equal == (rules == "rest")
    assert result.rules.applied["infinities and zeros"] == (rules == "rest")
    assert compared(parted, with_rows(logged), rules=rules).equal


def test_nan_is_no_other_value() -> None:
    one = with_rows(history("m", (0, 0, math.nan)))
    other = with_rows(history("m", (0, 0, 0.0)))

    assert paths(one, other) == ["run.histories.m"]


def file(path: str, data: bytes, *, known: bool = False) -> Artifact:
    import hashlib

    digest = hashlib.sha256(data).hexdigest() if known else None
    return Artifact(path, len(data), lambda: io.BytesIO(data), digest)


def with_files(*files: Artifact | Failure) -> list[StreamItem]:
    found = run(ONE)
    found.artifacts = files
    return [experiment("1"), found]


def test_files_are_compared_by_their_bytes() -> None:
    one = with_files(file("a/b.bin", b"12"), file("c", b""))

    assert paths(one, with_files(file("a/b.bin", b"12", known=True), file("c", b""))) == []
    assert paths(one, with_files(file("a/b.bin", b"13"), file("c", b""))) == [
        "run.artifacts.a/b.bin"
    ]
    assert paths(one, with_files(file("a/b.bin", b"12"))) == ["run.artifacts.c"]
    assert compared(one, with_files(file("a/b.bin", b"12"))).counts[Kind.ARTIFACT].only_in_a == 1


def test_what_cannot_be_read_is_never_equal() -> None:
    def refuse() -> Any:
        raise ServerError("gone")

    broken = Artifact("b", 1, refuse)
    missing = Failure(Kind.ARTIFACT, f"{ONE}/x", "refused")
    no_rows = Failure(Kind.METRIC_HISTORY, f"{ONE}/loss", "refused")
    issue = run(ONE)
    issue.issues = (missing, Loss(Kind.RUN, ONE, "its parent is gone"))
    sides: list[list[Any]] = [
        with_files(broken),
        with_files(missing),
        with_rows(no_rows),
        [experiment("1"), run(ONE), Failure(Kind.TRACE, "experiment 1", "refused")],
        [experiment("1"), issue],
    ]
    plain = [experiment("1"), run(ONE)]

    for side in sides:
        result = compared(plain, side)
        assert not result.equal
        assert not result.total
        ((name, failure),) = result.unreadable
        assert (name, failure.reason) in {("b", "gone"), ("b", "refused")}
        assert result.to_dict()["unreadable"][0]["side"] == "b"


@pytest.mark.parametrize("rules", ["auto", "rest", "exact"])
def test_what_one_side_could_not_read_is_not_missing_there(rules: str) -> None:
    files = with_files(file("a/b.bin", b"12"), file("c", b""))
    rows = with_rows(history("loss", (0, 1, 1.0)))
    tagged = [experiment("1"), run(ONE, params={"key": "x"})]
    objects = [experiment("1", "one"), experiment("2", "two"), run(ONE), run(TWO)]
    archived = f"data/experiments/1/runs/{ONE}/run.json"
    cases: list[tuple[list[Any], list[Any]]] = [
        (files, with_files(file("c", b""), Failure(Kind.ARTIFACT, f"{ONE}/a/b.bin", "refused"))),
        (files, with_files(file("c", b""), Failure(Kind.ARTIFACT, f"{ONE}/a", "refused"))),
        (files, with_files(Failure(Kind.ARTIFACT, f"{ONE}/", "refused"))),
        (rows, [experiment("1"), run(ONE), Failure(Kind.METRIC_HISTORY, ONE, "damaged")]),
        (tagged, [experiment("1"), run(ONE), Failure(Kind.PARAM, f"{ONE}/key", "damaged")]),
        (objects, [*objects[:2], objects[3], Failure(Kind.RUN, ONE, "refused")]),
        (objects, [*objects[:2], objects[3], Failure(Kind.RUN, archived, "damaged")]),
        (objects, [*objects[:2], Failure(Kind.RUN, "experiment 1", "refused")]),
        (objects, [objects[1], Failure(Kind.EXPERIMENT, "1", "refused")]),
        (objects, [Failure(Kind.EXPERIMENT, "all", "refused")]),
    ]

    for whole, part in cases:
        for a, b in ((whole, part), (part, whole)):
            result = compared(a, b, rules=rules)
            assert not result.total, result.differences
            assert result.unreadable
            assert not any(c.only_in_a or c.only_in_b for c in result.counts.values())
            assert result.verdict == "No difference in what could be read"
    other = compared(objects, [*objects[:2], Failure(Kind.RUN, TWO, "refused")], rules=rules)
    assert [(d.id, d.path) for d in other.differences] == [(ONE, "run")]


def test_the_rules_are_those_of_what_became_of_the_ids() -> None:
    kept, copied = [experiment("1"), run(ONE)], [experiment("7"), run(TWO, origin=ONE)]
    there, then = experiment("1"), experiment("1")
    there.document["artifact_location"] = "s3://bucket/1"
    then.document["creation_time"] = 7
    moved, later = [there, run(ONE)], [then, run(ONE)]
    bare = [experiment("1")]

    def settled(a: list[Any], b: list[Any]) -> tuple[str, list[str]]:
        result = compared(deepcopy(a), deepcopy(b), rules="auto")
        return result.rules.name, [difference.path for difference in result.differences]

    assert settled(kept, kept) == ("moved", [])
    assert settled(kept, moved) == ("moved", [])
    assert settled(kept, later) == ("moved", ["experiment.creation_time"])
    assert settled(kept, copied) == ("rest", [])
    assert settled(kept, [*kept, run(TWO, origin=ONE)])[0] == "rest"
    assert settled(bare, bare) == ("rest", [])
    assert paths(kept, moved, rules="exact") == ["experiment.artifact_location"]


def test_the_source_of_a_version_moves_only_with_its_files() -> None:
    rules = RuleSet("moved")
    here = "file:///a/mlruns/1/0f/artifacts/model"

    assert not rules.counts("model_version.source", here, "s3://b/1/0f/artifacts/model/")
    for other in ("s3://b/1/0f/artifacts/others", "mlflow-exim-refused:/source", ABSENT):
        assert rules.counts("model_version.source", here, other)


def test_a_server_that_died_ends_it_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[list[Path]] = []

    def die() -> Any:
        seen.append(list(tmp_path.iterdir()))
        raise ServerLostError("gone")

    with pytest.raises(ServerLostError):
        compared(with_files(Artifact("b", 1, die)), [])
    assert len(seen[0]) == 1
    assert list(tmp_path.iterdir()) == []
    compared(SOURCE, SOURCE)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_carried_is_said_and_does_not_count() -> None:
    secret = Unpacked("gateway_secret", 2, at_least=False, reason="never packed")

    result = compared([*SOURCE, secret], SOURCE)

    assert result.equal
    assert result.to_dict()["not_compared"][0]["kind"] == "gateway_secret"


def test_carriers_are_left_out_and_the_files_are_found_in_them() -> None:
    model = {"name": "m", "creation_timestamp": 5}
    origin = model_origin(model)
    version = {"name": "m", "version": "3", "source": "s3://b/x", "status": "READY"}
    folder = "mlflow_exim/model_versions/m/3"
    artifact_run = run(THREE, "8", origin=f"{origin}/3")
    artifact_run.artifacts = [file(f"{folder}/MLmodel", b"1")]
    source = [
        *SOURCE,
        RegisteredModel(model),
        ModelVersion(version, [file("MLmodel", b"1")]),
    ]
    moved = {
        **version,
        "run_id": THREE,
        "source": f"mlflow-artifacts:/8/{THREE}/artifacts/{folder}",
        "tags": entries({ORIGIN: f"{origin}/3"}),
    }
    target = [
        *copy_of_source(),
        experiment("8", ARTIFACT_RUNS),
        artifact_run,
        RegisteredModel({"name": "m", "creation_timestamp": 9, "tags": entries({ORIGIN: origin})}),
        ModelVersion(moved),
    ]

    result = compared(source, target)

    assert result.equal, result.differences
    assert result.counts[Kind.ARTIFACT].equal == 1
    ((side, what),) = result.left_out
    assert side == "b"
    assert ARTIFACT_RUNS in what
    artifact_run.artifacts = [file(f"{folder}/MLmodel", b"2")]
    assert paths(source, target) == ["model_version.artifacts.MLmodel"]


def test_moved_alias_and_stage() -> None:
    one = RegisteredModel(
        {"name": "m", "creation_timestamp": 5, "aliases": [{"alias": "best", "version": "1"}]}
    )
    other = deepcopy(one)
    other.document["aliases"][0]["version"] = "2"
    version = ModelVersion({"name": "m", "version": "1", "aliases": ["best"]})
    moved = ModelVersion({"name": "m", "version": "1", "aliases": []})

    assert paths([one, version], [other, moved]) == [
        "registered_model.aliases[best].version",
        "model_version.aliases[best]",
    ]


def trace(spans: list[dict[str, Any]] | None, *assessments: dict[str, Any]) -> list[StreamItem]:
    info = {"trace_id": "tr-1", "tags": {"a": "1"}, "trace_metadata": {"mlflow.sourceRun": ONE}}
    document = {"info": info, "assessments": list(assessments)}
    return [experiment("1"), run(ONE), Trace(document, "1", spans)]


def test_spans_and_assessments_by_their_ids() -> None:
    first = {"span_id": "s1", "name": "x", "attributes": {"k": {"deep": [1, 2]}}}
    second = {"span_id": "s2", "name": "y", "attributes": {}}
    deeper = {"span_id": "s1", "name": "x", "attributes": {"k": {"deep": [1, 3]}}}
    good = {"assessment_id": "a-1", "feedback": {"value": True}}
    bad = {"assessment_id": "a-1", "feedback": {"value": 1}}

    assert paths(trace([first, second]), trace([second, first])) == []
    assert paths(trace([first]), trace([deeper])) == ["trace.spans[s1].attributes.k.deep[1]"]
    assert paths(trace([first, second]), trace([first])) == ["trace.spans[s2]"]
    assert paths(trace(None), trace([first])) == ["trace.spans[s1]"]
    assert paths(trace([], good), trace([], bad)) == ["trace.assessments[a-1].feedback.value"]


def test_an_issue_is_found_by_name_and_its_assessment_by_its_id() -> None:
    def side(number: str, run_id: str, issue_id: str, origin: str = "") -> list[StreamItem]:
        info = {"trace_id": "tr-1", "tags": {}, "trace_metadata": {"mlflow.sourceRun": run_id}}
        assessment = {"assessment_id": "a-1", "assessment_name": issue_id, "issue": {}}
        return [
            experiment(number, origin=origin and FINGERPRINT),
            run(run_id, number, origin=origin),
            Entity(
                Kind.ISSUE,
                {"issue_id": issue_id, "experiment_id": number, "name": "slow", "status": "open"},
                number,
            ),
            Trace({"info": info, "assessments": [assessment]}, number, []),
        ]

    assert paths(side("1", ONE, "iss-1"), side("7", TWO, "iss-2", origin=ONE)) == []


def test_twins_are_paired_by_what_they_hold() -> None:
    def dataset(dataset_id: str, question: str) -> Entity:
        records = [{"dataset_record_id": f"r-{dataset_id}", "inputs": {"q": question}}]
        return Entity(
            Kind.EVALUATION_DATASET, {"dataset_id": dataset_id, "name": "d", "records": records}
        )

    one = [dataset("d-1", "x"), dataset("d-2", "y")]
    other = [dataset("d-8", "y"), dataset("d-9", "x")]

    assert paths(one, other) == []
    assert compared(one, other[:1]).counts[Kind.EVALUATION_DATASET].only_in_a == 1


def test_names_are_those_of_a_workspace() -> None:
    def workspace(name: str, *items: StreamItem) -> list[StreamItem]:
        return [Entity(Kind.WORKSPACE, {"name": name}), *items]

    def model(when: int, description: str) -> RegisteredModel:
        document = {"name": "m", "creation_timestamp": when, "description": description}
        return RegisteredModel(document)

    one = [model(1, "a"), *workspace("w", model(2, "b"))]
    other = [model(3, "a"), *workspace("w", model(4, "b"))]

    assert paths(one, other) == []


def test_the_untouched_default_experiment_may_be_missing() -> None:
    default = experiment("0", "Default")

    result = compared([default, *SOURCE], SOURCE)

    assert result.equal
    assert result.rules.applied["untouched default"] == 1
    used = [default, run(THREE, "0"), *SOURCE]
    assert paths(used, SOURCE) == ["experiment", "run"]
    assert paths([default, *SOURCE], SOURCE, rules="exact") == ["experiment"]


def test_a_logged_model_with_its_metrics() -> None:
    def side(model_id: str, run_id: str, value: float, origin: str = "") -> list[StreamItem]:
        metric = {"key": "acc", "value": value, "run_id": run_id, "model_id": model_id}
        tags = entries({ORIGIN: origin} if origin else {})
        info = {
            "model_id": model_id,
            "experiment_id": "1",
            "source_run_id": run_id,
            "tags": tags,
            "artifact_uri": f"mlflow-artifacts:/1/models/{model_id}/artifacts",
        }
        linked = run(run_id, origin=origin and ONE)
        linked.document["inputs"] = {"model_inputs": [{"model_id": model_id}]}
        document = {"info": info, "data": {"metrics": [metric], "params": []}}
        return [experiment("1"), linked, LoggedModel(document)]

    one, two = f"m-{ONE}", f"m-{TWO}"
    assert paths(side(one, ONE, 0.5), side(two, TWO, 0.5, one)) == []
    (path,) = paths(side(one, ONE, 0.5), side(two, TWO, 0.75, one))
    assert path == f"logged_model.data.metrics[acc, {ONE}, , , , ].value"


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({"lr": "0.1"}, {"lr": "0.2"}, ["run.data.params.lr"]),
        ({"lr": "0.1"}, {}, ["run.data.params.lr"]),
        ({"lr": ""}, {}, ["run.data.params.lr"]),
        (
            {"a.b": "1", "c": "2"},
            {"a.b": "2", "c": "3"},
            ["run.data.params.a.b", "run.data.params.c"],
        ),
        ({"long": "x" * 7000}, {"long": "x" * 6000}, []),
        ({"long": "x" * 7000}, {"long": "x" * 5999 + "y"}, ["run.data.params.long"]),
        ({"short": "x" * 60}, {"short": "x" * 50}, ["run.data.params.short"]),
    ],
)
def test_params(a: dict[str, str], b: dict[str, str], expected: list[str]) -> None:
    assert paths([run(ONE, params=a)], [run(ONE, params=b)]) == expected


def test_differences_are_counted_beyond_the_limit() -> None:
    many = {f"p{number}": "1" for number in range(50)}

    result = compared([run(ONE, params=many)], [run(ONE)], limit=3)

    assert len(result.differences) == 3
    assert result.total == 50
    assert result.to_dict()["total_differences"] == 50


@pytest.mark.parametrize(
    "pattern",
    ["run.data.params.lr", "run.data.params", "run.*.lr", "*.params.*", "run.data.params.l?", "*"],
)
def test_ignored_fields(pattern: str) -> None:
    result = compared(SOURCE, copy_of_source(lr="0.2"), pattern)

    assert result.equal
    assert result.rules.ignored[pattern] >= 1
    assert result.to_dict()["rules"]["ignored"][0]["pattern"] == pattern


@pytest.mark.parametrize("pattern", ["run.data.params.l", "run.data.param", "trace.*", "run.lr"])
def test_fields_that_are_not_ignored(pattern: str) -> None:
    assert paths(SOURCE, copy_of_source(lr="0.2"), pattern) == ["run.data.params.lr"]


def test_many_objects_of_one_name() -> None:
    ones = [experiment("1"), *(run(hex_id(n)) for n in range(100))]
    others = [experiment("2"), *(run(hex_id(n + 1000), "2") for n in range(100))]

    assert compared(ones, others).counts[Kind.RUN].equal == 100


def test_documents_of_strange_archives_are_compared_too() -> None:
    def side(*tags: Any) -> list[StreamItem]:
        return [Experiment({"experiment_id": "1", "name": "e", "tags": list(tags)})]

    twice = {"key": "a", "value": "1"}, {"key": "a", "value": "2"}
    strange: tuple[Any, ...] = (
        {"key": "a"},
        {"value": "1"},
        {},
        "text",
        5,
        None,
        ["x"],
        {"key": 1},
    )

    assert paths(side(*strange), side(*strange)) == []
    assert paths(side(*twice), side(*twice[1:])) != []
    for entry in strange[1:]:
        assert paths(side(*strange), side(*(e for e in strange if e is not entry))) != []


def test_memory_does_not_hold_a_side() -> None:
    class Traces:
        def stream(self, selection: Selection) -> Iterator[StreamItem]:
            del selection
            yield experiment("1")
            for number in range(_TRACES):
                info = {"trace_id": f"tr-{number}", "tags": {}, "trace_metadata": {}}
                spans = [{"span_id": "1", "attributes": {"x": f"{number:06}" * (_BYTES // 6)}}]
                yield Trace({"info": info, "assessments": []}, "1", spans)

    result = Comparison("a", "b", RuleSet())
    tracemalloc.start()
    try:
        compare(Traces(), Traces(), result, Selection())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert result.counts[Kind.TRACE].equal == _TRACES
    assert peak < _TRACES * _BYTES / 4


_TRACES = 400
_BYTES = 60_000
