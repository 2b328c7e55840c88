"""Source tags: what an object was where it came from, under the names of years of exports.

Two generations of names are written, every one that is known is read (spec, "Source tags"). The
tags of one transfer share a root and a number; the first has none, and no later one touches it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.objects import (
    Entity,
    Experiment,
    Kind,
    LoggedModel,
    ModelVersion,
    RegisteredModel,
    Run,
    key_values,
)
from mlflow_exim_plugin.schema.provenance import (
    ORIGIN,
    experiment_origin,
    is_provenance,
    model_origin,
    told,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlflow_exim_plugin.schema.envelope import System

__all__ = [
    "RUN_ID_TAGS",
    "SourceRecord",
    "Tagged",
    "export_tags",
    "import_tags",
    "is_or_was",
    "is_source_tag",
    "later_source_tags",
    "sources_of",
    "tags_of",
]

Tagged = Experiment | Run | LoggedModel | RegisteredModel | ModelVersion | Entity
"""What can carry source tags; of the entities, evaluation datasets alone have tags."""

_IMPORT_ROOT = "mlflow_exim"
_EXPORT_ROOT = "mlflow_export_import"
_MLFLOW = "mlflow."
_NAME = re.compile(
    rf"(?P<root>{_IMPORT_ROOT}|{_EXPORT_ROOT})[._]"
    r"(?:hop_(?P<number>[1-9]\d{0,3})[._])?"
    r"(?P<part>run_info|field|mlflow_tag|mlflow(?!_exim)|tag|metadata"
    r"|src_version|src_run[._]mlflow|src_client|mlflow_exim[._]dst_client)"
    r"[._](?P<name>.+)",
    re.DOTALL,
)
"""Names as they stand in tags; a registry that refuses dots has underscores."""
_FIELDS = {"run_info", "field", "src_version"}
_TAGS = {"mlflow_tag", "mlflow", "tag", "src_run.mlflow"}
_METADATA_FIELDS = {"user_id", "run_id", "experiment_id"}
"""What the first exports kept as metadata and later ones as ``run_info``."""
_KEPT_AS_THEMSELVES = {"tags", "aliases", "description", "records"}
RUN_ID_TAGS = (
    f"{_IMPORT_ROOT}.run_info.run_id",
    f"{_EXPORT_ROOT}.run_info.run_id",
    f"{_EXPORT_ROOT}.metadata.run_id",
)
"""Tags of the first transfer of each generation that hold the id which a run had there."""
_ID_FIELDS = ("run_id", "model_id", "dataset_id")


@dataclass
class SourceRecord:
    """What an object was at an earlier server, as its copies remember it.

    Attributes:
        origin: What identified it there (spec, "Provenance tags"); empty where that is not known.
        server: Of the place: ``tracking_uri``, ``export_time_ms``, ``mlflow_version`` and others.
        fields: Its fields there, such as ``run_id`` and ``user_id``, as text.
        tags: Its ``mlflow.`` tags there, without the prefix.
        names: Roots of the tags that say so; empty where only ``mlflow.exim.origin`` does.
    """

    origin: str = ""
    server: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


def is_source_tag(key: str) -> bool:
    """Whether a tag's name is one that an import or export of whatever age wrote."""
    return _NAME.fullmatch(key) is not None


def tags_of(item: Tagged) -> dict[str, str]:
    """Return an object's tags by key."""
    if isinstance(item, Run | LoggedModel):
        return item.tags
    return key_values(item.document.get("tags"))


def import_tags(item: Tagged, system: System) -> dict[str, str]:
    """Return the tags that keep on a copy what the target sets anew.

    Args:
        item: The object at the source.
        system: Where and when it was read.
    """
    tags = tags_of(item)
    prefix = _next_prefix(_IMPORT_ROOT, tags)
    part = "run_info" if isinstance(item, Run) else "field"
    made = {f"{prefix}{part}.{name}": text for name, text in _texts(item).items()}
    for key, value in tags.items():
        if key.startswith(_MLFLOW) and not is_provenance(key):
            made[f"{prefix}mlflow_tag.{key[len(_MLFLOW) :]}"] = value
    made[f"{prefix}src_client.tracking_uri"] = system.mlflow_tracking_uri
    made[f"{prefix}src_client.export_time_ms"] = str(system.export_time_ms)
    return made


def export_tags(run: Run, experiment_name: str, system: System) -> dict[str, str]:
    """Return the tags of the older generation, which a packed run itself carries.

    Args:
        run: The run at the source.
        experiment_name: Name of its experiment there.
        system: Where and when it was read.
    """
    prefix = _next_prefix(_EXPORT_ROOT, run.tags)
    made = {
        f"{prefix}mlflow.{key[len(_MLFLOW) :]}": value
        for key, value in run.tags.items()
        if key.startswith(_MLFLOW) and not is_provenance(key)
    }
    made |= {f"{prefix}run_info.{name}": text for name, text in _texts(run).items()}
    metadata = {
        "mlflow_version": system.mlflow_version,
        "tracking_uri": system.mlflow_tracking_uri,
        "experiment_name": experiment_name,
        "timestamp": str(system.export_time),
        "timestamp_nice": system.export_time_text,
    }
    return made | {f"{prefix}metadata.{name}": text for name, text in metadata.items()}


