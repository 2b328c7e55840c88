"""POLICY.yaml: which runs are to leave a deployment, read and checked before anything else."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mlflow_exim_plugin.errors import NotFoundError, UsageError
from mlflow_exim_plugin.options import matches, parse_time_ms
from mlflow_exim_plugin.schema.provenance import LEGAL_HOLD

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.objects import Run

__all__ = ["Policy", "PolicyRule", "load_policy"]

_Status = Literal["FINISHED", "FAILED", "KILLED", "RUNNING", "SCHEDULED"]
_ENDED: tuple[_Status, ...] = ("FINISHED", "FAILED", "KILLED")


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PolicyRule(_Checked):
    """Runs that are to go: those for which all that it says is true.

    Attributes:
        name: What it is called, as the reason why a run goes.
        older_than: How long ago a run ended at least, such as ``400d``, or a time by which it had.
        age_of: Whether that is counted from a run's end or its start; a run without an end has
            not ended.
        experiments: Names, ids or globs of experiments; any without it.
        not_experiments: Those that are left alone.
        tags: Globs of values by key; each must be there.
        not_tags: A run with one of these is left alone.
        statuses: Of runs.
        lifecycle_stage: Whether runs that are deleted already are meant, or too.
    """

    name: str = ""
    older_than: str
    age_of: Literal["end", "start"] = "end"
    experiments: tuple[str, ...] = ()
    not_experiments: tuple[str, ...] = ()
    tags: dict[str, str] = Field(default_factory=dict)
    not_tags: dict[str, str] = Field(default_factory=dict)
    statuses: tuple[_Status, ...] = _ENDED
    lifecycle_stage: Literal["active", "deleted", "any"] = "active"

    @field_validator("older_than", mode="before")
    @classmethod
    def _is_time(cls, value: Any) -> str:
        # YAML knows dates.
        text = value.isoformat() if isinstance(value, date) else value
        if not isinstance(text, str):
            raise ValueError(f"{value!r} is not a time")  # noqa: TRY004 - pydantic takes no other
        try:
            parse_time_ms(text)
        except UsageError as error:
            raise ValueError(error.message) from None
        return text

    @property
    def until_ms(self) -> int:
        """The time by which a run had ended or begun, ms since the Unix epoch."""
        return parse_time_ms(self.older_than, end=True)

    def takes(self, run: Run, experiment: str, until_ms: int) -> bool:
        """Whether a run is to go.

        Args:
            run: The run.
            experiment: Name of its experiment.
            until_ms: Its ``until_ms``, counted once for all runs.
        """
        info, tags = run.info, run.tags
        stage = str(info.get("lifecycle_stage", "active"))
        time_ms = int(info.get("end_time" if self.age_of == "end" else "start_time") or 0)
        names = (run.experiment_id, experiment)
        return (
            0 < time_ms <= until_ms
            and str(info.get("status")) in self.statuses
            and self.lifecycle_stage in {stage, "any"}
            and (not self.experiments or matches(self.experiments, names))
            and not matches(self.not_experiments, names)
            and all(_has(tags, key, value) for key, value in self.tags.items())
            and not any(_has(tags, key, value) for key, value in self.not_tags.items())
        )


class Policy(_Checked):
    """The rules of one file.

    Attributes:
        name: What it is called.
        rules: A run goes for which one of them is true.
        legal_hold: Tag that keeps a run where it is, whatever its value.
    """

    name: str = ""
    rules: tuple[PolicyRule, ...] = Field(min_length=1)
    legal_hold: str = Field(default=LEGAL_HOLD, min_length=1)

    def rule_of(self, number: int) -> str:
        """Return what a rule is called."""
        return self.rules[number].name or f"rule {number + 1}"


def load_policy(path: str) -> Policy:
    """Return the policy of a file.

    Raises:
        NotFoundError: There is no such file.
        UsageError: It is no policy.
    """
    try:
        document = yaml.safe_load(Path(path).read_bytes())
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path} is no policy", "write `rules:` and below it `- older_than: 400d`")
    try:
        return Policy.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step + 1) if isinstance(step, int) else step for step in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UsageError(f"{path}: {where}: {_said(first)}{more}") from None


def _said(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        known = sorted({*Policy.model_fields, *PolicyRule.model_fields})
        return f"there is no such key; there are {', '.join(known)}"
    text = str(error["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _has(tags: dict[str, str], key: str, value: str) -> bool:
    return key in tags and matches((value,), (tags[key],))
