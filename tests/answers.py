"""Everything that a server answers to who only reads, by what was asked.

The questions are those of MLflow 3.17, and where a server does not know one, those of before.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["answers", "without_secrets"]

_V2, _V3 = "/api/2.0/mlflow", "/api/3.0/mlflow"
_ALL = "ALL"


class _Server:
    """Asks one server and keeps what it answers."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        # MLflow 2 closes connections that nobody uses for a moment.
        again = HTTPAdapter(max_retries=Retry(2, allowed_methods=None, backoff_factor=0))
        self._session.mount(url, again)
        self.answers: dict[str, Any] = {}

    def get(self, path: str, /, **params: Any) -> dict[str, Any]:
        return self._keep("GET", path, params, self._session.get(self._url + path, params=params))

    def post(self, path: str, /, **body: Any) -> dict[str, Any]:
        return self._keep("POST", path, body, self._session.post(self._url + path, json=body))

    def bytes_of(self, path: str) -> None:
        try:
            response = self._session.get(self._url + path)
        except requests.ConnectionError:  # MLflow 2 dies of names that are not Latin
            self.answers[f"GET {path}"] = (0, b"")
            return
        self.answers[f"GET {path}"] = (response.status_code, response.content)

    def _keep(
        self, method: str, path: str, asked: dict[str, Any], response: requests.Response
    ) -> dict[str, Any]:
        try:
            reply = response.json()
        except ValueError:
            reply = {"text": response.text}
        reply = _in_order(reply)
        key = f"{method} {path} {json.dumps(asked, sort_keys=True)}"
        self.answers[key] = (response.status_code, reply)
        return reply if isinstance(reply, dict) and response.ok else {}

    def pages(self, field: str, ask: Any, path: str, /, **asked: Any) -> Iterator[Any]:
        """Follow the pages of a listing."""
        while True:
            reply = ask(path, **asked)
            yield from reply.get(field, ())
            token = reply.get("next_page_token")
            if not token:
                return
            asked["page_token"] = token


def answers(url: str) -> dict[str, Any]:
    """Return status and body of every read that the web UI or a client could make."""
    server = _Server(url)
    today = server.pages(
        "experiments", server.post, f"{_V2}/experiments/search", view_type=_ALL, max_results=9
    )
    before_1_28 = server.pages("experiments", server.get, f"{_V2}/experiments/list", view_type=_ALL)
    experiments = [e["experiment_id"] for e in list(today) or before_1_28]
    for experiment_id in experiments:
        found = server.get(f"{_V2}/experiments/get", experiment_id=experiment_id)
        name = found["experiment"]["name"]
        server.get(f"{_V2}/experiments/get-by-name", experiment_name=name)
        _runs(server, experiment_id, experiments)
        _logged_models(server, experiment_id)
        _traces(server, experiment_id)
        _judging(server, experiment_id)
    server.post(f"{_V3}/issues/search", max_results=1000)
    _registry(server, experiments)
    _datasets(server, experiments)
    _gateway(server)
    _mcp_servers(server)
    server.get(f"{_V2}/webhooks", max_results=100)
    return server.answers


def _linked(server: _Server, experiments: list[str], condition: str) -> None:
    """Ask for the traces that are linked to something: no trace tells it of itself."""
    everywhere = [
        {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}}
        for experiment_id in experiments
    ]
    server.post(f"{_V3}/traces/search", locations=everywhere, filter=condition, max_results=100)


