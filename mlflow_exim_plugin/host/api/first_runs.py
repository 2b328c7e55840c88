"""Runs of servers before MLflow 1.0, which today's client cannot speak to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict

from mlflow_exim_plugin.errors import NotFoundError, ServerError
from mlflow_exim_plugin.host.answers import UnbelievableError, answered
from mlflow_exim_plugin.host.api.reading import Reader
from mlflow_exim_plugin.host.api.sifting import NOT_LIKE_ITS_KIND, Malformed
from mlflow_exim_plugin.host.documents import matching_runs
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.schema.documents import json_number, present, sorted_entries
from mlflow_exim_plugin.schema.objects import key_values
from mlflow_exim_plugin.schema.runs import TAGS_OF_FIELDS, in_ms, with_tags_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FirstReader"]

_NUMBERS = ("start_time", "end_time")
_TEXTS = ("user_id", "status", "artifact_uri")


class FirstReader(Reader):
    """A ``Reader`` of a server before 1.0: it has experiments and runs, and pages of nothing."""

    def _found_runs(self, experiment_ids: list[str], filter_string: str) -> Iterator[Any]:
        """Yield MLflow's runs that match, deleted and malformed ones included."""
        from mlflow.entities import Run
        from mlflow.protos.service_pb2 import Run as ProtoRun

        for experiment_id in experiment_ids:
            documents: list[dict[str, Any]] = []
            for found in self._runs_of(experiment_id):
                if isinstance(found, Malformed):
                    yield found
                else:
                    documents.append(found)
            if filter_string:
                documents = matching_runs(documents, filter_string)
            for document in documents:
                yield Run.from_proto(ParseDict(document, ProtoRun(), ignore_unknown_fields=True))

    def _runs_of(self, experiment_id: str) -> Iterator[dict[str, Any] | Malformed]:
        generation = self.host.generation
        query = [("experiment_ids[]", experiment_id)]
        if generation.takes_more:
            query.append(("run_view_type", "ALL"))
        try:
            listed = (self.host.get_json(generation.runs, query) or {}).get("runs") or []
            if not listed:
                raise UnbelievableError("it gives none")  # noqa: TRY301 - asked in another way
        except (ServerError, UnbelievableError) as error:
            for named in self._runs_in([experiment_id], error):
                yield self._alone(named) if named.id else named
            return
        for found in listed:
            try:
                yield _document(found)
            except NOT_LIKE_ITS_KIND as error:
                yield Malformed(_id(found), f"it is malformed: {error}")

    def _alone(self, named: Malformed) -> dict[str, Any] | Malformed:
        """Return a run that no search gives."""
        try:
            return self.run(named.id)
        except ServerError as error:
            return Malformed(named.id, error.message)

    def run(self, run_id: str) -> dict[str, Any]:
        """Return one run."""
        generation = self.host.generation

        def ask() -> dict[str, Any]:
            query = [(generation.run_id, run_id)]
            answer = self.host.get_json(f"{generation.api}/runs/get", query)
            if answer is None:
                there_is_none = f"reading run {run_id}: there is none of this id"
                raise ServerError(there_is_none) from NotFoundError(there_is_none)
            found = answer.get("run")
            if _id(found) != run_id:
                raise UnbelievableError(f"what comes is run {_id(found)!r}")
            return _document(found)

        with translated(f"reading run {run_id}"):
            return answered(ask)


def _id(found: Any) -> str:
    info = found.get("info") if isinstance(found, dict) else None
    return str(info.get("run_uuid") or "") if isinstance(info, dict) else ""


def _document(found: Any) -> dict[str, Any]:
    """Return REST's ``Run`` as later versions have it; its own fields stay beside what they became.

    Raises:
        Exception: One of ``NOT_LIKE_ITS_KIND``; it is none.
    """
    info, data = found["info"], found.get("data", {})
    own = {name: str(info[name]) for name in TAGS_OF_FIELDS if info.get(name)}
    run_id = str(info["run_uuid"])
    tags = with_tags_of(own, key_values(data.get("tags")))
    latest = sorted(data.get("metrics", []), key=lambda metric: str(metric["key"]))
    times = in_ms(int(metric.get("timestamp", 0)) for metric in latest)
    return {
        "info": present(
            {
                "run_id": run_id,
                "run_uuid": run_id,
                "run_name": tags.get("mlflow.runName"),
                "experiment_id": str(info["experiment_id"]),
                **{name: info.get(name) for name in _TEXTS},
                **{name: int(info[name]) for name in _NUMBERS if name in info},
                "lifecycle_stage": info.get("lifecycle_stage", "active"),
            }
        )
        | own,
        "data": {
            "metrics": [
                {
                    "key": str(metric["key"]),
                    "value": json_number(float(metric.get("value", 0))),
                    "timestamp": time_ms,
                    "step": 0,
                }
                for metric, time_ms in zip(latest, times, strict=True)
            ],
            "params": sorted_entries(key_values(data.get("params"))),
            "tags": sorted_entries(tags),
        },
    }
