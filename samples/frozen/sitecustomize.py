"""Loaded by every Python that has this folder on its path: a clock that stands and ids that repeat.

`samples/exports.py` starts its MLflow servers with it. The time is the number of milliseconds in
the file ``FROZEN_CLOCK``; an id follows from that time, from who asks for one and how often it did.
"""

import hashlib
import itertools
import os
import sys
import time
import uuid
from collections import defaultdict
from pathlib import Path

CLOCK = Path(os.environ["FROZEN_CLOCK"])
_asked = defaultdict(itertools.count)


def _now_ms():
    return int(CLOCK.read_text())


def _time():
    # Half a millisecond more, or int(time.time() * 1000) would sometimes be one too small.
    return (_now_ms() + 0.5) / 1000


def _time_ns():
    return _now_ms() * 1_000_000


def _uuid4():
    # Who asks is part of it, so that work in the background does not take ids away. Of ourselves it
    # is the package: its modules are moved about.
    asking = sys._getframe(1).f_globals["__name__"]
    if asking.startswith("mlflow_exim_plugin."):
        asking = "mlflow_exim_plugin"
    key = f"{_now_ms()} {asking}"
    digest = hashlib.sha256(f"{key} {next(_asked[key])}".encode()).digest()
    return uuid.UUID(bytes=digest[:16], version=4)


time.time, time.time_ns, uuid.uuid4 = _time, _time_ns, _uuid4
