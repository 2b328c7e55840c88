"""Losses matched one to one: each difference at a target has its line, each line its difference.

Both deployments are read by raw REST (``tests/answers.py``), never with the package under test. Ids
become what they stand for by the tags that name the origin, or by the names of the objects. What is
left between the two documents of an object is a difference. ``LINES`` says which differences a line
of a report speaks of; a line that speaks of none, and a difference of which none speaks, are wrong.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.provenance import ARTIFACT_RUNS, LOGGED_MODEL, ORIGIN, is_provenance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.schema.report import Report

__all__ = ["Deployment", "differences", "plain", "read", "unmatched"]

_EMBEDDED = {"latest_versions", "model_definition", "guardrail", "resolved_version"}
"""Fields that repeat other objects."""
_SET_ANEW = r"^(mapping_id|id)$|(_at|_time|_timestamp)(_ms)?$"
_TIMES_OF_TRACE = ("request_time", "execution_duration")
_OF_V2 = {
    "request_id": "trace_id",
    "timestamp_ms": "request_time",
    "execution_time_ms": "execution_duration",
    "status": "state",
    "request_metadata": "trace_metadata",
}
"""What ``TraceInfoV3`` calls the fields of ``TraceInfo``."""
_PROMPTS = {"registered_model": "prompt", "model_version": "prompt_version"}
Key = tuple[str, str]
"""Kind and name of an object."""

_OBJECTS = [
    tuple(line.split("; "))
    for line in r"""
