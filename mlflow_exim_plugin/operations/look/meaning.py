"""Which objects of an archive are meant by what somebody typed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import InvalidArchiveError, NotFoundError, UsageError
from mlflow_exim_plugin.options.selection import matches

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.sources.archive.archive import Archive

__all__ = ["meant", "one_meant", "one_run_meant", "runs_meant", "with_run_ids"]

_SHORTEST_ID = 4
"""Fewer characters are no beginning of an id: they are a name, or a slip."""
_NAMED = 5


def meant(what: str, wanted: str, known: Mapping[str, str]) -> list[str]:
    """Return the ids that are meant: by id, else by name, else by its beginning or a glob of both.

    Args:
        what: What is looked for, such as ``run``.
        wanted: What was typed.
        known: Name by id.

    Raises:
        NotFoundError: None is; those that are called much like it are named.
    """
    if wanted in known:
        return [wanted]
    found = [identity for identity, name in known.items() if name == wanted]
    if not found:
        is_start = len(wanted) >= _SHORTEST_ID
        found = [
            identity
            for identity, name in known.items()
            if (is_start and identity != name and identity.startswith(wanted))
            or matches((wanted,), (identity, name))
        ]
    if not found:
        names = dict.fromkeys(text for entry in known.items() for text in entry if text)
        raise NotFoundError.among(f"there is no {what}", wanted, names)
    return found


def one_meant(what: str, wanted: str, known: Mapping[str, str]) -> str:
    """Return the one id that is meant.

    Raises:
        NotFoundError: None is.
        UsageError: Several are.
    """
    found = meant(what, wanted, known)
    return _the_one(what, wanted, {identity: known[identity] for identity in found})


def runs_meant(archive: Archive, wanted: Iterable[str]) -> list[str]:
    """Return the ids of the runs that are meant, each once; envelopes are read for names alone.

    Raises:
        NotFoundError: One of them means none.
    """
    named: dict[str, str] = {}
    found: list[str] = []
    ids: dict[str, str] = {}
    for one in wanted:
        if archive.has_run(one):
            found.append(one)
            continue
        ids = ids or dict.fromkeys(archive.run_ids(), "")
        try:
            found += meant("run", one, ids)
        except NotFoundError:
            named = named or {run_id: _run_name(archive, run_id) for run_id in ids}
            found += meant("run", one, named)
    return list(dict.fromkeys(found))


def one_run_meant(archive: Archive, wanted: str) -> str:
    """Return the id of the one run that is meant.

    Raises:
        NotFoundError: None is.
        UsageError: Several are.
    """
    found = runs_meant(archive, (wanted,))
    return _the_one("run", wanted, {run_id: _run_name(archive, run_id) for run_id in found})


def with_run_ids(selection: Selection, archive: Archive) -> Selection:
    """Return a selection whose runs are named by their ids.

    Raises:
        NotFoundError: One of them is not there.
    """
    if not selection.runs:
        return selection
    return replace(selection, runs=tuple(runs_meant(archive, selection.runs)))


def _the_one(what: str, wanted: str, found: Mapping[str, str]) -> str:
    if len(found) > 1:
        named = ", ".join(_told(*entry) for entry in list(found.items())[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise UsageError(f"{wanted!r} may be {len(found)} {what}s: {named}{more}", "name one by id")
    return next(iter(found))


def _run_name(archive: Archive, run_id: str) -> str:
    try:
        return str(archive.run(run_id).mlflow.run["info"].get("run_name") or "")
    except InvalidArchiveError:
        return ""  # what is damaged is named when it is read


def _told(identity: str, name: str) -> str:
    return f"{identity} ({name})" if name and name != identity else identity
