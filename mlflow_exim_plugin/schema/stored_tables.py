"""The Parquet tables of an archive, each row group held to the format's limits before it is read.

A few kB of Parquet can say a long text a million times, so sizes are looked at in the headers of
the pages, and once more while each text is in memory once. Source: spec/v1/archive.md, "Hostile
input".
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_exim_plugin.errors import EximError, InvalidArchiveError
from mlflow_exim_plugin.schema.parquet_pages import Chunks, pages_of
from mlflow_exim_plugin.schema.rules import EXPANSION, LIMITS, Finding, Limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["StoredTable"]

_ROOM_BYTES = 64 << 20
"""What a row group may take whatever its file has."""
_ENDING_BYTES = 8
_HINT = "run `verify` to see all damage"
_DELTA_BYTE_ARRAY = 7
"""An encoding that says texts by their beginnings: a few bytes of it are any number of bytes."""


class StoredTable:
    """One Parquet file of an archive.

    Args:
        stream: Its bytes; closed with it.
        member: Its path, for messages.
        schema: Columns that it must have.
        code: The rule that it breaks where it is not as the format has it.
        stored_bytes: How many bytes of the archive hold it.
        limits: What it may be at most.

    Attributes:
        groups: Number of rows of each row group.

    Raises:
        InvalidArchiveError: It is not as the format has it.
    """

    def __init__(
        self,
        stream: BinaryIO,
        member: str,
        schema: pa.Schema,
        code: str,
        stored_bytes: int,
        limits: Limits = LIMITS,
    ) -> None:
        self._stream = stream
        self._member = member
        self._schema = schema
        self._code = code
        self._stored_bytes = stored_bytes
        self._limits = limits
        with self._named():
            footer = self._footer()
            file = _opened(stream)
            if not file.schema_arrow.equals(schema):
                raise self._broken("has other columns than the format")
            self._metadata = metadata = file.metadata
            self.groups = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
            if max(self.groups, default=0) > limits.row_group_rows:
                raise self._over("row_group_rows", "has a row group over the limit")
            self._chunks = Chunks(footer, metadata.num_columns)
            self._file = _opened(stream, metadata=metadata, read_dictionary=self._dictionaries())

    @property
    def num_rows(self) -> int:
        """How many rows it has."""
        return sum(self.groups)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
        self._stream.close()

    def row_group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one row group, on this very thread.

        Arrow's own threads must never hold what a Python stream gave: one of them may let go of it
        while the interpreter ends, and that aborts the process.

        Args:
            number: Its number.
            columns: Columns to read; all by default.

        Raises:
            InvalidArchiveError: It is damaged or over a limit.
        """
        wanted = None if columns is None else list(columns)
        if not self.groups[number]:  # some writers leave no page in it
            return self._schema.empty_table().select(wanted or self._schema.names)
        with self._named(f"row group {number}: "):
            self._check_pages(number)
            table = self._file.read_row_group(number, columns=wanted, use_threads=False)
            self._check_size(number, sum(_decoded_bytes(column) for column in table.columns))
            schema = pa.schema([self._schema.field(name) for name in table.column_names])
            return table if table.schema.equals(schema) else table.cast(schema)

    def _footer(self) -> bytes:
        size_bytes = self._stream.seek(0, 2)
        self._stream.seek(max(size_bytes - _ENDING_BYTES, 0))
        footer_bytes = int.from_bytes(self._stream.read(4), "little")
        if footer_bytes > self._limits.table_footer_bytes:
            raise self._over("table_footer_bytes", "has a footer over the limit")
        self._stream.seek(max(size_bytes - _ENDING_BYTES - footer_bytes, 0))
        return self._stream.read(footer_bytes)

    def _dictionaries(self) -> list[str]:
        """Return the columns of which a row group has a dictionary, by path."""
        columns = map(self._metadata.schema.column, range(self._metadata.num_columns))
        return sorted(
            column.path
            for place, column in enumerate(columns)
            if column.physical_type == "BYTE_ARRAY" and self._chunks.has_dictionary(place)
        )

    def _check_pages(self, number: int) -> None:
        total_bytes = 0
        for place in range(self._metadata.num_columns):
            values = 0
            start, end = self._chunks.place(number, place)
            for page in pages_of(self._stream, start, end, self._limits.column_pages):
                values += page.values
                total_bytes += page.size_bytes
                self._check_size(number, total_bytes)
                if _DELTA_BYTE_ARRAY in page.encodings:
                    raise self._broken("has a text encoded by its difference to another")
            if values > self._limits.column_values:
                message = f"row group {number} has {values} values in a column"
                raise self._over("column_values", message)

    def _check_size(self, number: int, size_bytes: int) -> None:
        limits = self._limits
        if size_bytes > limits.row_group_bytes:
            message = f"row group {number} has {size_bytes} bytes, over the limit"
            raise self._over("row_group_bytes", message)
        if size_bytes > _ROOM_BYTES and limits.expands_too_much(size_bytes, self._stored_bytes):
            message = f"row group {number} has {size_bytes} bytes, made of {self._stored_bytes}"
            raise self._over("expansion", message, EXPANSION)

    @contextlib.contextmanager
    def _named(self, place: str = "") -> Iterator[None]:
        try:
            yield
        # A KeyError is a column that row groups and schema call differently.
        except (pa.ArrowException, KeyError, OSError, ValueError, MemoryError) as error:
            if isinstance(error, EximError):
                raise  # damage has its name by now, and a store that refuses is none
            raise self._broken(f"{place}is not a Parquet file: {error}") from None

    def _over(self, limit: str, message: str, code: str = "") -> InvalidArchiveError:
        return self._broken(message, code, self._limits.hint(limit))

    def _broken(self, message: str, code: str = "", hint: str = _HINT) -> InvalidArchiveError:
        finding = Finding(code or self._code, self._member, message)
        return InvalidArchiveError(f"{self._member} {message}", hint, [finding])


def _opened(stream: BinaryIO, **more: object) -> pq.ParquetFile:
    return pq.ParquetFile(stream, pre_buffer=False, page_checksum_verification=True, **more)


def _decoded_bytes(column: pa.ChunkedArray | pa.Array) -> int:
    """Return how many bytes a column has once each of its texts stands for itself."""
    if isinstance(column, pa.ChunkedArray):
        return sum(_decoded_bytes(chunk) for chunk in column.chunks)
    if isinstance(column, pa.MapArray):
        return _decoded_bytes(column.keys) + _decoded_bytes(column.items)
    if isinstance(column, pa.DictionaryArray):
        lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
        return int(pc.sum(lengths).as_py() or 0) + 4 * len(column)
    return int(column.nbytes)