def _runs(server: _Server, experiment_id: str, experiments: list[str]) -> None:
    path = f"{_V2}/runs/search"
    asked: dict[str, Any] = {"experiment_ids": [experiment_id], "run_view_type": _ALL}
    in_order = {"max_results": 7, "order_by": ["attributes.run_id ASC"]}
    runs = list(server.pages("runs", server.post, path, **asked, **in_order))
    if len(runs) in {0, 7}:  # before MLflow 1.28 no order by ids, in 1.0 one page alone
        runs = list(server.pages("runs", server.post, path, **asked, max_results=50_000))
    for run in runs:
        run_id = run["info"]["run_id"]
        whole = server.get(f"{_V2}/runs/get", run_id=run_id).get("run", {})
        for linked in (
            *whole.get("inputs", {}).get("model_inputs", ()),
            *whole.get("outputs", {}).get("model_outputs", ()),
        ):
            _logged_model(server, linked["model_id"], allow_deleted="true")  # no list has those
        _linked(server, experiments, f"request_metadata.`mlflow.sourceRun` = '{run_id}'")
        for metric in run["data"].get("metrics", ()):
            listed = server.pages(
                "metrics",
                server.get,
                f"{_V2}/metrics/get-history",
                run_id=run_id,
                metric_key=metric["key"],
                max_results=25_000,
            )
            list(listed)
        _files(server, run_id, run["info"]["artifact_uri"], "")


def _files(server: _Server, run_id: str, uri: str, path: str) -> None:
    reply = server.get(f"{_V2}/artifacts/list", run_id=run_id, **({"path": path} if path else {}))
    for file in reply.get("files", ()):
        if file.get("is_dir"):
            _files(server, run_id, uri, file["path"])
        elif uri.startswith("mlflow-artifacts:/"):
            _download(server, f"{uri}/{file['path']}")
        else:
            server.bytes_of(f"/get-artifact?run_id={run_id}&path={quote(file['path'])}")


def _download(server: _Server, uri: str) -> None:
    assert uri.startswith("mlflow-artifacts:/")
    path = quote(uri.removeprefix("mlflow-artifacts:/"))
    server.bytes_of(f"/api/2.0/mlflow-artifacts/artifacts/{path}")


def _logged_models(server: _Server, experiment_id: str) -> None:
    found = server.pages(
        "models",
        server.post,
        f"{_V2}/logged-models/search",
        experiment_ids=[experiment_id],
        max_results=5,
    )
    for model in list(found):
        _logged_model(server, model["info"]["model_id"])


def _logged_model(server: _Server, model_id: str, **asked: str) -> None:
    model = server.get(f"{_V2}/logged-models/{model_id}", **asked).get("model")
    listed = server.get(f"{_V2}/logged-models/{model_id}/artifacts/directories", **asked)
    for file in listed.get("files", ()):
        if model and not file.get("is_dir"):
            _download(server, f"{model['info']['artifact_uri']}/{file['path']}")


def _traces(server: _Server, experiment_id: str) -> None:
    location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}}
    found = server.pages(
        "traces", server.post, f"{_V3}/traces/search", locations=[location], max_results=5
    )
    listed = list(found)
    if not listed:  # MLflow before 3.2 has another list
        of_v2 = {"experiment_ids": experiment_id, "max_results": 5}
        list(server.pages("traces", server.get, f"{_V2}/traces", **of_v2))
    for trace in listed:
        trace_id = trace["trace_id"]
        server.get(f"{_V3}/traces/{trace_id}")
        server.get(f"{_V3}/traces/get", trace_id=trace_id, allow_partial="true")
        server.get("/ajax-api/2.0/mlflow/get-trace-artifact", request_id=trace_id)
        for assessment in trace.get("assessments", ()):
            server.get(f"{_V3}/traces/{trace_id}/assessments/{assessment['assessment_id']}")


def _judging(server: _Server, experiment_id: str) -> None:
    scorers = server.get(f"{_V3}/scorers/list", experiment_id=experiment_id)
    ids = []
    for scorer in scorers.get("scorers", ()):
        ids.append(scorer["scorer_id"])
        server.get(
            f"{_V3}/scorers/versions", experiment_id=experiment_id, name=scorer["scorer_name"]
        )
    if ids:
        server.get(f"{_V3}/scorers/online-configs", scorer_ids=ids)
    by_name = f"{_V3}/label-schemas/get-by-name"
    if server.get(by_name, experiment_id=experiment_id, name="Feedback"):  # else listing writes
        server.get(f"{_V3}/label-schemas/list", experiment_id=experiment_id, max_results=100)
    queues = server.get(f"{_V3}/review-queues/list", experiment_id=experiment_id, max_results=100)
    for queue in queues.get("review_queues", ()):
        queue_id = queue["queue_id"]
        server.get(f"{_V3}/review-queues/get", queue_id=queue_id)
        server.get(f"{_V3}/review-queues/items/list", queue_id=queue_id, max_results=100)


