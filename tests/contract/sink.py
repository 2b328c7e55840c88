"""What every sink must do, whatever it writes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin.errors import PartialTransferError
from mlflow_exim_plugin.operations.deliver import deliver
from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.operations.targets import open_target
from mlflow_exim_plugin.options import Opening, Packing, Selection, Work, Writing
from mlflow_exim_plugin.schema.objects import Failure, Kind, Run, StreamItem
from mlflow_exim_plugin.stages.digest import Digests
from tests.compare import Snapshot, assert_count_law

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.transfer import Stage

__all__ = ["SinkContract", "Writable", "Written"]


@dataclass(frozen=True)
class Writable:
    """Something that a sink can be opened on, and what is to be written there.

    Attributes:
        location: Where it is.
        how: How it is written to.
        state: Tells all that lies there; what it returns changes with any change of it.
        source: Where the objects are read, URI or archive.
        found: What MLflow's own API says is in the source.
    """

    location: str
    how: Packing | Writing
    state: Callable[[], object]
    source: str
    found: Snapshot

    def write(
        self, *stages: Stage, how: Packing | Writing | None = None, work: Work = Work()
    ) -> Report:
        """Write all of the source."""
        with (
            open_target(self.location, Opening(), how or self.how, Selection(), work) as target,
            open_source(self.source) as source,
        ):
            is_copy = source.archive is None and isinstance(self.how, Writing)
            digests = [Digests()] if is_copy and not work.dry_run else []
            return deliver(source, target, Selection(), [*stages, *digests], work)


@dataclass(frozen=True)
class Written:
    """What three transfers into an empty target said, and how it was between them."""

    to: Writable
    states: list[object]
    left_by_dry_run: set[Path]
    planned: Report
    report: Report
    again: Report


class SinkContract:
    """The laws of a sink; a subclass has a fixture ``writable``, of which the target is empty."""

    @pytest.fixture(scope="class")
    @classmethod
    def written(cls, writable: Writable) -> Written:
        states = [writable.state()]
        here = set(Path.cwd().iterdir())
        planned = writable.write(work=Work(dry_run=True))
        left = set(Path.cwd().iterdir()) - here
        states.append(writable.state())
        report = writable.write()
        states.append(writable.state())
        again = writable.write()
        states.append(writable.state())
        return Written(writable, states, left, planned, report, again)

    def test_all_is_written_and_counted(self, written: Written) -> None:
        assert written.report.failures == []
        assert_count_law(written.report, written.to.found)

    def test_a_dry_run_writes_nothing_and_counts_the_same(self, written: Written) -> None:
        assert written.states[0] == written.states[1]
        assert written.left_by_dry_run == set()
        assert_count_law(written.planned, written.to.found)
        planned, done = (
            {kind: counts.written for kind, counts in report.counts.items()}
            for report in (written.planned, written.report)
        )
        assert planned == done

    def test_again_writes_nothing(self, written: Written) -> None:
        assert written.states[2] != written.states[1]
        assert written.states[3] == written.states[2]
        assert written.again.ok
        assert_count_law(written.again)
        assert {kind: c.written for kind, c in written.again.counts.items() if c.written} == {}

    def test_strict_stops_and_what_was_there_stays(self, written: Written) -> None:
        before = written.to.state()

        with pytest.raises(PartialTransferError, match="spoilt") as caught:
            written.to.write(spoil, work=Work(strict=True))

        assert [failure.kind for failure in caught.value.report.failures] == [Kind.RUN]
        assert written.to.state() == before


def spoil(stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
    """Pass what comes until the second run, which failed on the way."""
    runs = 0
    for item in stream:
        runs += isinstance(item, Run)
        yield Failure(Kind.RUN, item.id, "spoilt") if isinstance(item, Run) and runs == 2 else item
