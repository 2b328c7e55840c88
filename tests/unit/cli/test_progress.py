"""How far a command is: what the line says, where it is shown, and how wide it is."""

from __future__ import annotations

import io
import sys
import time
from typing import TYPE_CHECKING

import click

from mlflow_exim_plugin.cli.output import QUIET, say, show_report
from mlflow_exim_plugin.cli.progress import StatusLine, Transferring, clear_line
from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss, Unpacked
from mlflow_exim_plugin.schema.report import Report

if TYPE_CHECKING:
    import pytest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def context(*, quiet: bool = False) -> click.Context:
    made = click.Context(click.Command("pack"))
    made.meta[QUIET] = quiet
    return made


def test_the_line_says_share_time_counts_in_the_order_of_work_and_rate() -> None:
    clock = iter([0.0, 30.0, 34.0, 3700.0])
    line = Transferring(lambda: next(clock))
    report = Report()
    assert line(report) == "0:30"
    report.planned = {Kind.RUN: 1000}
    for kind, count in ((Kind.ARTIFACT, 3), (Kind.RUN, 250), (Kind.EXPERIMENT, 2)):
        report.written(kind, count)
    report.add_rows(3000)
    report.add_bytes(8_000_000)

    assert line(report) == (
        " 25% · 0:34, 1:42 left · 2 experiments · 250 of 1,000 runs · 3,000 rows"
        " · 3 artifacts, 8.0 MB · 2.0 MB/s"
    )
    report.written(Kind.RUN, 800)  # more came than were there when it began
    assert line(report).startswith("100% · 1:01:40 · 2 experiments · 1,050 of 1,000 runs")


def drawn(text: str, monkeypatch: pytest.MonkeyPatch, *, quiet: bool = False) -> str:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("mlflow_exim_plugin.cli.progress._INTERVAL_S", 0.01)
    with context(quiet=quiet), StatusLine(lambda told: told) as line:
        line(text)
        deadline = time.monotonic() + (0.1 if quiet else 20)
        while not terminal.getvalue() and time.monotonic() < deadline:
            time.sleep(0.005)
        clear_line()
    return terminal.getvalue()


def test_the_line_is_as_wide_as_the_terminal_and_is_taken_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = drawn("x" * 500, monkeypatch)

    assert shown.startswith("\r\x1b[K" + "x" * 78 + "…")
    assert max(map(len, shown.split("\r\x1b[K"))) == 79
    assert shown.endswith("\r\x1b[K")


def test_a_hostile_name_cannot_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b]0;" not in drawn("run \x1b]0;owned\x07", monkeypatch)


def test_no_line_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn("x", monkeypatch, quiet=True) == ""


def test_colour_is_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(stream: io.StringIO, **environment: str) -> str:
        with monkeypatch.context() as patch:
            patch.delenv("NO_COLOR", raising=False)
            patch.setenv("TERM", "xterm")
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stderr", stream)
            say("Error: gone", err=True)
        return stream.getvalue()

    assert said(io.StringIO()) == "Error: gone\n"
    assert said(Terminal()) == "\x1b[31m\x1b[1mError\x1b[0m: gone\n"
    assert said(Terminal(), NO_COLOR="1") == "Error: gone\n"
    assert said(Terminal(), TERM="dumb") == "Error: gone\n"


def test_what_is_so_at_every_server_is_one_line_and_what_is_lost_each(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report()
    for kind in (Kind.RUN, Kind.EXPERIMENT, Kind.RUN):
        report.lost(Loss(kind, "*", "ids are new", is_usual=True))
    report.lost(Loss(Kind.RUN, "0f", "its parent is gone"))
    for _ in range(2):
        report.not_packed(Unpacked("jobs", 0, at_least=False, reason="they belong to a server"))
    report.not_packed(Unpacked("user", 3, at_least=False, reason="they belong to a server"))
    report.failed(Failure(Kind.RUN, "1e", "gone"))

    show_report(report, title="Unpacked x", as_json=False)

    lines = capsys.readouterr().out.splitlines()
    (usual,) = [line for line in lines if "as at every server" in line]
    assert "run, experiment" in usual
    assert [x for x in lines if x.startswith("Lossy")] == ["Lossy: run 0f: its parent is gone"]
    assert [line for line in lines if line.startswith("Not packed")] == [
        "Not packed: jobs, 3 users (they belong to a server)"
    ]
    assert [loss["is_usual"] for loss in report.to_dict()["lossy"]] == [True, True, True, False]
    show_report(report, title="Unpacked x", as_json=False, quiet=True)
    assert capsys.readouterr().out == "Failed: run 1e: gone\n"
