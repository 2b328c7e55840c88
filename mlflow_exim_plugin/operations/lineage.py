"""Where objects were and where they went: the servers behind one, and the copies of one."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import NotFoundError, UsageError
from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.options import Opening, Reading, Selection, flat
from mlflow_exim_plugin.schema.lineage import SourceRecord, Tagged, is_or_was, sources_of, tags_of
from mlflow_exim_plugin.schema.objects import (
    Experiment,
    Kind,
    ModelVersion,
    RegisteredModel,
    Run,
    closed_after,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.sources.source import Source

__all__ = ["Occurrence", "copies", "lineage"]

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PARTS = (ModelVersion, RegisteredModel)


@dataclass(frozen=True)
class Occurrence:
    """An object at one location and the way that it came.

    Attributes:
        location: The server, store or archive, without secrets.
        kind: Kind of the object.
        id: Its id or name there.
        name: Name that people know it by, empty without one.
        experiment_id: Its experiment there, empty for what belongs to none.
        user: Its user there, empty where that is not known.
        sources: Where it was before, oldest first.
    """

    location: str
    kind: Kind
    id: str
    name: str
    experiment_id: str
    user: str
    sources: list[SourceRecord]

    @classmethod
    def of(cls, item: Tagged, location: str) -> Occurrence:
        """Describe an object of a stream."""
        info: dict[str, Any] = getattr(item, "info", {})
        return cls(
            location,
            item.kind,
            item.id,
            str(info.get("run_name") or info.get("name") or getattr(item, "name", "")),
            "" if isinstance(item, _PARTS) else str(getattr(item, "experiment_id", "")),
            str(info.get("user_id") or tags_of(item).get("mlflow.user", "")),
            sources_of(item),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self) | {"kind": str(self.kind)}


@flat()
def lineage(
    location: str,
    *,
    experiment: str | None = None,
    run_id: str | None = None,
    model: str | None = None,
    logged_model: str | None = None,
    opening: Opening = Opening(),
    reading: Reading = Reading(),
) -> list[Occurrence]:
    """Tell where an object of a server, store or archive was before.

    Args:
        location: Tracking URI, or path or fsspec URL of an archive.
        experiment: Name or id of an experiment.
        run_id: A run.
        model: A registered model or prompt; its versions follow it.
        logged_model: A logged model.
        opening: How the location is opened; each option is a keyword of its own too, here and
            below.
        reading: How it is read.

    Raises:
        NotFoundError: The location or the object is not there.
        InvalidArchiveError: The archive cannot be opened.
        ServerError: The server cannot be reached.
    """
    with open_source(location, opening.at(location), reading, contents=False) as opened:
        source, name = opened.stream, opened.name
        if logged_model is not None:
            items: Iterable[Tagged] = source.find(_checked(logged_model))
        else:
            items = _named(source, experiment, run_id, model)
        found = [Occurrence.of(item, name) for item in items]
    if not found:
        raise NotFoundError(f"{name} has no {experiment or run_id or model or logged_model!r}")
    return found


def _named(
    source: Source, experiment: str | None, run_id: str | None, model: str | None
) -> Iterator[Tagged]:
    """Yield an experiment or run, or a model with its versions, and read no further."""
    selection = Selection(
        experiments=(experiment,) if experiment else (),
        runs=(run_id,) if run_id else (),
        models=(model,) if model else (),
        traces=False,
        artifacts=False,
    )
    with closed_after(source.stream(selection)) as stream:
        for item in stream:
            if isinstance(item, Experiment) and experiment in (item.id, item.name):
                yield item
                return
            if isinstance(item, Run) and run_id is not None and is_or_was(item, run_id):
                yield item
                return
            if isinstance(item, RegisteredModel | ModelVersion) and item.name == model:
                yield item


@flat()
def copies(
    identity: str,
    locations: Iterable[str],
    *,
    opening: Opening = Opening(),
    reading: Reading = Reading(),
) -> Iterator[Occurrence]:
    """Find an object and its copies by the id that it has or had anywhere.

    Args:
        identity: Id of a run, logged model (``m-…``) or evaluation dataset (``d-…``).
        locations: Servers, stores and archives to look at.
        opening: How they are opened; each option is a keyword of its own too, here and below.
        reading: How they are read.

    Yields:
        What is or came from the object, location by location.

    Raises:
        UsageError: It is no id.
        NotFoundError: A location is not there.
        InvalidArchiveError: An archive cannot be opened.
        ServerError: A server cannot be reached.
    """
    _checked(identity)
    for location in locations:
        with (
            open_source(location, opening.at(location), reading, contents=False) as opened,
            closed_after(opened.stream.find(identity)) as found,
        ):
            for item in found:
                yield Occurrence.of(item, opened.name)


def _checked(identity: str) -> str:
    if not _ID.fullmatch(identity):
        raise UsageError(f"{identity!r} is no id", "give a run id, or one of m-… or d-…")
    return identity