/experiments/get ; experiment; experiment; experiment_id; name
/runs/get ; run; run; info.run_id; info.run_id
/logged-models/m-\w+ ; model; logged_model; info.model_id; info.model_id
3.0/mlflow/traces/[^/ ]+ \{\}; trace.trace_info; trace; trace_id; trace_id
2.0/mlflow/traces ; traces[]; trace; trace_id; trace_id
/scorers/versions ; scorers[]; scorer; scorer_id; experiment_id scorer_name scorer_version
/scorers/online-configs ; configs[]; scorer; online_scoring_config_id; scorer_id
/label-schemas/list ; label_schemas[]; label_schema; schema_id; experiment_id name
/issues/search ; issues[]; issue; issue_id; experiment_id name description status severity
/review-queues/get ; review_queue; review_queue; queue_id; experiment_id name
/review-queues/items/list ; items[]; review_queue; ; queue_id item_id
/registered-models/get ; registered_model; registered_model; ; name
/model-versions/get ; model_version; model_version; ; name version
/datasets/d-\w+ ; dataset; evaluation_dataset; dataset_id; dataset_id
/datasets/d-\w+/records ; records[]; dataset_record; dataset_record_id; dataset_id inputs
/gateway/model-definitions/list ; model_definitions[]; model_definition; model_definition_id; name
/gateway/endpoints/list ; endpoints[]; endpoint; endpoint_id; name
/gateway/endpoints/bindings/list ; bindings[]; endpoint; ; endpoint_id resource_id
/gateway/guardrails/list ; guardrails[]; guardrail; guardrail_id; name
/gateway/guardrails/list-for-endpoint ; configs[]; endpoint; ; endpoint_id guardrail_id
/gateway/budgets/list ; budget_policies[]; budget_policy; budget_policy_id; budget_amount duration
/mcp-servers ; mcp_servers[]; mcp_server; ; name
/mcp-servers/\S+/versions ; mcp_server_versions[]; mcp_server; ; name version
/webhooks ; webhooks[]; webhook; webhook_id; name
""".strip().splitlines()
]
"""What is asked; the field or list of the answer that holds objects; their kind; the field of their
id; and the fields that name them."""


@dataclass
class Deployment:
    """What a server answers.

    Attributes:
        objects: Documents by kind and name, with names in place of ids.
        ids: The id of each that has one.
    """

    objects: dict[Key, dict[str, Any]] = field(default_factory=dict)
    ids: dict[Key, str] = field(default_factory=dict)


def read(answers: dict[str, Any], folder: str = "") -> Deployment:
    """Make objects of what ``tests.answers.answers`` returns.

    Args:
        answers: What it returned.
        folder: Where a server has its files that does not hand them out itself.
    """
    if folder:
        answers = _placed(answers, folder)
    found = [(rule, plain(doc)) for rule in _OBJECTS for doc in _answered(answers, rule)]
    named = _Names()
    for (_, _, kind, id_field, naming), document in found:
        named.learn(kind, id_field, naming, document)
    there = Deployment()
    for (_, _, of, id_field, naming), document in found:
        own = str(_at(document, id_field) or "")
        whole = named.put(_without(document, id_field))
        name = named.of(own) if naming == id_field else _joined(whole, naming)
        is_prompt = "mlflow.prompt.is_prompt" in whole.get("tags", ())
        kind = _PROMPTS.get(of, of) if is_prompt else of
        there.objects.setdefault((kind, name), {}).update(whole)
        if own:
            there.ids[kind, name] = own
    roots = {}
    for key, run_id in there.ids.items():
        if key[0] == "run":
            info, tags = there.objects[key]["info"], _at(there.objects[key], "data.tags") or {}
            roots[run_id] = str(info.get("artifact_uri"))
            if run_name := tags.get("mlflow.runName"):
                info.setdefault("run_name", run_name)  # there alone before MLflow 1.29
    for question, (status, body) in answers.items():
        if "/get-artifact?run_id=" in question:
            run_id, path = question.split("run_id=")[1].split("&path=")
            there.objects["artifact", f"{roots[run_id]}/{path}"] = {"status": status, "bytes": body}
        elif "metrics/get-history" in question and status == 200:
            asked = json.loads(question.split(" ", 2)[2])
            key = "run", named.of(asked["run_id"])
            points = {
                (int(m.get("step", 0)), int(m["timestamp"]), m["value"]) for m in body["metrics"]
            }
            histories = there.objects[key].setdefault("histories", {})
            histories.setdefault(asked["metric_key"], set()).update(points)
        elif "/mlflow-artifacts/artifacts/" in question:
            place = named.put_text("mlflow-artifacts:" + question.split("/artifacts", 1)[1])
            there.objects["artifact", place] = {"status": status, "bytes": body}
        elif '"filter"' in question and "traces/search" in question and status == 200:
            linked_to = named.put_text(json.loads(question.split(" ", 2)[2])["filter"])
            for trace in body.get("traces", ()):
                whole = there.objects["trace", named.of(trace["trace_id"])]
                whole.setdefault("links", {})[linked_to] = True
        elif "/traces/get " in question and status == 200:
            key = "trace", named.of(body["trace"]["trace_info"]["trace_id"])
            there.objects[key]["spans"] = named.put(plain(body["trace"]["spans"]))
    there.objects = {key: of for key, of in there.objects.items() if not _is_carrier(key, of)}
    return there


def _placed(value: Any, folder: str) -> Any:
    """Return answers as if their server handed its files out."""
    if isinstance(value, str):
        return value.replace(folder, "mlflow-artifacts:")
    if isinstance(value, dict):
        return {key: _placed(inner, folder) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_placed(inner, folder) for inner in value)
    return value


def _is_carrier(key: Key, document: dict[str, Any]) -> bool:
    """Whether something holds files for others, as the lines of these say."""
    kind, name = key
    return ARTIFACT_RUNS in (name, _at(document, "info.experiment_id")) or (
        kind == "artifact" and f"/{ARTIFACT_RUNS}/" in name
    )


class _Names:
    """What ids stand for: an object's id at its first source, else its name."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._experiments: dict[str, str] = {}

    def learn(self, kind: str, id_field: str, naming: str, document: dict[str, Any]) -> None:
        identity = str(_at(document, id_field) or "")
        for key, value in (document.get("tags") or {}).items():
            if key.startswith(LOGGED_MODEL):  # no other tag is left of its origin
                self._names[value.split()[0]] = key.removeprefix(LOGGED_MODEL)
        if secret := document.get("secret_id"):
            self._names[secret] = document["secret_name"]
        if kind == "experiment":
            self._experiments[identity] = document["name"]
        elif identity:
            tags = _at(document, "tags") or _at(document, "info.tags") or _at(document, "data.tags")
            origin = str((tags or {}).get(ORIGIN, "")).rpartition(" ")[2]
            by_name = (
                identity if naming == id_field else f"{kind} {_joined(self.put(document), naming)}"
            )
            self._names[identity] = origin or by_name

    def of(self, identity: str) -> str:
        return self._names.get(identity, identity)

    def put(self, value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {
                key: self.put(inner, key)
                for key, inner in value.items()
                if not is_provenance(key)
                and key not in _EMBEDDED
                and (key, inner) != ("workspace", "default")  # MLflow before 3.10 does not name it
            }
        if isinstance(value, list):
            return sorted((self.put(inner, name) for inner in value), key=_order)
        if name in {"experiment_id", "experiment_ids", "_mlflow_experiment_ids"}:
            return ",".join(self._experiments.get(i, i) for i in str(value).split(","))
        return self.put_text(value) if isinstance(value, str) else value

    def put_text(self, text: str) -> str:
        def place(found: re.Match[str]) -> str:
            return f"{found[1]}{self._experiments.get(found[2], found[2])}"

        text = re.sub(r"(mlflow-artifacts:/)([0-9]+)(?=/|$)", place, text)
        return re.sub(r"[\w-]{32,}", lambda found: self.of(found[0]), text)


def _order(value: Any) -> str:
    """Return what the elements of a list are sorted by: not what every deployment sets anew."""
    if isinstance(value, dict):
        value = {k: v for k, v in value.items() if not re.search(_SET_ANEW, k)}
    return json.dumps(value, sort_keys=True, default=repr)


def _answered(answers: dict[str, Any], rule: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    asked, place, *_ = rule
    for question, (status, body) in answers.items():
        if status == 200 and re.search(asked, question):
            found = _at(body, place.removesuffix("[]"))
            found = json.loads(found) if isinstance(found, str) else found
            for document in found or () if place.endswith("[]") else [found]:
                yield _trace(document) if "/traces" in question else document


def _trace(document: dict[str, Any]) -> dict[str, Any]:
    """Return REST's ``TraceInfoV3``, or ``TraceInfo`` in its form, with times in ms."""
    if "request_id" in document:
        given = {k: v for k, v in document.items() if k not in {"experiment_id", *_OF_V2}}
        given |= {name: document[old] for old, name in _OF_V2.items() if old in document}
        numbers = {name: int(given[name]) for name in _TIMES_OF_TRACE if name in given}
        where = {"mlflow_experiment": {"experiment_id": document["experiment_id"]}}
        return given | numbers | {"trace_location": {"type": "MLFLOW_EXPERIMENT", **where}}
    started = datetime.fromisoformat(document["request_time"].replace("Z", "+00:00"))
    given = document | {"request_time": round(started.timestamp() * 1000)}
    if lasted := document.get("execution_duration"):
        given["execution_duration"] = round(float(lasted.removesuffix("s")) * 1000)
    return given


def plain(value: Any) -> Any:
    """Turn lists of keys and values into objects, and JSON text of tags."""
    if isinstance(value, dict):
        return {key: _plain_field(key, inner) for key, inner in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(e, dict) and {"key"} <= e.keys() for e in value):
            return {
                e["key"]: plain(e["value"] if e.keys() == {"key", "value"} else e) for e in value
            }
        return [plain(element) for element in value]
    return value


def _plain_field(name: str, value: Any) -> Any:
    if isinstance(value, str) and value[:1] == "{" and name in {"tags", "schema", "profile"}:
        return json.loads(value)
    is_number = re.search(rf"{_TIMES}|^timestamp$|^step$", name)
    if isinstance(value, str) and is_number and re.fullmatch("-?[0-9]+", value):
        return int(value)  # a text before MLflow 1.23
    return plain(value)


def _at(document: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        document = document.get(name) if isinstance(document, dict) else None
    return document if path else None


def _without(document: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a document without its own id."""
    first, _, rest = path.partition(".")
    left = {k: v for k, v in document.items() if k != first}
    return left | {first: _without(document[first], rest)} if rest else left


def _joined(document: dict[str, Any], naming: str) -> str:
    found = [_at(document, name) for name in naming.split()]
    return " ".join(v if isinstance(v, str) else json.dumps(v, sort_keys=True) for v in found)


Difference = tuple[str, str, str, Any, Any]
"""Kind, name and path, and the value at the source and at the target."""


def differences(source: Deployment, target: Deployment) -> Iterator[Difference]:
    """Yield all that differs, ids too."""
    for kind, name in sorted({*source.objects, *target.objects}):
        one, two = source.objects.get((kind, name)), target.objects.get((kind, name))
        if kind == "artifact" and one and two and {0, 500} & {one["status"], two["status"]}:
            continue  # a server that cannot send it
        if one is None or two is None:
            yield kind, name, "*", one and "there", two and "there"
            continue
        if (id_a := source.ids.get((kind, name))) != (id_b := target.ids.get((kind, name))):
            yield kind, name, "id", id_a, id_b
        for path, a, b in _fields(one, two, ""):
            yield kind, name, path, a, b


def _fields(a: Any, b: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a or b, dict) and isinstance(a or {}, dict) and isinstance(b or {}, dict):
        a, b = a or {}, b or {}
        for key in sorted({*a, *b}):
            yield from _fields(a.get(key), b.get(key), f"{path}.{key}" if path else key)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and a != b:
        for one, two in zip(a, b, strict=True):
            yield from _fields(one, two, f"{path}[]")
    elif a != b and (a or b or re.match(r"data\.(params|tags)\.", path)):  # an empty field is none
        yield path, a, b


_TIMES = r"(_at|_times?|_timestamp)(_ms)?$"
_WORDS = {
    "ids": r"^id$|\.mapping_id$",
    "ids of access endpoints": r"access_endpoints\[\]\.id$",
    "id": r"^id$",
    "times": _TIMES,
    "creation_timestamp": _TIMES,
    "user|users|creators?|created by": r"(user_id|_by)$",
    "status": r"status(_message)?$",
    "disabled": "^status$",
    "digests": "digest$",
    "secret": r"(^|definition\.)secret_(id|name)$",
    "spans are": "^spans$",
    "links of spans": r"^spans\[\]\.links",
    "assessments?": "^assessments",
    "links?": "^links",
    "does not have them|has no logged models|shows no deleted|is one of the first": r"^\*$",
    "its source is .* of run": "^(source|run_id)$",
    "its source is": "^source$",
    "inputs and outputs": "^(inputs|outputs)",
    "dataset inputs": r"^inputs\.dataset_inputs",
    "alias": "^aliases",
    "tags .* reads differently|no tags of experiments": r"^tags\.",
    "its id": "^id$",
}
"""Words of a line, and the fields that they speak of."""
_WHOLE = r"^\*$"
_PARTS = {
    "param": ("run",),
    "tag": ("run", "experiment"),
    "metric_history": ("run",),
    "prompt_version": ("prompt_version", "model_version"),  # one without the tag of prompts
    "span": ("trace",),
    "assessment": ("trace",),
}


def unmatched(
    source: Deployment, target: Deployment, report: Report
) -> tuple[list[str], list[str]]:
    """Return the differences of which no line speaks, and the lines that speak of none."""
    lines = [(str(line.kind), line.id, line.what) for line in report.losses]
    lines += [(str(line.kind), line.id, line.reason) for line in (*report.failures, *report.skips)]
    speaking: set[int] = set()
    silent = []
    for difference in differences(source, target):
        found = {n for n, line in enumerate(lines) if _speaks(line, difference, source)}
        speaking |= found
        if not found:
            silent.append(": ".join(str(part)[:90] for part in difference))
    for number, line in enumerate(lines):
        if number not in speaking and _leads_nowhere(line, source):
            speaking.add(number)
    return silent, [str(line) for number, line in enumerate(lines) if number not in speaking]


def _speaks(line: tuple[str, str, str], difference: Difference, source: Deployment) -> bool:
    kind, name, path, *_ = difference
    of_kind, identity, what = line
    if kind == "artifact" and path == "*" and identity in name:
        return True  # what has files is not there as a whole
    if found := re.match(r"alias .* of version (\d+) is not set", what):
        model = kind.replace("model_version", "registered_model").removesuffix("_version")
        if (model, name, path) == (of_kind, f"{identity} {found[1]}", "aliases"):
            return True
    if kind not in _PARTS.get(of_kind, (of_kind,)) or not _is_of(identity, kind, name, source):
        return False
    if of_kind in ("param", "tag") and path.endswith(f"s.{identity.partition('/')[2]}"):
        return True
    if of_kind == "metric_history" and "refuses" in what:
        key = identity.partition("/")[2]
        return path == f"histories.{key}" or path.startswith(f"data.metrics.{key}.")
    if found := re.match(r"metric (\S+) at step", what):
        return path.startswith(f"data.metrics.{found[1]}.")
    if found := re.match(r"the target (?:cannot keep|makes) (\w+)", what):
        return path == found[1]
    return any(
        re.search(rf"\b({word})\b", what) and re.search(fields, path)
        for word, fields in _WORDS.items()
    ) or any(path.endswith(field) for field in re.findall(r"\bmlflow\.[\w.]*\w", what))


def _is_of(identity: str, kind: str, name: str, source: Deployment) -> bool:
    """Whether the id in a line is an object's: ``*`` is all of its kind."""
    own = source.ids.get((kind, name), name)
    return (
        identity == "*"
        or any(
            identity.replace(" ", "/") == known.replace(" ", "/")
            or identity.startswith(f"{known}/")
            for known in (own, name)
        )
        or f" {identity} " in f" {name} "
    )


def _leads_nowhere(line: tuple[str, str, str], source: Deployment) -> bool:
    """Whether a line names what is as it was, and leads nowhere: an id, or one inside of a file."""
    kind, identity, what = line
    known = {*source.ids.values()}
    documents = [
        document
        for (of_kind, name), document in source.objects.items()
        if of_kind == kind and _is_of(identity, of_kind, name, source)
    ]
    if what == "it is there already":
        return True
    if "gone from the source" in what or re.search("keeps the (old|source.s) id", what):
        return any(set(_ids_in(repr(document))) - known for document in documents)
    if "files that mention its old ids" in what:
        held = [
            document["bytes"]
            for (of_kind, name), document in source.objects.items()
            if of_kind == "artifact" and identity in name
        ]
        return not held or any(known & {*_ids_in(repr(data))} for data in held)  # of deleted ones
    return False


def _ids_in(text: str) -> list[str]:
    return re.findall(r"(?:[a-z]+-)?[0-9a-f]{32}", text)
