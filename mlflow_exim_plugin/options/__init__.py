"""What can be asked: groups of options, each option declared once with what it says of itself.

The command line, the keywords of the Python functions and the reference are made from the fields of
these classes. A function takes whole groups; ``flat`` lets it take their fields as keywords too.
"""

from __future__ import annotations

from mlflow_exim_plugin.options.archives import SALT_VARIABLE, Packing, Repacking, TakingOut
from mlflow_exim_plugin.options.declared import Option, flat, flat_fields, option_of
from mlflow_exim_plugin.options.groups import (
    Clearing,
    Comparing,
    Drawing,
    Extracting,
    OnConflict,
    Opening,
    Publishing,
    Reading,
    Rename,
    Scanning,
    Work,
    Writing,
)
from mlflow_exim_plugin.options.keeping import Forgetting, Pruning
from mlflow_exim_plugin.options.part import ALL_IDS, SelectionPart, within_ids
from mlflow_exim_plugin.options.proving import KEY_KINDS, KEY_PASSPHRASE_VARIABLE, Checking, Signing
from mlflow_exim_plugin.options.retention import Moving, Retaining
from mlflow_exim_plugin.options.scaling import Planning, Scaling
from mlflow_exim_plugin.options.seeking import Indexing, MetricRange, Seeking, key_and_text
from mlflow_exim_plugin.options.selection import (
    Selection,
    is_glob,
    matches,
    parse_time_ms,
    version_asked,
)

__all__ = [
    "ALL_IDS",
    "KEY_KINDS",
    "KEY_PASSPHRASE_VARIABLE",
    "SALT_VARIABLE",
    "Checking",
    "Clearing",
    "Comparing",
    "Drawing",
    "Extracting",
    "Forgetting",
    "Indexing",
    "MetricRange",
    "Moving",
    "OnConflict",
    "Opening",
    "Option",
    "Packing",
    "Planning",
    "Pruning",
    "Publishing",
    "Reading",
    "Rename",
    "Repacking",
    "Retaining",
    "Scaling",
    "Scanning",
    "Seeking",
    "Selection",
    "SelectionPart",
    "Signing",
    "TakingOut",
    "Work",
    "Writing",
    "flat",
    "flat_fields",
    "is_glob",
    "key_and_text",
    "matches",
    "option_of",
    "parse_time_ms",
    "version_asked",
    "within_ids",
]
