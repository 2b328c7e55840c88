"""What is known of a member, and its bytes as a stream that can be read from any place."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.refusal import refuse
from mlflow_exim_plugin.errors import DigestMismatchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from mlflow_exim_plugin.container.frame_reader import FrameReader

__all__ = ["Member", "MemberStream", "wrong_digest"]


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


class MemberStream(io.RawIOBase):
    """A member's bytes, without a buffer; reads ahead while it is read in order.

    Args:
        frames: Of the archive.
        member: The member.
        offset: Where its data begin in the tar stream.
    """

    def __init__(self, frames: FrameReader, member: Member, offset: int) -> None:
        self._frames = frames
        self._member = member
        self._offset = offset
        self._position = 0
        self._pieces: Iterator[bytes] = iter(())
        self._piece = b""
        self._piece_start = 0
        self._digest = hashlib.sha256()
        self._hashed_bytes = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, which may be behind the end.

        Raises:
            UsageError: There is no such place, or no such way to count it.
        """
        if whence not in {io.SEEK_SET, io.SEEK_CUR, io.SEEK_END}:
            raise UsageError(f"{whence} is no way to seek")
        start = (0, self._position, self._member.size_bytes)[whence]
        if start + offset < 0:
            raise UsageError(f"cannot seek to {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Read some bytes, at most to the end of a frame.

        Raises:
            DigestMismatchError: It was read from start to end and is not what it should be.
            InvalidArchiveError: A frame is damaged.
            StoreError: The store refused or died.
        """
        view = memoryview(buffer).cast("B")
        size_bytes = self._member.size_bytes
        count = 0
        if self._position < size_bytes and view:
            piece = self._piece_at(self._offset + self._position, len(view))
            start = self._offset + self._position - self._piece_start
            count = min(len(view), len(piece) - start, size_bytes - self._position)
            view[:count] = piece[start : start + count]
        self._check(view[:count])
        self._position += count
        return count

    def _piece_at(self, tar_offset: int, wanted_bytes: int) -> bytes:
        """Return the frame that holds a byte of the tar stream; so many are wanted from there."""
        table = self._frames.table
        piece_end = self._piece_start + len(self._piece)
        if self._piece and self._piece_start <= tar_offset < piece_end:
            return self._piece
        if not self._piece or tar_offset != piece_end:
            end = self._offset + self._member.size_bytes
            first, last = table.frame_at(tar_offset), table.frame_at(end - 1) + 1
            at_once = table.frame_at(min(tar_offset + wanted_bytes, end) - 1) + 1 - first
            self._pieces = self._frames.frames(first, last, at_once)
        self._piece_start = table.tar_offsets[table.frame_at(tar_offset)]
        self._piece = b""  # should the next one be damaged, start anew after it
        self._piece = next(self._pieces)
        return self._piece

    def _check(self, data: memoryview) -> None:
        """Hash what is read in order; at the end it must be what the manifest says."""
        if self._position != self._hashed_bytes:
            return
        self._digest.update(data)
        self._hashed_bytes += len(data)
        if (
            self._hashed_bytes == self._member.size_bytes
            and self._digest.hexdigest() != self._member.sha256
        ):
            raise wrong_digest(self._member.path)


def wrong_digest(path: str) -> DigestMismatchError:
    """Return the error for a member that is not what its manifest says."""
    return refuse(DigestMismatchError, "E029", path, "is not what its manifest says")
