"""What tests of this MLflow leave to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_ELSEWHERE = {
    "test_server_to_server": "test_sinks.py",
    "test_large_histories": "test_round_trip.py",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the tests of whole round trips do too, where they run."""
    files = {item.path.name for item in items}
    twice = [
        item
        for item in items
        if item.path.name == "test_this_mlflow.py" and _ELSEWHERE.get(item.name) in files
    ]
    config.hook.pytest_deselected(items=twice)
    items[:] = [item for item in items if item not in twice]
