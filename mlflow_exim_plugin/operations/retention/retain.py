"""``retain``: what is old is put into a set, proven to be there, and then leaves its deployment."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.container.paths import encode_segment
from mlflow_exim_plugin.errors import (
    ConflictError,
    EximError,
    InvalidArchiveError,
    NotFoundError,
    ServerLostError,
    StoreError,
)
from mlflow_exim_plugin.host.open.locations import both_uris
from mlflow_exim_plugin.host.removal.runs import KeptElsewhere
from mlflow_exim_plugin.operations.ends import DEPLOYMENTS, open_source, require_source
from mlflow_exim_plugin.operations.keeping.forget import hold
from mlflow_exim_plugin.operations.pack import pack
from mlflow_exim_plugin.operations.proving.verify import verify
from mlflow_exim_plugin.operations.retention.move import opened_to_remove
from mlflow_exim_plugin.operations.retention.plan import PlannedRun, plan_of
from mlflow_exim_plugin.operations.retention.policy import Policy, load_policy
from mlflow_exim_plugin.operations.retention.proof import IN_PLACE, Proof, runs_alone
from mlflow_exim_plugin.options import Opening, Packing, Reading, Retaining, Work, flat
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.objects import (
    SOURCE_RUN,
    Artifact,
    LoggedModel,
    Run,
    Trace,
    closed_after,
)
from mlflow_exim_plugin.schema.provenance import ARCHIVED
from mlflow_exim_plugin.sets.events import append_event
from mlflow_exim_plugin.sources.archive.snapshot.layered import LayeredReader
from mlflow_exim_plugin.sources.archive.snapshot.reader import SnapshotReader
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import (
    SetFolder,
    snapshot_number,
    snapshot_path,
)
from mlflow_exim_plugin.storage.folders.locks import lock_file, require_locks
from mlflow_exim_plugin.version import __version__

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mlflow_exim_plugin.host.removal.runs import Removal
    from mlflow_exim_plugin.operations.ends import OpenSource
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["Retention", "retain"]

_SCRIPT = "mlflow_exim_plugin.retain"
_AT_ONCE = 200
"""So many runs are proven and then taken away, one group after the other."""


@dataclass
class Retention:
    """What a policy means, and what became of it.

    Attributes:
        policy: The policy's name, or that of its file.
        source: The deployment, without secrets.
        set: The set, without secrets.
        dry_run: True when nothing was written and nothing taken away.
        mode: ``archived``, ``hollowed`` or ``purged``: what becomes of runs that go.
        runs: The runs that the policy means.
        snapshot: Number of the snapshot that has them, None where none was made.
        finished: Runs that an earlier time had begun to free, and this one has freed.
        unfinished: Why others of those could not be freed, by run.
        packed: What packing them reported.
    """

    policy: str
    source: str
    set: str
    dry_run: bool
    mode: str
    runs: list[PlannedRun] = field(default_factory=list)
    snapshot: int | None = None
    finished: list[str] = field(default_factory=list)
    unfinished: dict[str, str] = field(default_factory=dict)
    packed: Report | None = None

    @property
    def ok(self) -> bool:
        """True when nothing failed; runs that rightly stay are no failure."""
        return not self.of("failed") and not self.unfinished

    def of(self, outcome: str) -> list[PlannedRun]:
        """Return the runs of an outcome."""
        return [run for run in self.runs if run.outcome == outcome]

    def counts(self) -> dict[str, int]:
        """Return how many runs there are of each outcome."""
        found: dict[str, int] = {}
        for run in self.runs:
            found[run.outcome] = found.get(run.outcome, 0) + 1
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "ok": self.ok,
            "dry_run": self.dry_run,
            "policy": self.policy,
            "source": self.source,
            "set": self.set,
            "mode": self.mode,
            "snapshot": self.snapshot,
            "counts": self.counts(),
            "finished": self.finished,
            "unfinished": self.unfinished,
            "runs": [run.to_dict() for run in self.runs],
            "packed": self.packed and self.packed.to_dict(),
            "package_version": __version__,
        }


@flat()
def retain(
    policy: str,
    set: str,  # noqa: A002 - what `pack` calls it
    *,
    tracking_uri: str | None = None,
    opening: Opening = Opening(),
    reading: Reading = Reading(),
    retaining: Retaining = Retaining(),
    work: Work = Work(),
) -> Retention:
    """Let the runs that a policy means leave their deployment, once they are proven to be in a set.

    Without ``apply`` nothing is written: the runs are listed, and why some stay. With it they are
    packed into the set, what was packed is read back from the store and verified, compared with the
    deployment object by object, and only then deleted there as MLflow's API does it. A run that
    something else uses, or that a tag holds, stays. What was broken off goes on when it is called
    again, and nothing is lost or doubled.

    Args:
        policy: Path of the policy, a YAML file.
        set: Path or fsspec URL of the set.
        tracking_uri: MLflow tracking URI; MLflow's own default without it.
        opening: How the two are opened; each option is a keyword of its own too, here
            and below.
        reading: How the deployment is read.
        retaining: What becomes of the runs.
        work: How much is done at once.

    Raises:
        UsageError: The policy cannot be understood, or only a database can do what is asked for.
        NotFoundError: The policy or the deployment is not there.
        ServerError: Not all of it can be read, so that nobody can tell which runs are in use.
        InvalidArchiveError: The set is damaged.
        StoreError: The set cannot be written.
    """
    uri, _ = both_uris(tracking_uri, opening.registry_uri)
    work = replace(work, script=work.script or _SCRIPT)
    require_source(uri, opening, DEPLOYMENTS)
    wanted = load_policy(policy)
    task = _Task(uri, set, opening, reading, retaining, work, wanted)
    with (
        opened_to_remove(uri, opening, reading) as (_, removal),
        open_source(uri, opening.at(uri), reading, contents=False, among=DEPLOYMENTS) as source,
    ):
        if retaining.frees:
            _ = removal.tables  # refused here, before anything is done
        if retaining.lock_until_ms is not None:
            require_locks(set, opening.storage_options)
        result = Retention(
            wanted.name or policy, source.name, redact_url(set), not retaining.apply, retaining.mode
        )
        if retaining.apply and removal.is_direct:
            task.finish(removal, result)
        plan = plan_of(wanted, source, removal, retaining)
        result.runs = plan.runs
        states: dict[str, list[str]] = {}
        if retaining.apply:
            states = {run.run_id: removal.state_of(run.run_id) for run in result.runs if run.goes}
    if states:
        task.apply(result, states, plan.gone)
    return result


@dataclass(frozen=True)
class _Task:
    uri: str
    location: str
    opening: Opening
    reading: Reading
    retaining: Retaining
    work: Work
    policy: Policy

    @property
    def folder(self) -> SetFolder:
        return SetFolder(self.location, self.opening.storage_options)

    def place(self, number: int) -> str:
        """Return where a snapshot is, as marks say it and as every command opens it."""
        return f"{self.folder}/{snapshot_path(number)}"

    def finish(self, removal: Removal, result: Retention) -> None:
        """Free what an earlier time had proven and begun to free."""
        folder = f"{self.folder}/"
        for run_id, place in sorted(removal.being_freed().items()):
            if not place.startswith(folder):
                continue
            try:
                where = self.folder.at(snapshot_path(snapshot_number(place)))
                if removal.go_on(run_id, self._kept(where, [run_id])):
                    result.finished.append(run_id)
            except ServerLostError:
                raise
            except EximError as error:
                result.unfinished[run_id] = error.message

    def _kept(self, where: str, run_ids: list[str]) -> KeptElsewhere:
        """Return what a snapshot has of some runs."""
        with open_source(where, self.opening) as snapshot:
            return _kept_of(snapshot, run_ids)

    def apply(
        self, result: Retention, states: Mapping[str, list[str]], gone: Collection[str]
    ) -> None:
        """Pack runs, prove that they are in the set, and take them away."""
        packed = pack(
            tracking_uri=self.uri,
            opening=self.opening,
            selection=runs_alone([*states]),
            reading=self.reading,
            packing=Packing(set=self.location, source_moved=self.retaining.source_moved),
            work=self.work,
        )
        result.packed = packed
        result.snapshot = number = int((packed.snapshot or {})["number"])
        unpacked = {failure.id: failure.reason for failure in packed.failures}
        for run in result.runs:
            if run.goes and run.run_id in unpacked:
                run.fails(f"it could not be packed: {unpacked[run.run_id]}")
        verified = set[str]()
        leaving = [run for run in result.runs if run.goes]
        for start in range(0, len(leaving), _AT_ONCE):
            some = leaving[start : start + _AT_ONCE]
            try:
                self._prove(some, number, verified)
            except (InvalidArchiveError, NotFoundError, StoreError) as error:
                for run in some:
                    if run.goes:
                        run.fails(f"the set cannot be read: {error.message}")
            self._lock(number, verified)
            self._take_away([run for run in some if run.goes], number, states, {*states, *gone})

    def _lock(self, number: int, packs: Collection[str]) -> None:
        """Let the store keep a snapshot and the archives that hold runs, if that is asked for."""
        if (until_ms := self.retaining.lock_until_ms) is not None:
            for path in (*packs, snapshot_path(number)):
                lock_file(self.folder.at(path), self.opening.storage_options, until_ms)

    def _prove(self, runs: list[PlannedRun], number: int, verified: set[str]) -> None:
        """Let those runs fail that the set does not have as the deployment has them."""
        by_id = {run.run_id: run for run in runs}
        where = self.folder.at(snapshot_path(number))
        uri, jobs = self.uri, self.work.jobs
        with (
            open_source(where, self.opening) as kept,
            open_source(uri, self.opening.at(uri), self.reading, jobs=jobs) as source,
        ):
            damaged = self._damaged(kept, [*by_id], verified)
            for run_id, reason in damaged.items():
                by_id[run_id].fails(reason)
            names = {run_id: run_id for run_id in by_id if run_id not in damaged}
            proof = Proof(source.stream, kept.stream, "exact", IN_PLACE)
            for run_id, reason in proof.problems(names).items():
                by_id[run_id].fails(f"the set does not have it as it is: {reason}")

    def _damaged(self, kept: OpenSource, run_ids: list[str], verified: set[str]) -> dict[str, str]:
        """Read the archives that hold some runs back from the store, and say what is wrong."""
        found = self._broken(kept, {run_id: {run_id} for run_id in run_ids}, verified)
        whole = [run_id for run_id in run_ids if run_id not in found]
        return found | self._broken(kept, _owners(kept, whole), verified) if whole else found

    def _broken(
        self, kept: OpenSource, owners: Mapping[str, set[str]], verified: set[str]
    ) -> dict[str, str]:
        found: dict[str, str] = {}
        for path, of_runs in _packs_of(kept, owners).items():
            if path in verified:
                continue
            checked = verify(self.folder.at(path), storage_options=self.opening.storage_options)
            if checked.valid:
                verified.add(path)
                continue
            first = checked.findings[0]
            for run_id in of_runs:
                found[run_id] = f"{path} is damaged: {first.code} {first.message}"
        return found

    def _take_away(
        self,
        runs: list[PlannedRun],
        number: int,
        states: Mapping[str, list[str]],
        leaving: set[str],
    ) -> None:
        if not runs:
            return
        place, mode = self.place(number), self.retaining.mode
        told = [_told(run, mode) for run in runs]
        more = {
            "source": redact_url(self.uri),
            "policy": self.policy.model_dump(mode="json"),
            "package_version": __version__,
        }
        where = self.folder.at(snapshot_path(number))
        reason = "`retain` took away at their source what it has"
        with contextlib.suppress(ConflictError):  # it is held already
            hold(where, reason, opening=self.opening)
        append_event(self.folder, "retain", number, told, **more)
        kept = self._kept(where, [run.run_id for run in runs]) if self.retaining.frees else None
        with opened_to_remove(self.uri, self.opening, self.reading) as (_, removal):
            for run in runs:
                try:
                    state = states[run.run_id]
                    if mode == "hollowed":
                        removal.hollow(run.run_id, place, leaving, state, kept)
                    elif mode == "purged":
                        removal.purge(run.run_id, place, leaving, state, kept)
                    else:
                        removal.hide(run.run_id, {ARCHIVED: place}, state)
                except ServerLostError:
                    raise
                except EximError as error:
                    run.fails(error.message)
                else:
                    run.outcome = mode
        told = [_told(run, run.outcome) for run in runs]
        append_event(self.folder, "retained", number, told, **more)


def _owners(kept: OpenSource, run_ids: list[str]) -> dict[str, set[str]]:
    """Return the runs to which what belongs to them belongs, by what its path has of it."""
    owners: dict[str, set[str]] = {}
    with closed_after(kept.names.stream(runs_alone(run_ids))) as stream:
        for item in stream:
            if isinstance(item, LoggedModel):
                owners.setdefault(item.id, set()).add(str(item.info.get("source_run_id") or ""))
            elif isinstance(item, Trace):
                folder = f"{encode_segment(item.experiment_id)}/traces"
                run_id = item.info.get("trace_metadata", {}).get(SOURCE_RUN)
                owners.setdefault(folder, set()).add(str(run_id))
    return owners


def _packs_of(kept: OpenSource, owners: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the runs of which an archive of a set holds something, by the archive's path."""
    reader = kept.archive.reader if kept.archive is not None else None
    if isinstance(reader, LayeredReader):
        reader = reader.whole
    if not isinstance(reader, SnapshotReader):
        raise InvalidArchiveError(f"{kept.name} is no snapshot of a set")
    names = {id(pack): path for pack, path in zip(reader.packs, reader.pack_paths, strict=True)}
    found: dict[str, set[str]] = {}
    for path in reader.paths(layout.TREE):
        segments = path.split("/")
        named = {*segments, *map("/".join, itertools.pairwise(segments))}
        for owner in named & owners.keys():
            found.setdefault(names[id(reader.holder(path))], set()).update(owners[owner])
    return found


def _kept_of(snapshot: OpenSource, run_ids: list[str]) -> KeptElsewhere:
    """Return the objects and files that a snapshot has of runs and of what is theirs."""
    owners, files = set[str](), set[tuple[str, str, int]]()
    with closed_after(snapshot.stream.stream(runs_alone(run_ids))) as stream:
        for item in stream:
            if isinstance(item, Run | LoggedModel | Trace):
                owners.add(item.id)
            if isinstance(item, Run | LoggedModel):
                for file in item.artifacts:
                    if isinstance(file, Artifact):
                        files.add((item.id, file.path, file.size_bytes))
    return KeptElsewhere(owners, files)


def _told(run: PlannedRun, outcome: str) -> dict[str, Any]:
    return {**run.to_dict(), "outcome": outcome}
