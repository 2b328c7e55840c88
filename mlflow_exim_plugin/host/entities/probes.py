"""What a deployment holds that no archive does, named so that nobody takes it for packed."""

from __future__ import annotations

from mlflow_exim_plugin.schema.objects import Unpacked

__all__ = ["never_packed"]


def never_packed(*, hides_label_schemas: bool) -> Unpacked:
    """Return what MLflow keeps beside its entities; it cannot be counted.

    Args:
        hides_label_schemas: Whether there may be label schemas that nothing shows: a server writes
            its own ones when it is asked to list them, so it is not asked.
    """
    kinds = "jobs, usage rollups, users and their permissions"
    reason = "they belong to the server that runs them"
    if hides_label_schemas:
        kinds += ", label schemas that no page has shown yet"
        reason += ", or only a write to it could list them"
    return Unpacked(kinds, 0, at_least=True, reason=reason)
