"""Limits of the Parquet tables of an archive, and what is held in memory to tell them."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema.parquet_pages import Chunks, Page, pages_of
from mlflow_exim_plugin.schema.rules import LIMITS
from mlflow_exim_plugin.schema.stored_tables import StoredTable

TEXTS = pa.schema([pa.field("text", pa.string(), nullable=False)])
TAGS = pa.schema([pa.field("tags", pa.map_(pa.string(), pa.string()))])


def stored(table: pa.Table, stored_bytes: int = 1 << 30, **how: object) -> StoredTable:
    sink = io.BytesIO()
    pq.write_table(table, sink, store_schema=False, **how)
    return StoredTable(sink, "data/x.parquet", table.schema, "E059", stored_bytes)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
def test_pages_are_what_the_footer_counts(version: str, compression: str) -> None:
    sink = io.BytesIO()
    table = pa.table({"n": range(100_000), "t": [str(n % 7) for n in range(100_000)]})
    pq.write_table(
        table, sink, data_page_version=version, compression=compression, data_page_size=10_000
    )
    group = pq.ParquetFile(sink).metadata.row_group(0)

    for place in range(2):
        column = group.column(place)
        start = column.dictionary_page_offset
        pages = list(pages_of(sink, start, start + column.total_compressed_size))
        assert sum(page.values for page in pages) == 100_000
        assert sum(page.size_bytes for page in pages) <= column.total_uncompressed_size
        assert len(pages) > 2


def footer_of(file: bytes) -> bytes:
    return file[-8 - int.from_bytes(file[-8:-4], "little") : -8]


@pytest.mark.parametrize("dictionary", [True, ["t"], False])
def test_columns_are_where_arrow_finds_them(dictionary: bool | list[str]) -> None:
    sink = io.BytesIO()
    table = pa.table(
        {
            "n": range(5_000),
            "t": [str(n % 7) for n in range(5_000)],
            "m": pa.array(
                [[("k", str(n))] for n in range(5_000)], pa.map_(pa.string(), pa.string())
            ),
        }
    )
    pq.write_table(
        table, sink, row_group_size=300, use_dictionary=dictionary, write_page_checksum=True
    )
    metadata = pq.ParquetFile(sink).metadata

    chunks = Chunks(footer_of(sink.getvalue()), metadata.num_columns)

    assert metadata.num_row_groups == 17
    for place in range(metadata.num_columns):
        has_dictionary = False
        for number in range(metadata.num_row_groups):
            column = metadata.row_group(number).column(place)
            start = column.data_page_offset
            if column.has_dictionary_page:
                has_dictionary = True
                start = min(start, column.dictionary_page_offset)
            assert chunks.place(number, place) == (start, start + column.total_compressed_size)
        assert chunks.has_dictionary(place) is has_dictionary


def test_of_a_field_that_comes_twice_the_last_one_counts_as_for_decoders() -> None:
    def group(offset: int) -> bytes:
        column = b"\x3c" + b"\x76\x02\x26" + bytes([2 * offset]) + b"\x00\x00"
        return b"\x19\x1c" + column + b"\x00"

    once = b"\x49\x1c" + group(7) + b"\x00"
    twice = b"\x49\x1c" + group(5) + b"\x09\x08\x1c" + group(7) + b"\x00"
    far = b"\x49\x1c" + group(5) + b"\x09\x88\x80\x08\x1c" + group(7) + b"\x00"
    for footer in (once, twice, far):  # a number has 16 bits
        assert Chunks(footer, 1).place(0, 0) == (7, 8)
    with pytest.raises(ValueError, match="1 columns, the schema 2"):
        Chunks(once, 2)
    for bad in (b"", b"\x49\xfc\xff\xff\x7f", once.replace(b"\x76", b"\x75"), b"\x49\x18\x00"):
        with pytest.raises(ValueError, match="footer cannot be read"):
            Chunks(bad, 1)


def test_tables_come_back_as_they_were_written() -> None:
    rows = [[("a", "x" * 50), ("b", None)], None, [], [("c", "")]]
    for table in (
        pa.table({"tags": pa.array(rows, TAGS.field(0).type)}, schema=TAGS),
        pa.table({"text": ["a", "", "b" * 99, "a"]}, schema=TEXTS),
    ):
        for how in ({}, {"use_dictionary": False}, {"row_group_size": 2}):
            file = stored(table, **how)
            read = pa.concat_tables(file.row_group(n) for n in range(len(file.groups)))
            assert read.equals(table)


@pytest.mark.parametrize(("size", "code"), [(600 << 20, "E059"), (80 << 20, "E065")])
@pytest.mark.parametrize("schema", [TEXTS, TAGS], ids=["texts", "tags"])
def test_a_text_that_is_said_too_often_is_refused_before_it_is_there(
    schema: pa.Schema, size: int, code: str
) -> None:
    text = "k" * 10_000
    indices = pa.repeat(pa.scalar(0, pa.int32()), size // len(text))
    said = pa.DictionaryArray.from_arrays(indices, [text])
    if schema is TAGS:
        offsets = pa.array(range(len(said) + 1), pa.int32())
        said = pa.MapArray.from_arrays(offsets, pa.repeat("key", len(said)), said)
    sink = io.BytesIO()
    pq.write_table(pa.table({schema.names[0]: said}), sink, store_schema=False)
    wanted = pq.ParquetFile(sink).schema_arrow
    file = StoredTable(sink, "data/x.parquet", wanted, "E059", len(sink.getvalue()))
    usual = pa.default_memory_pool()
    watched = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(watched)

    try:
        with pytest.raises(InvalidArchiveError) as caught:
            file.row_group(0)
    finally:
        pa.set_memory_pool(usual)

    assert [finding.code for finding in caught.value.findings] == [code]
    assert watched.max_memory() < 20 << 20


def test_a_page_that_unpacks_to_too_much_is_refused() -> None:
    file = stored(pa.table({"text": ["z" * (70 << 20)]}, schema=TEXTS), 50_000, compression="zstd")

    with pytest.raises(InvalidArchiveError, match="made of 50000") as caught:
        file.row_group(0)

    assert caught.value.findings[0].code == "E065"


def test_what_is_no_row_of_pages_is_refused() -> None:
    no_struct_of_data = b"\x25\x02\x15\x02\x25\x02\x00"
    lists_of_lists = b"\x19" * 50_000
    for data in (
        b"\x15\x04\x15\xff\xff\x03\x00",
        b"\xff" * 40,
        b"\x00" * 9,
        b"\x1c" * 100,
        no_struct_of_data,
        lists_of_lists,
    ):
        with pytest.raises(ValueError, match="page"):
            list(pages_of(io.BytesIO(data), 0, len(data)))


def test_pages_without_an_end_are_not_counted_to_it() -> None:
    page = b"\x25\x00\x15\x00\x2c\x15\x00\x15\x00\x00\x00"
    assert list(pages_of(io.BytesIO(page), 0, len(page))) == [Page(0, 0, frozenset({0}))]
    many = page * (LIMITS.column_pages + 1)
    with pytest.raises(ValueError, match="pages"):
        list(pages_of(io.BytesIO(many), 0, len(many)))
