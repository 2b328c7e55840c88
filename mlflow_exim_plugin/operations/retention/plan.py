"""Which runs a policy means, which of them go, and why the others do not."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.operations.retention.uses import runs_in_use
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Experiment, Failure, Kind, Run, closed_after
from mlflow_exim_plugin.schema.provenance import ARCHIVED, HOLLOW, PURGING

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.removal.runs import Removal
    from mlflow_exim_plugin.operations.ends import OpenSource
    from mlflow_exim_plugin.operations.retention.policy import Policy
    from mlflow_exim_plugin.options import Retaining

__all__ = ["GOES", "STAYS", "PlannedRun", "PolicyPlan", "plan_of"]

GOES = "goes"
STAYS = "stays"


@dataclass
class PlannedRun:
    """A run that a policy means.

    Attributes:
        run_id: The run; empty where an experiment cannot be read, and nobody knows its runs.
        run_name: Its name.
        experiment_id: Its experiment; empty where the run cannot be read.
        experiment: The name of that.
        rule: The rule that means it.
        end_time_ms: When it ended, 0 where it has not.
        outcome: ``goes`` and ``stays`` in a plan; else what became of it: ``archived`` (deleted as
            MLflow's API does it), ``hollowed``, ``purged`` or ``failed``.
        reasons: Why it stays or what failed.
    """

    run_id: str
    run_name: str
    experiment_id: str
    experiment: str
    rule: str
    end_time_ms: int = 0
    outcome: str = GOES
    reasons: list[str] = field(default_factory=list)

    def stays(self, *reasons: str) -> None:
        """Let it stay."""
        self.outcome = STAYS
        self.reasons += reasons

    def fails(self, reason: str) -> None:
        """Let it stay, because something that was tried went wrong."""
        self.outcome = "failed"
        self.reasons.append(reason)

    @property
    def goes(self) -> bool:
        """Whether it is to go."""
        return self.outcome == GOES

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


@dataclass
class PolicyPlan:
    """What a policy means.

    Attributes:
        runs: The runs, by experiment and id.
        gone: Ids of runs that went before as those that go now will: what they use may follow them.
    """

    runs: list[PlannedRun] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)


def plan_of(
    policy: Policy, source: OpenSource, removal: Removal, retaining: Retaining
) -> PolicyPlan:
    """Return what a policy means.

    Args:
        policy: The policy.
        source: The deployment, to be read.
        removal: The same, to be written to.
        retaining: What becomes of the runs.

    Raises:
        ServerError: Not all runs can be listed, or nobody can tell which of them are in use.
            In a database the rows tell that, also of a run that cannot be read.
    """
    plan = PolicyPlan()
    until = [rule.until_ms for rule in policy.rules]
    names: dict[str, str] = {}
    asked = Selection(traces=False, artifacts=False)
    with closed_after(source.names.stream(asked)) as stream:
        for item in stream:
            if isinstance(item, Failure) and item.kind in {Kind.EXPERIMENT, Kind.RUN}:
                what = f"{item.kind.words} {item.id} cannot be read: {item.reason}"
                if not removal.is_direct:  # what it uses, only it could tell
                    raise ServerError(what)
                plan.runs.append(_unread(item, what))
            if isinstance(item, Experiment):
                names[item.id] = item.name
            elif isinstance(item, Run):
                if _is_gone(item, retaining):
                    plan.gone.add(item.id)
                experiment = names.get(item.experiment_id, "")
                for number, rule in enumerate(policy.rules):
                    if rule.takes(item, experiment, until[number]):
                        frees = retaining.frees
                        plan.runs.append(_planned(policy, item, experiment, number, frees=frees))
                        break
    leaving = [run.run_id for run in plan.runs if run.goes]
    used = runs_in_use(removal, source, leaving, plan.gone)
    for run in plan.runs:
        if run.run_id in used:
            run.stays(*used[run.run_id])
    return plan


def _unread(found: Failure, what: str) -> PlannedRun:
    of = (found.id, "") if found.kind is Kind.RUN else ("", found.id)
    unread = PlannedRun(of[0], "", of[1], "", "")
    unread.fails(what)
    return unread


def _is_gone(run: Run, retaining: Retaining) -> bool:
    is_archived = ARCHIVED in run.tags and run.info.get("lifecycle_stage") == "deleted"
    return not retaining.purge and (is_archived or (retaining.hollow and HOLLOW in run.tags))


def _planned(policy: Policy, run: Run, experiment: str, number: int, *, frees: bool) -> PlannedRun:
    planned = PlannedRun(
        run.id,
        str(run.info.get("run_name") or ""),
        run.experiment_id,
        experiment,
        policy.rule_of(number),
        int(run.info.get("end_time") or 0),
    )
    if policy.legal_hold in run.tags:
        planned.stays(f"tag {policy.legal_hold} holds it: {run.tags[policy.legal_hold]}")
    if PURGING in run.tags:
        what = "somebody restored it while it was being freed: `restore` puts the rest back"
        planned.stays(f"{what} from {run.tags[PURGING]}")
    elif HOLLOW in run.tags:
        planned.stays(f"it is hollow: the rest of it is in {run.tags[HOLLOW]}")
    elif ARCHIVED in run.tags and run.info.get("lifecycle_stage") == "deleted" and not frees:
        planned.stays(f"it is deleted, and kept in {run.tags[ARCHIVED]}")
    return planned
