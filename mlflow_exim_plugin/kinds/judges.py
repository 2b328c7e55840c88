"""Scorers, label schemas, issues and review queues."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.kinds.description import (
    Description,
    Json,
    TableRows,
    as_json,
    default,
    flag,
    lower,
    same,
)
from mlflow_exim_plugin.kinds.kind import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ISSUE", "LABEL_SCHEMA", "REVIEW_QUEUE", "SCORER"]


def _with_experiment(config: dict[str, Any], row: Mapping[str, Any]) -> None:
    config["experiment_id"] = str(row["experiment_id"])


SCORER = Description(
    Kind.SCORER,
    since="3.4",
    folder="scorers",
    id_field="scorer_name",
    known_as="scorer_id",
    of_experiment=True,
    lists={"versions": ("scorer_version",)},
    refers={
        "scorer_id": Kind.SCORER,
        "experiment_id": Kind.EXPERIMENT,
        "versions[].serialized_scorer": Json(),
        "online_configs[].experiment_id": Kind.EXPERIMENT,
    },
    natural=("scorer_name",),
    name="scorer_name",
    unique=("experiment_id", "scorer_name"),
    joins=("versions", "online_configs"),
    rest={
        "times": "versions[*].creation_time",
        "inner ids": "online_configs[*].online_scoring_config_id",
    },
    anew="ids and creation times are the target's",
    rows=TableRows(
        "scorers",
        same("experiment_id scorer_name scorer_id"),
        parts=(
            TableRows(
                "scorer_versions",
                same("scorer_version serialized_scorer creation_time"),
                at="versions",
                owner=("scorer_id",),
                order=("scorer_version",),
            ),
            TableRows(
                "online_scoring_configs",
                same("online_scoring_config_id sample_rate filter_string"),
                at="online_configs",
                owner=("scorer_id", "experiment_id"),
                order=("online_scoring_config_id",),
                completed=_with_experiment,
            ),
        ),
        order=("scorer_name",),
    ),
    names="scorer_name",
    secrets="versions[].serialized_scorer online_configs[].filter_string",
)

_INPUTS: dict[str, dict[str, Any]] = {
    "pass_fail": {"positive_label": None, "negative_label": None},
    "categorical": {"options": None, "multi_select": False},
    "numeric": {"min_value": None, "max_value": None},
    "text": {"max_length": None},
}
"""What a question's inputs of each type have, and what it is where the document lacks it."""


def _input(schema: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the type of a question's input, and the rest of it."""
    ((kind, given),) = schema["input"].items()
    return kind, {name: given.get(name, value) for name, value in _INPUTS[kind].items()}


def _with_input(schema: dict[str, Any], row: Mapping[str, Any]) -> None:
    kind, config = row["input_type"], json.loads(row["input_config"])
    known = {name: config.get(name, value) for name, value in _INPUTS[kind].items()}
    if kind == "numeric":  # which are doubles to REST
        known = {name: value and float(value) for name, value in known.items()}
    schema["input"] = {kind: {name: v for name, v in known.items() if v is not None}}


LABEL_SCHEMA = Description(
    Kind.LABEL_SCHEMA,
    since="3.14",
    folder="label_schemas",
    id_field="schema_id",
    of_experiment=True,
    refers={"schema_id": Kind.LABEL_SCHEMA, "experiment_id": Kind.EXPERIMENT},
    unique=("experiment_id", "name"),
    itself="is_default",  # MLflow makes one
    same=("type", "input", "instruction", "enable_comment"),
    rest={"users": "created_by"},
    anew="ids, creators and times are the target's",
    rows=TableRows(
        "label_schemas",
        same(
            "schema_id experiment_id name instruction created_by",
            type=lower("type"),
            enable_comment=flag("enable_comment"),
            is_default=flag("is_default"),
            input_type=lambda schema: _input(schema)[0],
            input_config=lambda schema: json.dumps(_input(schema)[1]),
            created_time="created_at",
            last_update_time="last_updated_at",
        ),
        order=("created_at", "schema_id"),
        completed=_with_input,
    ),
    secrets="name instruction input",
)


def _with_last_seen(issue: dict[str, Any], row: Mapping[str, Any]) -> None:
    if "last_seen_timestamp" in row:  # since MLflow 3.18, which tells the creation where it is none
        issue.setdefault("last_seen_timestamp", issue["created_timestamp"])


ISSUE = Description(
    Kind.ISSUE,
    since="3.11",
    folder="issues",
    id_field="issue_id",
    of_experiment=True,
    refers={
        "issue_id": Kind.ISSUE,
        "experiment_id": Kind.EXPERIMENT,
        "source_run_id": Kind.RUN,
    },
    drops={"source_run_id": "the run that found it, {it}, is not there"},
    same=("name", "description", "root_causes", "categories", "created_by", "source_run_id"),
    rest={"times": "created_timestamp"},
    anew="ids and times are the target's",
    rows=TableRows(
        "issues",
        same(
            "issue_id experiment_id name status severity source_run_id created_timestamp"
            " last_updated_timestamp created_by last_seen_timestamp last_updated_by",
            description=default("description", value=""),
            root_causes=as_json("root_causes", none=None),
            categories=as_json("categories", none=None),
            metadata=as_json("metadata", none=None),
        ),
        order=("created_timestamp", "issue_id"),
        completed=_with_last_seen,
    ),  # host.sql.entity_rows adds the table by which categories are searched
    secrets="name description root_causes categories created_by",
)

REVIEW_QUEUE = Description(
    Kind.REVIEW_QUEUE,
    since="3.14",
    folder="review_queues",
    id_field="queue_id",
    of_experiment=True,
    after_traces=True,
    lists={"users": (), "schema_ids": (), "items": ("item_id",)},
    refers={
        "queue_id": Kind.REVIEW_QUEUE,
        "experiment_id": Kind.EXPERIMENT,
        "schema_ids[]": Kind.LABEL_SCHEMA,
        "items[].item_id": Kind.TRACE,
    },
    drops={"schema_ids[]": "its label schema {it} is not there and left out"},
    unique=("experiment_id", "name_key"),
    joins=("items",),
    rest={"times": "*_time_ms items[*].*_time_ms", "users": "created_by"},
    anew="ids, creators and all times, of completion too, are the target's",
    rows=TableRows(
        "review_queues",
        same(
            "queue_id experiment_id name created_by creation_time_ms last_update_time_ms",
            name_key=lambda queue: queue["name"].lower(),
            queue_type=lower("queue_type"),
        ),
        parts=(
            TableRows(
                "review_queue_users", {"user_id": ""}, at="users", owner=("queue_id",), order=("",)
            ),
            TableRows(
                "review_queue_label_schemas",
                {"schema_id": ""},
                at="schema_ids",
                owner=("queue_id",),
                order=("",),
                # Those of a user have all of the experiment's questions.
                when=lambda queue: queue["queue_type"].lower() != "user",
            ),
            TableRows(
                "review_queue_items",
                same(
                    "item_id completed_by completed_time_ms creation_time_ms last_update_time_ms",
                    item_type=lower("item_type"),
                    status=lower("status"),
                ),
                at="items",
                owner=("queue_id",),
                order=("item_id",),
            ),
        ),
        order=("name",),
    ),
    secrets="name created_by users items[].completed_by",
)
