"""Connections to one server: not more than it takes, none to one that has just been no use."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.storage.file_servers import connections
from mlflow_exim_plugin.storage.file_servers.connections import Connections


class Line:
    closed = False

    def is_sound_after(self, error: BaseException) -> bool:
        return isinstance(error, KeyError)

    def is_lost(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def test_a_server_that_takes_fewer_has_no_more() -> None:
    lines: list[Line] = []

    def connect() -> Line:
        if len(lines) == 2:
            raise ConnectionRefusedError("two are enough")
        lines.append(Line())
        return lines[-1]

    pool = Connections(connect, 5)

    def use(_: int) -> Line:
        with pool.one() as line:
            time.sleep(0.01)
            return line

    with ThreadPoolExecutor(8) as threads:
        used = list(threads.map(use, range(40)))
    assert set(used) == set(lines)
    assert len(lines) == 2


def test_one_that_breaks_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Connections(Line, 1)
    with pytest.raises(KeyError), pool.one() as sound:
        raise KeyError
    with pytest.raises(OSError, match="reset"), pool.one() as broken:
        raise OSError("reset")
    with pool.one() as another:
        assert sound is broken is not another
    assert broken.closed
    monkeypatch.setattr(Line, "closed", True)
    with pytest.raises(ConnectionResetError), pool.one():
        raise OSError("closed")


def test_who_lets_nobody_in_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def connect() -> Line:
        asked.append(time.monotonic())
        raise StoreError("nobody is let in", "check the password")

    pool = Connections(connect, 5)
    for _ in range(3):
        with pytest.raises(StoreError, match="nobody is let in") as told:
            pool.take()
        assert told.value.hint == "check the password"
    assert len(asked) == 1
    monkeypatch.setattr(connections, "_PEACE_SECONDS", 0)
    with pytest.raises(StoreError):
        pool.take()
    assert len(asked) == 2


def test_who_does_not_answer_is_left_alone_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def connect() -> Line:
        asked.append(time.monotonic())
        if len(asked) == 5:
            return Line()
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(connections, "_PATIENCE_SECONDS", 0)
    pool = Connections(connect, 5)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            pool.take()
        time.sleep(0.01)
    for _ in range(10):
        with pytest.raises(StoreError, match="does not answer: refused"):
            pool.take()
    assert len(asked) == 2
    monkeypatch.setattr(connections, "_PEACE_SECONDS", 0)
    asked += [0, 0]
    assert isinstance(pool.take(), Line)
