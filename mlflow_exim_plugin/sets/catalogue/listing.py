"""Which parts a catalogue consists of: documents with numbers, of which the last one counts.

A new one is put where none is: of two writers one wins, the other looks again and puts the next.
"""

from __future__ import annotations

import logging
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from mlflow_exim_plugin.errors import (
    ArchiveExistsError,
    InvalidArchiveError,
    NotFoundError,
    StoreError,
    UnsupportedFormatError,
)
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.canonical import canonical_bytes, parse_json
from mlflow_exim_plugin.schema.envelope import Document
from mlflow_exim_plugin.sets.catalogue.parts import FOLDER, Part, TableFile, merge, write_part
from mlflow_exim_plugin.sets.catalogue.tables import TABLES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from mlflow_exim_plugin.sets.catalogue.rows import CatalogueRows
    from mlflow_exim_plugin.storage.folders.folder import Folder

__all__ = ["FORMAT", "FORMAT_VERSION", "PartsListing", "newest", "publish", "write_rows"]

_log = logging.getLogger(__name__)

FORMAT = "mlflow-exim-catalogue"
FORMAT_VERSION = "1.0"
_LISTINGS = f"{FOLDER}/parts"
_NAME = re.compile(r"([0-9]{8})\.json")
_KEPT = 16
"""How many listings stay: who is slower than so many others is the one whose part is lost, and
`index` finds that."""
_FANOUT = 8
_SMALL_OBJECTS = 4096
"""Parts of fewer objects are of one tier."""
_MAX_BYTES = 16 << 20
_ATTEMPTS = 50
_REBUILD = "`mlflow exim index --rebuild` makes it anew"


class _Table(Document):
    rows: int = Field(ge=0)
    size_bytes: int = Field(ge=0)
    footer_bytes: int = Field(ge=0)


class _PartDocument(Document):
    number: int = Field(ge=0, lt=1 << 31)
    tables: dict[str, _Table]


class _ListingDocument(Document):
    format: str
    format_version: str
    number: int = Field(ge=1)
    parts: tuple[_PartDocument, ...] = Field(strict=False)


