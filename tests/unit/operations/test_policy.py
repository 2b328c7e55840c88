from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin.errors import NotFoundError, UsageError
from mlflow_exim_plugin.operations.retention.policy import load_policy
from mlflow_exim_plugin.schema.objects import Run

if TYPE_CHECKING:
    from pathlib import Path

DAY_MS = 86_400_000


def run(*, ended_days: float | None = 500, started_days: float = 500, **more: Any) -> Run:
    now_ms = time.time() * 1000
    tags = [{"key": k, "value": v} for k, v in more.pop("tags", {}).items()]
    info: dict[str, Any] = {
        "run_id": "r",
        "experiment_id": "1",
        "status": "FINISHED",
        "lifecycle_stage": "active",
    }
    info["start_time"] = int(now_ms - started_days * DAY_MS)
    if ended_days is not None:
        info["end_time"] = int(now_ms - ended_days * DAY_MS)
    return Run({"info": info | more, "data": {"tags": tags}})


def takes(tmp_path: Path, rule: str, item: Run, experiment: str = "churn/a") -> bool:
    path = tmp_path / "policy.yaml"
    path.write_text(f"rules:\n- {{{rule}}}\n")
    (found,) = load_policy(str(path)).rules
    return found.takes(item, experiment, found.until_ms)


@pytest.mark.parametrize(
    ("rule", "item", "expected"),
    [
        ("older_than: 400d", run(), True),
        ("older_than: 400d", run(ended_days=399), False),
        ("older_than: 400d", run(ended_days=None), False),
        ("older_than: 400d, age_of: start", run(ended_days=None), True),
        ("older_than: 400d, age_of: start", run(ended_days=1), True),
        ("older_than: 2020-01-01", run(), False),
        ("older_than: 2020-01-01", run(ended_days=10_000), True),
        ("older_than: 400d", run(status="RUNNING"), False),
        ("older_than: 400d, statuses: [RUNNING]", run(status="RUNNING"), True),
        ("older_than: 400d", run(lifecycle_stage="deleted"), False),
        ("older_than: 400d, lifecycle_stage: deleted", run(lifecycle_stage="deleted"), True),
        ("older_than: 400d, lifecycle_stage: deleted", run(), False),
        ("older_than: 400d, lifecycle_stage: any", run(), True),
        ("older_than: 400d, experiments: ['churn/*']", run(), True),
        ("older_than: 400d, experiments: ['1']", run(), True),
        ("older_than: 400d, experiments: [other]", run(), False),
        ("older_than: 400d, not_experiments: ['*/a']", run(), False),
        ("older_than: 400d, tags: {team: 'a*'}", run(tags={"team": "ab"}), True),
        ("older_than: 400d, tags: {team: 'a*'}", run(tags={"team": "b"}), False),
        ("older_than: 400d, tags: {team: '*'}", run(), False),
        ("older_than: 400d, not_tags: {keep: '*'}", run(tags={"keep": ""}), False),
        ("older_than: 400d, not_tags: {keep: '*'}", run(), True),
    ],
)
def test_a_rule_takes_the_runs_for_which_all_of_it_is_true(
    tmp_path: Path, rule: str, item: Run, *, expected: bool
) -> None:
    assert takes(tmp_path, rule, item) is expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no policy"),
        ("- a", "is no policy"),
        ("rules: [", "is no YAML"),
        ("rules: []", "rules"),
        ("rules: [{}]", r"rules\.1\.older_than"),
        ("rules: [{older_than: soon}]", r"rules\.1\.older_than: 'soon' is not a time"),
        ("rules: [{older_than: 1d, olderthan: 2d}]", "there is no such key; there are age_of"),
        ("rules: [{older_than: 1d, statuses: [DONE]}]", r"rules\.1\.statuses\.1"),
        ("rules: [{older_than: 1d}]\nlegal_hold: ''", "legal_hold"),
        ("rules: [{older_than: 1}, {}]", "1 is not a time"),
    ],
)
def test_what_is_no_policy_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)

    with pytest.raises(UsageError, match=said) as raised:
        load_policy(str(path))

    assert "\n" not in raised.value.message
    assert str(path) in raised.value.message


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        load_policy(str(tmp_path / "absent.yaml"))
