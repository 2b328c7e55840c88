"""Rules say what they mean or are refused in one line that says what to write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlflow_exim_plugin.errors import NotFoundError, UsageError
from mlflow_exim_plugin.stages.privacy.redact import Redaction
from mlflow_exim_plugin.stages.privacy.rules import READY, load_rules, load_salt

RUN_NAME = "- {field: run.info.run_name, action: hash}"


def load(folder: Path, rules: str) -> None:
    path = folder / "rules.yaml"
    path.write_text(f"rules:\n{rules}\n")
    load_rules([str(path)])


@pytest.mark.parametrize(
    ("rules", "message", "hint"),
    [
        ("- {field: rum.data.params, action: drop}", "kind 'rum'", "did you mean run?"),
        ("- {field: run.data.prams, action: drop}", "lies at run.data.prams", "run.data.params"),
        ("- {field: run.data.prams.lr, action: drop}", "at run.data.prams.lr", "run.data.params"),
        ("- {field: run.data.params, action: dorp}", "action 'dorp'", "did you mean drop?"),
        ("- {field: run.data.params}", "has no action", "there are drop, hash, replace"),
        ("- {feild: run.data.params, action: drop}", "key 'feild'", "did you mean field"),
        ("- {action: drop}", "rule 1 has no field", "run.data.params"),
        ("- {field: '*', action: drop}", "means every field", "add a `match`"),
        ("- {field: run, action: drop}", "run is a kind and no field", "select"),
        ("- {field: run.info.run_id, action: hash}", "run.info.run_id is an id", "stay"),
        ("- {field: model_version.name, action: hash}", "others refer to it by", "field: '*'"),
        ("- {field: run.artifacts, action: hash}", "files can only be dropped", "drop"),
        ("- {field: 'run.data.metrics[x]', action: hash}", "metrics can only", "drop"),
        ("- {field: '*', match: '(', action: drop}", "is no regular expression", ""),
        ("- {field: '*', find: emial, action: drop}", "detector 'emial'", "did you mean email?"),
        ("- {field: '*', match: 3, action: drop}", "match is a text", "quotes"),
        ("- {field: '*', match: x, action: drop, with: y}", "does not replace", "leave"),
        ("- run.data.params", "rule 1 is no rule", "field"),
        ("  x: [", "is no YAML", ""),
        ("  x: y", "no list of rules", "rules:"),
        (f"{RUN_NAME}\nrule: 1", "no list of rules", "rules:"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(
    tmp_path: Path, rules: str, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as refused:
        load(tmp_path, rules)

    assert message in refused.value.message
    assert hint in refused.value.hint
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    "field",
    [
        "run.data.params.a.b c",
        "run.info.user_id",
        "run.data.metrics[loss]",
        "run.inputs.dataset_inputs[*].dataset.source",
        "run.inputs.dataset_inputs[].dataset",
        "*.tags.mlflow.user",
        "*.artifacts.*.env",
        "trace.spans[*].attributes.mlflow.spanInputs",
        "trace.spans",
        "*.created_by",
        "evaluation_dataset.records[*].inputs.name",
        "system.user",
        "experiment.name",
    ],
)
def test_a_field_may_be_written_as_diff_shows_it(tmp_path: Path, field: str) -> None:
    load(tmp_path, f"- {{field: '{field}', action: drop}}")


def test_the_rules_that_the_guide_shows_are_rules(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[4] / "docs/guides/privacy.md").read_text("utf-8")
    (shown,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    path = tmp_path / "rules.yaml"
    path.write_text(shown)

    (file,) = load_rules([str(path)])

    assert [rule.action for rule in file.rules] == ["drop", "hash", "replace", "replace", "drop"]


def test_ready_rules_are_rules() -> None:
    assert [file.name for file in load_rules(READY)] == [*READY]


def test_a_misspelled_ready_rule_is_named() -> None:
    with pytest.raises(NotFoundError) as missing:
        load_rules(["user"])

    assert missing.value.hint == "did you mean users?"


def test_what_can_be_guessed_is_no_salt(tmp_path: Path) -> None:
    short = tmp_path / "salt"
    short.write_text("0123456789\n\n\n\n\n\n\n\n")

    with pytest.raises(UsageError, match="can be guessed"):
        load_salt(None, str(short))
    with pytest.raises(UsageError, match="there is no salt"):
        Redaction(load_rules(["users"]))
    assert load_salt("0123456789abcdef", None) == b"0123456789abcdef"