def _registry(server: _Server, experiments: list[str]) -> None:
    for condition in ("", "tags.`mlflow.prompt.is_prompt` = 'true'"):
        models = server.pages(
            "registered_models",
            server.get,
            f"{_V2}/registered-models/search",
            max_results=3,
            filter=condition,
        )
        for model in list(models):
            name = model["name"]
            server.get(f"{_V2}/registered-models/get", name=name)
            server.post(f"{_V2}/registered-models/get-latest-versions", name=name)
            for alias in model.get("aliases", ()):
                server.get(f"{_V2}/registered-models/alias", name=name, alias=alias["alias"])
            highest = max((int(v["version"]) for v in model.get("latest_versions", ())), default=0)
            for number in range(1, highest + 1):
                of_version = {"name": name, "version": str(number)}
                server.get(f"{_V2}/model-versions/get", **of_version)
                server.get(f"{_V2}/model-versions/get-download-uri", **of_version)
                if condition:
                    _linked(server, experiments, f"prompt = '{name}/{number}'")
        server.get(f"{_V2}/model-versions/search", max_results=1000, filter=condition)


def _datasets(server: _Server, experiment_ids: Iterable[str]) -> None:
    found = server.post(f"{_V3}/datasets/search", max_results=1000)
    server.post(f"{_V3}/datasets/search", experiment_ids=list(experiment_ids), max_results=1000)
    for dataset in found.get("datasets", ()):
        path = f"{_V3}/datasets/{dataset['dataset_id']}"
        server.get(path)
        server.get(f"{path}/experiment-ids")
        list(server.pages("records", server.get, f"{path}/records", max_results=500))


def _gateway(server: _Server) -> None:
    for name in ("model-definitions", "endpoints", "guardrails", "budgets", "endpoints/bindings"):
        server.get(f"{_V3}/gateway/{name}/list")
    found = server.get(f"{_V3}/gateway/endpoints/list").get("endpoints", ())
    for endpoint in found:
        endpoint_id = endpoint["endpoint_id"]
        server.get(f"{_V3}/gateway/endpoints/get", endpoint_id=endpoint_id)
        server.get(f"{_V3}/gateway/endpoints/bindings/list", endpoint_id=endpoint_id)
        server.get(f"{_V3}/gateway/guardrails/list-for-endpoint", endpoint_id=endpoint_id)


def _mcp_servers(server: _Server) -> None:
    for found in server.get(f"{_V3}/mcp-servers").get("mcp_servers", ()):
        path = f"{_V3}/mcp-servers/{quote(found['name'], safe='')}"
        server.get(path)
        server.get(f"{path}/versions")
        server.get(f"{path}/access-endpoints")


def _in_order(value: Any) -> Any:
    """Sort the lists that are sets: their order is the one that rows lie in."""
    if isinstance(value, dict):
        return {
            key: sorted(map(_in_order, inner), key=lambda v: json.dumps(v, sort_keys=True))
            if isinstance(inner, list)
            else _in_order(inner)
            for key, inner in value.items()
        }
    return value


def without_secrets(reply: Any) -> Any:
    """Return an answer without what is not packed or has no order."""
    if isinstance(reply, list | tuple):
        return [without_secrets(inner) for inner in reply]
    if not isinstance(reply, dict):
        return reply
    plain = {}
    for key, value in reply.items():
        if key in {"secret_id", "secret_name"}:
            continue
        is_json = key == "tags" and isinstance(value, str)  # of evaluation datasets
        plain[key] = json.loads(value) if is_json else without_secrets(value)
    if "webhook_id" in plain:
        del plain["status"]
    if plain.get("end_time_unix_nano") == 0:
        plain["end_time_unix_nano"] = None  # of a span that runs, MLflow has both
    return plain
