from __future__ import annotations

import io
import time

from mlflow_exim_plugin.container.frame_writer import FrameWriter, default_workers


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


def test_default_workers_are_few() -> None:
    assert 1 <= default_workers() <= 4
