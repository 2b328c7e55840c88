"""The state of a set: every object that a snapshot has, and what tells whether it changed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.container.paths import decode_segment
from mlflow_exim_plugin.kinds import Kind
from mlflow_exim_plugin.schema.canonical import content_digest
from mlflow_exim_plugin.schema.digests import ContentRoot, raw_digest
from mlflow_exim_plugin.schema.objects import by_number
from mlflow_exim_plugin.sources.archive.snapshot.layers import state_table
from mlflow_exim_plugin.sources.archive.snapshot.tables import LAYER
from mlflow_exim_plugin.stages.marks import Marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlflow_exim_plugin.options import SelectionPart
    from mlflow_exim_plugin.sources.archive.snapshot.documents import SnapshotInfo
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder

__all__ = ["Row", "SetState"]

_PARTS = (
    "metric_keys",
    "metric_rows",
    "artifacts",
    "artifact_bytes",
    "spans",
    "assessments",
    "records",
)
_ROWS_AT_ONCE = 32 << 10
_PARTS_COUNTED = {
    "metric_keys": Kind.METRIC_HISTORY,
    "artifacts": Kind.ARTIFACT,
    "spans": Kind.SPAN,
    "assessments": Kind.ASSESSMENT,
    "records": Kind.DATASET_RECORD,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One object.

    Attributes:
        kind: Its kind.
        content_digest: 32 bytes.
        mark: See ``stages.marks``; empty where it is to be looked at again.
        member: Its envelope, where that is not what its name says.
        parts: How many rows, files and so on it has, by ``_PARTS``.
        start_ms: Of a run, when it began; ms since the Unix epoch.
        name: Of a workspace, experiment, registered model or prompt.
        block: The block of the archive that has it, None where that is not known.
    """

    kind: Kind
    content_digest: bytes
    mark: bytes = b""
    member: str = ""
    parts: tuple[int, ...] = (0,) * len(_PARTS)
    start_ms: int | None = None
    name: str = ""
    block: int | None = None


class _MarksOfRows(Mapping[str, bytes]):
    """The marks of objects by path; no second table of all paths."""

    def __init__(self, rows: Mapping[str, Row]) -> None:
        self._rows = rows

    def __getitem__(self, path: str) -> bytes:
        return self._rows[path].mark

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


