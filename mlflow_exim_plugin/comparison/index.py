"""One side's stream in a temporary database: memory holds neither side."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import zstandard

from mlflow_exim_plugin.comparison.histories import history_digests
from mlflow_exim_plugin.comparison.identity import Identities
from mlflow_exim_plugin.errors import EximError, ServerLostError
from mlflow_exim_plugin.schema.digests import sha256_of_stream
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Experiment,
    Failure,
    Kind,
    Loss,
    ModelVersion,
    NotThere,
    Run,
    Trace,
    Unpacked,
    closed_after,
    model_only_told,
)
from mlflow_exim_plugin.schema.provenance import ARTIFACT_RUNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from mlflow_exim_plugin.comparison.result import Comparison
    from mlflow_exim_plugin.schema.metric_rows import RunRows
    from mlflow_exim_plugin.schema.objects import StreamItem, StreamObject

__all__ = ["SIDES", "A", "B", "ComparisonIndex"]

A, B = 0, 1
SIDES = ("a", "b")

_HASHERS = 2
_COMMIT_EVERY = 5000
_IDS_REMEMBERED = 100_000

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
CREATE TABLE object (
    number INTEGER PRIMARY KEY,
    side INTEGER NOT NULL,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    label TEXT NOT NULL,
    own TEXT NOT NULL,
    oldest TEXT NOT NULL,
    natural TEXT NOT NULL,
    owner INTEGER,
    is_ours INTEGER NOT NULL,
    partner INTEGER,
    document BLOB NOT NULL
);
CREATE TABLE part (
    object INTEGER NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (object, kind, name)
) WITHOUT ROWID;
CREATE TABLE free (
    side INTEGER NOT NULL,
    name TEXT NOT NULL,
    nth INTEGER NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (side, name, nth)
) WITHOUT ROWID;
CREATE TABLE pair (a INTEGER PRIMARY KEY, b INTEGER NOT NULL UNIQUE);
"""
_INDEXES = """
CREATE INDEX by_id ON object (kind, id, side);
CREATE INDEX by_own ON object (kind, own);
CREATE INDEX by_oldest ON object (kind, oldest);
"""


_AT_B = "b.side = 1 AND b.kind IN ('run', 'logged_model')"
_COPY_AT_B = "b.side = 1 AND b.kind IN ('experiment', 'run', 'logged_model')"
_SAME_ID = "EXISTS (SELECT 1 FROM object s WHERE s.kind = b.kind AND s.own = b.own AND s.side = 0)"


