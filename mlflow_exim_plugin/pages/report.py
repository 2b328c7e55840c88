"""``report``: what is in an archive, as one page that can be mailed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import orjson

from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.operations.ends import ARCHIVES, open_source
from mlflow_exim_plugin.operations.look.meaning import with_run_ids
from mlflow_exim_plugin.operations.proving.sign import unchecked_signatures
from mlflow_exim_plugin.options import Opening, Publishing, Selection, flat
from mlflow_exim_plugin.pages.experiments import ExperimentSection, Share
from mlflow_exim_plugin.pages.page import page
from mlflow_exim_plugin.schema.objects import (
    Entity,
    Experiment,
    Failure,
    Kind,
    LoggedModel,
    ModelVersion,
    RegisteredModel,
    Run,
)
from mlflow_exim_plugin.storage.output import atomic_output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_exim_plugin.operations.ends import OpenSource
    from mlflow_exim_plugin.schema.envelope import LogEvent
    from mlflow_exim_plugin.sources.archive.archive import Archive

__all__ = ["ReportPage", "report"]

_MOST_NAMED = 500
_MOST_VERSIONS = 200
"""Of one model; the last ones."""


@dataclass(frozen=True)
class ReportPage:
    """A page that was written.

    Attributes:
        size_bytes: Its size.
        experiments: Experiments on it.
        runs: Runs of these.
        unreadable: What of the archive could not be read for it.
    """

    size_bytes: int
    experiments: int
    runs: int
    unreadable: list[Failure] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when all could be read."""
        return not self.unreadable


@flat()
def report(
    archive: str,
    output: str,
    *,
    opening: Opening = Opening(),
    selection: Selection = Selection(),
    publishing: Publishing = Publishing(),
) -> ReportPage:
    """Write one HTML page that tells what an archive holds, which fetches nothing when opened.

    Args:
        archive: Path or fsspec URL of the archive.
        output: Path or fsspec URL of the page.
        opening: How the two are opened; each option is a keyword of its own too, here and below.
        selection: What to tell of; everything without it.
        publishing: How the page is written.

    Raises:
        NotFoundError: The archive, or a name or id in the selection, is not there.
        InvalidArchiveError: The archive cannot be opened.
        UnsupportedFormatError: The archive needs a newer reader.
        ArchiveExistsError: There is a file at ``output`` and ``overwrite`` is false.
        StoreError: One of the two cannot be read or written.
        MissingDependencyError: Jinja2 is not installed.
    """
    with (
        atomic_output(
            output, overwrite=publishing.overwrite, storage_options=opening.storage_options
        ) as file,
        open_source(archive, opening, among=(ARCHIVES,)) as source,
    ):
        assert source.archive is not None  # noqa: S101 - nothing else was asked for
        told = _Told(source, source.archive, with_run_ids(selection, source.archive))
        signatures = unchecked_signatures(
            archive, source.archive.reader.root, opening.storage_options
        )
        text = told.page(list(map(str, signatures)))
        file.write(text)
    return ReportPage(
        len(text), len(told.parts), sum(part["runs"] for part in told.parts), told.unreadable
    )


class _Told:
    """What a page tells of an archive, read in one pass."""

    def __init__(self, source: OpenSource, archive: Archive, selection: Selection) -> None:
        self._archive = archive
        self._name = source.name
        self.parts: list[dict[str, Any]] = []
        self.unreadable: list[Failure] = []
        self._data: list[bytes] = []
        self._models: dict[Kind, list[dict[str, Any]]] = {}
        self._share = Share.among(
            [len(tree.runs.get(e, ())) for tree in self._archive.trees for e in tree.experiments]
        )
        self._workspace = ""
        self._open: ExperimentSection | None = None
        for item in source.stream.stream(replace(selection, traces=False)):
            self._add(item)
        self._close()

    def _add(self, item: Any) -> None:
        match item:
            case Failure():
                self.unreadable.append(item)
            case Experiment():
                self._close()
                name = f"{self._workspace}{item.name}"
                self._open = ExperimentSection(
                    item, name, self._share, traces=self._traces(item.id)
                )
            case Run() if self._open is not None:
                self._open.add(item)
            case LoggedModel() if self._open is not None:
                self._open.logged_models += 1
            case RegisteredModel():
                self._close()
                model = {"name": f"{self._workspace}{item.name}", "versions": []}
                model["description"] = item.document.get("description", "")
                self._models.setdefault(item.kind, []).append(model)
            case ModelVersion():
                self._last_model(item)["versions"].append(_version(item))
            case Entity() if item.kind is Kind.WORKSPACE:
                self._close()
                self._workspace = f"{item.id} / "

    def _close(self) -> None:
        """End an experiment: its runs are let go of."""
        if self._open is not None:
            self._data.append(orjson.dumps(self._open.data()))
            self.parts.append(self._open.words())
            self.unreadable += self._open.unreadable
            self._open = None

    def _last_model(self, version: ModelVersion) -> dict[str, Any]:
        kind = Kind.PROMPT if version.kind is Kind.PROMPT_VERSION else Kind.REGISTERED_MODEL
        return self._models[kind][-1]

    def _traces(self, experiment_id: str) -> int | None:
        try:
            return sum(part.mlflow.traces for part in self._archive.trace_parts(experiment_id))
        except InvalidArchiveError:
            return None

    def page(self, signatures: list[str]) -> bytes:
        """Return the page; what signatures say is told, and that nobody checked it."""
        summary = self._archive.summary
        info = summary.info
        return page(
            "archive.html.jinja",
            [orjson.Fragment(part) for part in self._data],
            {
                "name": self._name.split("?")[0].rstrip("/").rpartition("/")[2],
                "tiles": self._tiles(info.counts),
                "facts": _facts(self._archive, self._name),
                "root": self._archive.reader.root,
                "content_root": info.content_root,
                "signatures": signatures,
                "size_bytes": self._archive.reader.size_bytes,
                "artifact_bytes": info.artifact_bytes,
                "counts": [(kind, count.model_dump()) for kind, count in info.counts.items()],
                "failures": [entry.model_dump() for entry in info.failures],
                "losses": [entry.model_dump() for entry in info.lossy],
                "left_out": [
                    entry.to_json() | {"at_least": entry.at_least} for entry in info.not_packed
                ],
                "unreadable": self.unreadable,
                "most_named": _MOST_NAMED,
                "registries": [
                    ("Models", _last_versions(self._models.get(Kind.REGISTERED_MODEL, []))),
                    ("Prompts", _last_versions(self._models.get(Kind.PROMPT, []))),
                ],
                "experiments": self.parts,
            },
        )

    def _tiles(self, counts: Mapping[str, Any]) -> list[tuple[str, str]]:
        info = self._archive.summary.info
        of_kinds = (Kind.EXPERIMENT, Kind.RUN, Kind.REGISTERED_MODEL, Kind.TRACE)
        written = [(counts[str(k)].written if str(k) in counts else 0, k) for k in of_kinds]
        return [
            *(
                (f"{n:,}", f"{str(kind).replace('_', ' ')}{'' if n == 1 else 's'}")
                for n, kind in written
            ),
            (f"{info.metric_rows:,}", "metric rows"),
        ]


