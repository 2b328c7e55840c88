"""Files as text, a piece at a time: whatever they are, and however large."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = ["texts_of"]

_BLOCK_BYTES = 1 << 20
_AGAIN = 1 << 14
"""Characters of each piece that come again with the next: what is found may lie across."""


def texts_of(stream: BinaryIO) -> Iterator[tuple[str, int]]:
    """Yield a file in pieces, and where in each what is new begins; the stream is closed.

    Bytes that are no UTF-8 stand as U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text, new = "", 0
    with stream:
        while block := stream.read(_BLOCK_BYTES):
            text = text[-_AGAIN:]
            new = len(text)
            text += decoder.decode(block)
            yield text, new
