"""Digests: SHA-256 of what is in memory, of what streams by, and of all that an archive holds."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = ["ContentRoot", "raw_digest", "sha256_of", "sha256_of_stream"]

_HELD_BYTES = 2047
"""Python lets go of the interpreter to hash more at once."""
_SMALL_BYTES = 32 << 10
_BLOCK_BYTES = 1 << 20
_DIGEST_BYTES = hashlib.sha256().digest_size
_STATED = re.compile(r"sha256:[0-9a-f]{64}")


def sha256_of(data: bytes | memoryview) -> hashlib._Hash:
    """Return the SHA-256 of some bytes, of few without letting go of the interpreter.

    To hash a document takes 5 us, and to get the interpreter back from a thread that reads takes
    five times as long.
    """
    if len(data) > _SMALL_BYTES:
        return hashlib.sha256(data)
    digest = hashlib.sha256(data[:_HELD_BYTES])
    for start in range(_HELD_BYTES, len(data), _HELD_BYTES):
        digest.update(data[start : start + _HELD_BYTES])
    return digest


def sha256_of_stream(stream: BinaryIO) -> tuple[str, int]:
    """Return the SHA-256 of a stream in hex, and its bytes; the stream is closed."""
    digest, size = hashlib.sha256(), 0
    with stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def raw_digest(stated: str) -> bytes:
    """Return the 32 bytes of a digest that a document states as ``sha256:`` and hex digits.

    Raises:
        ValueError: It is none.
    """
    if not _STATED.fullmatch(stated):
        raise ValueError(f"{stated!a:.100} is no digest")
    return bytes.fromhex(stated[-2 * _DIGEST_BYTES :])


class ContentRoot:
    """One digest of all that an archive holds, whoever packed it, when and how.

    It is made of the objects' content digests, which come in any order. Source: spec/v1/archive.md,
    "Content root".

    Attributes:
        last: The digest that was added last.
    """

    def __init__(self) -> None:
        self.last = b""
        self._objects: list[tuple[str, bytes]] = []
        # Millions of traces may be in one archive: 32 bytes each, until their experiment ends.
        self._traces: dict[str, bytearray] = {}

    def add(self, path: str, content_digest: str) -> None:
        """Add an object that has an envelope.

        Args:
            path: Of its envelope, as it is where the object's name meets no other's.
            content_digest: As its envelope has it.
        """
        self.last = raw_digest(content_digest)
        self._objects.append((path, self.last))

    def add_traces(self, experiment: str, content_digests: bytes) -> None:
        """Add traces of an experiment.

        Args:
            experiment: Its folder.
            content_digests: Of each, 32 bytes.
        """
        self._traces.setdefault(experiment, bytearray()).extend(content_digests)
        self.last = content_digests[-_DIGEST_BYTES:]

    def end_traces(self, experiment: str) -> None:
        """Say that no more traces of an experiment come."""
        if digests := self._traces.pop(experiment, None):
            lines = "".join(f"{digest.hex()}\n" for digest in sorted(_each(digests)))
            listed = hashlib.sha256(lines.encode("ascii")).digest()
            self._objects.append((f"{experiment}traces", listed))

    def hexdigest(self) -> str:
        """Return the content root of what was added, lower-case hex."""
        for experiment in [*self._traces]:
            self.end_traces(experiment)
        root = hashlib.sha256()
        for path, digest in sorted(self._objects):  # code points sort like their UTF-8
            root.update(f"{digest.hex()}  {path}\n".encode())
        return root.hexdigest()


def _each(digests: bytearray) -> Iterator[bytes]:
    for start in range(0, len(digests), _DIGEST_BYTES):
        yield bytes(digests[start : start + _DIGEST_BYTES])
