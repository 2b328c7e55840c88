"""What a deployment holds that no archive does, named so that nobody takes it for packed."""

from __future__ import annotations

from mlflow_exim_plugin.schema.objects import Unpacked

__all__ = ["NEVER_PACKED"]

NEVER_PACKED = Unpacked(
    "jobs, usage rollups, users and their permissions",
    0,
    at_least=True,
    reason="they belong to the server that runs them",
)
"""What MLflow keeps beside its entities; it cannot be counted."""
