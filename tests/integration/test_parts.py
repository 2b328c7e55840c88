"""Packs of parts are together what one pack of all is, and share nothing but experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin import Selection, open_archive, pack
from mlflow_exim_plugin.options import ALL_IDS, SelectionPart
from tests.depth import one_of
from tests.leaves import leaves

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

pytestmark = pytest.mark.integration

LISTING = ("/experiment.json", "/workspace.json")
DELETED = "/logged_model.json"
"""A server lists no deleted model: each part with a run that leads to one has it."""
AS_OF_MS = 1_790_000_000_000


def packed_leaves(path: Path, selection: Selection, **source: Any) -> tuple[dict[str, str], bool]:
    report = pack(str(path), selection=selection, as_of_ms=AS_OF_MS, **source)
    with open_archive(str(path)) as archive:
        return leaves(archive), report.ok


def divided(experiments: Iterable[str]) -> list[SelectionPart]:
    """Return each experiment in runs up to 7…, those after, and what is beside them; then the rest.

    Every second one is whole, two of them together.
    """
    ids = sorted(experiments, key=int)
    parts = [SelectionPart(tuple(ids[1::2]), ALL_IDS, beside_runs=True)]
    for experiment_id in ids[::2]:
        parts += [
            SelectionPart((experiment_id,), ("", "7")),
            SelectionPart((experiment_id,), ("7", "")),
            SelectionPart((experiment_id,), beside_runs=True),
        ]
    return [*parts, SelectionPart(beside_experiments=True)]


@pytest.mark.parametrize("by", one_of("database", "server"))
def test_parts_are_together_what_the_whole_is(
    by: str, everything: tuple[str, str], everything_folder: Path, tmp_path: Path
) -> None:
    source: dict[str, Any] = {"tracking_uri": everything[0]}
    if by == "database":
        source = {
            "tracking_uri": f"sqlite:///{everything_folder}/mlflow.db",
            "artifacts_destination": str(everything_folder / "artifacts"),
        }
    whole, was_ok = packed_leaves(tmp_path / "whole.tar.zst", Selection(), **source)
    experiments = {path.split("/")[2] for path in whole if path.endswith("/experiment.json")}
    together: dict[str, str] = {}
    for number, part in enumerate(divided(experiments - {""})):
        found, is_ok = packed_leaves(tmp_path / f"{number}.tar.zst", Selection(part=part), **source)
        twice = found.keys() & together.keys()
        allowed = LISTING if by == "database" else (*LISTING, DELETED)
        assert all(path.endswith(allowed) for path in twice), twice
        assert is_ok or not was_ok
        together |= found
    assert together.keys() == whole.keys()
    # What an experiment lists, and so its digest, is of one part.
    assert all(together[path] == whole[path] for path in whole if not path.endswith(LISTING))
    assert len(whole) > 100
