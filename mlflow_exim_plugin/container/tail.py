"""Footer and index: how a reader finds everything from the end of the file.

Neither is trusted for content: a wrong index makes a read fail, because what it finds must have
the digest the manifest gives. Source: spec/v1/archive.md, "Footer" and "MemberIndex".
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import zstandard

from mlflow_exim_plugin.container.frames import (
    FOOTER_MAGIC,
    INDEX_MAGIC,
    ZSTD_MAGIC,
    compress_frame,
    decompressor_of,
    skippable_payload,
)
from mlflow_exim_plugin.container.paths import check_member_path
from mlflow_exim_plugin.container.refusal import refuse, unsupported
from mlflow_exim_plugin.errors import InvalidArchiveError, TruncatedArchiveError, UnsafePathError
from mlflow_exim_plugin.schema import envelope
from mlflow_exim_plugin.schema.envelope import FORMAT
from mlflow_exim_plugin.schema.rules import LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_exim_plugin.storage.ranges import RangeSource

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "KNOWN_FEATURES",
    "MAX_FOOTER_BYTES",
    "Footer",
    "MemberIndex",
    "no_archive",
]

_MAJOR, _MINOR = map(int, envelope.FORMAT_VERSION.split("."))
FORMAT_VERSION = (_MAJOR, _MINOR)
KNOWN_FEATURES: frozenset[str] = frozenset()
"""Required features this reader knows; version 1 defines none."""

ALGORITHM = "sha256"
MAX_FOOTER_BYTES = 64 << 10
_FRAME_HEADER_BYTES = 18
_UNKNOWN_SIZES = {zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR}
_INDEX_LEVEL = 3
_INDEX_HEAD = struct.Struct("<QQ")
_ROW_BYTES = 16


@dataclass(frozen=True)
class Footer:
    """What the footer declares.

    Attributes:
        root: SHA-256 of tagmanifest-sha256.txt, lower-case hex.
        base_directory: Top-level directory of the tar stream.
        members: Number of members, tag files included.
        tar_bytes: Length of the tar stream.
        index_offset: Where the index's compressed bytes begin in the file.
        index_compressed_bytes: How many they are.
        index_bytes: Their decompressed size.
        index_sha256: Digest of the compressed bytes.
        open_offset: Where in the file the frames of the bag's manifests begin: whoever reads from
            here to the end can open the archive. A hint; 0 when there is none.
        version: Major and minor version of the format.
        required_features: What a reader must know to read the archive right.
        stated: The document that it was read from, with keys of later versions.
    """

    root: str
    base_directory: str
    members: int
    tar_bytes: int
    index_offset: int
    index_compressed_bytes: int
    index_bytes: int
    index_sha256: str
    open_offset: int = 0
    version: tuple[int, int] = FORMAT_VERSION
    required_features: tuple[str, ...] = ()
    stated: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the JSON that goes into the footer's frame."""
        document = {
            **self.stated,
            "format": FORMAT,
            "version": list(self.version),
            "required_features": list(self.required_features),
            "algorithm": ALGORITHM,
            "root": self.root,
            "base_directory": self.base_directory,
            "members": self.members,
            "tar_bytes": self.tar_bytes,
            "index": {
                **self.stated.get("index", {}),
                "offset": self.index_offset,
                "compressed_bytes": self.index_compressed_bytes,
                "bytes": self.index_bytes,
                "sha256": self.index_sha256,
            },
            "open_offset": self.open_offset,
        }
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")

    @classmethod
    def parse(cls, frame: bytes) -> Footer:
        """Return the footer in a skippable frame; unknown keys are ignored.

        Raises:
            InvalidArchiveError: E017, E018, E021 or E022.
            UnsupportedFormatError: E019 or E020.
        """
        payload = skippable_payload(frame, FOOTER_MAGIC)
        if payload is None or len(payload) > MAX_FOOTER_BYTES:
            raise _bad_footer("wrong magic or size")
        document = _json_object(payload)
        if document.get("format") != FORMAT:
            raise refuse(
                InvalidArchiveError, "E018", "<footer>", "the format is not mlflow-exim-archive"
            )
        # Version and features come before the rest, which another version may word differently.
        version = document.get("version")
        if (
            not isinstance(version, list)
            or len(version) != len(FORMAT_VERSION)
            or not all(_is_count(number) for number in version)
        ):
            raise _bad_footer("version must be two numbers")
        if version[0] != FORMAT_VERSION[0]:
            raise unsupported("E019", f"the archive has format version {version[0]}.{version[1]}")
        features = document.get("required_features")
        if not isinstance(features, list) or not all(isinstance(name, str) for name in features):
            raise _bad_footer("required_features must be a list of names")
        if unknown := [name for name in features if name not in KNOWN_FEATURES]:
            raise unsupported("E020", f"the archive needs the unknown feature {unknown[0]!a:.100}")
        if document.get("algorithm") != ALGORITHM:
            raise refuse(InvalidArchiveError, "E021", "<footer>", "the algorithm is not sha256")
        index = document.get("index")
        if not isinstance(index, dict):
            raise _bad_footer("index must be an object")
        footer = cls(
            root=_digest(document, "root"),
            base_directory=_text(document, "base_directory"),
            members=_count(document, "members"),
            tar_bytes=_count(document, "tar_bytes"),
            index_offset=_count(index, "offset"),
            index_compressed_bytes=_count(index, "compressed_bytes"),
            index_bytes=_count(index, "bytes"),
            index_sha256=_digest(index, "sha256"),
            open_offset=_count(document, "open_offset") if "open_offset" in document else 0,
            version=(version[0], version[1]),
            required_features=tuple(features),
            stated=document,
        )
        _check_base_directory(footer.base_directory)
        return footer


