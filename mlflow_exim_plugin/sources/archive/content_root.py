"""The content root of an archive that does not state it, computed from its envelopes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.kinds import ENTITY_KINDS, VERSION_KINDS, Kind
from mlflow_exim_plugin.schema.digests import ContentRoot
from mlflow_exim_plugin.schema.envelope import (
    EntityEnvelope,
    ModelEnvelope,
    TracePartEnvelope,
    VersionEnvelope,
    check_document,
    check_entity,
)
from mlflow_exim_plugin.sources.archive.trace_parts import trace_digests

if TYPE_CHECKING:
    from mlflow_exim_plugin.container.members import Members

__all__ = ["content_root_of"]


def content_root_of(reader: Members) -> str:
    """Return the content root of an archive of any version, from what its envelopes state.

    Raises:
        InvalidArchiveError: One of them, or a table of traces, cannot be read.
    """
    root = ContentRoot()
    found = [(path, at) for path in reader.paths(layout.TREE) if (at := layout.object_at(path))]
    reader.expect(path for path, _ in found)
    for path, at in found:
        document = reader.read_document(path)
        if at.kind is Kind.TRACE:
            part = check_document(TracePartEnvelope, document, path)
            root.add_traces(at.experiment_folder, trace_digests(reader, part))
            continue
        envelope = check_document(EntityEnvelope, document, path)
        if at.kind in VERSION_KINDS:
            model = check_document(ModelEnvelope, document, path)
            place = at.unnumbered(model.mlflow.registered_model["name"])
        elif at.model is not None:
            version = check_document(VersionEnvelope, document, path)
            place = at.unnumbered(version.mlflow.model_version["name"])
        elif at.kind in ENTITY_KINDS:
            entity = check_entity(envelope, at.kind, path)
            place = at.unnumbered(entity[ENTITY_KINDS[at.kind].id_field])
        else:
            place = path
        root.add(place, envelope.info.content_digest)
    return root.hexdigest()
