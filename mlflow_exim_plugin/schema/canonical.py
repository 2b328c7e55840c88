"""JSON as the format wants it: strict to read, pretty to store, canonical to hash.

Source: spec/v1/archive.md, "JSON documents" and "Content digests".
"""

from __future__ import annotations

import contextlib
import json
import math
from typing import TYPE_CHECKING, Any

import orjson
from pydantic_core import to_json

from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.schema.rules import EXPANSION, LIMITS, Finding, Limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "canonical_bytes",
    "content_digest",
    "document_bytes",
    "parse_json",
    "problem_of_json",
    "require_few_values",
]

_STORED = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
_DAMAGED = "the archive was damaged or not written by this format"
_SMALL_BYTES = 1 << 20
"""Up to here a document may be written anew to see whether it is as this writer has it."""
_PIECE_BYTES = 1 << 20
_PLAIN_TYPES = frozenset({str, int, bool, type(None)})


def _deep_line(depth: int) -> bytes:
    """Begins a line of a stored document that may be too deep: texts have no bare newline."""
    return b"\n" + b"  " * depth


_DEEP_LINE = _deep_line(LIMITS.depth)


def parse_json(data: bytes, path: str, limits: Limits = LIMITS) -> Any:
    """Parse one stored JSON document, refusing what JSON leaves open.

    Args:
        data: The member's bytes.
        path: Member path, for the message.
        limits: What it may be at most.

    Returns:
        The parsed value.

    Raises:
        InvalidArchiveError: Not UTF-8, not JSON, a key twice in one object, a number beyond a
            double, a bare ``NaN`` or ``Infinity``, half a surrogate pair, nested too deep,
            too large or of too many values.

    Source: spec/v1/archive.md, "JSON documents".
    """
    if len(data) > limits.document_bytes:
        message = f"a JSON document of {len(data)} bytes is over the limit"
        raise _invalid(path, message, limits.hint("document_bytes"))
    is_small = len(data) <= min(_SMALL_BYTES, 2 * limits.document_values)
    if is_small and (value := _as_written(data, limits.depth)) is not None:
        return value
    require_few_values(_pieces(data, limits), path, limits)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        if b"\\ud" in data or b"\\uD" in data:
            canonical_bytes(value)  # an escape may be half a surrogate pair, which is no text
    except RecursionError:
        raise _invalid(path, "nested too deep", limits.hint("depth")) from None
    except ValueError as error:
        raise _invalid(path, f"not a JSON document of the format: {error}") from None
    if _is_too_deep(value, limits.depth):
        raise _invalid(path, "nested too deep", limits.hint("depth"))
    return value


def require_few_values(
    pieces: Iterable[bytes],
    path: str,
    limits: Limits = LIMITS,
    stored_bytes: int | None = None,
) -> None:
    """Refuse a JSON document of too many values before any of them is made.

    Args:
        pieces: Its bytes.
        path: Member path, for the message.
        limits: How many it may have; each takes some 60 bytes.
        stored_bytes: How many bytes of an archive hold it.

    Raises:
        InvalidArchiveError: It has more, or more than are paid for.
    """
    values, in_text, held = 1, 0, b""
    for piece in pieces:
        whole = held + piece
        # An escape may go on in the next piece.
        cut = len(whole) - (len(whole) - len(whole.rstrip(b"\\"))) % 2
        whole, held = whole[:cut], whole[cut:]
        if b"\\" in whole:
            whole = whole.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = whole.split(b'"')
        for bare in parts[in_text::2]:
            values += bare.count(b",") + bare.count(b"[") + bare.count(b"{")
        in_text ^= (len(parts) - 1) & 1
        if values > limits.document_values:
            message = f"it has more than {limits.document_values} values"
            raise _invalid(path, message, limits.hint("document_values"))
    if stored_bytes is not None and values > max(limits.free_values, stored_bytes):
        message = f"it has {values} values, made of {stored_bytes} bytes"
        finding = Finding(EXPANSION, path, message)
        raise InvalidArchiveError(f"{path}: {message}", limits.hint("free_values"), [finding])


def _pieces(data: bytes, limits: Limits = LIMITS) -> Iterator[bytes]:
    """Yield a document in pieces, nothing of one that cannot have too many values."""
    if len(data) >= 2 * limits.document_values:
        for start in range(0, len(data), _PIECE_BYTES):
            yield data[start : start + _PIECE_BYTES]


def _as_written(data: bytes, depth: int) -> Any:
    """Return the value of a document that is the one text this writer has for it, else None.

    Such a text has no key twice, no number that JSON cannot hold and no bare constant: all of that
    would be written otherwise.
    """
    if _deep_line(depth) in data:
        return None
    try:
        value = orjson.loads(data)
        return value if orjson.dumps(value, option=_STORED) == data else None
    except ValueError:
        return None