def _facts(archive: Archive, name: str) -> list[tuple[str, str]]:
    summary = archive.summary
    system, info = summary.system, summary.info
    facts = [
        ("Packed (UTC)", system.export_time_text),
        ("From", system.mlflow_tracking_uri),
        ("By", system.user),
        ("With", f"mlflow-exim-plugin {system.package_version}, MLflow {system.mlflow_version}"),
        ("On", f"{system.platform.system}, Python {system.platform.python_version}"),
        ("Command", system.script),
        ("Format", f"mlflow-exim-archive {system.format_version}"),
        ("Read from", name),
    ]
    if info.read_as:
        facts.append(("Read as", info.read_as))
    if selection := summary.mlflow.selection:
        facts.append(("Selection", orjson.dumps(selection).decode()))
    facts += [
        ("Taken from", f"{taken.get('archive')}, root sha256:{taken.get('root')}")
        for taken in info.taken_from
    ]
    facts += [("Taken out", _rules_told(rules)) for rules in info.redacted]
    for number, event in enumerate(_log(archive), 1):
        by = event.system
        step = f"{by.export_time_text}, {by.user}: {by.script} from {by.mlflow_tracking_uri}"
        facts.append((f"Step {number} (UTC)", step))
    return [(label, value) for label, value in facts if value]


def _rules_told(told: Mapping[str, Any]) -> str:
    """Return what a file of rules took out, as far as the archive tells it as the format has it."""
    parts = [f"by {told.get('name') or 'rules'} sha256:{told.get('sha256')}"]
    rules = told.get("rules")
    for rule in rules if isinstance(rules, list) else ():
        if isinstance(rule, dict):
            fields = rule.get("fields")
            named = ", ".join(map(str, fields)) if isinstance(fields, list) else ""
            changed, dropped = _sum(rule.get("fields_changed")), _sum(rule.get("files_dropped"))
            parts.append(f"{rule.get('action')} {named}: {changed:,} fields, {dropped:,} files")
    return "; ".join(parts)


def _sum(counts: Any) -> int:
    listed = counts.values() if isinstance(counts, dict) else ()
    return sum(count for count in listed if isinstance(count, int))


def _log(archive: Archive) -> list[LogEvent]:
    try:
        return archive.log
    except InvalidArchiveError:
        return []  # `verify` tells; a page tells what can be read


def _version(item: ModelVersion) -> dict[str, Any]:
    document = item.document
    created = document.get("creation_timestamp")
    stage = document.get("current_stage", "")
    return {
        "number": item.version,
        "aliases": document.get("aliases") or [],
        "stage": "" if stage == "None" else stage,
        "run_id": document.get("run_id", ""),
        "created": _time_text(created),
    }


def _last_versions(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return models by name, each with its last versions, the last one first."""
    told = []
    for model in sorted(models, key=lambda model: str(model["name"])):
        versions = sorted(model["versions"], key=lambda version: -int(version["number"]))
        more = max(len(versions) - _MOST_VERSIONS, 0)
        told.append({**model, "versions": versions[:_MOST_VERSIONS], "more": more})
    return told


def _time_text(time_ms: Any) -> str:
    try:
        moment = datetime.fromtimestamp(int(time_ms) / 1000, timezone.utc)
    except (TypeError, ValueError, OverflowError, OSError):
        return "" if time_ms is None else f"{time_ms} ms"
    return moment.strftime("%Y-%m-%d %H:%M:%S")
