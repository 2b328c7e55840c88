"""Every form in which MLflow has kept spans gives the same document, and the way back."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from mlflow.entities import Span

from mlflow_exim_plugin.host.traces.spans import (
    as_dict_v2,
    as_dict_v3,
    as_otlp,
    attachment_ids,
    fits_otlp,
    from_dict,
    from_otlp_json,
    in_order,
)

OTEL_ID = "0123456789abcdef0123456789abcdef"
TRACE_ID = f"tr-{OTEL_ID}"
VALUES: dict[str, Any] = {
    "text": "größe 🚀",
    "number": 42,
    "fraction": 1.0,
    "nothing": None,
    "deep": {"list": [1, {"b": [True, None]}], "nan": math.nan},
    "infinite": [math.inf, -math.inf],
    "marked": {"doubleValue": "NaN"},
    "wrapped": {"kvlistValue": {"a": 1}},
    "empty": {},
    "half": "\ud83d",
}


def encoded(digits: str) -> str:
    return base64.b64encode(bytes.fromhex(digits)).decode()


def stored(values: dict[str, Any]) -> dict[str, Any]:
    """Return a span as the spans table has it."""
    return {
        "trace_id": encoded(OTEL_ID),
        "span_id": encoded("00000000000000ff"),
        "parent_span_id": encoded("0000000000000001"),
        "name": "step",
        "start_time_unix_nano": 1_700_000_000_000_000_001,
        "end_time_unix_nano": 1_700_000_000_000_000_002,
        "status": {"code": "STATUS_CODE_ERROR", "message": "broke"},
        "attributes": {
            "mlflow.traceRequestId": json.dumps(TRACE_ID),
            **{key: json.dumps(value) for key, value in values.items()},
        },
        "events": [
            {"name": "e", "time_unix_nano": 7, "attributes": {"n": 3, "x": math.nan, "s": "y"}}
        ],
        "links": [{"trace_id": TRACE_ID, "span_id": "ab" * 8, "attributes": None}],
    }


def test_values_are_json_and_exact() -> None:
    span = from_dict(stored(VALUES), TRACE_ID)

    assert json.loads(json.dumps(span, allow_nan=False)) == span
    assert span["attributes"] == {
        "deep": {"list": [1, {"b": [True, None]}], "nan": {"doubleValue": "NaN"}},
        "empty": {},
        "fraction": 1.0,
        "half": "?",
        "infinite": [{"doubleValue": "Infinity"}, {"doubleValue": "-Infinity"}],
        "marked": {"kvlistValue": {"doubleValue": "NaN"}},
        "nothing": None,
        "number": 42,
        "text": "größe 🚀",
        "wrapped": {"kvlistValue": {"kvlistValue": {"a": 1}}},
    }
    assert isinstance(span["attributes"]["fraction"], float)
    assert span["events"][0]["attributes"] == {"n": 3, "x": {"doubleValue": "NaN"}, "s": "y"}
    assert (span["status_code"], span["status_message"]) == ("ERROR", "broke")
    assert span["links"] == [{"trace_id": OTEL_ID, "span_id": "ab" * 8, "attributes": {}}]


def test_all_forms_give_the_same_document() -> None:
    span = from_dict(stored(VALUES), TRACE_ID)
    of_mlflow = Span.from_dict(stored(VALUES)).to_otel_proto()
    by_otlp = MessageToDict(of_mlflow, preserving_proto_field_name=True)
    with_ids_as_text = stored(VALUES) | {
        "trace_id": TRACE_ID,
        "span_id": "00000000000000ff",
        "parent_span_id": "0000000000000001",
        "status": {"code": "ERROR", "message": "broke"},
    }

    assert from_otlp_json(by_otlp, TRACE_ID) == span
    assert from_dict(with_ids_as_text, TRACE_ID) == span
    assert from_dict(as_dict_v3(span, TRACE_ID), TRACE_ID) == span
    assert from_dict(as_dict_v2(span, TRACE_ID), TRACE_ID) == span
    back = MessageToDict(as_otlp(span), preserving_proto_field_name=True)
    assert from_otlp_json(back, TRACE_ID) == span


def test_mlflow_reads_what_is_written() -> None:
    span = from_dict(stored(VALUES), TRACE_ID)

    for form in (as_dict_v3(span, TRACE_ID), as_dict_v2(span, TRACE_ID)):
        read = Span.from_dict(form)
        assert read.span_id == "00000000000000ff"
        assert read.parent_id == "0000000000000001"
        assert read.attributes["marked"] == {"doubleValue": "NaN"}
        assert math.isnan(read.attributes["deep"]["nan"])
        assert read.trace_id == TRACE_ID


def test_trace_id_attribute_of_another_trace_stays() -> None:
    span = from_dict(stored({}), "other")

    assert span["attributes"] == {"mlflow.traceRequestId": TRACE_ID}


def test_unknown_fields_go_to_extra() -> None:
    span = from_dict(stored({}) | {"flags": 1}, TRACE_ID)

    assert span["extra"] == {"flags": 1}
    assert as_dict_v3(span, TRACE_ID)["flags"] == 1
    assert not fits_otlp([span], TRACE_ID)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"large": 2**63 - 1}, True),
        ({"large": 2**63}, False),
        ({"deep": [{"large": -(2**63) - 1}]}, False),
    ],
)
def test_what_otlp_can_carry(change: dict[str, Any], fits: bool) -> None:
    span = from_dict(stored(change), TRACE_ID)

    assert fits_otlp([span], TRACE_ID) is fits
    assert not fits_otlp([span], "another-id")
    assert from_dict(as_dict_v3(span, TRACE_ID), TRACE_ID) == span


@pytest.mark.parametrize(
    "broken",
    [
        {"name": 3},
        {"span_id": "no hex"},
        {"status": {"code": "MAYBE"}},
        {"start_time_unix_nano": None},
        {"attributes": [1]},
        {"trace_id": encoded(OTEL_ID + "00")},
    ],
)
def test_what_is_no_span_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        from_dict(stored({}) | broken, TRACE_ID)


def test_spans_in_order() -> None:
    one = from_dict(stored({}), TRACE_ID)
    earlier = one | {"start_time_ns": 1}
    same_time = one | {"span_id": "0000000000000002"}

    assert in_order([one, same_time, earlier]) == [earlier, same_time, one]


def test_attachments_of_this_trace_alone() -> None:
    reference = "mlflow-attachment://{}?content_type=image%2Fpng&trace_id={}&size=12"
    values = {
        "mine": {"deep": [reference.format("a-1", TRACE_ID)]},
        "other": reference.format("a-2", "tr-other"),
    }

    assert attachment_ids([from_dict(stored(values), TRACE_ID)], TRACE_ID) == {"a-1": 12}
