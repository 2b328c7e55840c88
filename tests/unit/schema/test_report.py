"""The count law, whatever happens and from however many threads."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor

from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss, Unpacked
from mlflow_exim_plugin.schema.report import Report


def law_holds(report: Report) -> bool:
    return all(c.found == c.written + c.skipped + c.failed for c in report.counts.values())


def fill(report: Report, seed: int, events: int) -> None:
    chance = random.Random(seed)
    for number in range(events):
        kind = chance.choice(list(Kind))
        match chance.randrange(4):
            case 0:
                report.written(kind, chance.randrange(5))
            case 1:
                report.skipped(kind, f"{number}", "there already", chance.randrange(3))
            case 2:
                report.failed(Failure(kind, f"{number}", "500", chance.randrange(1, 4)))
            case _:
                report.lost(Loss(kind, f"{number}", "shorter"))


def test_found_is_written_and_skipped_and_failed() -> None:
    for seed in range(50):
        report = Report()
        fill(report, seed, 100)
        assert law_holds(report)


def test_every_failure_and_skip_is_named() -> None:
    report = Report()
    fill(report, 1, 500)
    for kind, counts in report.counts.items():
        assert counts.failed == sum(f.count for f in report.failures if f.kind is kind)
        assert counts.skipped == sum(s.count for s in report.skips if s.kind is kind)


def count_two_thousand(report: Report) -> None:
    for _ in range(2000):
        report.written(Kind.RUN)
        report.add_rows(3)
        report.add_bytes(5)


def test_threads_lose_no_count() -> None:
    report = Report()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(count_two_thousand, report)
    assert report.counts[Kind.RUN].written == report.counts[Kind.RUN].found == 16_000
    assert (report.metric_rows, report.artifact_bytes) == (48_000, 80_000)


def test_a_failure_makes_it_not_ok_and_a_loss_does_not() -> None:
    report = Report()
    report.lost(Loss(Kind.RUN, "r", "infinities"))
    report.skipped(Kind.RUN, "r", "there already")
    report.not_packed(Unpacked("trace", 3, at_least=False, reason="later"))
    assert report.ok
    report.failed(Failure(Kind.RUN, "r", "500"))
    assert not report.ok
    assert report.to_dict()["ok"] is False


def test_skipping_nothing_counts_nothing() -> None:
    report = Report()
    report.skipped(Kind.RUN, "r", "there already", 0)
    assert (report.counts, report.skips) == ({}, [])


def test_report_is_plain_json_with_kinds_in_their_order() -> None:
    report = Report(dry_run=True)
    report.failed(Failure(Kind.MODEL_VERSION, "m/1", "gone", 2))
    report.written(Kind.EXPERIMENT)
    report.not_packed(Unpacked("trace", 3, at_least=True, reason="later"))
    document = json.loads(json.dumps(report.to_dict()))
    assert list(document["counts"]) == ["experiment", "model_version"]
    assert document["failures"] == [
        {"kind": "model_version", "id": "m/1", "reason": "gone", "count": 2}
    ]
    assert document["not_packed"] == [
        {"kind": "trace", "seen": 3, "at_least": True, "reason": "later"}
    ]
    assert document["dry_run"] is True
