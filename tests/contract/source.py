"""What every source must do, whatever it reads from."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.operations.deliver import deliver
from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.operations.targets import open_target
from mlflow_exim_plugin.options import Opening, Packing, Selection, Work
from mlflow_exim_plugin.schema.metric_rows import RunRows
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Experiment,
    Kind,
    LoggedModel,
    ModelVersion,
    RegisteredModel,
    Run,
    StreamItem,
    by_number,
    closed_after,
)
from tests.compare import Snapshot, assert_count_law

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.transfer import Stage

__all__ = ["Readable", "SourceContract"]


@dataclass(frozen=True)
class Readable:
    """Something that a source can be opened on.

    Attributes:
        location: Where it is.
        found: What MLflow's own API says is in it.
        state: Tells all that lies there; what it returns changes with any change of it.
        opening: How it is opened.
    """

    location: str
    found: Snapshot
    state: Callable[[], object]
    opening: Opening = Opening()


class SourceContract:
    """The laws of a source; a subclass has a fixture ``readable`` and a few objects of each kind.

    Among them are at least two experiments, one with runs that have metrics and files, and a model.
    """

    def test_the_stream_is_the_same_twice(self, readable: Readable) -> None:
        with open_source(readable.location, readable.opening) as opened:
            first, second = (read(opened.stream) for _ in range(2))

        assert first == second
        assert {kind for kind, _, _ in first} >= {Kind.EXPERIMENT, Kind.RUN, Kind.REGISTERED_MODEL}

    def test_what_names_another_comes_after_it(self, readable: Readable) -> None:
        experiments: list[str] = []
        runs: dict[str, list[str]] = defaultdict(list)
        models: list[str] = []
        versions: dict[str, list[int]] = defaultdict(list)
        with open_source(readable.location, readable.opening) as opened:
            for item in opened.stream.stream(Selection()):
                if isinstance(item, Experiment):
                    experiments.append(item.id)
                elif isinstance(item, Run | LoggedModel):
                    assert item.experiment_id == experiments[-1]
                    if isinstance(item, Run):
                        runs[item.experiment_id].append(item.id)
                elif isinstance(item, RegisteredModel):
                    models.append(item.name)
                elif isinstance(item, ModelVersion):
                    assert item.name == models[-1]
                    versions[item.name].append(item.version)

        assert experiments == sorted(experiments, key=by_number)
        assert runs
        assert all(ids == sorted(ids) for ids in runs.values())
        assert models == sorted(models)
        assert all(numbers == sorted(numbers) for numbers in versions.values())

    def test_all_is_found_and_counted(self, readable: Readable, tmp_path: Path) -> None:
        report = packed(readable, tmp_path / "a.tar.zst")

        assert report.failures == []
        assert_count_law(report, readable.found)

    def test_nothing_is_written_there(self, readable: Readable, tmp_path: Path) -> None:
        before = readable.state()

        packed(readable, tmp_path / "a.tar.zst")
        with open_source(readable.location, readable.opening) as opened:
            list(opened.stream.find("nobody"))
            assert list(opened.stream.experiment_ids())

        assert readable.state() == before

    def test_a_dry_run_counts_the_same_reads_no_file_and_writes_nothing(
        self, readable: Readable, tmp_path: Path
    ) -> None:
        before = readable.state()

        planned = packed(readable, tmp_path / "a.tar.zst", unreadable, dry_run=True)

        assert list(tmp_path.iterdir()) == []
        assert readable.state() == before
        assert_count_law(planned, readable.found)
        done = packed(readable, tmp_path / "a.tar.zst")
        assert {k: vars(c) for k, c in planned.counts.items()} == {
            k: vars(c) for k, c in done.counts.items()
        }

    def test_a_selection_takes_what_it_names_as_it_is_in_the_whole(
        self, readable: Readable
    ) -> None:
        with open_source(readable.location, readable.opening) as opened:
            whole = read(opened.stream)
            (name, *_) = (id_ for kind, id_, _ in whole if kind is Kind.REGISTERED_MODEL)
            (run, *_) = (id_ for kind, id_, _ in whole if kind is Kind.RUN)
            of_run = read(opened.stream, Selection(runs=(run,)))
            of_model = read(opened.stream, Selection(models=(name,)))

        assert all(part in whole for part in (*of_run, *of_model))
        assert run in [id_ for kind, id_, _ in of_run if kind is Kind.RUN]
        assert Kind.REGISTERED_MODEL not in {kind for kind, _, _ in of_run}
        listed = [id_ for kind, id_, _ in of_model if kind is Kind.REGISTERED_MODEL]
        assert listed == [name]

    def test_a_version_comes_with_its_run_and_no_other_version(self, readable: Readable) -> None:
        with open_source(readable.location, readable.opening) as opened:
            whole = list(opened.stream.stream(Selection(traces=False, artifacts=False)))
            model = next(m for m in whole if isinstance(m, RegisteredModel) and m.aliases)
            runs = {
                version.version: {str(version.document.get("run_id") or "")} - {""}
                for version in whole
                if isinstance(version, ModelVersion) and version.name == model.name
            }
            (alias, aliased), latest = min(model.aliases.items()), max(runs)
            asked = {"/1": 1, f"@{alias}": aliased, "/latest": latest}
            for which, number in asked.items():
                taken = list(opened.stream.stream(Selection(models=(model.name + which,))))
                (found,) = (m for m in taken if isinstance(m, RegisteredModel))
                (version,) = (v for v in taken if isinstance(v, ModelVersion))
                assert version.id == f"{model.name}/{number}"
                of_number = {a: n for a, n in model.aliases.items() if n == number}
                assert found.aliases == of_number
                assert runs[number] <= {run.id for run in taken if isinstance(run, Run)}
                experiments = {e.id for e in taken if isinstance(e, Experiment)}
                assert experiments >= {r.experiment_id for r in taken if isinstance(r, Run)}
            for which in ("/999", "@nobody"):
                with pytest.raises(NotFoundError, match=model.name + which):
                    list(opened.stream.stream(Selection(models=(model.name + which,))))

    def test_a_stream_can_be_left_at_any_object(self, readable: Readable) -> None:
        threads = set(threading.enumerate())
        for taken in (1, 3):
            with (
                open_source(readable.location, readable.opening) as opened,
                closed_after(opened.stream.stream(Selection())) as stream,
            ):
                assert len(list(islice(stream, taken))) == taken

        assert not [t for t in set(threading.enumerate()) - threads if t.name.startswith("exim")]


def read(source: Any, selection: Selection | None = None) -> list[tuple[Kind, str, str]]:
    """Return each object of a stream, with all that hangs on it, as text: NaN equals NaN there."""
    found = []
    for item in source.stream(selection or Selection()):
        if not hasattr(item, "document"):
            continue
        document = dict(item.document)
        for part in ("artifacts", "attachments"):
            document[part] = [contents(a) for a in getattr(item, part, ())]
        document["rows"] = [
            rows.table.to_pylist() if isinstance(rows, RunRows) else rows
            for rows in getattr(item, "histories", ())
        ]
        document["spans"] = getattr(item, "spans", None)
        found.append((item.kind, item.id, repr(document)))
    return found


def contents(artifact: Any) -> object:
    if not isinstance(artifact, Artifact):
        return artifact
    with artifact.open() as file:
        return artifact.path, file.read()


def packed(readable: Readable, archive: Path, *stages: Stage, dry_run: bool = False) -> Report:
    work = Work(dry_run=dry_run)
    packing = Packing(overwrite=True)
    with (
        open_target(str(archive), Opening(), packing, Selection(), work) as target,
        open_source(readable.location, readable.opening) as source,
    ):
        return deliver(source, target, Selection(), stages, work)


def unreadable(stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
    """Pass what comes, with files that fail the test when they are opened."""

    def refuse() -> BinaryIO:
        pytest.fail("a file was opened")

    for item in stream:
        if isinstance(item, Run | LoggedModel | ModelVersion):
            item.artifacts = [
                replace(a, open=refuse) if isinstance(a, Artifact) else a for a in item.artifacts
            ]
        yield item
