"""Each policy for a namesake of each kind, both ways: what becomes of it, and what is said."""

from __future__ import annotations

import re
from functools import cache
from shutil import copyfile
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.gateway_guardrail import GuardrailAction, GuardrailStage

from mlflow_exim_plugin import pack, unpack
from mlflow_exim_plugin.errors import ConflictError
from mlflow_exim_plugin.schema.objects import VERSION_KINDS, Kind
from tests.compare import assert_count_law
from tests.compare_entities import entities
from tests.depth import first_of
from tests.integration.conftest import rows_of
from tests.namesakes import OWNER, SERVER, found, seed_named, seed_owner
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report

pytestmark = pytest.mark.integration

WAYS = {"ids": True, "API": False}
"""Whether ids are kept."""


def _server(side: str, versions: dict[str, Any], *, both: bool = False) -> dict[str, Any]:
    """Return an MCP server of one side, with what the source's has more where both are in it."""
    own = {"source": "2.0.0", "target": "9.0.0"}
    sides = ["source", "target"] if both else [side]
    return {
        "description": side,
        "versions": versions,
        "tags": {"team": side} | dict.fromkeys(sides, ""),
        "aliases": {"stable": own[side]} | {s: own[s] for s in sides},
        "access endpoints": [f"https://{s}.example.com/mcp" for s in sides],
    }


THEIRS = {"1.0.0": ("target", SERVER), "9.0.0": ("target", SERVER, "target")}
"""Versions of an MCP server: title, name, and keys of their tags."""


def _ours(name: str) -> dict[str, Any]:
    return {"1.0.0": ("source", name), "2.0.0": ("source", name, "source")}


ALONE: dict[Kind, Any] = {
    Kind.EXPERIMENT: {"training": ["target"]},
    Kind.REGISTERED_MODEL: {"net": ["target"]},
    Kind.PROMPT: {"chat": ["target"]},
    Kind.SCORER: {"tone": ["target"]},
    Kind.LABEL_SCHEMA: {"stars": "target"},
    Kind.REVIEW_QUEUE: {"Review": ("target", 0)},
    Kind.MODEL_DEFINITION: {"fast": "target"},
    Kind.ENDPOINT: {"route": ([0.25], {"team": "target", "target": ""})},
    Kind.MCP_SERVER: {SERVER: _server("target", THEIRS)},
}
"""What the target has of each kind beforehand."""
MERGED: dict[Kind, Any] = {
    Kind.EXPERIMENT: {"training": ["source", "target"]},
    Kind.REGISTERED_MODEL: {"net": ["target", "source"]},
    Kind.PROMPT: {"chat": ["target", "source"]},
    Kind.SCORER: {"tone": ["target", "source"]},
    Kind.REVIEW_QUEUE: {"Review": ("target", 1)},
    Kind.ENDPOINT: {"route": ([0.25], {"team": "target", "target": "", "source": ""})},
    Kind.MCP_SERVER: {SERVER: _server("target", _ours(SERVER) | THEIRS, both=True)},
}
"""What it has when the parts of each kind joined; those of the other kinds have none."""
BESIDE: dict[Kind, Any] = {
    Kind.EXPERIMENT: {"training (2)": ["source"]},
    Kind.REGISTERED_MODEL: {"net (2)": ["source"]},
    Kind.PROMPT: {"chat.2": ["source"]},
    Kind.SCORER: {"tone (2)": ["source"]},
    Kind.LABEL_SCHEMA: {"stars (2)": "source"},
    Kind.REVIEW_QUEUE: {"Review (2)": ("source", 1)},
    Kind.MODEL_DEFINITION: {"fast-2": "source"},
    Kind.ENDPOINT: {"route-2": ([0.5], {"team": "source", "source": ""})},
    Kind.MCP_SERVER: {f"{SERVER}-2": _server("source", _ours(f"{SERVER}-2"))},
}
"""What it has besides when everything got another name."""
STATES = {
    "merge": ALONE | MERGED,
    "skip": ALONE,
    "rename": {kind: ALONE[kind] | BESIDE[kind] for kind in ALONE},
}
CALLED = {
    Kind.EXPERIMENT: "experiment named 'training'",
    Kind.REGISTERED_MODEL: "registered model named 'net'",
    Kind.PROMPT: "prompt named 'chat'",
    Kind.SCORER: "scorer named 'tone'",
    Kind.LABEL_SCHEMA: "label schema named 'stars'",
    Kind.REVIEW_QUEUE: "review queue named 'Review'",
    Kind.MODEL_DEFINITION: "model definition named 'fast'",
    Kind.ENDPOINT: "endpoint named 'route'",
    Kind.MCP_SERVER: f"MCP server named {SERVER!r}",
}
JOINED = {
    Kind.EXPERIMENT: ["runs", "which keeps its own tags (not set: team)"],
    Kind.REGISTERED_MODEL: ["versions", "which keeps its own tags and text"],
    Kind.PROMPT: ["versions", "which keeps its own tags and text"],
    Kind.SCORER: ["versions and online configs", "", "versions are renumbered: version 1 is 2"],
    Kind.REVIEW_QUEUE: ["items", "which keeps its own schema_ids, users"],
    Kind.ENDPOINT: [
        "tags, guardrails and bindings",
        "which keeps its own model_mappings",
        "tag 'team' keeps its own value",
    ],
    Kind.MCP_SERVER: [
        "versions, tags, aliases and access endpoints",
        "which keeps its own description",
        "tag 'team' keeps its own value",
        "version '1.0.0' keeps its own server_json",
        "alias 'stable' keeps its own version",
    ],
}
"""What joins a namesake of each kind, what that keeps, and what is said of the parts."""
DIFFERING = {Kind.LABEL_SCHEMA: "input", Kind.MODEL_DEFINITION: "model_name"}


