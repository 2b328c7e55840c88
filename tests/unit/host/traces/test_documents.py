"""Trace infos of every MLflow give documents with times as whole numbers, and the way back."""

from __future__ import annotations

import pytest

from mlflow_exim_plugin.host.traces.documents import (
    assessment_for_rest,
    document_of_v2,
    document_of_v3,
    info_for_rest,
)


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14T22:13:20.123Z", 1_700_000_000_123),
        ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123),
        ("1969-12-31T23:59:59.999Z", -1),
    ],
)
def test_times_of_rest(text: str, time_ms: int) -> None:
    document = document_of_v3({"trace_id": "tr-1", "request_time": text, "state": "OK"})

    assert document["info"]["request_time_ms"] == time_ms
    again = document_of_v3(info_for_rest(document["info"], "7"))
    assert again == document


@pytest.mark.parametrize(
    ("text", "ms"), [("0s", 0), ("1.5s", 1500), ("0.001s", 1), ("3600s", 3_600_000)]
)
def test_durations_of_rest(text: str, ms: int) -> None:
    document = document_of_v3({"trace_id": "tr-1", "execution_duration": text})

    assert document["info"]["execution_duration_ms"] == ms
    assert document_of_v3(info_for_rest(document["info"], "7"))["info"] == (
        document["info"] | {"request_time_ms": 0}
    )


def test_unknown_fields_stay() -> None:
    document = document_of_v3({"trace_id": "tr-1", "new_field": {"a": 1}})

    assert document["info"]["new_field"] == {"a": 1}
    assert document["info"]["state"] == "STATE_UNSPECIFIED"


def test_info_of_servers_before_3_2() -> None:
    document = document_of_v2(
        {
            "request_id": "abc",
            "experiment_id": "3",
            "timestamp_ms": 5,
            "execution_time_ms": "7",
            "status": "TRACE_STATUS_UNSPECIFIED",
            "request_metadata": [{"key": "k", "value": "v"}, {"key": "empty"}],
            "tags": [{"key": "t", "value": "w"}],
        }
    )

    assert document == {
        "info": {
            "trace_id": "abc",
            "request_time_ms": 5,
            "execution_duration_ms": 7,
            "state": "STATE_UNSPECIFIED",
            "trace_metadata": {"k": "v", "empty": ""},
            "tags": {"t": "w"},
        },
        "assessments": [],
    }


def test_assessments_both_ways() -> None:
    sent = {
        "assessment_id": "a-1",
        "assessment_name": "good",
        "trace_id": "tr-1",
        "feedback": {"value": True},
        "create_time": "1970-01-01T00:00:00.001Z",
        "last_update_time": "1970-01-01T00:00:01Z",
        "valid": False,
    }
    (assessment,) = document_of_v3({"trace_id": "tr-1", "assessments": [sent]})["assessments"]

    assert assessment == {
        "assessment_id": "a-1",
        "assessment_name": "good",
        "feedback": {"value": True},
        "create_time_ms": 1,
        "last_update_time_ms": 1000,
        "valid": False,
        "metadata": {},
    }
    back = assessment_for_rest(assessment, "tr-1")
    assert back["create_time"] == "1970-01-01T00:00:00.001Z"
    assert "valid" not in back  # it is the effect of another assessment
