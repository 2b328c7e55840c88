"""Rules take away what they are about, and nothing that a user named alike."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_exim_plugin.comparison.rules import REST_RULES, RULE_SETS, RuleSet, rules_table
from mlflow_exim_plugin.comparison.shapes import ABSENT
from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.schema.objects import Kind

TAKEN_AWAY = [
    ("experiment.creation_time", 1, 2),
    ("registered_model.creation_timestamp", 1, 2),
    ("mcp_server.versions[1.0.0].creation_timestamp", 1, 2),
    ("endpoint.bindings[scorer, x].last_updated_at", 1, 2),
    ("review_queue.items[tr-1].completed_time_ms", 1, ABSENT),
    ("experiment.workspace", "default", ABSENT),
    ("registered_model.description", "", ABSENT),
    ("run.data.metrics[a.b].value", "Infinity", 1.7976931348623157e308),
    ("run.data.metrics[a.b].value", -0.0, 0.0),
    ("run.data.tags.long", "x" * 9000, "x" * 8000),
    ("run.info.run_name", ABSENT, "bold-fox-12"),
    ("webhook.status", "ACTIVE", "DISABLED"),
]
COUNTED = [
    ("run.data.tags.creation_timestamp", "1", "2"),
    ("run.data.tags.workspace", "a", ABSENT),
    ("run.data.tags.description", "", ABSENT),
    ("run.data.params.created_at", "1", "2"),
    ("trace.spans[s].attributes.x[0].created_at", 1, 2),
    ("mcp_server.versions[1].server_json.x[0].created_at", 1, 2),
    ("trace.assessments[a].create_time_ms", 1, 2),
    ("run.info.end_time", 1, 2),
    ("run.info.run_name", "a", "b"),
    ("experiment.workspace", "a", "b"),
    ("registered_model.description", "x", ABSENT),
    ("run.data.metrics[a].value", "NaN", 0.0),
    ("run.data.metrics[a].value", "NaN", "Infinity"),
    ("run.data.tags.long", "x" * 9000, "y" * 8000),
    ("issue.created_by", "a", "b"),
    ("webhook.status", "ACTIVE", ABSENT),
    ("model_version.source", "s3://a", "s3://b"),
]


@pytest.mark.parametrize(("path", "a", "b"), TAKEN_AWAY)
def test_what_rest_cannot_keep(path: str, a: Any, b: Any) -> None:
    assert not RuleSet("rest").counts(path, a, b)
    assert not RuleSet("rest").counts(path, b, a)
    assert RuleSet("exact").counts(path, a, b)


@pytest.mark.parametrize(("path", "a", "b"), COUNTED)
def test_what_counts(path: str, a: Any, b: Any) -> None:
    assert RuleSet("rest").counts(path, a, b)
    assert RuleSet("rest").counts(path, b, a)


def test_an_absent_object_counts_unless_no_field_of_it_does() -> None:
    rules = RuleSet("rest")

    assert not rules.counts("issue", {"created_timestamp": 5, "created_at": 6}, ABSENT)
    assert rules.counts("issue", {"created_timestamp": 5, "name": "x"}, ABSENT)
    assert rules.counts("issue", {}, ABSENT)


def test_rules_have_names_fields_and_reasons() -> None:
    assert RULE_SETS["exact"] == ()
    assert len({rule.name for rule in REST_RULES}) == len(REST_RULES)
    kinds = {kind.value for kind in Kind} | {"*"}
    for rule in REST_RULES:
        assert rule.reason
        assert {field.split(".", maxsplit=1)[0] for field in rule.fields} <= kinds
        assert f"| {rule.name} |" in rules_table()


@pytest.mark.parametrize("pattern", ["nothing.tags", "params.lr", ""])
def test_a_pattern_begins_with_a_kind(pattern: str) -> None:
    with pytest.raises(UsageError, match="kind of object"):
        RuleSet("rest", [pattern])


def test_other_rules() -> None:
    with pytest.raises(UsageError, match="auto, rest, moved or exact"):
        RuleSet("strict")
