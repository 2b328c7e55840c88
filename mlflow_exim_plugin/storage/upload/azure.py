"""Blobs of Azure in blocks, by the client that fsspec's file system has."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import threading
import uuid
from typing import TYPE_CHECKING, Any

from fsspec.asyn import sync

from mlflow_exim_plugin.storage.pinned import seconds_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mlflow_exim_plugin.storage.upload.parts import Upload

__all__ = ["azure_upload", "blocks_of_azure"]

_NAME_DIGITS = 16
_BLOCK = re.compile(rb"[0-9a-f]{%d}[0-9]{6}" % _NAME_DIGITS)
"""Name of a block: of the process that writes, or of its bytes if they may be there; its number."""


def azure_upload(store: Any, path: str, *, overwrite: bool) -> Upload:
    """Return how a blob comes to Azure: at once, or in blocks that one call makes a blob.

    Blocks that belong to no blob are not to be seen, cannot be removed, and expire within a week,
    or when the next blob of that name is written.

    Args:
        store: An ``adlfs.AzureBlobFileSystem``.
        path: Container and name.
        overwrite: Whether something may be at its name.
    """
    return _AzureUpload(store, path, overwrite=overwrite)


def blocks_of_azure(store: Any, path: str) -> list[tuple[str, int | None, int]]:
    """Return the names at a path or below it that have blocks of ours, and no blob.

    Args:
        store: An ``adlfs.AzureBlobFileSystem``.
        path: Container, and name or what it begins with.

    Returns:
        Container and name, ms since the Unix epoch when they were begun, None where that is not
        told, size of the blocks in bytes.
    """
    container, prefix, _ = store.split_path(path)

    async def listed() -> list[tuple[str, int | None, int]]:
        found = []
        client = store.service_client.get_container_client(container)
        async with client as folder:
            uncommitted = folder.list_blobs(
                name_starts_with=prefix or None, include=["uncommittedblobs"]
            )
            async for blob in uncommitted:
                if blob.size:  # one that is there
                    continue
                _, blocks = await folder.get_blob_client(blob.name).get_block_list("uncommitted")
                ours = [block.size for block in blocks if _is_ours(block.id)]
                begun = blob.last_modified
                begun_ms = round(begun.timestamp() * 1000) if begun else None
                if ours:
                    found.append((f"{container}/{blob.name}", begun_ms, sum(ours)))
        return found

    return list(sync(store.loop, listed))


def _is_ours(block: str) -> bool:
    try:
        return _BLOCK.fullmatch(base64.b64decode(block)) is not None
    except ValueError:
        return False


class _AzureUpload:
    def __init__(self, store: Any, path: str, *, overwrite: bool) -> None:
        self.parallel = 14
        self.part_bytes: int | None = None
        self._store = store
        self._overwrite = overwrite
        self._container, self._blob, _ = store.split_path(path)
        self._mine = uuid.uuid4().hex[:_NAME_DIGITS]
        self._there: dict[str, int] | None = None
        self._blocks: dict[int, str] = {}
        self._lock = threading.Lock()

    def put(self, data: bytes) -> None:
        # Beside blocks that another has not made a blob yet, only blocks can come.
        if data:
            self.send(1, data)
        self.publish()

    def go_on(self, left: Sequence[str]) -> bool:
        del left  # its blocks are found by their names
        self._there = {}
        there = self._there

        async def listed(blob: Any) -> None:
            _, blocks = await blob.get_block_list("uncommitted")
            there.update((block.id, block.size) for block in blocks)

        with contextlib.suppress(FileNotFoundError):
            self._call(listed)
        return True

    def begin(self) -> str | None:
        return None

    def send(self, number: int, data: bytes) -> None:
        name = self._mine
        if self._there is not None:
            name = hashlib.sha256(data).hexdigest()[:_NAME_DIGITS]
        block = base64.b64encode(f"{name}{number:06d}".encode()).decode()
        if not self._there or self._there.get(block) != len(data):
            self._call(lambda blob: blob.stage_block(block, data, length=len(data)), len(data))
        with self._lock:
            self._blocks[number] = block

    def publish(self) -> None:
        from azure.core import MatchConditions
        from azure.storage.blob import BlobBlock

        blocks = [BlobBlock(self._blocks[number]) for number in sorted(self._blocks)]
        condition = {} if self._overwrite else {"match_condition": MatchConditions.IfMissing}
        self._call(lambda blob: blob.commit_block_list(blocks, **condition))
        self._store.invalidate_cache()

    def abandon(self) -> None:
        """Leave the blocks, which nobody sees."""

    def remove(self, left: str) -> None:
        raise NotImplementedError(left)

    def _call(self, what: Callable[[Any], Awaitable[Any]], size_bytes: int = 0) -> None:
        """Make a call, and wait as long as so many bytes may take."""
        from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError

        async def called() -> None:
            client = self._store.service_client.get_blob_client(self._container, self._blob)
            async with client as blob:
                await what(blob)

        try:
            sync(self._store.loop, called, timeout=seconds_for(size_bytes))
        except ResourceExistsError as error:
            raise FileExistsError(self._blob) from error
        except ResourceNotFoundError as error:
            raise FileNotFoundError(self._container) from error