@dataclass(frozen=True)
class PartsListing:
    """The parts of a catalogue.

    Attributes:
        number: Number of its document, 0 where there is none yet.
        parts: The parts.
    """

    number: int = 0
    parts: tuple[Part, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return its document."""
        parts = [
            {"number": part.number, "tables": {n: vars(file) for n, file in part.tables.items()}}
            for part in self.parts
        ]
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "number": self.number,
            "parts": parts,
        }


def newest(folder: Folder) -> PartsListing:
    """Return the parts of the catalogue in a folder, none where it has no catalogue.

    Raises:
        InvalidArchiveError: The listing cannot be read.
        UnsupportedFormatError: It is of another major version.
        StoreError: The store refused or died.
    """
    for _ in range(_ATTEMPTS):
        there = _numbers(folder)
        if not there:
            return PartsListing()
        number, size_bytes = max(there.items())
        try:
            return _read(folder, number, size_bytes)
        except NotFoundError:  # sixteen newer ones came meanwhile
            continue
    raise StoreError(f"{redact_url(folder.url)}/{_LISTINGS}: its newest listing goes each time")


def write_rows(folder: Folder, rows: CatalogueRows) -> Part:
    """Write rows as a part, which no listing names yet.

    Raises:
        StoreError: The store refused or died.
    """
    number = _new_number(())
    return write_part(folder, number, rows.tables(number))


def publish(
    folder: Folder,
    added: Sequence[Part],
    *,
    gone: Mapping[int, Collection[str]] | None = None,
    anew: bool = False,
) -> PartsListing:
    """Make parts that were written a part of the catalogue in a folder, and return that.

    Parts of about the same size are merged as soon as there are eight of them, so that there are
    never many, and no object is written more often than the logarithm of their number.

    Args:
        folder: Where the catalogue lies.
        added: The parts.
        gone: Archives whose objects are to go, by number of the part.
        anew: Whether what is added is all that there is then, as one part.

    Raises:
        InvalidArchiveError: A part that would be merged is damaged.
        StoreError: The store refused or died.
    """
    written = {part.number: part for part in added}
    for _ in range(_ATTEMPTS):
        last = max(_numbers(folder), default=0)
        before = PartsListing(last) if anew else newest(folder)
        there = {part.number for part in before.parts}
        dropped = {n: names for n, names in (gone or {}).items() if n in there and names}
        try:
            settled = _settled(folder, (*before.parts, *added), dropped, written, merges_all=anew)
            listing = PartsListing(before.number + 1, tuple(settled))
            _put(folder, listing)
        except (ArchiveExistsError, NotFoundError):
            continue  # somebody was faster; what they merged is gone
        kept = {part.number for part in settled}
        old = [p for p in (*before.parts, *written.values()) if p.number not in kept]
        _clear(folder, [part.path(name) for part in old for name in TABLES])
        if anew:
            named = {part.path(name) for part in settled for name in TABLES}
            _clear(folder, [path for path in _table_files(folder) if path not in named])
        _clear(folder, [_path(n) for n in _numbers(folder) if n <= listing.number - _KEPT])
        return listing
    raise StoreError(f"{redact_url(folder.url)}: others write to its catalogue all the time")


def _settled(
    folder: Folder,
    parts: Sequence[Part],
    gone: Mapping[int, Collection[str]],
    written: dict[int, Part],
    *,
    merges_all: bool,
) -> list[Part]:
    """Merge what is to be merged."""
    settled = list(parts)

    def joined(several: list[Part]) -> None:
        number = _new_number(settled)
        try:
            part = written[number] = merge(folder, several, number, gone)
        except BaseException:
            _clear(folder, [Part(number, {}).path(name) for name in TABLES])
            raise
        numbers = {one.number for one in several}
        place = min(settled.index(one) for one in several)
        settled[:] = [
            *(one for one in settled[:place] if one.number not in numbers),
            *([part] if part.tables["archives"].rows else []),
            *(one for one in settled[place:] if one.number not in numbers),
        ]

    if merges_all and len(settled) > 1:
        joined(list(settled))
    for part in [one for one in settled if gone.get(one.number)]:
        joined([part])
    while True:
        tiers: dict[int, list[Part]] = {}
        for part in settled:
            tiers.setdefault(_tier(part), []).append(part)
        full = [several for several in tiers.values() if len(several) >= _FANOUT]
        if not full:
            return settled
        joined(full[0])


def _tier(part: Part) -> int:
    tier, most = 0, _SMALL_OBJECTS
    while part.objects >= most:
        tier, most = tier + 1, most * _FANOUT
    return tier


def _new_number(parts: Collection[Part]) -> int:
    used = {part.number for part in parts}
    return next(n for n in iter(lambda: random.SystemRandom().getrandbits(31), -1) if n not in used)


def _numbers(folder: Folder) -> dict[int, int]:
    """Return the sizes of the listings by number."""
    found = ((_NAME.fullmatch(file.name), file.size_bytes) for file in folder.files(_LISTINGS))
    return {int(match[1]): size_bytes for match, size_bytes in found if match}


def _path(number: int) -> str:
    return f"{_LISTINGS}/{number:08}.json"


def _read(folder: Folder, number: int, size_bytes: int) -> PartsListing:
    place = f"{redact_url(folder.url)}/{_path(number)}"
    if size_bytes > _MAX_BYTES:
        raise InvalidArchiveError(f"{place} has {size_bytes} bytes, over the limit", _REBUILD)
    (data,) = folder.ranges([(_path(number), 0, size_bytes)])
    try:
        value = parse_json(data, _path(number))
        _require_version(value, place)
        document = _ListingDocument.model_validate(value)
        parts = tuple(_part(part) for part in document.parts)
    except (ValidationError, ValueError, InvalidArchiveError) as error:
        detail = str(error).splitlines()[0]
        raise InvalidArchiveError(f"{place} is no listing: {detail}", _REBUILD) from None
    if document.format != FORMAT or document.number != number:
        raise InvalidArchiveError(f"{place} is no listing of this number", _REBUILD)
    return PartsListing(number, parts)


def _require_version(value: Any, place: str) -> None:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        return  # it is refused for that
    version = str(value.get("format_version"))
    if version.partition(".")[0] != FORMAT_VERSION.partition(".")[0]:
        raise UnsupportedFormatError(
            f"{place} is of version {version}, this package reads {FORMAT_VERSION}",
            "use a newer mlflow-exim-plugin",
        )


def _part(part: _PartDocument) -> Part:
    if missing := TABLES.keys() - part.tables.keys():
        raise ValueError(f"part {part.number} lacks {min(missing)}")
    tables = {
        name: TableFile(of.rows, of.size_bytes, of.footer_bytes) for name, of in part.tables.items()
    }
    return Part(part.number, tables)


def _put(folder: Folder, listing: PartsListing) -> None:
    path = _path(listing.number)
    try:
        with folder.new_file(path) as output:
            output.write(canonical_bytes(listing.to_json()) + b"\n")
    except StoreError as error:
        # Who writes to the same name at once may take what is on its way there for left behind.
        if isinstance(error.__cause__, FileNotFoundError):
            raise ArchiveExistsError(f"{path} is being written by others") from error
        raise


def _table_files(folder: Folder) -> list[str]:
    return [
        f"{FOLDER}/{name}/{file.name}"
        for name in TABLES
        for file in folder.files(f"{FOLDER}/{name}")
    ]


def _clear(folder: Folder, paths: Iterable[str]) -> None:
    """Remove what no listing names any more; what stays harms no reader."""
    for path in paths:
        try:
            folder.remove(path)
        except StoreError as error:
            _log.info("%s stays: %s", path, error.message)