class MemberIndex:
    """Where each member's data lie in the tar stream.

    Rows have no names: the first ``tag_count`` are the members of the tag manifest in its order,
    then the tag manifest itself as the last of them; the others are the members of the payload
    manifest in its order. A hard link has the row of its target.

    Attributes:
        tag_count: Number of tag files, the tag manifest included.
        offsets: First byte of each member's data in the tar stream.
        sizes_bytes: Size of each member's data.
    """

    def __init__(self, tag_count: int, offsets: array[int], sizes_bytes: array[int]) -> None:
        self.tag_count = tag_count
        self.offsets = offsets
        self.sizes_bytes = sizes_bytes

    def __len__(self) -> int:
        return len(self.offsets)

    def encode(self) -> tuple[bytes, int]:
        """Return the compressed bytes for the index's frame and their decompressed size."""
        offsets, sizes = self.offsets[:], self.sizes_bytes[:]
        if sys.byteorder == "big":
            offsets.byteswap()
            sizes.byteswap()
        head = _INDEX_HEAD.pack(self.tag_count, len(self) - self.tag_count)
        raw = head + offsets.tobytes() + sizes.tobytes()
        return compress_frame(raw, _INDEX_LEVEL), len(raw)

    @classmethod
    def parse(cls, frame: bytes, footer: Footer, limits: Limits = LIMITS) -> MemberIndex:
        """Return the index in a skippable frame, of so many members at most.

        Raises:
            InvalidArchiveError: E024 or E025.
        """
        payload = skippable_payload(frame, INDEX_MAGIC)
        if payload is None or len(payload) != footer.index_compressed_bytes:
            raise _bad_index("wrong magic or size")
        if hashlib.sha256(payload).hexdigest() != footer.index_sha256:
            raise _bad_index("its digest differs from the footer's")
        most_bytes = _INDEX_HEAD.size + _ROW_BYTES * limits.members
        if not _INDEX_HEAD.size <= footer.index_bytes <= most_bytes:
            raise _bad_index("its declared size is out of bounds", limits.hint("members"))
        try:
            parameters = zstandard.get_frame_parameters(payload)
            if parameters.content_size != footer.index_bytes:
                raise _bad_index("its size differs from the footer's")
            raw = decompressor_of(max(most_bytes, LIMITS.frame_bytes)).decompress(
                payload, max_output_size=footer.index_bytes, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise _bad_index(f"cannot be decompressed: {error}") from error
        tag_count, payload_count = _INDEX_HEAD.unpack_from(raw)
        count = tag_count + payload_count
        if count * _ROW_BYTES + _INDEX_HEAD.size != len(raw) or not tag_count:
            raise _bad_index("the number of rows does not fit its size")
        if count != footer.members:
            raise refuse(
                InvalidArchiveError,
                "E024",
                "<footer>",
                f"members is {footer.members}, the index has {count} rows",
            )
        columns = array("Q", raw[_INDEX_HEAD.size :])
        if sys.byteorder == "big":
            columns.byteswap()
        return cls(tag_count, columns[:count], columns[count:])


def no_archive(source: RangeSource) -> InvalidArchiveError:
    """Tell what a file without a seek table at its end is."""
    if not source.size_bytes:
        return refuse(TruncatedArchiveError, "E010", "<file>", "is empty")
    start = source.read_range(0, min(_FRAME_HEADER_BYTES, source.size_bytes))
    if start[: len(ZSTD_MAGIC)] != ZSTD_MAGIC[: len(start)]:
        return refuse(
            InvalidArchiveError, "E010", "<file>", "is not an archive: no zstd data at its start"
        )
    try:
        parameters = zstandard.get_frame_parameters(start)
        is_ours = parameters.has_checksum and parameters.content_size not in _UNKNOWN_SIZES
    except zstandard.ZstdError:
        is_ours = True
    if not is_ours:
        return refuse(
            InvalidArchiveError,
            "E010",
            "<file>",
            "is not an archive: zstd data written by another program",
        )
    return refuse(
        TruncatedArchiveError,
        "E010",
        "<file>",
        "is cut short, or something was appended: no seek table at its end",
        "copy it again; `tar -xf` may still extract what is there",
    )


def _json_object(payload: bytes) -> dict[str, Any]:
    """Parse I-JSON (RFC 7493): UTF-8, no double names, no NaN or infinities."""

    def without_double_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a double name")
        return dict(pairs)

    def no_constant(name: str) -> None:
        raise ValueError(name)

    try:
        document = json.loads(
            payload.decode("utf-8"),
            object_pairs_hook=without_double_names,
            parse_constant=no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise _bad_footer("is not JSON") from error
    if not isinstance(document, dict):
        raise _bad_footer("is not a JSON object")
    return document


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _count(document: dict[str, Any], key: str) -> int:
    value = document.get(key)
    if isinstance(value, int) and _is_count(value):
        return value
    raise _bad_footer(f"{key} must be a number of bytes or things")


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if isinstance(value, str):
        return value
    raise _bad_footer(f"{key} must be a text")


def _digest(document: dict[str, Any], key: str) -> str:
    value = _text(document, key)
    if len(value) != 2 * hashlib.sha256().digest_size or set(value) - set("0123456789abcdef"):
        raise _bad_footer(f"{key} must be 64 lower-case hex digits")
    return value


def _check_base_directory(name: str) -> None:
    try:
        check_member_path(name)
    except UnsafePathError as error:
        raise refuse(UnsafePathError, "E022", "<footer>", f"base_directory: {error}") from error
    if "/" in name:
        raise refuse(
            UnsafePathError, "E022", "<footer>", "base_directory has more than one segment"
        )


def _bad_footer(message: str) -> InvalidArchiveError:
    return refuse(InvalidArchiveError, "E017", "<footer>", message)


def _bad_index(message: str, hint: str = "") -> InvalidArchiveError:
    return refuse(InvalidArchiveError, "E025", "<index>", message, hint)