class ComparisonIndex:
    """The objects of both sides, without their bulk.

    Args:
        path: File to write, in a folder that somebody takes away.

    Attributes:
        database: That file.
    """

    def __init__(self, path: Path) -> None:
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.executescript(_TABLES)
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()
        self._not_there: list[NotThere] = []
        self.meaning = lru_cache(_IDS_REMEMBERED)(self._meaning)

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def query(self, sql: str, *values: Any) -> Iterator[Any]:
        """Yield the rows of a query."""
        yield from self.database.execute(sql, values)

    def read(
        self,
        side: int,
        stream: Iterator[StreamItem],
        result: Comparison,
        *,
        hides_marks: bool,
        progress: Callable[[str, int], None] | None = None,
    ) -> None:
        """Take one side in.

        Args:
            side: ``A`` or ``B``.
            stream: Of its source.
            result: Told what cannot be read, is not carried or is left out.
            hides_marks: Whether what an unpack has added for itself is left out.
            progress: Called with the side and the objects so far.

        Raises:
            ServerLostError: The side does not answer any more.
        """
        reading = _IndexReader(self, side, result, hides_marks=hides_marks)
        self.database.execute("BEGIN")
        with closed_after(stream), ThreadPoolExecutor(_HASHERS, "exim-hash") as hashers:
            for item in stream:
                if isinstance(item, NotThere):
                    self._not_there.append(item)
                elif isinstance(item, Failure):
                    result.unreadable.append((SIDES[side], item))
                elif isinstance(item, Unpacked):
                    result.not_compared.append((SIDES[side], item))
                elif not isinstance(item, Loss):
                    reading.take(item, hashers)
                    if reading.objects % _COMMIT_EVERY == 0:
                        self.database.execute("COMMIT")
                        self.database.execute("BEGIN")
                    if progress:
                        progress(SIDES[side], reading.objects)
        self.database.execute("COMMIT")
        reading.say_left_out()
        if side == B:
            # What one side has is told as an object that the other lacks.
            twice = Counter((missing.kind, missing.id) for missing in self._not_there)
            result.unreadable += [
                (SIDES[B], missing)
                for missing in dict.fromkeys(self._not_there)
                if twice[missing.kind, missing.id] > 1
            ]
            self.database.executescript(_INDEXES)

    def keeps_ids(self) -> bool:
        """Whether what is on both sides has the same ids: runs, logged models, experiments."""
        ((same,),) = self.query(
            f"SELECT EXISTS (SELECT 1 FROM object b WHERE {_AT_B} AND {_SAME_ID})"  # noqa: S608
        )
        ((copied,),) = self.query(
            "SELECT EXISTS (SELECT 1 FROM object b JOIN object a ON a.kind = b.kind "  # noqa: S608
            f"AND a.oldest = b.oldest AND a.side = 0 WHERE {_COPY_AT_B} AND NOT {_SAME_ID})"
        )
        return bool(same and not copied)

    def show_marks(self) -> None:
        """Take what an unpack has added for itself as everything else."""
        self.database.execute("UPDATE object SET is_ours = 0")

    def add(self, columns: tuple[Any, ...], document: dict[str, Any]) -> int:
        """Add an object; return its number."""
        text = json.dumps(document, separators=(",", ":")).encode()
        cursor = self.database.execute(
            "INSERT INTO object "
            "(side, kind, id, label, own, oldest, natural, owner, is_ours, document) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*columns, self._compressor.compress(text)),
        )
        return int(cursor.lastrowid or 0)

    def add_part(self, number: int, kind: Kind, name: str, value: dict[str, Any]) -> None:
        """Add a metric history or file of an object."""
        self.database.execute(
            "INSERT OR REPLACE INTO part VALUES (?, ?, ?, ?)",
            (number, kind.value, name, json.dumps(value)),
        )

    def document(self, number: int) -> dict[str, Any]:
        """Return the document of an object."""
        ((data,),) = self.query("SELECT document FROM object WHERE number = ?", number)
        found: dict[str, Any] = json.loads(self._decompressor.decompress(data))
        return found

    def parts(self, number: int, kind: Kind, folder: str = "") -> dict[str, dict[str, Any]]:
        """Return the histories or files of an object by name, those of a folder without it."""
        return {
            name[len(folder) :]: json.loads(value)
            for name, value in self.query(
                "SELECT name, value FROM part WHERE object = ? AND kind = ? "
                "AND substr(name, 1, ?) = ? ORDER BY name",
                number,
                kind.value,
                len(folder),
                folder,
            )
        }

    def find(self, side: int, kind: Kind, identity: str) -> list[int]:
        """Return the numbers of the objects with an id."""
        rows = self.query(
            "SELECT number FROM object WHERE kind = ? AND id = ? AND side = ?",
            kind.value,
            identity,
            side,
        )
        return [number for (number,) in rows]

    def _meaning(self, side: int, kind: Kind, identity: str) -> str | None:
        """Return what an id of a side stands for: the id that its object has at A.

        What is not there keeps its id; what an unpack made for itself stands for nothing.
        """
        rows = list(
            self.query(
                "SELECT object.is_ours, object.oldest, other.id FROM object LEFT JOIN object other "
                "ON other.number = object.partner "
                "WHERE object.kind = ? AND object.id = ? AND object.side = ? LIMIT 2",
                kind.value,
                identity,
                side,
            )
        )
        if len(rows) != 1:
            return identity
        is_ours, oldest, id_at_a = rows[0]
        if is_ours:
            return None
        if side == A:
            return identity
        return str(id_at_a if id_at_a is not None else oldest)


