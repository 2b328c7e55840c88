"""Whatever an archive says, a target takes no harm of it and gets the rest.

Each archive is a good one of which a seed bent some members; all digests are right again
(``tests/crafted.py``). What the target must have is known from its own rows after the good one.
``TEST_CRAFTED`` in the environment asks for another number of them, on every kind of target;
``TEST_CRAFTED_FROM`` for others.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from mlflow_exim_plugin import unpack, verify
from mlflow_exim_plugin.errors import EximError
from tests.compare import assert_count_law
from tests.crafted import Crafted, craft, members_of
from tests.emptied import opened
from tests.pinned import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.emptied import EmptiedTarget, Rows

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("impatient")]

COUNT = int(os.environ.get("TEST_CRAFTED", "2"))
FROM = int(os.environ.get("TEST_CRAFTED_FROM", "0"))
TARGETS = ["sqlite", "postgres", "http"] if "TEST_CRAFTED" in os.environ else ["sqlite"]
SECRET = b"of nobody's business"
VERIFY_KB = 300_000
LINKS = {"datasets", "inputs", "input_tags", "entity_associations", "span_attributes"}
"""Tables whose rows name what they belong to by ids of their own."""
PLACES = {"artifact_location", "artifact_uri", "storage_location", "source"}


class Relations:
    """Which rows an object of an archive may take with it.

    Args:
        members: Of the good archive.
    """

    def __init__(self, members: dict[str, bytes]) -> None:
        self._texts: dict[str, str] = {}
        self._ids: dict[str, set[str]] = {}
        for path, content in members.items():
            found: set[str] = set()
            if path.endswith(".json") and "/artifacts/" not in path:
                document = json.loads(content).get("mlflow") or {}
                self._texts[path] = json.dumps(document, ensure_ascii=False)
                found = {text for text in _ids_in(document) if len(text) > 2}
            elif path.endswith(".parquet"):
                table = pq.read_table(io.BytesIO(content))
                for column in {"run_id", "trace_id", "assessment_id"} & set(table.column_names):
                    found |= {str(value) for value in table.column(column).to_pylist()}
            self._ids[path] = found

    def of(self, crafted: Crafted) -> set[str]:
        """Return the ids of what was bent, of what belongs to it, and of what names that."""
        found = {text for text in crafted.named if 2 < len(text) < 200}
        for path in crafted.touched:
            folder = path.rpartition("/")[0]
            found |= {part for part in folder.split("/") if len(part) >= 32}
            # Parts of an experiment or model fail with it, and all traces with one of their files.
            whole = path.endswith(("experiment.json", "model.json", ".parquet", "part-00000.json"))
            for other, ids in self._ids.items():
                if other == path or (whole and other.startswith(f"{folder}/")):
                    found |= ids
            if path.endswith("experiment.json"):
                found.add(f"experiment {folder.rpartition('/')[2]}")
        long = [text for text in found if len(text) > 8]
        for path, text in self._texts.items():
            if path != "data/archive.json" and any(name in text for name in long):
                found |= self._ids[path]
        return found


def _ids_in(value: Any, depth: int = 3) -> Iterator[str]:
    if not isinstance(value, dict) or not depth:
        return
    for key, inner in value.items():
        if isinstance(inner, str) and (
            key in {"name", "run_uuid"} or (key.endswith("_id") and key != "experiment_id")
        ):
            yield inner
        yield from _ids_in(inner, depth - 1)


@pytest.mark.timeout(max(300, 60 * COUNT))
@pytest.mark.parametrize("kind", TARGETS)
def test_a_target_takes_no_harm(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = members_of(ARCHIVE)
    bait, top = tmp_path / "bait", tmp_path / "a" / "b" / "c" / "d"
    bait.mkdir()
    (bait / "private").write_bytes(SECRET)
    archive = tmp_path / "crafted.tar.zst"
    relations = Relations(members)
    wrong = {}
    with opened(kind, top) as target, tempfile.TemporaryDirectory() as elsewhere:
        monkeypatch.chdir(elsewhere)
        archive.write_bytes(Crafted(members, 0, bait).data())
        good, files, silent = _twice(target, archive)
        for seed in range(FROM, FROM + COUNT):
            crafted = craft(members, seed, bait)
            archive.write_bytes(crafted.data())
            outside = _outside(tmp_path, top, elsewhere)
            target.empty()
            problems = _verified(archive)
            report = None
            try:
                report = target.put(archive)
            except EximError:
                pass  # it may be refused as a whole
            else:
                assert_count_law(report)
                problems += [f"raw: {f}" for f in report.failures if _is_raw(f.reason)]
            if _outside(tmp_path, top, elsewhere) != outside:
                problems.append("something was written outside of the target")
            problems += [f"its server fails: {asked}" for asked in target.errors() - silent]
            rows = target.rows()
            problems += _places(target, rows, bait)
            problems += [p for p, content in target.contents().items() if SECRET in content]
            if report is not None and kind != "http":  # there everything has other ids
                related = relations.of(crafted)
                problems += _lost(target, good, rows, related)
                problems += _lost_files(files, target.contents(), related)
            if problems:
                wrong[f"{seed}: {'; '.join(crafted.done)}"] = problems
    assert wrong == {}


def _twice(target: EmptiedTarget, archive: Path) -> tuple[Rows, dict[str, bytes], set[str]]:
    """Return what a target has of the good archive, but for rows that are other ones each time."""
    found = []
    for _ in range(2):
        target.empty()
        report = target.put(archive)
        assert target.kind == "http" or report.failures == []
        found.append(target.rows())
    one, other = found
    return {name: one[name] & other[name] for name in one}, target.contents(), target.errors()


def _verified(archive: Path) -> list[str]:
    status = Path("/proc/self/status")
    before = _kilobytes(status, "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    with suppress(EximError):
        verify(str(archive))
    taken = _kilobytes(status, "VmHWM") - before
    return [f"verify took {taken} kB"] if taken > VERIFY_KB else []


def _kilobytes(status: Path, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", status.read_text())
    assert found is not None
    return int(found[1])


def _is_raw(reason: str) -> bool:
    """Whether an error of a library shows that nothing had looked before."""
    return "Traceback" in reason or "[SQL:" in reason


def _outside(top: Path, target: Path, elsewhere: str) -> set[Path]:
    """Return all that lies around a target, and in the working folder."""
    around = {path for path in top.rglob("*") if not path.is_relative_to(target)}
    return around | set(Path(elsewhere).rglob("*"))


def _places(target: EmptiedTarget, rows: Rows, bait: Path) -> list[str]:
    """Return places that a server would be led to, out of what is its own."""
    return [
        f"{name}.{column} is {value!r}"
        for name in ("experiments", "runs", "logged_models", "model_versions")
        for row in rows[name]
        for column, value in zip(target.columns[name], row, strict=True)
        if column in PLACES and (str(bait) in str(value) or "../stolen" in str(value))
    ]


def _lost(target: EmptiedTarget, good: Rows, rows: Rows, related: set[str]) -> list[str]:
    lost = []
    for name, wanted in good.items():
        columns = target.columns[name]
        for row in () if name in LINKS else wanted - rows[name]:
            of = f"experiment {dict(zip(columns, row, strict=True)).get('experiment_id')}"
            texts = [str(value) for value in row if isinstance(value, str)]
            if of not in related and not any(i in text for i in related for text in texts):
                lost.append(f"{name}: {dict(zip(columns, row, strict=True))}")
    return lost


def _lost_files(wanted: dict[str, bytes], there: dict[str, bytes], related: set[str]) -> list[str]:
    return [
        f"the file {path}"
        for path, content in wanted.items()
        if there.get(path) != content
        and not any(text.replace("experiment ", "/") in path for text in related)
    ]


def test_what_a_database_refuses_costs_itself(
    postgres_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column that may not be empty: PostgreSQL ends the transaction, with all that is in it."""
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    members = members_of(ARCHIVE)
    bent = next(path for path in sorted(members) if path.endswith("/logged_model.json"))
    document = json.loads(members[bent])
    del document["mlflow"]["logged_model"]["info"]["name"]
    archive = tmp_path / "bent.tar.zst"
    crafted = Crafted({**members, bent: json.dumps(document).encode()}, 0, tmp_path)
    archive.write_bytes(crafted.data())

    report = unpack(str(archive), tracking_uri=postgres_uri, artifact_location=str(tmp_path / "f"))

    assert [failure.id for failure in report.failures] == [bent.split("/")[-2]]
    assert "logged_models.name cannot be nothing" in report.failures[0].reason
