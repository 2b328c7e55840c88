"""The kinds that are one document each to a deployment: which family writes them, and when."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.absent import is_absent
from mlflow_exim_plugin.schema.objects import Entity, Kind, Loss
from mlflow_exim_plugin.schema.provenance import ORIGIN
from mlflow_exim_plugin.sinks.client_datasets import DatasetWriter
from mlflow_exim_plugin.sinks.client_gateway import (
    BudgetWriter,
    EndpointWriter,
    GuardrailWriter,
    ModelDefinitionWriter,
)
from mlflow_exim_plugin.sinks.client_judges import (
    IssueWriter,
    LabelSchemaWriter,
    QueueWriter,
    ScorerWriter,
)
from mlflow_exim_plugin.sinks.client_registries import McpServerWriter, WebhookWriter
from mlflow_exim_plugin.sinks.counting import skip_entity

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.client_places import Destination, FamilyWriter, Target

__all__ = ["SET_ANEW", "EntityWriter"]

_THEIRS = "ids and times are the target's"

SET_ANEW: dict[Kind, str] = {
    Kind.SCORER: "ids and creation times are the target's",
    Kind.LABEL_SCHEMA: "ids, creators and times are the target's",
    Kind.ISSUE: _THEIRS,
    Kind.REVIEW_QUEUE: "ids, creators and all times, of completion too, are the target's",
    Kind.EVALUATION_DATASET: f"ids, digests and times are the target's; the tag {ORIGIN} keeps "
    "the old ids",
    Kind.DATASET_RECORD: "ids and times are the target's; the creator is what the tag "
    "mlflow.user says",
    Kind.MODEL_DEFINITION: _THEIRS,
    Kind.ENDPOINT: _THEIRS,
    Kind.GUARDRAIL: "ids, creators and times are the target's",
    Kind.BUDGET_POLICY: _THEIRS,
    Kind.MCP_SERVER: "creators and times, and ids of access endpoints, are the target's",
    Kind.WEBHOOK: "ids and times are the target's; secrets are not packed",
}
"""What MLflow's API sets anew in every object of a kind."""

_AFTER_ENDPOINTS = {Kind.GUARDRAIL, Kind.BUDGET_POLICY, Kind.MCP_SERVER, Kind.WEBHOOK}


class EntityWriter:
    """Writes every kind whose objects are ``Entity``.

    What the target's MLflow does not have is skipped and named once a kind.
    """

    def __init__(self, target: Target) -> None:
        definitions = ModelDefinitionWriter(target)
        self._endpoints = EndpointWriter(target, definitions)
        self._scorers = ScorerWriter(target, lambda name: self._endpoints.names.get(name, name))
        self._writers: dict[Kind, FamilyWriter] = {
            Kind.SCORER: self._scorers,
            Kind.LABEL_SCHEMA: LabelSchemaWriter(target),
            Kind.ISSUE: IssueWriter(target),
            Kind.REVIEW_QUEUE: QueueWriter(target),
            Kind.EVALUATION_DATASET: DatasetWriter(target),
            Kind.MODEL_DEFINITION: definitions,
            Kind.ENDPOINT: self._endpoints,
            Kind.GUARDRAIL: GuardrailWriter(target, self._endpoints),
            Kind.BUDGET_POLICY: BudgetWriter(target),
            Kind.MCP_SERVER: McpServerWriter(target),
            Kind.WEBHOOK: WebhookWriter(target),
        }
        self._left: Counter[Kind] = Counter()

    def write(self, entity: Entity, to: Destination, report: Report) -> None:
        """Write one object.

        Raises:
            ConflictError: The target has a stranger of that name and the policy is ``fail``.
            ServerError: The target refused the object.
        """
        writer = self._writers.get(entity.kind)
        if writer is None:
            skip_entity(entity, "this version does not put them back", report)
            return
        if entity.kind in self._left:
            self._leave_absent(entity, report)
            return
        if entity.kind in _AFTER_ENDPOINTS:
            self._scorers.finish(report)
        try:
            writer.write(entity, to, report)
        except ServerError as error:
            if not is_absent(error):
                raise
            self._leave_absent(entity, report)

    def finish(self, report: Report) -> None:
        """Write what had to wait, and name the kinds that the target does not have."""
        for writer in self._writers.values():
            writer.finish(report)
        for kind, count in self._left.items():
            what = f"the target's MLflow does not have them: {count} left out"
            report.lost(Loss(kind, "*", what))

    def _leave_absent(self, entity: Entity, report: Report) -> None:
        self._left[entity.kind] += 1
        skip_entity(entity, "the target's MLflow does not have them", report)
