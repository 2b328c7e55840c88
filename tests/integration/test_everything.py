"""Everything MLflow stores, packed and unpacked: source, archive and target are equal."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin import diff, pack, unpack, verify
from mlflow_exim_plugin.schema.objects import ENTITY_KINDS, Kind
from tests.compare import assert_count_law
from tests.everything import SERVER_ENV, fill
from tests.seed_entities import add_secrets

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_exim_plugin import Comparison
    from tests.conftest import MakeServer

pytestmark = pytest.mark.integration

KINDS = {
    Kind.EXPERIMENT,
    Kind.RUN,
    Kind.METRIC_HISTORY,
    Kind.ARTIFACT,
    Kind.LOGGED_MODEL,
    Kind.TRACE,
    Kind.PROMPT,
    Kind.PROMPT_VERSION,
    Kind.REGISTERED_MODEL,
    Kind.MODEL_VERSION,
    *ENTITY_KINDS,
} - {Kind.WORKSPACE}
DEMO = "from mlflow.demo import generate_all_demos; generate_all_demos()"
DEMO_KINDS = {
    Kind.EXPERIMENT,
    Kind.RUN,
    Kind.TRACE,
    Kind.PROMPT,
    Kind.PROMPT_VERSION,
    Kind.EVALUATION_DATASET,
    Kind.SCORER,
    Kind.ISSUE,
    Kind.REVIEW_QUEUE,
}


NO_PROMPT_TO_ITS_REGISTRY = (Kind.PROMPT_VERSION, "by-hand/4")
"""A version without the tag of prompts: the server refuses its source, and the report says so."""


def assert_equal(result: Comparison, *failed: tuple[Kind, str]) -> None:
    told = [
        f"{d.kind} {d.id} {d.path}: {d.a!r} / {d.b!r}"[:300]
        for d in result.differences
        if (d.kind, d.id) not in failed
    ]
    assert not told, "\n".join(told)
    assert not result.unreadable
    assert result.total == len(failed)
    assert result.equal == (not failed)


@pytest.mark.timeout(900)
def test_everything_survives(make_server: MakeServer, tmp_path: Path) -> None:
    source, target = make_server(env=SERVER_ENV).url, make_server(env=SERVER_ENV).url
    fill(source)
    add_secrets(target)
    archive = str(tmp_path / "everything.tar.zst")

    packed = pack(archive, tracking_uri=source)
    assert packed.failures == []
    assert_count_law(packed)
    assert verify(archive).ok
    exact = diff(source, archive, rules="exact")
    assert_equal(exact)
    assert set(exact.counts) == KINDS

    unpacked = unpack(archive, tracking_uri=target)
    assert_count_law(unpacked)
    failed = [(failure.kind, failure.id) for failure in unpacked.failures]
    assert failed == [NO_PROMPT_TO_ITS_REGISTRY]
    assert_equal(diff(source, target), *failed)
    assert_equal(diff(archive, target), *failed)


@pytest.mark.timeout(900)
def test_the_demo_of_mlflow_survives(make_server: MakeServer, tmp_path: Path) -> None:
    source, target = make_server().url, make_server().url
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DEMO],
        env=os.environ | {"MLFLOW_TRACKING_URI": source},
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    archive = str(tmp_path / "demo.tar.zst")

    assert pack(archive, tracking_uri=source).failures == []
    exact = diff(source, archive, rules="exact")
    assert_equal(exact)
    assert set(exact.counts) >= DEMO_KINDS
    assert_count_law(unpack(archive, tracking_uri=target))
    assert_equal(diff(source, target))
