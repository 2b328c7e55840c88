"""``unpack`` and ``copy`` through MLflow's API, which makes new ids, whatever the target is.

Most tests look at what a server makes of an object. A SQLite file stands for one there, which is
much faster to make; written to directly it would keep ids and times.
"""

from __future__ import annotations

from functools import partial

import mlflow_exim_plugin as operations

__all__ = ["copy", "unpack"]

unpack = partial(operations.unpack, preserve_ids=False)
copy = partial(operations.copy, preserve_ids=False)