def sources_of(item: Tagged) -> list[SourceRecord]:
    """Return where an object was before, oldest first; empty where no tag says so."""
    tags = tags_of(item)
    of_root: dict[str, list[SourceRecord]] = {_EXPORT_ROOT: [], _IMPORT_ROOT: []}
    for (root, _), names in sorted(_by_transfer(sorted(tags)).items()):
        record = SourceRecord(names=[root])
        for name in names:
            _note(record, name, tags[name[0]])
        record.origin = _origin(item.kind, record.fields)
        of_root[root].append(record)
    chain = _joined(of_root[_EXPORT_ROOT], of_root[_IMPORT_ROOT])
    origins = told(tags, ORIGIN).split()[::-1]
    if len(origins) == len(chain):
        for record, origin in zip(chain, origins, strict=True):
            record.origin = record.origin or origin
    return _joined(chain, [SourceRecord(origin) for origin in origins])


def later_source_tags(tags: Iterable[str], before: Iterable[str], most: int) -> list[str]:
    """Return the source tags of the transfers that a copy knows and what it was made from does not.

    Args:
        tags: Names of the copy's tags.
        before: Those of what it was made from.
        most: How many transfers may be new; none is told where there are more.
    """
    of_copy, known = _by_transfer(tags), _by_transfer(before)
    new = {transfer: names for transfer, names in of_copy.items() if transfer not in known}
    if len({number for _, number in new}) > most:
        return []
    return [name[0] for names in new.values() for name in names]


def is_or_was(item: Tagged, identity: str) -> bool:
    """Whether an object has this id, or had it at an earlier place."""
    return item.id == identity or any(record.origin == identity for record in sources_of(item))


def _texts(item: Tagged) -> dict[str, str]:
    """Return an object's fields as text, without those that every copy keeps as themselves."""
    document = item.info if isinstance(item, Run | LoggedModel) else item.document
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in document.items()
        if name not in _KEPT_AS_THEMSELVES and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(entry, str | int) for entry in value)
    return isinstance(value, str | int | float)


def _by_transfer(tags: Iterable[str]) -> dict[tuple[str, int], list[re.Match[str]]]:
    """Return the names of the source tags of each transfer, by root and number."""
    found: dict[tuple[str, int], list[re.Match[str]]] = {}
    for key in tags:
        if match := _NAME.fullmatch(key):
            found.setdefault((match["root"], int(match["number"] or 1)), []).append(match)
    return found


def _next_prefix(root: str, tags: Iterable[str]) -> str:
    """Return how the names of the next transfer begin, after those that are there."""
    there = [number for its_root, number in _by_transfer(tags) if its_root == root]
    return f"{root}.hop_{max(there) + 1}." if there else f"{root}."


def _note(record: SourceRecord, match: re.Match[str], value: str) -> None:
    part, name = match["part"].replace("src_run_", "src_run."), match["name"]
    if part == "metadata":
        name = name.replace("-", "_")  # as the first exports wrote them
    if part in _FIELDS or (part == "metadata" and name in _METADATA_FIELDS):
        record.fields[name] = value
    elif part in _TAGS:
        record.tags[name] = value
    elif part in ("metadata", "src_client"):
        record.server[name] = value


def _origin(kind: Kind, fields: Mapping[str, str]) -> str:
    """Return the origin that an object with these fields has, empty where they do not tell."""
    if kind is Kind.EXPERIMENT and "experiment_id" in fields:
        return experiment_origin(_with_number(fields, "creation_time"))
    if kind in (Kind.REGISTERED_MODEL, Kind.PROMPT) and "creation_timestamp" in fields:
        return model_origin(_with_number(fields, "creation_timestamp"))
    if kind in (Kind.MODEL_VERSION, Kind.PROMPT_VERSION):
        return ""
    return next((fields[name] for name in _ID_FIELDS if name in fields), "")


def _with_number(fields: Mapping[str, str], name: str) -> dict[str, Any]:
    text = fields.get(name, "")
    return {**fields, name: int(text)} if text.isdecimal() else dict(fields)


def _joined(chain: list[SourceRecord], other: list[SourceRecord]) -> list[SourceRecord]:
    """Join two accounts of the same way, each oldest first; what both tell becomes one record."""
    joined = list(chain)
    place = len(joined)
    for record in reversed(other):
        same = next(
            (i for i, known in enumerate(joined) if record.origin == known.origin != ""), None
        )
        if same is None:
            joined.insert(place, record)
            continue
        known, place = joined[same], same
        known.server = record.server | known.server
        known.fields = record.fields | known.fields
        known.tags = record.tags | known.tags
        known.names = list(dict.fromkeys([*known.names, *record.names]))
    return joined
