"""A NULL stays NULL and an absent row absent: the rows of the source are the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from mlflow import MlflowClient

from mlflow_exim_plugin import copy, diff, pack, unpack
from tests.compare import as_default
from tests.new_ids import copy as copy_by_api
from tests.trace_seed import started_trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import MakeServer

pytestmark = pytest.mark.integration

OPTIONAL = {
    "logged_models": "name, model_type, source_run_id, status_message",
    "registered_models": "name, nullif(description, '')",  # MLflow itself reads them as one
    "model_versions": "name, version, description, run_id, run_link, user_id, status_message",
}
LINKS = "SELECT source_id, destination_id FROM entity_associations WHERE destination_type = '{}'"
PROMPT = "greeting"
"""Its versions 1 and 2: a trace may be linked to one, and its tag name the other."""


def rows(uri: str, query: str) -> list[tuple[Any, ...]]:
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(sqlalchemy.text(query))]
    engine.dispose()
    return sorted(found, key=repr)


def optional_texts(uri: str) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table: rows(uri, f"SELECT {columns} FROM {table}") for table, columns in OPTIONAL.items()
    }


@pytest.mark.parametrize("database", ["sqlite_uri", "postgres_uri"])
def test_nothing_and_empty_text_stay_two(
    make_sqlite: Callable[[], str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    database: str,
) -> None:
    source, by_api = make_sqlite(), make_sqlite()
    target = request.getfixturevalue(database)
    client = MlflowClient(source, source)
    experiment_id = client.create_experiment("e", str(tmp_path / "files"))
    store = client._tracking_client.store
    for number, text in enumerate((None, "", "agent")):
        store.create_logged_model(experiment_id, f"m{number}", text and None, model_type=text)
        client.create_registered_model(f"r{number}", description=text)
        client.create_model_version(f"r{number}", str(tmp_path), description=text, run_link=text)
    run_id = client.create_run(experiment_id).info.run_id
    engine = sqlalchemy.create_engine(source)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE runs SET user_id = NULL, start_time = NULL"))
    engine.dispose()
    told = optional_texts(source)
    assert {row[1] for row in told["logged_models"]} == {None, "", "agent"}
    archive = str(tmp_path / "a.tar.zst")

    pack(archive, tracking_uri=source)
    report = unpack(archive, tracking_uri=target, artifact_location=str(tmp_path / "back"))
    lost = [loss.what.partition(",")[0] for loss in report.losses if loss.id == run_id]
    assert lost == ["it has no user", "it has no start time"]  # which MLflow reads no run without
    assert optional_texts(target) == told

    copy_by_api(source, by_api, artifact_location=str(tmp_path / "new"))
    types = "SELECT name, model_type FROM logged_models"
    assert rows(by_api, types) == rows(source, types)


def traces_of_prompts(uri: str) -> None:
    """Make traces whose tags and links say the same, and others."""
    client = MlflowClient(uri, uri)
    store = client._tracking_client.store
    experiment_id = client.create_experiment("prompts")
    one, two = (client.register_prompt(PROMPT, f"hello {n}") for n in range(2))
    tag = {"mlflow.linkedPrompts": f'[{{"name": "{PROMPT}", "version": "1"}}]'}
    both, _, linked, other, _ = (
        started_trace(store, experiment_id, f"tr-{n:032x}", tags=tags)
        for n, tags in enumerate(({}, tag, {}, tag, {"mlflow.linkedPrompts": "[1"}), 1)
    )
    with as_default(uri):
        client.link_prompt_versions_to_trace([one], both)
    for trace_id, version in ((linked, one), (other, two)):
        store.link_prompts_to_trace(trace_id, [version])


def linked(uri: str) -> dict[int, list[str]]:
    """Return the traces that MLflow's search finds by each version of the prompt."""
    client = MlflowClient(uri, uri)
    experiment_id = client.get_experiment_by_name("prompts").experiment_id
    return {
        number: sorted(
            trace.info.trace_id
            for trace in client.search_traces(
                [experiment_id], f"prompt = '{PROMPT}/{number}'", include_spans=False
            )
        )
        for number in (1, 2)
    }


def test_a_tag_that_names_a_prompt_is_no_link(
    make_server: MakeServer, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    source, target = make_server(), make_server()
    traces_of_prompts(source.url)
    told = linked(source.url)
    assert {len(traces) for traces in told.values()} == {2, 1}
    stored = rows(source.backend_uri, LINKS.format("prompt_version"))

    report = copy(source.url, target.url)
    assert report.ok
    assert not [loss for loss in report.losses if "link" in loss.what or "prompt" in loss.what]
    assert linked(target.url) == told
    for location in (source.url, source.backend_uri):
        back = make_sqlite()
        copy(location, back, artifact_location=str(tmp_path / "files"))
        assert rows(back, LINKS.format("prompt_version")) == stored, location
        result = diff(source.url, back)
        assert not [d for d in result.differences if d.kind == "trace"], result.differences
