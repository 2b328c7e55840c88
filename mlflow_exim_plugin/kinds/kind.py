"""The kinds of objects; the values stand in reports and archives."""

from __future__ import annotations

from enum import Enum

__all__ = ["Kind"]


class Kind(str, Enum):
    """What the stream can hold."""

    WORKSPACE = "workspace"
    EXPERIMENT = "experiment"
    RUN = "run"
    PARAM = "param"
    TAG = "tag"
    METRIC_HISTORY = "metric_history"
    ARTIFACT = "artifact"
    LOGGED_MODEL = "logged_model"
    SCORER = "scorer"
    LABEL_SCHEMA = "label_schema"
    ISSUE = "issue"
    TRACE = "trace"
    SPAN = "span"
    ASSESSMENT = "assessment"
    REVIEW_QUEUE = "review_queue"
    PROMPT = "prompt"
    PROMPT_VERSION = "prompt_version"
    REGISTERED_MODEL = "registered_model"
    MODEL_VERSION = "model_version"
    EVALUATION_DATASET = "evaluation_dataset"
    DATASET_RECORD = "dataset_record"
    MODEL_DEFINITION = "model_definition"
    ENDPOINT = "endpoint"
    GUARDRAIL = "guardrail"
    BUDGET_POLICY = "budget_policy"
    MCP_SERVER = "mcp_server"
    SKILL = "skill"
    WEBHOOK = "webhook"

    def __str__(self) -> str:
        return self.value

    @property
    def words(self) -> str:
        """What people call it."""
        return self.value.replace("_", " ").replace("mcp", "MCP")
