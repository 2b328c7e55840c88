"""A snapshot read like an archive: the members of several archives that make one state.

Of two archives that have the same object, the one that was added later has it. What is said of all,
such as which runs an experiment has, is said anew. Source: spec/v1/set.md.
"""

from __future__ import annotations

import contextlib
import logging
from bisect import bisect_left, bisect_right
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.container.paths import decode_segment, encode_segment
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.refusal import refuse
from mlflow_exim_plugin.errors import NOTICE, EximError, InvalidArchiveError, NotFoundError
from mlflow_exim_plugin.kinds import VERSION_KINDS, Kind
from mlflow_exim_plugin.schema.canonical import content_digest
from mlflow_exim_plugin.schema.digests import raw_digest
from mlflow_exim_plugin.schema.envelope import (
    ExperimentEnvelope,
    LoggedModelEnvelope,
    ModelEnvelope,
    RunEnvelope,
    TracePartEnvelope,
    check_document,
)
from mlflow_exim_plugin.sources.archive.snapshot.lost import LostObject, StatedContent
from mlflow_exim_plugin.sources.archive.snapshot.tables import gone_paths

if TYPE_CHECKING:
    import io
    from collections.abc import Container, Iterable, Iterator

    from pyarrow import Schema

    from mlflow_exim_plugin.container.member_stream import Member
    from mlflow_exim_plugin.schema.stored_tables import StoredTable
    from mlflow_exim_plugin.sources.archive.snapshot.documents import PackEntry
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder, StoredSnapshot

__all__ = ["SnapshotReader"]

_log = logging.getLogger(__name__)

_OPENED_AT_ONCE = 8
_OWNERS = {Kind.WORKSPACE, Kind.EXPERIMENT, *VERSION_KINDS}
"""What others belong to. Each archive has those of what is in it."""
_RUN, _LOGGED_MODEL, _VERSION = "/run.json", "/logged_model.json", "/version.json"