@dataclass
class SetState:
    """All objects of a snapshot by path, see ``stages.marks.path_of``."""

    rows: dict[str, Row] = field(default_factory=dict)

    @classmethod
    def load(
        cls, folder: SetFolder, info: SnapshotInfo, part: SelectionPart | None = None
    ) -> SetState | None:
        """Return the state that a snapshot names, None where it names none.

        Args:
            folder: The set.
            info: What the snapshot says.
            part: The part that is needed of it.

        Raises:
            InvalidArchiveError: A table of it is damaged.
            NotFoundError: One is not there.
            StoreError: The store refused or died.
        """
        if part is None:
            table = state_table(folder, info)
        else:
            table = state_table(folder, info, _ranges_of(part))
        return None if table is None else cls.of_table(_of_part(table, part))

    @classmethod
    def of_table(cls, table: pa.Table) -> SetState:
        """Return the state that a table is, schema ``LAYER``."""
        rows = {}
        shared: dict[tuple[int, ...], tuple[int, ...]] = {}
        for batch in table.to_batches(_ROWS_AT_ONCE):
            columns = [batch.column(name).to_pylist() for name in LAYER.names]
            for path, kind, digest, mark, member, name, start_ms, *parts, block in zip(
                *columns, strict=True
            ):
                of = shared.setdefault(tuple(parts), tuple(parts))
                rows[path] = Row(Kind(kind), digest, mark, member, of, start_ms, name, block)
        return cls(rows)

    def table(self) -> pa.Table:
        """Return the state as a table, schema ``LAYER``."""
        return _table_of(self.rows)

    def changes_since(self, before: SetState) -> pa.Table:
        """Return what is new, changed or gone as a table, schema ``LAYER``."""
        changed: dict[str, Row | None] = {
            path: self.rows.get(path)
            for path, row in before.rows.items()
            if (now := self.rows.get(path)) is not row and now != row
        }
        new = ((path, row) for path, row in self.rows.items() if path not in before.rows)
        changed.update(new)
        return _table_of(changed)

    def marks(self) -> Marks:
        """Return what the source is compared with."""
        return Marks(_MarksOfRows(self.rows))

    def members(self) -> dict[str, str]:
        """Return the envelopes that have another path than their object's name says."""
        return {path: row.member for path, row in self.rows.items() if row.member}

    def folded(self) -> list[str]:
        """Return the envelopes whose paths may meet those of others: names that people give."""
        return [
            row.member or path
            for path, row in self.rows.items()
            if row.kind not in {Kind.EXPERIMENT, Kind.RUN, Kind.LOGGED_MODEL, Kind.TRACE}
        ]

    def settle_owners(self, documents: Mapping[str, dict[str, Any]]) -> None:
        """Give experiments, registered models and prompts the digest that they have in this state.

        Args:
            documents: What each has beside the ids of what belongs to it, by path.
        """
        lists: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for path in sorted(self.rows):
            row = self.rows[path]
            at = layout.object_at(path) if row.kind in _LISTED else None
            if at is None:
                continue
            name, owner = _LISTED[row.kind]
            folder = path.rsplit("/", 3)[0]
            identity: Any = decode_segment(at.segment)
            if row.kind in {Kind.MODEL_VERSION, Kind.PROMPT_VERSION}:
                identity = int(at.segment)
            lists[f"{folder}/{owner}"][name].append(identity)
        for path, document in documents.items():
            if path in self.rows:
                listed = lists[path]
                named = {"versions": sorted(listed["versions"])}
                if "experiment" in document:
                    named = {"runs": listed["runs"]}
                    if listed["logged_models"]:
                        named["logged_models"] = listed["logged_models"]
                digest = content_digest({**document, **named})
                self.rows[path] = replace(self.rows[path], content_digest=raw_digest(digest))

    def place(self, block_of: Callable[[str], int | None]) -> None:
        """Say of each object which archive has it.

        Args:
            block_of: Tells the block of an archive by the path of an envelope in it.
        """
        for path, row in self.rows.items():
            self.rows[path] = replace(row, block=block_of(row.member or path))

    def content_root(self) -> str:
        """Return the content root: that of one archive that holds this state."""
        root = ContentRoot()
        for path, row in self.rows.items():
            if row.kind is Kind.TRACE:
                root.add_traces(path.rpartition("traces/")[0], row.content_digest)
            else:
                root.add(path, f"sha256:{row.content_digest.hex()}")
        return root.hexdigest()

    def counts(self, failed: Iterable[tuple[Kind, int]] = ()) -> dict[str, dict[str, int]]:
        """Return the count law of each kind, see ``ArchiveInfo``."""
        written = Counter(row.kind for row in self.rows.values())
        for place, name in enumerate(_PARTS):
            if kind := _PARTS_COUNTED.get(name):
                written[kind] += sum(row.parts[place] for row in self.rows.values())
        lost: Counter[Kind] = Counter()
        for kind, count in failed:
            lost[kind] += count
        return {
            str(kind): {
                "found": written[kind] + lost[kind],
                "written": written[kind],
                "skipped": 0,
                "failed": lost[kind],
            }
            for kind in Kind
            if written[kind] or lost[kind]
        }

    def listing(self) -> dict[str, Any]:
        """Return what ``data/archive.json`` lists of an archive that holds this state."""
        trees: dict[str, dict[str, list[Any]]] = {layout.TREE: {}}
        names: dict[str, str] = {}
        named = [(path, row) for path, row in self.rows.items() if row.kind in _NAMED]
        for path, row in sorted(named, key=lambda one: _in_order(one[0])):
            at = layout.object_at(path)
            if at is None:
                continue
            tree = trees.setdefault(at.tree, {})
            if row.kind is Kind.WORKSPACE:
                names[at.tree] = row.name
                continue
            entry: Any = row.name
            if row.kind is Kind.EXPERIMENT:
                entry = {"experiment_id": decode_segment(at.segment), "name": row.name}
            tree.setdefault(_NAMED[row.kind], []).append(entry)
        default = trees.pop(layout.TREE)
        others = [{"name": names[tree], **of} for tree, of in trees.items()]
        return default | ({"workspaces": others} if others else {})

    def total(self, part: str) -> int:
        """Return the sum of one of the parts over all objects."""
        place = _PARTS.index(part)
        return sum(row.parts[place] for row in self.rows.values())

    def started(self) -> tuple[int | None, int | None]:
        """Return when the first and the last run began, ms since the Unix epoch."""
        times = [row.start_ms for row in self.rows.values() if row.start_ms is not None]
        return (min(times), max(times)) if times else (None, None)


