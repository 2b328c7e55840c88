"""What becomes of an archive of everything is what became of it before (``tests/pinned.py``)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin import verify
from tests.pinned import ARCHIVE, WAYS, golden, made_now

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("way", WAYS)
def test_everything_becomes_what_it_became_before(way: str, tmp_path: Path) -> None:
    before, now = Counter(golden(way)), Counter(made_now(way, tmp_path))

    assert sorted((before - now).elements()) == []
    assert sorted((now - before).elements()) == []


def test_the_archive_of_everything_is_whole() -> None:
    assert verify(str(ARCHIVE)).findings == []
