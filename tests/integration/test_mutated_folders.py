"""Whatever happens to the files of a folder, what still stands in them is packed, the rest named.

Each folder is one that MLflow filled, damaged at places that a seed chooses. What must come is read
from the damaged files by ``tests/folder_truth.py``, which knows nothing of the package.
``TEST_MUTANTS`` in the environment asks for another number of them, ``TEST_MUTANTS_FROM`` for
others. Of what may not be read there is most where root is no exception::

    setpriv --bounding-set -dac_override,-dac_read_search python -m pytest ...
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin import pack, verify
from tests.compare import assert_count_law
from tests.folder_mutants import mutate
from tests.folder_truth import archive_says, folder_says

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report
    from tests.folder_seed import Store
    from tests.folder_truth import Address, Standing

pytestmark = pytest.mark.integration

COUNT = int(os.environ.get("TEST_MUTANTS", "10"))
FROM = int(os.environ.get("TEST_MUTANTS_FROM", "0"))
SECRET = "of nobody's business 1 2\n"


@pytest.mark.timeout(max(300, 10 * COUNT))
def test_what_stands_in_the_files_is_packed_or_named(
    filled_folder: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside, root, archive = (tmp_path / name for name in ("outside", "mlruns", "a.tar.zst"))
    outside.mkdir()
    (outside / "private").write_text(SECRET)
    caplog.set_level(logging.INFO, "mlflow_exim_plugin")
    wrong = {}
    for seed in range(FROM, FROM + COUNT):
        store = filled_folder.copied(root, says_so=True)
        done, touched = mutate(root, seed, outside)
        caplog.clear()

        report = pack(str(archive), tracking_uri=store.uri, overwrite=True)

        assert_count_law(report)
        assert verify(str(archive)).ok, (seed, done)
        told, standing = archive_says(archive), folder_says(root)
        if problems := [
            *_missing(standing, told, report, touched),
            *(f"{a} is made up: {v!r}" for a, v in told.items() if _is_made_up(a, v, standing)),
            *(f"{path} is left alone unsaid" for path in standing.strays - _left_alone(caplog)),
        ]:
            wrong[f"{seed}: {'; '.join(done)}"] = problems
        shutil.rmtree(_may_be_removed(str(root)))
    assert wrong == {}


def _missing(
    standing: Standing, told: dict[Address, object], report: Report, touched: list[str]
) -> Iterator[str]:
    """Yield what is not as it should be: lost unsaid, or lost though nobody touched it."""
    named = [
        *((failure.id, failure.reason) for failure in report.failures),
        *((loss.id, loss.what) for loss in report.losses),
    ]
    for address, value in standing.values.items():
        if value is None or told.get(address) == value:
            continue
        files = standing.files[address]
        if not _names(named, address, files):
            yield f"{address} is lost unsaid: {value!r}, {told.get(address)!r}"
        elif not any(f == path or f.startswith(f"{path}/") for f in files for path in touched):
            yield f"{address} is lost for a neighbour"
    for address in standing.unreadable:
        if not _names(named, address, standing.files[address]):
            yield f"{address} cannot be read, and that is unsaid"


def _names(named: list[tuple[str, str]], address: Address, files: tuple[str, ...]) -> bool:
    """Whether one of what is named is this value, or its owner, or a folder above."""
    _, owner, *key = map(_shown, address)
    folders = {owner}
    for file in map(_shown, files):
        folders |= {file, *map(str, PurePosixPath(file).parents)} - {"."}
    return any(
        id_.rstrip("/") in folders
        or (id_.startswith(f"{owner}/") and any(part in f"{id_} {why}" for part in key))
        or any(path in why for path in folders if "/" in path and path in files)
        or why.partition(": ")[0].endswith(tuple(f"mlruns/{path}" for path in folders))
        for id_, why in named
    )


def _is_made_up(address: Address, value: object, standing: Standing) -> bool:
    if not value or address in standing.values:
        return False
    # Files of a version lie with a run or a model, where they are looked for.
    return address[0] != "version" or address[2] != "file" or SECRET in str(value)


def _left_alone(caplog: pytest.LogCaptureFixture) -> set[str]:
    lines = [r.getMessage() for r in caplog.records if "left alone" in r.msg]
    return {path for line in lines for path in line.partition(": ")[2].split(", ")}


def _shown(text: str) -> str:
    """Return a name as messages have it."""
    shown = text.encode(errors="backslashreplace").decode()
    return re.sub(r"\\udc(..)", r"\\x\1", shown)


def _may_be_removed(folder: str) -> str:
    os.chmod(folder, 0o700)  # noqa: PTH101 - its name may be no UTF-8
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _may_be_removed(entry.path)
    return folder
