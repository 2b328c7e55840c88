"""``open_archive``: an archive to look into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.sources.archive.archive import Archive

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["open_archive"]


def open_archive(
    archive: str,
    *,
    expected_root: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Archive:
    """Open an archive where it lies, to read its objects.

    Args:
        archive: Path or fsspec URL.
        expected_root: Root digest it must have, hex.
        storage_options: Given to the fsspec file system.

    Returns:
        The archive; use it as a context manager.

    Raises:
        NotFoundError: There is nothing at ``archive``.
        InvalidArchiveError: It is no archive, or damaged.
        UnsupportedFormatError: It needs a newer reader.
        StoreError: It cannot be read.
    """
    return Archive.open(archive, storage_options=storage_options, expected_root=expected_root)
