"""Workspaces that a dry run would make: the server answers for them as if they were there."""

from __future__ import annotations

import io
import json
from typing import Any

import requests
from requests.adapters import BaseAdapter

__all__ = ["Foresight"]

_HEADER = "X-MLFLOW-WORKSPACE"
_TOKEN = "next_page_token"  # noqa: S105 - no secret
_OF_NO_WORKSPACE = "/server-info"
_NOTHING = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "its workspace is yet to be made"}


class Foresight(BaseAdapter):
    """Asks about the workspace that every server has, and leaves out what that one holds.

    So what a server does not have, or refuses, it says of a workspace that is not there yet too.

    Args:
        usual: Sends the requests of a session.
        planned: Names of the workspaces.
        instead: Name of the workspace that is asked about.
    """

    def __init__(self, usual: Any, planned: set[str], instead: str) -> None:
        super().__init__()
        self._usual = usual
        self._planned = planned
        self._instead = instead

    def send(self, request: Any, *arguments: Any, **named: Any) -> requests.Response:
        """Send a request, that of such a workspace elsewhere."""
        is_planned = request.headers.get(_HEADER) in self._planned
        is_planned &= not request.url.endswith(_OF_NO_WORKSPACE)
        if is_planned:
            request.headers[_HEADER] = self._instead
        response: requests.Response = self._usual.send(request, *arguments, **named)
        return _without_objects(response) if is_planned else response

    def close(self) -> None:
        """Leave the connections to whom they belong."""


def _without_objects(response: requests.Response) -> requests.Response:
    """Return a listing without its entries; in place of an object, that there is none."""
    try:
        told = json.loads(response.content)
    except ValueError:
        return response
    if not response.ok or not isinstance(told, dict):
        return response
    entries = {key: value for key, value in told.items() if key != _TOKEN}
    if all(isinstance(value, list) for value in entries.values()):
        return _answer(response, 200, {key: [] for key in entries})
    return _answer(response, 404, _NOTHING)


def _answer(given: requests.Response, status: int, told: object) -> requests.Response:
    made = requests.Response()
    made.status_code, made.request, made.url = status, given.request, given.url
    made.headers["Content-Type"] = "application/json"
    made.raw = io.BytesIO(json.dumps(told).encode())
    return made
