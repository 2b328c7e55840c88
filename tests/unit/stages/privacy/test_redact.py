"""What rules take out of a stream, and what they leave as it was."""

from __future__ import annotations

import io
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.schema.metric_rows import RunRows
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Entity,
    Experiment,
    Kind,
    ModelVersion,
    RegisteredModel,
    Run,
    StreamItem,
    Trace,
)
from mlflow_exim_plugin.schema.tables import HISTORY
from mlflow_exim_plugin.stages.privacy.redact import Redaction
from mlflow_exim_plugin.stages.privacy.rules import load_rules

if TYPE_CHECKING:
    from pathlib import Path

SALT = b"0123456789abcdef"
RUN = "0" * 32


def redacted(folder: Path, rules: str, *items: StreamItem) -> tuple[list[Any], Redaction]:
    path = folder / "rules.yaml"
    path.write_text("rules:\n" + rules)
    redaction = Redaction(load_rules([str(path)]), SALT)
    return list(redaction(iter(items))), redaction


def run(**data: Any) -> Run:
    info = {"run_id": RUN, "experiment_id": "1", "user_id": "ada", "status": "FINISHED"}
    return Run({"info": info, "data": data})


def entries(**values: str) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def test_a_param_is_dropped_hashed_or_replaced_and_the_others_stay(tmp_path: Path) -> None:
    before = run(params=entries(a="1", b="2", c="3", d="4"))
    rules = (
        "- {field: run.data.params.a, action: drop}\n"
        "- {field: run.data.params.b, action: hash}\n"
        "- {field: run.data.params.c, action: replace, with: gone}\n"
    )

    (after,), redaction = redacted(tmp_path, rules, before)
    (again,), _ = redacted(tmp_path, rules, before)

    hashed = after.params["b"]
    assert after.params == {"b": hashed, "c": "gone", "d": "4"}
    assert hashed.startswith("hmac-")
    assert again.params == after.params
    assert before.params == {"a": "1", "b": "2", "c": "3", "d": "4"}
    assert [loss.what.partition(":")[0] for loss in redaction.losses()] == [
        "1 field in 1 of them dropped",
        "1 field in 1 of them hashed",
        "1 field in 1 of them replaced",
    ]


def test_only_what_the_group_of_a_pattern_finds_is_replaced(tmp_path: Path) -> None:
    rule = "- {field: '*', match: 'user=(\\w+)', action: replace, with: X}\n"

    (after,), _ = redacted(tmp_path, rule, run(tags=entries(cmd="train user=ada lr=1 user=bob")))

    assert after.tags == {"cmd": "train user=X lr=1 user=X"}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('{"a": "ad\\u0061 \\u0061da"}', '{"a": "X X"}'),
        ('[{"ada": 1, "b": ["ada"]}]', '[{"b": ["X"]}]'),
        ('"an ada"', '"an X"'),
        ('{"a": "{\\"b\\": \\"ad\\\\u0061\\"}"}', '{"a": "{\\"b\\": \\"X\\"}"}'),
        ('{"a": "ada", "a": "b"}', '{"a": "X", "a": "b"}'),
        ("{ada", "{X"),
        ('{"a": NaN, "b": 1.50}', '{"a": NaN, "b": 1.50}'),
        ("[" * 5000 + "ada", "[" * 5000 + "X"),
    ],
)
def test_json_in_a_text_is_read(tmp_path: Path, text: str, left: str) -> None:
    rule = "- {field: '*', match: ada, action: replace, with: X}\n"

    (after,), _ = redacted(tmp_path, rule, run(tags=entries(t=text)))

    assert after.tags == {"t": left}


def test_numbers_are_read_where_they_are_somebodys(tmp_path: Path) -> None:
    span = {
        "span_id": "1",
        "name": "s",
        "start_time_ns": 4111111111111111,
        "attributes": {"card": 4111111111111111, "n": 7, "json": '{"c": 4111111111111111}'},
        "events": [{"name": "e", "time_ns": 4111111111111111, "attributes": {}}],
    }
    trace = Trace({"info": {"trace_id": "t", "tags": {}}, "assessments": []}, "1", [span])
    rule = "- {field: '*', find: card, action: replace}\n"

    (after,), _ = redacted(tmp_path, rule, trace)

    assert after.spans == [
        span | {"attributes": {"card": "redacted", "n": 7, "json": '{"c": "redacted"}'}}
    ]


def test_ids_and_what_names_them_stay_and_are_told_of(tmp_path: Path) -> None:
    history = json.dumps([{"run_id": RUN, "artifact_path": "a/000"}])
    tags = entries(**{"mlflow.parentRunId": RUN, "mlflow.log-model.history": history, "t": "000"})
    rule = "- {field: '*', match: '0+', action: replace, with: X}\n"

    (after,), redaction = redacted(tmp_path, rule, run(tags=tags))

    assert after.id == RUN
    assert after.tags == {
        "mlflow.parentRunId": RUN,
        "mlflow.log-model.history": json.dumps([{"run_id": RUN, "artifact_path": "a/X"}]),
        "t": "X",
    }
    assert any("2 ids stay" in loss.what for loss in redaction.losses())


def test_dropping_all_tags_keeps_what_links_runs(tmp_path: Path) -> None:
    tags = entries(**{"mlflow.parentRunId": RUN, "mlflow_exim.origin": "x", "note": "n"})
    rule = "- {field: run.data.tags, action: drop}\n"

    (after,), _ = redacted(tmp_path, rule, run(tags=tags, params=entries(a="1")))

    assert after.tags == {"mlflow.parentRunId": RUN, "mlflow_exim.origin": "x"}
    assert after.params == {"a": "1"}