def document_bytes(value: Any, doubles: Iterable[float] | None = None) -> bytes:
    """Return the bytes to store for a JSON document: UTF-8, two-space indent, final newline.

    Args:
        value: What JSON can hold.
        doubles: All doubles in it, where the caller knows.

    Raises:
        InvalidArchiveError: No reader would take it: no text, nested too deep or too large.
    """
    try:
        data = orjson.dumps(value, option=_STORED)
        if doubles is None:
            doubles = _doubles(value) if b"null" in data else ()
        if not all(map(math.isfinite, doubles)):
            data = _with_all_numbers(value)
    except TypeError:
        data = _with_all_numbers(value)
    if _DEEP_LINE in data and _is_too_deep(value, LIMITS.depth):
        raise InvalidArchiveError(
            f"it is nested deeper than the {LIMITS.depth} levels of a document"
        )
    if len(data) > LIMITS.document_bytes:
        raise InvalidArchiveError(
            f"its document of {len(data)} bytes is over the limit of {LIMITS.document_bytes}"
        )
    require_few_values(_pieces(data), "its document")
    return data


def problem_of_json(value: Any) -> str:
    """Return why no document can hold a value, empty where one can."""
    try:
        data = orjson.dumps(value, option=_STORED)
    except TypeError:  # it may have a number of more than 64 bits
        try:
            canonical_bytes(value)
        except (ValueError, RecursionError) as error:
            return str(error)
        data = _DEEP_LINE
    if _DEEP_LINE in data and _is_too_deep(value, LIMITS.depth):
        return f"nested deeper than the {LIMITS.depth} levels of a document"
    return ""


def _with_all_numbers(value: Any) -> bytes:
    """Return the same where numbers have more than 64 bits, or are NaN, which becomes text."""
    try:
        data: bytes = to_json(value, indent=2, inf_nan_mode="strings")
    except ValueError as error:
        raise InvalidArchiveError(f"it is not as the format wants it: {error}") from error
    return data + b"\n"


def canonical_bytes(value: Any, doubles: Iterable[float] | None = None) -> bytes:
    """Return the bytes that are hashed for a content digest.

    Keys are sorted by code point, separators are ``,`` and ``:``, text is UTF-8 unescaped but for
    what JSON demands, integers are exact and floats are written like Python's ``repr`` does: the
    shortest digits that read back equal.

    Args:
        value: What JSON can hold.
        doubles: All doubles in it, where the caller knows: to look for them takes longer than the
            rest.

    Raises:
        ValueError: A NaN, an infinity, text that UTF-8 cannot hold, or what JSON does not have.

    Source: spec/v1/archive.md, "Content digests".
    """
    if _are_plain(_doubles(value) if doubles is None else doubles):
        with contextlib.suppress(TypeError):
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except TypeError as error:
        raise ValueError(str(error)) from error
    return text.encode("utf-8")


def content_digest(
    document: Any,
    metrics: str | None = None,
    artifacts: Iterable[tuple[str, int, str]] = (),
    traces: Iterable[tuple[str, str]] = (),
    doubles: Iterable[float] | None = None,
) -> str:
    """Return what says that an object is unchanged, whoever packed it and when.

    Args:
        document: The envelope's ``mlflow`` part.
        metrics: Digest of the run's metric rows, None when it has none.
        artifacts: Path, size in bytes and SHA-256 of each artifact.
        traces: Id and content digest of each trace of a part.
        doubles: All doubles in the document, where the caller knows them.

    Returns:
        ``sha256:`` and 64 hex digits.

    Source: spec/v1/archive.md, "Content digests".
    """
    body: dict[str, Any] = {"mlflow": document}
    if metrics is not None:
        body["metrics"] = metrics
    listed = sorted(artifacts)
    if listed:
        body["artifacts"] = [list(entry) for entry in listed]
    if digests := sorted(traces):
        body["traces"] = [list(entry) for entry in digests]
    return "sha256:" + sha256_of(canonical_bytes(body, doubles)).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return document


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text:.40} is beyond a double")
    return number


def _are_plain(doubles: Iterable[float]) -> bool:
    """Whether orjson writes each of some doubles like Python does.

    It has another way to write an exponent, which Python needs below 1e-4 and from 1e16 on, and
    writes NaN and the infinities as nothing.
    """
    for number in doubles:
        if not (number == 0 or 1e-4 <= number < 1e16 or -1e16 < number <= -1e-4):
            return False
    return True


def _doubles(value: Any) -> Iterator[float]:
    """Yield each double in a value, and NaN for what is not of JSON."""
    containers: list[Any] = [[value]]
    for container in containers:  # grows on the way
        for child in container:
            kind = type(child)
            if kind in _PLAIN_TYPES:
                continue
            if kind is dict:
                containers.append(child.values())
            elif kind is list:
                containers.append(child)
            else:
                yield child if kind is float else math.nan


def _is_too_deep(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        inner: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                inner += [child for child in node.values() if isinstance(child, (dict, list))]
            elif isinstance(node, list):
                inner += [child for child in node if isinstance(child, (dict, list))]
        if not inner:
            return False
        level = inner
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"a bare {name} is not JSON")


def _invalid(path: str, message: str, hint: str = _DAMAGED) -> InvalidArchiveError:
    return InvalidArchiveError(f"{path}: {message}", hint, [Finding("E050", path, message)])