def _table_of(rows: Mapping[str, Row | None]) -> pa.Table:
    """Return objects as a table, schema ``LAYER``; those that are None are gone."""
    paths = sorted(rows)
    listed = [rows[path] or _GONE for path in paths]
    columns = [
        paths,
        ["" if row is _GONE else str(row.kind) for row in listed],
        [row.content_digest for row in listed],
        [row.mark for row in listed],
        [row.member for row in listed],
        [row.name for row in listed],
        [row.start_ms for row in listed],
        *([row.parts[place] for row in listed] for place in range(len(_PARTS))),
        [row.block for row in listed],
    ]
    arrays = [pa.array(values, of.type) for values, of in zip(columns, LAYER, strict=True)]
    return pa.Table.from_arrays(arrays, schema=LAYER)


def _ranges_of(part: SelectionPart) -> list[tuple[str, str]]:
    """Return from where to where the paths of objects are that a part may have."""
    folders = [layout.experiment_folder(identity) for identity in part.experiments]
    folders.append(f"{layout.TREE}workspaces/")
    found = [(folder, _after(folder)) for folder in folders]
    if part.beside_experiments:
        of_experiments = f"{layout.TREE}experiments/"
        found += [("", of_experiments), (_after(of_experiments), _after(layout.TREE))]
    return found


def _after(folder: str) -> str:
    """Return what sorts after all that lies in a folder."""
    return folder[:-1] + chr(ord("/") + 1)


def _of_part(state: pa.Table, part: SelectionPart | None) -> pa.Table:
    """Return the objects that a part may have, and some more."""
    if part is None:
        return state
    ids = "|".join(map(re.escape, part.experiments))
    of_experiments = rf"/experiments/({ids})/" if part.experiments else "^$"
    matching = pc.match_substring_regex(state.column("path"), of_experiments)
    if part.beside_experiments:
        in_none = pc.invert(pc.match_substring(state.column("path"), "/experiments/"))
        matching = pc.or_(matching, in_none)
    return state.filter(matching)


_GONE = Row(Kind.RUN, bytes(32))
"""Stands for an object that left the state."""
_LISTED = {
    Kind.RUN: ("runs", "experiment.json"),
    Kind.LOGGED_MODEL: ("logged_models", "experiment.json"),
    Kind.MODEL_VERSION: ("versions", "model.json"),
    Kind.PROMPT_VERSION: ("versions", "model.json"),
}
"""What lists objects of a kind, and where."""
_NAMED = {
    Kind.WORKSPACE: "workspaces",
    Kind.EXPERIMENT: "experiments",
    Kind.REGISTERED_MODEL: "models",
    Kind.PROMPT: "prompts",
}
"""Where names are listed."""


def _in_order(path: str) -> list[tuple[int, str]]:
    return [by_number(segment) for segment in path.split("/")]
