"""Pages of a server whose elements are read one by one: one that is malformed costs itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict, ParseError

from mlflow_exim_plugin.host.answers import object_of
from mlflow_exim_plugin.host.errors import raise_for_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.host.open.host import Host

__all__ = ["NOT_LIKE_ITS_KIND", "Malformed", "sifted"]

NOT_LIKE_ITS_KIND = (ParseError, TypeError, ValueError, KeyError, AttributeError)
"""What MLflow's client raises of a page with an element that is none of its objects."""


@dataclass(frozen=True)
class Malformed:
    """An element of a page that is no object of its kind.

    Attributes:
        id: What it says to be its id, empty where it says none.
        reason: What is wrong with it.
    """

    id: str
    reason: str


def sifted(page: Callable[[], Any], host: Host, field: str, body: dict[str, Any]) -> Any:
    """Return a page of a listing, with ``Malformed`` in the place of each element that is so.

    Args:
        page: Asks MLflow's client for it, which takes all of it or nothing.
        host: The deployment.
        field: ``experiments`` or ``runs``.
        body: What a server is asked.
    """
    try:
        return page()
    except NOT_LIKE_ITS_KIND:
        if not host.is_http:
            raise
    response = host.call(
        "POST", f"/api/2.0/mlflow/{field}/search", doing=f"listing {field}", body=body
    )
    from mlflow.store.entities import PagedList

    raise_for_status(response)
    answer = object_of(response.content or b"{}")
    elements = answer.get(field)
    if not isinstance(elements, list):
        raise ParseError(f"{field} is no list")
    token = answer.get("next_page_token")
    return PagedList([_element(field, element) for element in elements], token or None)


def _element(field: str, element: Any) -> Any:
    from mlflow.entities import Experiment, Run
    from mlflow.exceptions import MlflowException
    from mlflow.protos.service_pb2 import Experiment as ProtoExperiment
    from mlflow.protos.service_pb2 import Run as ProtoRun

    if not isinstance(element, dict):
        return Malformed("", "it is malformed: it is no object")
    try:
        if field == "runs":
            return Run.from_proto(ParseDict(element, ProtoRun(), ignore_unknown_fields=True))
        return Experiment.from_proto(
            ParseDict(element, ProtoExperiment(), ignore_unknown_fields=True)
        )
    except (*NOT_LIKE_ITS_KIND, MlflowException) as error:
        return Malformed(_id(field, element), f"it is malformed: {error}")


def _id(field: str, element: dict[str, Any]) -> str:
    info, name = (element.get("info"), "run_id") if field == "runs" else (element, "experiment_id")
    found = info.get(name) if isinstance(info, dict) else None
    return found if isinstance(found, str) else ""