def test_excepted_fields_stay(tmp_path: Path) -> None:
    rule = "- {field: run.data.params, except: run.data.params.lr, action: drop}\n"

    (after,), _ = redacted(tmp_path, rule, run(params=entries(lr="1", key="2")))

    assert after.params == {"lr": "1"}


def test_names_change_wherever_they_stand(tmp_path: Path) -> None:
    model = RegisteredModel({"name": "ada's model"})
    version = ModelVersion({"name": "ada's model", "version": "1", "source": "dbfs:/ada/x"})
    info = {"trace_id": "t", "tags": {}, "linked_prompts": ["ada/3"]}
    info["tags"] = {"mlflow.linkedPrompts": '[{"name": "ada", "version": "2"}]'}
    trace = Trace({"info": info, "assessments": []}, "1")
    rule = "- {field: '*', match: ada, action: hash}\n"

    (model, version, trace), _ = redacted(tmp_path, rule, model, version, trace)

    name = model.name.removesuffix("'s model")
    assert version.name == model.name
    assert version.document["source"] == f"dbfs:/{name}/x"
    assert trace.info["linked_prompts"] == [f"{name}/3"]
    assert json.loads(trace.info["tags"]["mlflow.linkedPrompts"])[0]["name"] == name


def test_two_names_do_not_become_one(tmp_path: Path) -> None:
    rule = "- {field: '*', match: 'ada|bob', action: replace, with: X}\n"
    experiments = [
        Experiment({"experiment_id": str(n), "name": name}) for n, name in enumerate("ab")
    ]
    experiments[0].document["name"], experiments[1].document["name"] = "of ada", "of bob"

    told, _ = redacted(tmp_path, rule, *experiments)

    assert [experiment.name for experiment in told] == ["of X", "of X (2)"]
    with pytest.raises(UsageError, match="would be called 'X'"):
        redacted(tmp_path, rule, RegisteredModel({"name": "ada"}), RegisteredModel({"name": "bob"}))
    with pytest.raises(UsageError, match="would be called 'X'"):
        redacted(tmp_path, rule, RegisteredModel({"name": "ada"}), RegisteredModel({"name": "X"}))


def test_a_metric_goes_with_all_its_rows(tmp_path: Path) -> None:
    metrics = [
        {"key": key, "value": 0.5, "timestamp": 1, "step": 1} for key in ("acc", "loss of ada")
    ]
    rows = pa.table([["acc", "loss of ada"], [1, 1], [1, 1], [0.5, 0.5]], schema=HISTORY)
    before = run(metrics=metrics)
    before.histories = [RunRows.of(RUN, rows)]

    for rule in (
        "field: 'run.data.metrics[loss*]', action: drop",
        "field: '*', match: ada, action: replace",
    ):
        (after,), _ = redacted(tmp_path, f"- {{{rule}}}\n", before)

        assert after.metric_keys == ["acc"]
        assert [key for part in after.histories for key in part.keys] == ["acc"]
        before.histories = [RunRows.of(RUN, rows)]


def test_files_go_by_path_by_content_and_by_the_name_they_have(tmp_path: Path) -> None:
    contents = {
        "a.env": b"x",
        "b.txt": b"\0" * ((1 << 20) - 1) + b"ada",
        "of ada/c.txt": b"x",
        "d.txt": b"x",
    }
    before = run()
    before.artifacts = [
        Artifact(path, len(data), partial(io.BytesIO, data)) for path, data in contents.items()
    ]
    rules = (
        "- {field: run.artifacts.*.env, action: drop}\n"
        "- {field: run.artifacts.*, match: ada, action: drop}\n"
    )

    (after,), redaction = redacted(tmp_path, rules, before)

    assert [file.path for file in after.artifacts] == ["d.txt"]
    assert [loss.what.partition(":")[0] for loss in redaction.losses()] == [
        "1 file dropped",
        "2 files dropped",
    ]
    (by_name,), _ = redacted(tmp_path, "- {field: '*', match: ada, action: replace}\n", before)
    assert [file.path for file in by_name.artifacts] == ["a.env", "b.txt", "d.txt"]


def test_values_of_secret_names_are_passwords(tmp_path: Path) -> None:
    params = entries(db_password="hunter2", tokenizer="bert-base", max_tokens="10", api_key="k-12")
    tags = entries(config='{"aws": {"secret_key": "wJalrXUt", "region": "eu"}}')
    rule = "- {field: '*', find: password, action: replace}\n"

    (after,), _ = redacted(tmp_path, rule, run(params=params, tags=tags))

    assert after.params == {
        "db_password": "redacted",
        "tokenizer": "bert-base",
        "max_tokens": "10",
        "api_key": "redacted",
    }
    assert json.loads(after.tags["config"]) == {"aws": {"secret_key": "redacted", "region": "eu"}}


def test_what_had_to_be_there_has_another_text(tmp_path: Path) -> None:
    issue = Entity(Kind.ISSUE, {"issue_id": "i", "name": "ada", "description": "ada"}, "1")
    rule = "- {field: '*', match: ada, action: drop}\n"

    (after,), _ = redacted(tmp_path, rule, issue)

    assert after.document == {"issue_id": "i", "name": "redacted"}


def test_rules_that_meet_nothing_are_named(tmp_path: Path) -> None:
    rules = "- {field: run.data.params.a, action: drop}\n- {field: '*', match: q, action: drop}\n"

    _, redaction = redacted(tmp_path, rules, run(params=entries(a="1")))

    assert redaction.without_effect() == ["rule 2 (*)"]
