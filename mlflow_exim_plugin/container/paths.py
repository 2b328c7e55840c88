"""Member paths: which are allowed, and how any name becomes an allowed one.

A path is safe when it means the same file on Linux, macOS and Windows, in ``tar``, in a BagIt
manifest and in ``sha256sum -c``, and can never lead out of the folder it is extracted to.
Source: spec/v1/archive.md, section "Member paths".
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlflow_exim_plugin.container.refusal import refuse
from mlflow_exim_plugin.container.unicode import SPACES, folded, normalized
from mlflow_exim_plugin.errors import UnsafePathError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "ARCHIVE_SUFFIX",
    "MAX_PATH_BYTES",
    "MAX_SEGMENT_BYTES",
    "PathRegister",
    "base_directory_for",
    "check_member_path",
    "check_member_paths",
    "decode_segment",
    "encode_path",
    "encode_segment",
    "is_device_name",
    "may_collide",
    "names_archive",
    "numbered",
]

ARCHIVE_SUFFIX = ".tar.zst"
"""How the name of an archive ends, where nobody chose another."""
MAX_SEGMENT_BYTES = 240
"""Longest segment in UTF-8; file systems stop at 255 and tools add suffixes of their own."""
MAX_PATH_BYTES = 1024
"""Longest member path in UTF-8."""
MAX_ENCODED_PATH_BYTES = 640
"""Longest result of :func:`encode_path`; leaves room for the folders a caller puts before it."""

_ESCAPE = "!"
# Characters no segment holds: Windows refuses "*:<>?| and takes \ for a separator; BagIt readers
# disagree about %; the line and paragraph separators end a manifest line for str.splitlines.
_FORBIDDEN = re.compile('["%*/:<>?\\\\|\x00-\x1f\x7f-\x9f\u2028\u2029]')
_DEVICE_NAME = r"(?ai:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9\xb9\xb2\xb3])"
_DEVICE_SEGMENT = rf"{_DEVICE_NAME} *(?:\.|/|\Z)"
_DEVICE = re.compile(_DEVICE_SEGMENT)
# The fast way for nearly every path: printable ASCII, only characters and edges that are allowed.
_ASCII = r"[ !#-$&-)+-.0-9;=@A-Z\[\]^_`a-z{}~]"
_PLAIN_SEGMENT = rf"(?! |{_DEVICE_SEGMENT}){_ASCII}{{1,{MAX_SEGMENT_BYTES}}}(?<![ .])"
_PLAIN_PATH = re.compile(rf"{_PLAIN_SEGMENT}(?:/{_PLAIN_SEGMENT})*")
_PLAIN_BYTES = bytes(byte for byte in range(128) if re.match(_ASCII + "|/", chr(byte)))
_ANY_DEVICE = re.compile(r"/(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9]) *[./]")
_SHORTENED = re.compile(r"~(?=[0-9a-f]{64}\Z)")
_ORDINARY = re.compile(r"[0-9A-Za-z_-]+")
_ESCAPED_BYTES = re.compile(rf"(?:{_ESCAPE}[0-9A-F]{{2}})+")
_PARTIAL_ESCAPE = re.compile(rf"{_ESCAPE}[0-9A-F]?\Z")
_DIGEST_SUFFIX_BYTES = 65


def names_archive(location: str) -> bool:
    """Whether a path or URL ends as the names of archives do."""
    path = urlsplit(location).path if "://" in location else location
    return path.endswith(ARCHIVE_SUFFIX)


def check_member_path(path: str) -> None:
    """Refuse a path that is not safe and portable.

    Args:
        path: Member path relative to the archive's base directory.

    Raises:
        UnsafePathError: With the broken rule (E001 to E006, E009) in ``findings``.
    """
    if len(path) <= MAX_PATH_BYTES and _PLAIN_PATH.fullmatch(path):
        return
    problem = _path_problem(path)
    if problem is not None:
        code, message = problem
        raise refuse(UnsafePathError, code, ascii(path)[:300], message)


def check_member_paths(paths: Sequence[str]) -> None:
    """Do what :func:`check_member_path` does for each of many, ten times as fast if all are plain.

    Raises:
        UnsafePathError: For the first that breaks a rule.
    """
    if not _are_plain(paths):
        for path in paths:
            check_member_path(path)


def _are_plain(paths: Sequence[str]) -> bool:
    """Whether paths are surely allowed: a few passes in C over all of them as one text."""
    if max(map(len, paths), default=0) > MAX_SEGMENT_BYTES:
        return False
    text = f"/{'/'.join(paths)}/"
    return (
        text.isascii()
        and not text.encode().translate(None, _PLAIN_BYTES)
        and not any(edge in text for edge in ("//", "/ ", " /", "./"))
        and not _ANY_DEVICE.search(text.lower())
    )


def _path_problem(path: str) -> tuple[str, str] | None:
    """Return the first broken rule and what breaks it, or None for a good path."""
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        return "E009", "a lone surrogate has no UTF-8 form"
    segments = path.split("/")
    for segment in segments:
        if segment in {"", ".", ".."}:
            return "E001", f"segment {segment!r} is not allowed in a member path"
        if found := _FORBIDDEN.search(segment):
            return "E002", f"character {found.group()!a} is not allowed in a member path"
        if segment[0] in SPACES or segment[-1] in SPACES or segment[-1] == ".":
            return "E003", "a segment begins or ends with white space or ends with a dot"
        if _DEVICE.match(segment):
            return "E004", "a segment is a device name on Windows"
    if normalized(path) != path:
        return "E005", "the path is not in Unicode normalization form C"
    if len(encoded) > MAX_PATH_BYTES:
        return "E006", f"{len(encoded)} bytes, at most {MAX_PATH_BYTES} are allowed"
    longest = max(len(segment.encode("utf-8")) for segment in segments)
    if longest > MAX_SEGMENT_BYTES:
        return "E006", f"a segment of {longest} bytes, at most {MAX_SEGMENT_BYTES} are allowed"
    return None


def is_device_name(segment: str) -> bool:
    """Whether Windows takes a segment for a device, whatever folder it is in."""
    return _DEVICE.match(segment) is not None


def may_collide(paths: Sequence[str]) -> bool:
    """Whether two of some different paths may meet; a register can tell which."""
    if all(map(str.isascii, paths)):
        keys = "\0".join(paths).lower().split("\0")
    else:
        keys = list(map(folded, paths))
    known = set(keys)
    folders = {key.rpartition("/")[0] for key in keys} - {""}
    for folder in list(folders):
        above = folder.rpartition("/")[0]
        while above and above not in folders:
            folders.add(above)
            above = above.rpartition("/")[0]
    return len(known) < len(paths) or not folders.isdisjoint(known)


class PathRegister:
    """The paths of one tree, such as the members of an archive; no two may meet.

    Args:
        key: What a path looks like to the file system of the tree; to any of them without it.
    """

    def __init__(self, key: Callable[[str], str] = folded) -> None:
        self._key = key
        self._files: dict[str, int] = {}
        self._folders: set[str] = set()

    def __len__(self) -> int:
        return len(self._files)

    def row(self, path: str) -> int | None:
        """Return the number given to :meth:`add` for this path or one that collides with it."""
        return self._files.get(self._key(path))

    def add(self, path: str, row: int) -> None:
        """Take in a checked path.

        Raises:
            UnsafePathError: E007 when it equals another but for case or normalization, E008 when
                one would have to be a file and a folder at once.
        """
        key = self._key(path)
        if key in self._files:
            raise refuse(
                UnsafePathError,
                "E007",
                path,
                "equals another path or differs in case only",
            )
        if key in self._folders:
            raise refuse(UnsafePathError, "E008", path, "is the folder of another member")
        # Known folders have known parents, so the walk up ends at the first one.
        new_folders = []
        folder = key.rpartition("/")[0]
        while folder and folder not in self._folders:
            if folder in self._files:
                raise refuse(UnsafePathError, "E008", path, "lies in a folder that is a member")
            new_folders.append(folder)
            folder = folder.rpartition("/")[0]
        self._folders.update(new_folders)
        self._files[key] = row

    def remove(self, path: str) -> None:
        """Forget a path that was taken in but came to nothing."""
        del self._files[self._key(path)]

    def free_path(self, path: str) -> str:
        """Return ``path``, or the nearest one that collides with nothing here.

        ``~2``, ``~3``... go before the suffix of the last segment; when an ancestor is a file
        here, that ancestor gets the number.
        """
        if self._is_free(self._key(path)):
            return path
        segments = path.split("/")
        for depth in range(1, len(segments) + 1):
            is_last = depth == len(segments)
            number = 1
            candidate = segments[depth - 1]
            while self._is_taken("/".join([*segments[: depth - 1], candidate]), as_file=is_last):
                number += 1
                candidate = numbered(segments[depth - 1], number)
            segments[depth - 1] = candidate
        return "/".join(segments)

    def _is_free(self, key: str) -> bool:
        if key in self._files or key in self._folders:
            return False
        folder = key.rpartition("/")[0]
        while folder and folder not in self._folders:  # known folders have known parents
            if folder in self._files:
                return False
            folder = folder.rpartition("/")[0]
        return True

    def _is_taken(self, path: str, *, as_file: bool) -> bool:
        key = self._key(path)
        return key in self._files or (as_file and key in self._folders)


def numbered(segment: str, number: int) -> str:
    """Return ``stem~number.suffix``, its stem cut where the segment would grow too long."""
    stem, dot, suffix = segment.rpartition(".")
    if not stem:
        stem, dot, suffix = segment, "", ""
    tail = f"~{number}{dot}{suffix}"
    return _cut(stem, MAX_SEGMENT_BYTES - len(tail.encode("utf-8"))) + tail


@lru_cache(4096)  # each file of an object asks for those of its folders again
def encode_segment(name: str) -> str:
    """Return an allowed path segment for any string; different names give different segments.

    Ordinary names stay as they are. A byte (of UTF-8) that rules forbid becomes ``!XX``, and so
    does ``!`` itself; the empty name is ``!``. A name that is not in NFC has all its non-ASCII
    characters escaped, so that its exact code points come back. A result of more than 240 bytes
    is cut and ends with ``~`` and the SHA-256 of the name: that form cannot be decoded, and the
    name must be kept elsewhere (the object's JSON envelope).

    Args:
        name: Any string, lone surrogates included.

    Returns:
        A segment that :func:`check_member_path` accepts.
    """
    segment = _escape(name)
    if len(segment.encode("utf-8")) <= MAX_SEGMENT_BYTES:
        return segment
    return _shortened(segment, name, MAX_SEGMENT_BYTES)


def decode_segment(segment: str) -> str | None:
    """Return the name that :func:`encode_segment` made ``segment`` from.

    Returns:
        None when no name can be told: a shortened segment, or one that was not made by it.
    """
    if _SHORTENED.search(segment):
        return None
    if segment == _ESCAPE:
        return ""
    try:
        name = _ESCAPED_BYTES.sub(_unescape, segment)
        is_exact = encode_segment(name) == segment
    except UnicodeError:
        return None
    return name if is_exact else None


def encode_path(path: str) -> str:
    """Return an allowed path for any ``/``-separated artifact path, segment by segment.

    A result of more than 640 bytes keeps the leading segments that fit; the rest is one
    segment that ends with ``~`` and the SHA-256 of the whole path.
    """
    segments = [encode_segment(name) for name in path.split("/")]
    encoded = "/".join(segments)
    if len(encoded.encode("utf-8")) <= MAX_ENCODED_PATH_BYTES:
        return encoded
    room_bytes = MAX_ENCODED_PATH_BYTES - MAX_SEGMENT_BYTES - 1
    kept: list[str] = []
    for segment in segments[:-1]:
        room_bytes -= len(segment.encode("utf-8")) + 1
        if room_bytes < 0:
            break
        kept.append(segment)
    return "/".join([*kept, _shortened(segments[-1], path, MAX_SEGMENT_BYTES)])


def base_directory_for(url: str) -> str:
    """Return the top-level directory for an archive: its file name without suffixes, made safe.

    BagIt (RFC 8493, section 4.2) wants the serialized bag in one directory, named like the file.

    Args:
        url: Local path or URL the archive is written to.
    """
    if "://" in url:
        url = url.split("?", 1)[0].split("#", 1)[0]
    name = re.split(r"[/\\]", url.rstrip("/\\"))[-1]
    name = re.sub(r"(?i)(?:\.tar)?(?:\.zst|\.zstd)\Z|\.tzst\Z|\.tar\Z", "", name)
    name = name.encode("utf-8", "replace").decode("utf-8")
    name = normalized(_FORBIDDEN.sub("_", name))
    name = _trimmed(_cut(_trimmed(name), MAX_SEGMENT_BYTES - 1))
    if _DEVICE.match(name):
        name = f"_{name}"
    return name or "archive"


def _trimmed(name: str) -> str:
    return name.lstrip(SPACES).rstrip(f"{SPACES}.")


def _escape(name: str) -> str:
    """Escape what the rules forbid, without a limit of length."""
    if not name:
        return _ESCAPE
    if _ORDINARY.fullmatch(name) and not _DEVICE.match(name):
        return name
    escaped = "".join(_hex(char) if _must_escape(char) else char for char in name)
    if escaped[-1] in SPACES or escaped[-1] == ".":
        escaped = escaped[:-1] + _hex(escaped[-1])
    if escaped[0] in SPACES or _DEVICE.match(escaped):
        escaped = _hex(escaped[0]) + escaped[1:]
    if normalized(escaped) != escaped:
        # Checked on the result: an escape's last letter can combine with the mark after it.
        escaped = "".join(char if char.isascii() else _hex(char) for char in escaped)
    # Only a shortened name may end like one.
    return _SHORTENED.sub(_hex("~"), escaped)


def _must_escape(char: str) -> bool:
    return char == _ESCAPE or "\ud800" <= char <= "\udfff" or bool(_FORBIDDEN.match(char))


def _hex(char: str) -> str:
    return "".join(f"{_ESCAPE}{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))


def _unescape(found: re.Match[str]) -> str:
    return bytes.fromhex(found.group().replace(_ESCAPE, "")).decode("utf-8", "surrogatepass")


def _shortened(segment: str, original: str, limit_bytes: int) -> str:
    digest = hashlib.sha256(original.encode("utf-8", "surrogatepass")).hexdigest()
    start = _PARTIAL_ESCAPE.sub("", _cut(segment, limit_bytes - _DIGEST_SUFFIX_BYTES))
    return f"{start}~{digest}"


def _cut(text: str, limit_bytes: int) -> str:
    return text.encode("utf-8")[: max(limit_bytes, 0)].decode("utf-8", "ignore")
