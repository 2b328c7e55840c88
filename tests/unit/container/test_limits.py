"""A reader has other limits where whoever runs it asks for them, and the format's without that."""

from __future__ import annotations

import io
import random
from dataclasses import fields
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_exim_plugin import verify
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import InvalidArchiveError, UsageError
from mlflow_exim_plugin.schema.rules import LIMITS, LIMITS_VARIABLE, Limits
from samples.forging import Forgery
from tests.unit.container.crafting import MemorySource

if TYPE_CHECKING:
    from pathlib import Path

DEEP = b'{"a":' * 120 + b"1" + b"}" * 120
SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])


def table_bytes(rows: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"n": range(rows)}, SCHEMA), sink, data_page_size=100)
    return sink.getvalue()


ARCHIVE = Forgery(
    {
        "data/deep.json": DEEP,
        "data/list.json": b"[%s]" % b",".join([b"1"] * 5000),
        "data/zeros.json": b'"%s"' % (b"0" * (50 << 20)),
        "data/table.parquet": table_bytes(40_000),
        "data/noise": random.Random(1).randbytes(200 << 10),
    }
).data()


def read(limits: Limits | None = None) -> dict[str, str]:
    """Return the codes for which members are refused, by their names; that of the file is empty."""
    try:
        reader = ArchiveReader.from_source(MemorySource(ARCHIVE), limits=limits)
    except InvalidArchiveError as error:
        return {"": code_of(error)}
    refused = {}
    with reader:
        for path in ("data/deep.json", "data/list.json", "data/zeros.json"):
            try:
                reader.read_document(path)
            except InvalidArchiveError as error:
                refused[path] = code_of(error)
        try:
            table = reader.open_table("data/table.parquet", SCHEMA, "E059")
            for number in range(len(table.groups)):
                table.row_group(number)
        except InvalidArchiveError as error:
            refused["data/table.parquet"] = error.findings[0].code
    return refused


def code_of(error: InvalidArchiveError) -> str:
    """Return the code of the rule, once the hint says what can be done."""
    assert LIMITS_VARIABLE in error.hint
    code: str = error.findings[0].code
    return code


DEFAULT = {"data/deep.json": "E050", "data/zeros.json": "E065"}
LOWER = {
    "frames": (3, {"": "E011"}),
    "frame_bytes": (1 << 20, {"": "E013"}),
    "members": (3, {"": "E025"}),
    "manifest_bytes": (100, {"": "E026"}),
    "archive_bytes": (50 << 20, {"": "E065"}),
    "document_bytes": (9_000, {**DEFAULT, "data/list.json": "E050", "data/zeros.json": "E050"}),
    "document_values": (4_000, {**DEFAULT, "data/list.json": "E050"}),
    "depth": (100, DEFAULT),
    "row_group_rows": (1_000, {**DEFAULT, "data/table.parquet": "E059"}),
    "row_group_bytes": (1_000, {**DEFAULT, "data/table.parquet": "E059"}),
    "table_footer_bytes": (10, {**DEFAULT, "data/table.parquet": "E059"}),
    "column_values": (1_000, {**DEFAULT, "data/table.parquet": "E059"}),
    "column_pages": (1, {**DEFAULT, "data/table.parquet": "E059"}),
    "expansion": (1_000, DEFAULT),
    "free_bytes": (10, {**DEFAULT, "data/list.json": "E065"}),
    "text_expansion": (1, DEFAULT),
    "free_values": (4_000, {**DEFAULT, "data/list.json": "E065"}),
}


def test_what_is_over_a_limit_of_the_format_is_refused() -> None:
    assert read() == DEFAULT


def test_each_limit_is_tried() -> None:
    elsewhere = {"named"}  # tests/unit/schema/test_named.py
    assert LOWER.keys() | elsewhere == {of.name for of in fields(Limits)}


@pytest.mark.parametrize("name", LOWER)
def test_each_limit_can_be_lowered(name: str) -> None:
    most, refused = LOWER[name]
    assert read(Limits(**{name: most})) == refused


def test_limits_can_be_raised() -> None:
    assert read(Limits(depth=120, text_expansion=1_000_000)) == {}


def test_the_environment_gives_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMITS_VARIABLE, "depth=120, text_expansion=1000000")
    assert read() == {}
    assert read(LIMITS) == DEFAULT
    assert Limits.of_environment().others == {"depth": 120, "text_expansion": 1_000_000}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dept=5", "did you mean depth"),
        ("x=1", "there are frames"),
        ("depth", "write depth="),
        ("depth=0", "write depth="),
        ("depth=-1", "write depth="),
        ("depth=\u0663", "write depth="),
        ("depth=2000", "depth is 200 at most"),
        ("document_bytes=99999999999", "at most"),
    ],
)
def test_what_the_environment_cannot_mean_is_refused(
    text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMITS_VARIABLE, text)
    with pytest.raises(UsageError) as refused:
        read()
    assert said in f"{refused.value} {refused.value.hint}"


def test_what_was_read_with_other_limits_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.tar.zst"
    file.write_bytes(ARCHIVE)
    assert verify(str(file)).to_dict()["limits"] == {}
    monkeypatch.setenv(LIMITS_VARIABLE, "depth=120")
    result = verify(str(file))
    assert result.to_dict()["limits"] == {"depth": 120}
