"""The BagIt side: manifests and the two fixed tag files.

Source: RFC 8493 (BagIt 1.0), sections 2.1, 2.2 and 4.2; spec/v1/archive.md, "Manifests".
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.paths import check_member_paths
from mlflow_exim_plugin.container.refusal import refuse
from mlflow_exim_plugin.errors import InvalidArchiveError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "BAGIT",
    "BAGIT_CONTENT",
    "BAG_INFO",
    "DIGEST_BYTES",
    "FETCH",
    "MANIFEST",
    "PAYLOAD",
    "TAG_MANIFEST",
    "Manifest",
    "bag_info_content",
    "check_payload_paths",
    "check_tag_path",
    "is_reserved",
    "manifest_content",
    "parse_manifest",
    "payload_oxum",
]

BAGIT = "bagit.txt"
BAG_INFO = "bag-info.txt"
FETCH = "fetch.txt"
MANIFEST = "manifest-sha256.txt"
TAG_MANIFEST = "tagmanifest-sha256.txt"
PAYLOAD = "data/"
BAGIT_CONTENT = b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
DIGEST_BYTES = 32

_OXUM = "Payload-Oxum"
_SEPARATOR = "  "
_HEX = re.compile(r"[0-9a-f]*")
_DIGITS = 2 * DIGEST_BYTES
_PATH = _DIGITS + len(_SEPARATOR)
_PIECE_BYTES = 4 << 20


def is_reserved(path: str) -> bool:
    """Tell whether a path is the bag's own, so that only the writer may make it.

    Any case and any algorithm: a second manifest would claim what nobody keeps true.
    """
    if path.startswith(PAYLOAD):
        return False
    name = path.casefold()
    return (
        name in {BAGIT, BAG_INFO, FETCH, "data"}
        or (name.startswith(("manifest-", "tagmanifest-")) and name.endswith(".txt"))
        # On a file system that ignores case this would lie in the payload without being listed.
        or name.startswith(PAYLOAD)
    )


def bag_info_content(fields: Mapping[str, str], payload_bytes: int, payload_count: int) -> bytes:
    """Return bag-info.txt: the given fields in their order, then Payload-Oxum.

    Raises:
        UsageError: A label or value would break the file's lines.
    """
    lines = []
    for label, value in fields.items():
        is_line = len(f"{label}{value}x".splitlines()) == 1
        is_label = label == label.strip() and ":" not in label and label
        if not is_line or not is_label or label.casefold() == _OXUM.casefold():
            raise UsageError(f"bag-info field {label!r} cannot be written as one line")
        lines.append(f"{label}: {value}\n")
    lines.append(f"{_OXUM}: {payload_bytes}.{payload_count}\n")
    try:
        return "".join(lines).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError("a bag-info field holds a lone surrogate") from error


def payload_oxum(bag_info: bytes) -> str | None:
    """Return the value of Payload-Oxum in a bag-info.txt, None when absent or double.

    Raises:
        InvalidArchiveError: E009, not UTF-8.
    """
    lines = _text(bag_info, BAG_INFO).split("\n")
    fields = [line.partition(":") for line in lines]
    values = [value.strip() for label, _, value in fields if label.casefold() == _OXUM.casefold()]
    return values[0] if len(values) == 1 else None


def manifest_content(entries: Iterable[tuple[str, str]]) -> bytes:
    """Return a manifest for (path, hex digest) pairs that are sorted by path."""
    return "".join(f"{digest}{_SEPARATOR}{path}\n" for path, digest in entries).encode("utf-8")


@dataclass(frozen=True)
class Manifest:
    """A manifest's lines, in columns.

    Attributes:
        paths: Sorted.
        digests: 32 bytes a path.
    """

    paths: list[str]
    digests: bytes

    def digest(self, row: int) -> str:
        """Return a path's digest as hex."""
        return self.digests[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES].hex()


def parse_manifest(content: bytes, name: str) -> Manifest:
    """Return the lines of a manifest.

    Args:
        content: The manifest's bytes.
        name: Which of the two, for messages.

    Raises:
        InvalidArchiveError: E009 or E028.
        UnsafePathError: E001 to E006.
    """
    _text(content, name)  # of what is no text nothing more is said
    paths: list[str] = []
    digests = bytearray()
    start = 0
    while start < len(content):
        # Of a million lines at once the pieces would be half a gigabyte.
        end = content.rfind(b"\n", start, start + _PIECE_BYTES) + 1
        if not end:  # within a line, whose path is too long, or that has no end
            end = content.find(b"\n", start) + 1 or len(content)
        _add_lines(content[start:end].decode(), name, paths, digests)
        start = end
    check_member_paths(paths)
    return Manifest(paths, bytes(digests))


def _add_lines(text: str, name: str, paths: list[str], digests: bytearray) -> None:
    lines = text.split("\n")
    if lines.pop():
        raise _bad_manifest(name, "its last line does not end")
    # A quarter of a million lines must open in a second: columns and one pass in C for each check.
    joined = "".join([line[:_DIGITS] for line in lines])
    added = [line[_PATH:] for line in lines]
    if (
        len(joined) != _DIGITS * len(lines)
        or not _HEX.fullmatch(joined)
        or any(line[_DIGITS:_PATH] != _SEPARATOR for line in lines)
    ):
        raise _bad_manifest(name, "a line is not a digest, two spaces and a path")
    # Code points sort like their UTF-8 bytes.
    if not all(map(operator.lt, [*paths[-1:], *added], added if paths else added[1:])):
        raise _bad_manifest(name, "its lines are not in order, or one is double")
    paths += added
    digests += bytes.fromhex(joined)


def check_payload_paths(paths: Sequence[str]) -> None:
    """Refuse sorted paths of which one has no place in the payload manifest.

    Raises:
        InvalidArchiveError: E030.
    """
    for path in (*paths[:1], *paths[-1:]):  # whatever sorts between two of a folder is in it
        if not path.startswith(PAYLOAD):
            raise refuse(InvalidArchiveError, "E030", path, f"is in {MANIFEST} but not in data/")


def check_tag_path(path: str) -> None:
    """Refuse a path that has no place in the tag manifest.

    Raises:
        InvalidArchiveError: E030 or E034.
    """
    if path == FETCH:
        raise refuse(InvalidArchiveError, "E034", path, "the archive leaves members out")
    if path == TAG_MANIFEST or path.casefold().startswith(PAYLOAD):
        raise refuse(InvalidArchiveError, "E030", path, f"must not be in {TAG_MANIFEST}")


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse(InvalidArchiveError, "E009", name, "is not UTF-8") from error


def _bad_manifest(name: str, message: str) -> InvalidArchiveError:
    return refuse(InvalidArchiveError, "E028", name, message)