class _IndexReader:
    """Takes the objects of one stream in."""

    def __init__(
        self, index: ComparisonIndex, side: int, result: Comparison, *, hides_marks: bool
    ) -> None:
        self.objects = 0
        self._index = index
        self._side = side
        self._result = result
        self._hides_marks = hides_marks
        self._identities = Identities()
        self._owners: dict[tuple[Kind, str], int] = {}
        self._artifact_runs: set[str] = set()
        self._carried = 0

    def take(self, item: StreamObject, hashers: ThreadPoolExecutor) -> None:
        identity = self._identities.of(item)
        owner = self._owners.get(identity.owner) if identity.owner else None
        is_ours = self._is_of_an_unpack(item)
        document = item.document
        if isinstance(item, Trace):
            document = document | {"experiment_id": item.experiment_id, "spans": item.spans}
        elif isinstance(item, ModelVersion) and not model_only_told(document):
            document = {k: v for k, v in document.items() if k != "model_id"}  # said by the source
        number = self._index.add(
            (
                self._side,
                item.kind.value,
                identity.id,
                item.id,
                identity.own,
                identity.oldest,
                identity.natural,
                owner,
                is_ours,
            ),
            document,
        )
        self.objects += 1
        if item.kind in {Kind.EXPERIMENT, Kind.REGISTERED_MODEL, Kind.PROMPT}:
            self._owners[item.kind, item.id] = number
        for issue in getattr(item, "issues", ()):
            if isinstance(issue, Failure):
                self._unreadable(issue)
        if isinstance(item, Run):
            for history in history_digests(self._readable(item.histories)):
                key, rows, digest, stored = history
                value = {"rows": rows, "digest": digest, "stored": stored}
                self._index.add_part(number, Kind.METRIC_HISTORY, key, value)
        files = item.attachments if isinstance(item, Trace) else getattr(item, "artifacts", ())
        self._take_files(number, item, files, hashers)

    def say_left_out(self) -> None:
        """Name what an unpack has added for itself."""
        if self._artifact_runs:
            runs = f"{self._carried} runs hold files of other objects"
            what = f"experiment {ARTIFACT_RUNS}, whose {runs}"
            self._result.left_out.append((SIDES[self._side], what))

    def _is_of_an_unpack(self, item: StreamObject) -> bool:
        if not self._hides_marks:
            return False
        if isinstance(item, Experiment) and item.name == ARTIFACT_RUNS:
            self._artifact_runs.add(item.id)
            return True
        is_ours = getattr(item, "experiment_id", "") in self._artifact_runs
        self._carried += is_ours
        return is_ours

    def _readable(self, parts: Iterable[RunRows | Failure]) -> Iterator[RunRows]:
        for part in parts:
            if isinstance(part, Failure):
                self._unreadable(part)
            else:
                yield part

    def _take_files(
        self,
        number: int,
        item: StreamObject,
        files: Iterable[Artifact | Failure],
        hashers: ThreadPoolExecutor,
    ) -> None:
        under_way = []
        for file in files:
            if isinstance(file, Failure):
                self._unreadable(file)
            else:
                known = file.sha256 is not None
                under_way.append((file, None if known else hashers.submit(_hashed, file)))
        for file, hashing in under_way:
            try:
                digest, size = hashing.result() if hashing else (file.sha256, file.size_bytes)
            except ServerLostError:
                raise
            except EximError as error:
                name = f"{item.id}/{file.path}"
                self._unreadable(Failure(Kind.ARTIFACT, name, error.message))
                continue
            value = {"size_bytes": size, "sha256": digest}
            self._index.add_part(number, Kind.ARTIFACT, file.path, value)

    def _unreadable(self, failure: Failure) -> None:
        self._result.unreadable.append((SIDES[self._side], failure))


def _hashed(file: Artifact) -> tuple[str, int]:
    return sha256_of_stream(file.open())
