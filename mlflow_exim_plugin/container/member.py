"""What is known of one member."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Member"]


@dataclass(frozen=True)
class Member:
    """One file of the archive.

    Attributes:
        path: Path relative to the base directory.
        size_bytes: Size as stored.
        sha256: Digest of the stored bytes, lower-case hex.
        complete: False when the source gave other bytes than announced; only a writer says so.
        received_bytes: How many bytes the source really gave, when not complete; those after
            them are zeros.
        error: Why it is not complete, one line.
        is_cut: True when not complete only because the source went on behind the size announced:
            the member holds its beginning.
    """

    path: str
    size_bytes: int
    sha256: str
    complete: bool = True
    received_bytes: int | None = None
    error: str = ""
    is_cut: bool = False
