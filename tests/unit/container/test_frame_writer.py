from __future__ import annotations

import io
import time

import pytest

from mlflow_exim_plugin.container import frame_writer
from mlflow_exim_plugin.container.frame_writer import FrameWriter, default_workers
from mlflow_exim_plugin.container.frames import compress_frame


def test_hashing_that_lags_behind_holds_the_writer_back() -> None:
    class Slow:
        done = 0

        def update(self, _data: bytes) -> None:
            time.sleep(0.002)
            self.done += 1

    frames = FrameWriter(io.BytesIO(), level=1, workers=2)
    slow = Slow()
    for given in range(1, 101):
        frames.hash_along(slow, b"x")
        assert given - slow.done <= 4 + 1
    frames.finish_hashing()
    assert slow.done == 100
    frames.abandon()


@pytest.mark.parametrize("size_bytes", [64 << 10, 1 << 20, 3 << 20])
def test_compression_that_lags_behind_holds_the_writer_back(
    monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    def slow(data: bytes, level: int) -> bytes:
        time.sleep(0.002)
        return compress_frame(data[:1], level)

    monkeypatch.setattr(frame_writer, "compress_frame", slow)
    frames = FrameWriter(io.BytesIO(), level=1, workers=2)
    most_bytes = 0
    one_bytes = len(compress_frame(b"x", 1))
    for given in range(1, 101):
        frames.write_frame(bytes(size_bytes))
        most_bytes = max(most_bytes, (given - frames.bytes_written // one_bytes) * size_bytes)
    frames.drain()
    assert frames.bytes_written == 100 * one_bytes
    # Two for each worker, or of small ones as many as hold 2 MiB for each.
    assert most_bytes == max(4 * size_bytes, 4 << 20)
    frames.abandon()


def test_default_workers_are_few() -> None:
    assert 1 <= default_workers() <= 4
