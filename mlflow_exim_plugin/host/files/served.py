"""Files as their server itself lists and sends them, wherever it keeps them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.answers import UnbelievableError
from mlflow_exim_plugin.host.errors import raise_for_status, translated

if TYPE_CHECKING:
    from collections.abc import Iterator

    import requests

    from mlflow_exim_plugin.host.open.host import Host

__all__ = ["ServedFiles"]

_CHUNK_BYTES = 1 << 20
_MAX_DEPTH = 64
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")


class ServedFiles:
    """Files of a run or logged model, by the calls that MLflow's pages show them with.

    Args:
        host: The server.
        owner: Id of the run or logged model.
    """

    def __init__(self, host: Host, owner: str) -> None:
        self._host = host
        if _MODEL_ID.fullmatch(owner):
            of_model = f"2.0/mlflow/logged-models/{owner}/artifacts"
            self._list = f"/api/{of_model}/directories", "artifact_directory_path"
            self._send = f"/ajax-api/{of_model}/files", "artifact_file_path"
            self._owner: list[tuple[str, str]] = []
        else:
            generation = host.generation
            self._list = f"{generation.api}/artifacts/list", "path"
            self._send = generation.file, "path"
            self._owner = [(generation.run_id, owner)]

    def files(self, folder: str = "", depth: int = 0) -> Iterator[tuple[str, int]]:
        """Yield path and size in bytes of every file.

        Raises:
            ServerError: The server does not list them.
        """
        if depth > _MAX_DEPTH:
            raise ServerError(f"artifact folder {folder!r} is nested deeper than {_MAX_DEPTH}")
        for entry in self._entries(folder):
            if entry.get("is_dir"):
                yield from self.files(str(entry["path"]), depth + 1)
            else:
                yield str(entry["path"]), int(entry.get("file_size") or 0)

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        endpoint, name = self._list
        params = [*self._owner, *([(name, folder)] if folder else [])]
        doing = "listing artifacts through their server"
        with translated(doing):
            reply = self._host.get_json(endpoint, params)
            if reply is None:
                raise NotImplementedError("it has no such call")
            entries = reply.get("files", [])
            # Also an empty listing says where it looked.
            if not isinstance(reply.get("root_uri"), str) or not isinstance(entries, list):
                raise UnbelievableError("what comes is no listing")
            return sorted(entries, key=lambda entry: str(entry["path"]))

    def bytes_of(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of a file.

        Raises:
            ServerError: The server does not send them.
        """
        endpoint, name = self._send
        params = [*self._owner, (name, path)]
        response: requests.Response = self._host.get(endpoint, params, stream=True)
        with response, translated(f"reading artifact {path}"):
            raise_for_status(response)
            yield from response.iter_content(_CHUNK_BYTES)
