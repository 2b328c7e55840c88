"""Spans as the stream carries them, from every form that MLflow stores or sends, and back.

MLflow has four forms of a span: OTLP as JSON (``batchGet``), the dict of ``Span.to_dict`` (the
spans table and ``traces.json``), that of 3.5.0 with ids as text, and that of 2.14 to 2.22.
Attribute values are JSON text inside the dicts and typed values in OTLP; here they are JSON values,
and what JSON cannot hold is written as OTLP's JSON does: ``{"doubleValue": "NaN"}``.
"""

from __future__ import annotations

import base64
import json
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "SPAN_TYPE",
    "TRACE_ID_ATTRIBUTE",
    "as_dict_v2",
    "as_dict_v3",
    "as_otlp",
    "attachment_ids",
    "data_file_v2",
    "fits_otlp",
    "from_dict",
    "from_otlp_json",
    "in_order",
]

SPAN_TYPE = "mlflow.spanType"
TRACE_ID_ATTRIBUTE = "mlflow.traceRequestId"
_STATUS = "STATUS_CODE_"
_MARKERS = ("doubleValue", "bytesValue", "kvlistValue")
_HEX_TRACE = re.compile(r"(?:tr-)?([0-9a-f]{32})")
_HEX_SPAN = re.compile(r"[0-9a-f]{16}")
_ATTACHMENT = re.compile(r"mlflow-attachment://([0-9A-Za-z-]+)\?([^\s\"'\\]*)")
_UNPLAIN = re.compile(
    r"NaN|Infinity|[eE]\+?\d{3}|\\u[dD][89a-fA-F]|[\ud800-\udfff]|(?:double|bytes|kvlist)Value"
)
"""What a JSON text holds whose values need a closer look."""
_OTLP_FIELDS = {
    "trace_id",
    "span_id",
    "parent_span_id",
    "name",
    "start_time_unix_nano",
    "end_time_unix_nano",
    "attributes",
    "events",
    "links",
    "status",
}
_V2_FIELDS = {
    "name",
    "context",
    "parent_id",
    "start_time",
    "end_time",
    "status_code",
    "status_message",
    "attributes",
    "events",
    "links",
}


