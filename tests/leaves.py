"""What archives hold, object by object: the content digest of each by its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from mlflow_exim_plugin import Archive

__all__ = ["leaves"]


def leaves(archive: Archive) -> dict[str, str]:
    """Return the content digests that an archive states, those of traces one by one.

    Read out of the archive's own files, without what the product reads objects with.
    """
    found: dict[str, str] = {}
    for path in archive.reader.paths("data/"):
        if path.endswith(".json"):
            if "/artifacts/" in path or "/attachments/" in path or path == "data/archive.json":
                continue
            if "/traces/" not in path:
                found[path] = orjson.loads(archive.reader.read(path))["info"]["content_digest"]
        elif "/traces/" in path and path.endswith(".parquet"):
            with archive.reader.open_member(path) as stream:
                table = pq.read_table(stream)
            if "content_digest" in table.column_names:
                for row in table.to_pylist():
                    found[f"trace {row['trace_id']}"] = row["content_digest"]
    return found