class SnapshotReader:
    """The members of a snapshot, see ``Members``; safe to use from many threads.

    Args:
        folder: The set.
        snapshot: The snapshot.

    Attributes:
        name: The set and the snapshot's number, without credentials.
        root: Digest of the snapshot's bytes.
        size_bytes: Size of all its archives.
        format_version: The newest of its archives.
        packs: The archives that can be read, in the order in which they were added.
        pack_paths: Their paths below the set.
        lost: The objects of the state that none of them has.

    Raises:
        InvalidArchiveError: No archive can be read, or nothing tells what one had that is damaged,
            or another one than the snapshot says.
        NotFoundError: The same of one that is not there.
        StoreError: The store refused or died.
    """

    def __init__(self, folder: SetFolder, snapshot: StoredSnapshot) -> None:
        self.name = f"{folder} (snapshot {snapshot.number})"
        self.root = snapshot.sha256
        self.snapshot = snapshot
        info = snapshot.document.info
        self.lost: list[LostObject] = []
        with contextlib.ExitStack() as failing:
            opened = _opened(folder, info.packs, failing)
            read = {path: pack for path, pack in opened if isinstance(pack, ArchiveReader)}
            self.packs, self.pack_paths = [*read.values()], [*read]
            self._blocks = [pack.block for pack in info.packs if pack.path in read]
            self._gone = gone_paths(folder, info.gone) if info.gone else frozenset[str]()
            self._stale: dict[str, set[str]] = {}
            self._hidden: dict[str, dict[str, frozenset[str]]] = {}
            self._fill()
            unread = {path: of for path, of in opened if not isinstance(of, ArchiveReader)}
            if unread:
                self._go_without(folder, unread)
            failing.pop_all()
        self.size_bytes = sum(pack.size_bytes for pack in self.packs)
        self.format_version = max((pack.format_version for pack in self.packs), default=(1, 3))

    def close(self) -> None:
        """Let go of all archives."""
        for pack in self.packs:
            pack.close()

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def most_named(self) -> int:
        """See ``Members``."""
        return len(self)

    def folders_of(self, segment: str) -> None:
        """Tell of no id where it is: all paths are known."""
        del segment

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self._pack_of(path) is not None

    def members(self) -> Iterator[Member]:
        """Yield all members, sorted by path."""
        return map(self.member, self._paths)

    def paths(self, prefix: str = "") -> list[str]:
        """Return the paths that begin with ``prefix``, sorted."""
        start = bisect_left(self._paths, prefix)
        length = len(prefix)
        end = bisect_right(self._paths, prefix, lo=start, key=lambda path: path[:length])
        return self._paths[start:end]

    def holder(self, path: str) -> ArchiveReader:
        """Return the archive that a member lies in, any where no archive has it.

        Raises:
            NotFoundError: There is no archive at all.
        """
        if (pack := self._pack_of(path)) is not None:
            return pack
        for pack in self.packs:
            return pack
        raise NotFoundError(f"{self.name} has no member {path!r}")

    def block_of(self, path: str) -> int | None:
        """Return the block of the archive that a member lies in, None where no archive has it."""
        number = self._number_of(path)
        return None if number is None else self._blocks[number]

    def member(self, path: str) -> Member:
        """Return what is known of a member, as its archive has it."""
        return self._require(path).member(path)

    def read(self, path: str) -> bytes:
        """Return a member's bytes, as its archive has them."""
        return self._require(path).read(path)

    def open_member(self, path: str) -> io.BufferedReader:
        """Open a member as a seekable binary stream."""
        return self._require(path).open_member(path)

    def open_table(self, path: str, schema: Schema, code: str) -> StoredTable:
        """Open a member that is a Parquet table; to be closed by the caller."""
        return self._require(path).open_table(path, schema, code)

    def expect(self, paths: Iterable[str]) -> None:
        """Say which members will be read."""
        by_pack: dict[int, list[str]] = {}
        for path in paths:
            if (number := self._number_of(path)) is not None:
                by_pack.setdefault(number, []).append(path)
        for number, some in by_pack.items():
            self.packs[number].expect(some)

    def read_document(self, path: str) -> Any:
        """Return the value of a member that is a JSON document, what it lists as the state has it.

        Raises:
            NotFoundError: No such member.
            InvalidArchiveError: It is damaged, over a limit, or no JSON of the format.
            StoreError: The store refused or died.
        """
        if path == layout.ARCHIVE:
            return self.snapshot.document.to_json()
        value = self._require(path).read_document(path)
        if path in self._listed:
            return self._with_list(value, path, self._listed[path])
        found = layout.object_at(path)
        if found is not None and found.kind is Kind.TRACE:
            part = check_document(TracePartEnvelope, value, path)
            if (table := part.info.tables.get("traces")) is None:
                return value
            hidden = len(self.hidden_traces(table.member))
            traces = max(part.mlflow.traces - hidden, 0)
            return {**value, "mlflow": {**value["mlflow"], "traces": traces}}
        return value

    def hidden_traces(self, table: str) -> frozenset[str]:
        """Return the ids of traces of a part that a later archive has too, or that are gone."""
        folder, _, _ = table.rpartition("/")
        if folder not in self._hidden:
            self._hidden[folder] = self._hidden_in(f"{folder}/")
        return self._hidden[folder].get(table, frozenset())

    def _hidden_in(self, folder: str) -> dict[str, frozenset[str]]:
        """Return which traces are not to be seen by table, for the traces of an experiment."""
        from mlflow_exim_plugin.sources.archive.trace_parts import trace_ids

        parts = [path for path in self.paths(folder) if _is_part(path)]
        gone = {
            identity
            for path in self._gone
            if path.startswith(folder)
            and (identity := decode_segment(path.removeprefix(folder))) is not None
        } | self._stale.get(folder, set())
        numbers = {path: number for path in parts if (number := self._number_of(path)) is not None}
        if not gone and len({*numbers.values()}) < 2:
            return {}
        seen: set[str] = set()
        hidden: dict[str, frozenset[str]] = {}
        for number in sorted({*numbers.values()}, reverse=True):
            pack, found = self.packs[number], set[str]()
            for path in (path for path, of in numbers.items() if of == number):
                part = check_document(TracePartEnvelope, pack.read_document(path), path)
                ids = set(trace_ids(pack, part))
                if (table := part.info.tables.get("traces")) is not None:
                    hidden[table.member] = frozenset(ids & (seen | gone))
                found |= ids
            seen |= found
        return hidden

    def _fill(self) -> None:
        """Join the paths of all archives: a later one's objects stand for an earlier one's."""
        merged: dict[str, int] = {}
        for number, pack in enumerate(self.packs):
            for path in pack.paths(layout.TREE):
                before = merged.get(path)
                if before is not None and layout.table_of(path):
                    raise refuse(
                        InvalidArchiveError,
                        "N008",
                        self.packs[number].name,
                        f"has a table {path} as {self.packs[before].name} has",
                    )
                merged[path] = number
        merged.pop(layout.ARCHIVE, None)
        self._hold(merged, self._gone)

    def _hold(self, merged: dict[str, int], gone: Container[str]) -> None:
        """Take the members that lie in an archive of a number each, but for what is gone."""
        self._listed: dict[str, dict[str, list[str]]] = {}
        held: dict[str, int] = {}
        for path in sorted(merged):
            if path in gone:
                continue
            owner = _owner_of(path)
            if owner is not None and (owner in gone or merged.get(owner) != merged[path]):
                continue  # files of an object that is another archive's now, or nobody's
            held[path] = merged[path]
            self._note(path)
        self._paths = [*held]
        self._numbers = held

    def _go_without(self, folder: SetFolder, unread: dict[str, EximError]) -> None:
        """Find out what is lost with some archives: no earlier state of it stands for it.

        Raises:
            EximError: That of an archive, where nothing tells what it had.
        """
        first = next(iter(unread.values()))
        stated = None
        if self.packs:
            with contextlib.suppress(InvalidArchiveError, NotFoundError):  # it is lost as well
                stated = StatedContent.of(folder, self.snapshot.document.info)
        if stated is None:
            raise first
        reason = "; ".join(f"{path} is lost: {error.message}" for path, error in unread.items())
        self._listed = {}
        for path in sorted(stated.envelopes):
            self._note(path)  # lists are part of what an experiment's digest is made of
        gone: set[str] = set()
        for path, (kind, digest) in stated.envelopes.items():
            if self._content_at(path) in {digest, None}:
                continue
            has_earlier = path in self and kind in _OWNERS
            if not has_earlier:
                gone.add(path)
            self.lost.append(LostObject(kind, path, reason, has_earlier))
        for traces, wanted in stated.traces.items():
            there, self._stale[traces] = self._traces_in(traces, wanted)
            lost = sorted(wanted.keys() - there)
            self.lost += [LostObject(Kind.TRACE, traces + segment, reason) for segment in lost]
        self._hidden.clear()
        self._hold(self._numbers, gone)
        if self.lost:
            what = "%s: %d objects cannot be read: %s"
            _log.log(NOTICE, what, self.name, len(self.lost), reason)

    def _content_at(self, path: str) -> bytes | None:
        """Return the content digest that an envelope states; None where whoever reads it names it.

        Empty where there is none.
        """
        if path not in self:
            return b""
        try:
            return raw_digest(self.read_document(path)["info"]["content_digest"])
        except (EximError, LookupError, TypeError, ValueError):
            return None

    def _traces_in(self, folder: str, wanted: dict[str, bytes]) -> tuple[set[str], set[str]]:
        """Return which traces are as they are wanted, and ids of those that are in another state.

        Args:
            folder: Their folder.
            wanted: Their digests by segment.
        """
        from mlflow_exim_plugin.sources.archive.trace_parts import trace_rows

        there: set[str] = set()
        stale: set[str] = set()
        for path in filter(_is_part, self.paths(folder)):
            told: dict[str, str] = {}
            hidden = frozenset[str]()
            with contextlib.suppress(InvalidArchiveError):  # whoever reads it names it as well
                part = check_document(TracePartEnvelope, self.read_document(path), path)
                for rows in trace_rows(self, part, ["trace_id", "content_digest"]):
                    hidden = self.hidden_traces(part.info.tables["traces"].member)
                    told.update(zip(*rows.to_pydict().values(), strict=True))
            for trace_id in told.keys() - hidden:
                segment = encode_segment(trace_id)
                if wanted.get(segment) == raw_digest(told[trace_id]):
                    there.add(segment)
                else:
                    stale.add(trace_id)
        return there, stale

    def _note(self, path: str) -> None:
        """Note what an experiment, registered model or prompt has."""
        if path.endswith(("/experiment.json", "/model.json")):
            found = layout.object_at(path)
            if found is not None and (found.kind is Kind.EXPERIMENT or found.kind in VERSION_KINDS):
                self._listed.setdefault(path, {})
        for ending, name, above in (
            (_RUN, "runs", "experiment.json"),
            (_LOGGED_MODEL, "logged_models", "experiment.json"),
            (_VERSION, "versions", "model.json"),
        ):
            if path.endswith(ending) and layout.object_at(path) is not None:
                folder = path.removesuffix(ending).rpartition("/")[0].rpartition("/")[0]
                lists = self._listed.setdefault(f"{folder}/{above}", {})
                lists.setdefault(name, []).append(path)

    def _with_list(self, value: Any, path: str, listed: dict[str, list[str]]) -> dict[str, Any]:
        """Return the document of an experiment or model with what the state has of it."""
        part, info = value["mlflow"], value["info"]
        if path.endswith("/model.json"):
            check_document(ModelEnvelope, value, path)
            numbers = sorted(int(at.split("/")[-2]) for at in listed.get("versions", ()))
            if numbers == part.get("versions", []):
                return dict(value)
            part = {**part, "versions": numbers}
            counted: dict[str, Any] = {}
        else:
            check_document(ExperimentEnvelope, value, path)
            runs = [self._run_id(at) for at in listed.get("runs", ())]
            models = [self._model_id(at) for at in listed.get("logged_models", ())]
            if runs == part.get("runs", []) and models == part.get("logged_models", []):
                return dict(value)
            part = {key: of for key, of in part.items() if key != "logged_models"}
            part |= {"runs": runs} | ({"logged_models": models} if models else {})
            failed = info["num_failed_runs"]
            counted = {"num_total_runs": len(runs) + failed, "num_ok_runs": len(runs)}
        digest = {"content_digest": content_digest(part)}
        return {**value, "mlflow": part, "info": {**info, **counted, **digest}}

    def _run_id(self, path: str) -> str:
        if (identity := decode_segment(path.split("/")[-2])) is not None:
            return identity
        envelope = check_document(RunEnvelope, self.read_document(path), path)
        return str(envelope.mlflow.run["info"]["run_id"])

    def _model_id(self, path: str) -> str:
        if (identity := decode_segment(path.split("/")[-2])) is not None:
            return identity
        envelope = check_document(LoggedModelEnvelope, self.read_document(path), path)
        return str(envelope.mlflow.logged_model["info"]["model_id"])

    def _number_of(self, path: str) -> int | None:
        return self._numbers.get(path)

    def _pack_of(self, path: str) -> ArchiveReader | None:
        number = self._number_of(path)
        return None if number is None else self.packs[number]

    def _require(self, path: str) -> ArchiveReader:
        if (pack := self._pack_of(path)) is None:
            raise NotFoundError(f"{self.name} has no member {path!r}")
        return pack


def _opened(
    folder: SetFolder, entries: Iterable[PackEntry], failing: contextlib.ExitStack
) -> list[tuple[str, ArchiveReader | EximError]]:
    """Open the archives of a snapshot, a few at once; of one that cannot be read, why."""

    def open_pack(entry: PackEntry) -> tuple[str, ArchiveReader | EximError]:
        try:
            reader = ArchiveReader.open(
                folder.at(entry.path),
                storage_options=folder.storage_options,
                expected_root=entry.root,
            )
        except (InvalidArchiveError, NotFoundError) as error:
            return entry.path, error
        failing.callback(reader.close)
        return entry.path, reader

    with ThreadPoolExecutor(_OPENED_AT_ONCE, "exim-open") as pool:
        return list(pool.map(open_pack, entries))


def _owner_of(path: str) -> str | None:
    """Return the envelope of the object whose file a member is; None for what is no such file."""
    if "/artifacts/" not in path:
        return None
    found = layout.files_at(path)
    return None if found is None or found[0] is Kind.TRACE else found[1]


def _is_part(path: str) -> bool:
    found = layout.object_at(path)
    return found is not None and found.kind is Kind.TRACE
