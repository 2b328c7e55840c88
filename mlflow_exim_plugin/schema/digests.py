"""SHA-256 of what is in memory, and of what streams by."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO

__all__ = ["sha256_of", "sha256_of_stream"]

_HELD_BYTES = 2047
"""Python lets go of the interpreter to hash more at once."""
_SMALL_BYTES = 32 << 10
_BLOCK_BYTES = 1 << 20


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
