"""SHA-256 of what is in memory."""

from __future__ import annotations

import hashlib

__all__ = ["sha256_of"]

_HELD_BYTES = 2047
"""Python lets go of the interpreter to hash more at once."""
_SMALL_BYTES = 32 << 10


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