def said_of(kind: Kind, policy: str) -> list[str]:
    """Return the losses that are named of an object of a kind."""
    if policy == "skip":
        return []
    if policy == "rename":
        old, new = CALLED[kind].split("named ")[1], repr(next(iter(BESIDE[kind])))
        # A report knows these by their names, the others by their ids.
        is_known = kind in {Kind.EXPERIMENT, Kind.REGISTERED_MODEL, Kind.PROMPT, Kind.SCORER}
        subject = "it" if is_known or kind is Kind.MCP_SERVER else old
        return [f"{subject} is named {new} at the target"]
    if kind in DIFFERING:
        another = f"the target has another {CALLED[kind]}"
        return [f"{another}, which stays as it is (differing: {DIFFERING[kind]})"]
    joins, keeps, *parts = JOINED[kind]
    joined = f"its {joins} joined the {CALLED[kind]}"
    return sorted([f"{joined}, {keeps}" if keeps else joined, *parts])


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An archive of the experiment that objects with names lie in, one with the objects too."""
    folder = tmp_path_factory.mktemp("named")
    new_sqlite_database(folder / "mlflow.db")
    uri, paths = f"sqlite:///{folder}/mlflow.db", (f"{folder}/a.tar.zst", f"{folder}/b.tar.zst")
    seed_owner(uri)
    assert pack(paths[0], tracking_uri=uri).ok
    seed_named(uri, "source")
    assert pack(paths[1], tracking_uri=uri).ok
    return paths


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory, named: tuple[str, str]) -> dict[str, Path]:
    """Targets whose experiment came each way."""
    made = {}
    for way, preserve_ids in WAYS.items():
        path = made[way] = tmp_path_factory.mktemp("owners") / "mlflow.db"
        new_sqlite_database(path)
        uri = f"sqlite:///{path}"
        assert unpack(named[0], tracking_uri=uri, preserve_ids=preserve_ids).ok
    return made


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory, named: tuple[str, str], owners: dict[str, Path]
) -> Callable[[str, str], tuple[dict[Kind, Any], Report]]:
    """What each policy makes of a target each way, and again: found once and read many times."""

    @cache
    def outcome(policy: str, way: str) -> tuple[dict[Kind, Any], Report]:
        path = tmp_path_factory.mktemp("outcome") / "mlflow.db"
        copyfile(owners[way], path)
        uri = f"sqlite:///{path}"
        seed_named(uri, "target")
        options: dict[str, Any] = {"on_conflict": policy, "preserve_ids": WAYS[way]}
        report = unpack(named[1], tracking_uri=uri, **options)
        assert_count_law(report)
        assert report.failures == []
        state, rows = found(uri), rows_of(path)
        again = unpack(named[1], tracking_uri=uri, **options)
        assert {kind: c.written for kind, c in again.counts.items() if c.written} == {}
        assert rows_of(path) == rows
        return state, report

    return outcome


@pytest.mark.parametrize("kind", CALLED)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", STATES)
def test_a_namesake_of_each_kind(outcomes: Any, kind: Kind, policy: str, way: str) -> None:
    state, report = outcomes(policy, way)

    assert state[kind] == STATES[policy][kind]
    losses = [loss.what for loss in report.losses if loss.kind is kind and loss.id != "*"]
    # Where ids are kept the number may be taken too.
    named = [what for what in losses if not what.startswith("its experiment_id is ")]
    assert sorted(named) == said_of(kind, policy)
    another = f"the target has another {CALLED[kind]}"
    skips = {skip.reason for skip in report.skips if skip.kind is kind}
    if policy == "skip":
        assert another in skips
    assert (report.counts[kind].written > 0) == (
        policy == "rename"
        or (policy == "merge" and kind in {*MERGED} - {*VERSION_KINDS, Kind.EXPERIMENT})
    )


@pytest.mark.parametrize("kind", CALLED)
@pytest.mark.parametrize("way", WAYS)
def test_a_namesake_of_each_kind_stops_a_careful_unpack(
    owners: dict[str, Path], named: tuple[str, str], kind: Kind, way: str, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.db"
    copyfile(owners[way], path)
    uri = f"sqlite:///{path}"
    seed_named(uri, "target", kind)
    rows = rows_of(path)

    with pytest.raises(ConflictError, match=f"the target has another {re.escape(CALLED[kind])}"):
        unpack(named[1], tracking_uri=uri, on_conflict="fail", preserve_ids=WAYS[way])

    assert rows_of(path) == rows


@pytest.mark.parametrize("way", WAYS)
def test_what_joined_may_come_beside_later(
    owners: dict[str, Path], named: tuple[str, str], way: str, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.db"
    copyfile(owners[way], path)
    uri = f"sqlite:///{path}"
    seed_named(uri, "target")
    for policy in ("merge", "rename"):
        report = unpack(named[1], tracking_uri=uri, on_conflict=policy, preserve_ids=WAYS[way])
        assert report.failures == []

    state = found(uri)[Kind.MCP_SERVER]

    assert state == MERGED[Kind.MCP_SERVER] | BESIDE[Kind.MCP_SERVER]


@pytest.mark.parametrize("way", WAYS)
def test_a_guardrail_runs_the_version_that_joined(
    way: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    source, target = make_sqlite(), make_sqlite()
    seed_owner(source)
    first, second = str(tmp_path / "a.tar.zst"), str(tmp_path / "b.tar.zst")
    assert pack(first, tracking_uri=source).ok
    assert unpack(first, tracking_uri=target, preserve_ids=WAYS[way]).ok
    seed_named(target, "target", Kind.SCORER)
    seed_named(source, "source", Kind.SCORER, Kind.ENDPOINT)
    store = MlflowClient(source, source)._tracking_client.store
    (scorer,) = store.list_scorers(store.get_experiment_by_name(OWNER).experiment_id)
    guardrail = store.create_gateway_guardrail(
        "safe", scorer.scorer_id, 1, GuardrailStage.BEFORE, GuardrailAction.VALIDATION
    )
    (endpoint,) = store.list_gateway_endpoints()
    store.add_guardrail_to_endpoint(endpoint.endpoint_id, guardrail.guardrail_id, 0)
    assert pack(second, tracking_uri=source).ok
    secret = {"api_key": "k"}
    MlflowClient(target, target)._tracking_client.store.create_gateway_secret(
        "key", secret, provider="openai"
    )

    report = unpack(second, tracking_uri=target, preserve_ids=WAYS[way])

    assert report.failures == []
    said = entities(target)
    assert said["guardrails"]["safe"][:3] == (OWNER, "tone", 2)
    assert said["endpoints"]["route"]["guardrails"] == [(0, "safe")]


@pytest.mark.parametrize("policy", first_of(2, ["merge", "fail", "skip", "rename"]))
@pytest.mark.parametrize("way", WAYS)
def test_a_policy_is_not_for_the_same_server(
    way: str, policy: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    """It has no id but its name, and goes on whatever the policy."""
    source, target = make_sqlite(), make_sqlite()
    seed_owner(source)
    seed_named(source, "source", Kind.MCP_SERVER)
    paths = [str(tmp_path / name) for name in ("a.tar.zst", "b.tar.zst")]
    options: dict[str, Any] = {"on_conflict": policy, "preserve_ids": WAYS[way]}
    for path, version in zip(paths, ("3.0.0", ""), strict=True):
        assert pack(path, tracking_uri=source).ok
        if version:
            store = MlflowClient(source, source)._tracking_client.store
            store.create_mcp_server_version({"name": SERVER, "version": version, "title": "new"})
        report = unpack(path, tracking_uri=target, **options)
        assert report.counts[Kind.MCP_SERVER].written == 1
        assert [loss.what for loss in report.losses if loss.id == SERVER] == []

    assert found(target)[Kind.MCP_SERVER] == found(source)[Kind.MCP_SERVER]
