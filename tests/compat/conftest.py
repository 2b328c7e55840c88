"""What tests of this MLflow leave to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_IN_ROUND_TRIPS = {"test_server_to_server", "test_large_histories"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the tests of whole round trips do too, where they run."""
    if "test_round_trip.py" not in {item.path.name for item in items}:
        return
    twice = [
        item
        for item in items
        if item.path.name == "test_this_mlflow.py" and item.name in _IN_ROUND_TRIPS
    ]
    config.hook.pytest_deselected(items=twice)
    items[:] = [item for item in items if item not in twice]