def in_order(spans: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort spans by start and id."""
    return sorted(spans, key=lambda span: (span["start_time_ns"], span["span_id"]))


def from_otlp_json(span: dict[str, Any], trace_id: str) -> dict[str, Any]:
    """Take a span from OTLP as MLflow's REST API sends it.

    Args:
        span: The span, field names in snake case, ids in base64.
        trace_id: MLflow's id of its trace.

    Raises:
        ValueError: It is no span.
        KeyError: It lacks a field.
        TypeError: A field has another type.
    """
    status = span.get("status") or {}
    return _span(
        trace_id,
        {
            "span_id": _hex(span["span_id"], 16),
            "parent_span_id": _hex(span["parent_span_id"], 16)
            if span.get("parent_span_id")
            else None,
            "otel_trace_id": _hex(span["trace_id"], 32),
            "name": span.get("name", ""),
            "start_time_ns": span.get("start_time_unix_nano", 0),
            "end_time_ns": span.get("end_time_unix_nano"),
            "status_code": status.get("code", "UNSET"),
            "status_message": status.get("message"),
            "attributes": _key_values(span.get("attributes")),
            "events": [
                _event(
                    e.get("name", ""), e.get("time_unix_nano", 0), _key_values(e.get("attributes"))
                )
                for e in span.get("events", ())
            ],
            "links": [
                {
                    "trace_id": _hex(link["trace_id"], 32),
                    "span_id": _hex(link["span_id"], 16),
                    "attributes": _key_values(link.get("attributes")),
                }
                for link in span.get("links", ())
            ],
        },
        {key: value for key, value in span.items() if key not in _OTLP_FIELDS},
    )


def from_dict(span: dict[str, Any], trace_id: str) -> dict[str, Any]:
    """Take a span from a dict that any MLflow since 2.14 stores.

    Args:
        span: The dict.
        trace_id: MLflow's id of its trace.

    Raises:
        ValueError: It is no span.
        KeyError: It lacks a field.
        TypeError: A field has another type.
    """
    if "context" in span:
        code, message = span.get("status_code") or "UNSET", span.get("status_message")
        context = span["context"]
        ids = (context["trace_id"], context["span_id"], span.get("parent_id"))
        start, end, time_field = span["start_time"], span.get("end_time"), "timestamp"
        known = _V2_FIELDS
    else:
        status = span.get("status") or {}
        code, message = status.get("code") or "UNSET", status.get("message")
        ids = (span["trace_id"], span["span_id"], span.get("parent_span_id"))
        start, end = span["start_time_unix_nano"], span.get("end_time_unix_nano")
        time_field, known = "time_unix_nano", _OTLP_FIELDS
    return _span(
        trace_id,
        {
            "span_id": _hex(ids[1], 16),
            "parent_span_id": _hex(ids[2], 16) if ids[2] else None,
            "otel_trace_id": _hex(ids[0], 32),
            "name": span["name"],
            "start_time_ns": start,
            "end_time_ns": end,
            "status_code": code,
            "status_message": message,
            "attributes": {k: _decoded(v) for k, v in (span.get("attributes") or {}).items()},
            "events": [
                _event(e["name"], e[time_field], _each(_plain, e.get("attributes")))
                for e in span.get("events") or ()
            ],
            "links": [
                {
                    "trace_id": _linked(link["trace_id"]),
                    "span_id": link["span_id"],
                    "attributes": _each(_plain, link.get("attributes")),
                }
                for link in span.get("links") or ()
            ],
        },
        {key: _plain(value) for key, value in span.items() if key not in known},
    )


def attachment_ids(spans: Iterable[dict[str, Any]], trace_id: str) -> dict[str, int]:
    """Return the attachments of a trace that its spans point at, and their size as noted."""
    found: dict[str, int] = {}
    for span in spans:
        text = json.dumps([span["attributes"], span["events"]])
        for attachment_id, query in _ATTACHMENT.findall(text):
            fields = dict(part.partition("=")[::2] for part in query.split("&"))
            if fields.get("trace_id", trace_id) == trace_id:
                size = fields.get("size", "")
                found[attachment_id] = int(size) if size.isdecimal() else 0
    return found


def fits_otlp(spans: Iterable[dict[str, Any]], trace_id: str) -> bool:
    """Whether OTLP can carry the spans as they are and the target gives them this trace id."""
    return all(
        trace_id == f"tr-{span['otel_trace_id']}"
        and 0 <= span["start_time_ns"] < 2**64
        and 0 <= (span["end_time_ns"] or 0) < 2**64
        and "extra" not in span
        and all(
            _HEX_TRACE.fullmatch(link["trace_id"]) and _HEX_SPAN.fullmatch(link["span_id"])
            for link in span["links"]
        )
        and _fits_int64([span["attributes"], span["events"], span["links"]])
        for span in spans
    )


def as_otlp(span: dict[str, Any]) -> Any:
    """Return OTLP's protobuf ``Span``.

    Raises:
        ImportError: This MLflow client came without OTLP's protobuf classes.
    """
    from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

    proto = Span(
        trace_id=bytes.fromhex(span["otel_trace_id"]),
        span_id=bytes.fromhex(span["span_id"]),
        name=span["name"],
        start_time_unix_nano=span["start_time_ns"],
        end_time_unix_nano=span["end_time_ns"] or 0,
        status=Status(
            code=getattr(Status, _STATUS + span["status_code"]),
            message=span["status_message"] or "",
        ),
    )
    if span["parent_span_id"]:
        proto.parent_span_id = bytes.fromhex(span["parent_span_id"])
    for key, value in span["attributes"].items():
        # Servers take one layer of JSON off a text that holds some, as of a client's double dump.
        _fill(proto.attributes.add(key=key).value, json.dumps(value) if _is_json(value) else value)
    for event in span["events"]:
        added = proto.events.add(name=event["name"], time_unix_nano=event["time_ns"])
        for key, value in event["attributes"].items():
            _fill(added.attributes.add(key=key).value, value)
    for link in span["links"]:
        added_link = proto.links.add(
            trace_id=bytes.fromhex(_linked(link["trace_id"])),
            span_id=bytes.fromhex(link["span_id"]),
        )
        for key, value in link["attributes"].items():
            _fill(added_link.attributes.add(key=key).value, value)
    return proto


def as_dict_v3(span: dict[str, Any], trace_id: str) -> dict[str, Any]:
    """Return the dict that MLflow 3 keeps in ``traces.json``."""
    return {
        **_each(_python, span.get("extra")),
        "trace_id": _base64(span["otel_trace_id"]),
        "span_id": _base64(span["span_id"]),
        "parent_span_id": _base64(span["parent_span_id"]) if span["parent_span_id"] else None,
        "name": span["name"],
        "start_time_unix_nano": span["start_time_ns"],
        "end_time_unix_nano": span["end_time_ns"],
        "events": [
            {
                "name": event["name"],
                "time_unix_nano": event["time_ns"],
                "attributes": _each(_python, event["attributes"]),
            }
            for event in span["events"]
        ],
        "status": {
            "code": _STATUS + span["status_code"],
            "message": span["status_message"] or "",
        },
        "attributes": _dumped(span, trace_id),
        "links": _dict_links(span),
    }


def as_dict_v2(span: dict[str, Any], trace_id: str) -> dict[str, Any]:
    """Return the dict that MLflow 2 keeps in ``traces.json``; newer ones read it too."""
    return {
        **_each(_python, span.get("extra")),
        "name": span["name"],
        "context": {
            "span_id": f"0x{span['span_id']}",
            "trace_id": f"0x{span['otel_trace_id']}",
        },
        "parent_id": f"0x{span['parent_span_id']}" if span["parent_span_id"] else None,
        "start_time": span["start_time_ns"],
        "end_time": span["end_time_ns"],
        "status_code": span["status_code"],
        "status_message": span["status_message"] or "",
        "attributes": _dumped(span, trace_id),
        "events": [
            {
                "name": event["name"],
                "timestamp": event["time_ns"],
                "attributes": _each(_python, event["attributes"]),
            }
            for event in span["events"]
        ],
        "links": _dict_links(span),
    }


def data_file_v2(spans: Iterable[dict[str, Any]], trace_id: str) -> dict[str, Any]:
    """Return what MLflow 2 keeps in ``traces.json``, which it shows two parts of as the trace's."""
    payload: dict[str, Any] = {"spans": [as_dict_v2(span, trace_id) for span in spans]}
    roots = [span["attributes"] for span in payload["spans"] if not span["parent_id"]]
    for name, key in (("request", "spanInputs"), ("response", "spanOutputs")):
        payload[name] = roots[0].get(f"mlflow.{key}") if roots else None
    return payload


def _span(trace_id: str, found: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Check what was found of a span, and put it into the order of its document."""
    name, attributes, end = found["name"], found["attributes"], found["end_time_ns"]
    if not isinstance(name, str):
        raise TypeError(f"the name of span {found['span_id']} is no text")
    code = found["status_code"].removeprefix(_STATUS)
    if code not in {"UNSET", "OK", "ERROR"}:
        raise ValueError(f"span {found['span_id']} has status {found['status_code']!r}")
    if attributes.get(TRACE_ID_ATTRIBUTE) == trace_id:
        del attributes[TRACE_ID_ATTRIBUTE]
    document = found | {
        "start_time_ns": int(found["start_time_ns"]),
        "end_time_ns": int(end) if end else None,
        "status_code": code,
        "status_message": found["status_message"] or None,
        "attributes": {key: attributes[key] for key in sorted(attributes)},
    }
    return document | {"extra": extra} if extra else document


def _event(name: str, time_ns: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "time_ns": int(time_ns), "attributes": attributes}


def _each(convert: Callable[[Any], Any], fields: dict[str, Any] | None) -> dict[str, Any]:
    """Convert the values of an object whose own keys are names, never markers."""
    return {key: convert(value) for key, value in (fields or {}).items()}


def _hex(identity: str, digits: int) -> str:
    """Return an id as hex digits from base64, ``0x`` hex, ``tr-`` hex, or hex."""
    if identity.endswith("="):
        plain = base64.b64decode(identity, validate=True).hex()
    else:
        plain = identity.rpartition("/")[2].removeprefix("tr-").removeprefix("0x")
    found = f"{int(plain, 16):0{digits}x}"
    if len(found) != digits:
        raise ValueError(f"{identity!r} is no id of {digits} hex digits")
    return found


def _linked(trace_id: str) -> str:
    """Return the trace id of a link as hex digits where it is one of OpenTelemetry's."""
    match = _HEX_TRACE.fullmatch(trace_id)
    return match[1] if match else trace_id


def _key_values(entries: Iterable[dict[str, Any]] | None) -> dict[str, Any]:
    return {entry["key"]: _otlp_value(entry.get("value")) for entry in entries or ()}


def _otlp_value(value: dict[str, Any] | None) -> Any:
    if not value:
        return None
    ((kind, held),) = value.items()
    if kind in {"string_value", "bool_value"}:
        return held
    if kind == "int_value":
        return int(held)
    if kind == "double_value":
        return {"doubleValue": held} if isinstance(held, str) else float(held)
    if kind == "array_value":
        return [_otlp_value(item) for item in held.get("values", ())]
    if kind == "kvlist_value":
        return _wrapped(_key_values(held.get("values")))
    if kind == "bytes_value":
        return {"bytesValue": held}
    raise ValueError(f"{kind!r} is no kind of value")


def _decoded(text: Any) -> Any:
    """Return the value of an attribute, which MLflow keeps as JSON text."""
    if not isinstance(text, str):
        return _plain(text)
    if not text:
        return None  # MLflow itself shows an empty text as none
    try:
        value = json.loads(text)
    except ValueError:
        return _encodable(text)
    return _plain(value) if _UNPLAIN.search(text) else value


def _plain(value: Any) -> Any:
    """Return Python's JSON values with what JSON cannot hold as OTLP's JSON has it."""
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        name = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return {"doubleValue": name}
    if isinstance(value, dict):
        return _wrapped({_encodable(str(key)): _plain(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return {"bytesValue": base64.b64encode(value).decode("ascii")}
    return value


def _encodable(text: str) -> str:
    """Replace half surrogates, as MLflow does before it sends them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _wrapped(value: dict[str, Any]) -> dict[str, Any]:
    """Keep a dict that looks like a marked value from being taken for one."""
    if len(value) == 1 and next(iter(value)) in _MARKERS:
        return {"kvlistValue": value}
    return value


def _marked(value: dict[str, Any]) -> tuple[str, Any]:
    """Return which marker a dict is and what it marks, empty text without one."""
    if len(value) == 1:
        ((key, held),) = value.items()
        if key in _MARKERS:
            return key, held
    return "", None


def _python(value: Any) -> Any:
    """Return Python's values, NaN included, for JSON as Python writes it."""
    if isinstance(value, list):
        return [_python(item) for item in value]
    if not isinstance(value, dict):
        return value
    marker, held = _marked(value)
    if marker == "doubleValue":
        return float(held)
    if marker == "bytesValue":
        return held
    return {key: _python(item) for key, item in (held if marker else value).items()}


def _dumped(span: dict[str, Any], trace_id: str) -> dict[str, str]:
    attributes = {TRACE_ID_ATTRIBUTE: trace_id} | span["attributes"]
    return {k: json.dumps(_python(v), ensure_ascii=False) for k, v in attributes.items()}


def _dict_links(span: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "trace_id": f"tr-{match[1]}"
            if (match := _HEX_TRACE.fullmatch(link["trace_id"]))
            else link["trace_id"],
            "span_id": link["span_id"],
            "attributes": _each(_python, link["attributes"]) or None,
        }
        for link in span["links"]
    ]


def _base64(digits: str) -> str:
    return base64.b64encode(bytes.fromhex(digits)).decode("ascii")


def _is_json(value: Any) -> bool:
    """Whether a value is a text that itself holds JSON text, a list or an object."""
    if not isinstance(value, str) or value[:1] not in {'"', "[", "{", " ", "\n", "\t", "\r"}:
        return False
    try:
        return isinstance(json.loads(value), str | list | dict)
    except ValueError:
        return False


def _fits_int64(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_fits_int64, value.values()))
    if isinstance(value, list):
        return all(map(_fits_int64, value))
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _fill(target: Any, value: Any) -> None:
    """Set OTLP's ``AnyValue``."""
    if isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, str):
        target.string_value = value
    elif isinstance(value, int):
        target.int_value = value
    elif isinstance(value, float):
        target.double_value = value
    elif isinstance(value, list):
        target.array_value.SetInParent()
        for item in value:
            _fill(target.array_value.values.add(), item)
    elif isinstance(value, dict):
        marker, held = _marked(value)
        if marker == "doubleValue":
            target.double_value = float(held)
        elif marker == "bytesValue":
            target.bytes_value = base64.b64decode(held)
        else:
            target.kvlist_value.SetInParent()
            for key, item in (held if marker else value).items():
                _fill(target.kvlist_value.values.add(key=key).value, item)
