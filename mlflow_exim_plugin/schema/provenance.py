"""Tags that say where an unpacked object came from, so that it is recognised and never doubled.

They are the target's memory: a run that carries ``ORIGIN`` was written by an unpack, and one whose
``CONTENT`` equals the archive's digest was written whole (spec, "Provenance tags"). MLflow's pages
show no tag whose name begins with ``mlflow.``; the names before that are read for ever.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.canonical import canonical_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "ARCHIVED",
    "ARTIFACT_RUNS",
    "AS_OF_MS",
    "CONTENT",
    "CONTENT_WITH_SPANS",
    "HOLLOW",
    "LEGAL_HOLD",
    "LOGGED_MODEL",
    "MARKS",
    "MOVED",
    "OF_GROUP",
    "ORIGIN",
    "PLACEHOLDER",
    "PURGING",
    "TAGS",
    "chained",
    "experiment_origin",
    "is_provenance",
    "kinship",
    "logged_model_remembered",
    "model_origin",
    "names_of",
    "newest",
    "origins",
    "searches",
    "told",
    "with_dots",
    "without_dots",
]

ORIGIN = "mlflow.exim.origin"
"""Id at the source; on a later transfer the newest stands first and the older ones follow."""
OF_GROUP = "mlflow.exim.origin_of_group"
"""Origin of the experiment of a run, or of the registered model of a version."""
CONTENT = "mlflow.exim.content"
"""Content digest of what was written; set last, so its absence means an interrupted unpack."""
CONTENT_WITH_SPANS = "mlflow.exim.content_with_spans"
"""The same of a trace whose spans come after its tags, all in one call: it counts once they are
there, and where there is no ``CONTENT``."""
AS_OF_MS = "mlflow.exim.as_of_ms"
"""When the source was read, ms since the Unix epoch; an older archive never overwrites."""
PLACEHOLDER = "mlflow.exim.placeholder"
"""Marks a model version that only holds a number and is about to be deleted."""
LOGGED_MODEL = "mlflow.exim.logged_model."
"""Begins the experiment tags that remember logged models that are deleted, or that no run would
lead to if they were: no server lists those. After it the id at the source, as value the id at the
target, ``AS_OF_MS`` and ``CONTENT``."""
ARTIFACT_RUNS = "mlflow_exim.model_versions"
"""Experiment whose runs hold the files of versions and logged models without a run for them."""

ARCHIVED = "mlflow.exim.archived"
"""Of a deleted run: where all of it is kept."""
HOLLOW = "mlflow.exim.hollow"
"""Of a run without its metric histories and files: where these are kept."""
PURGING = "mlflow.exim.purging"
"""Of a run of which all is kept elsewhere, and whose rows or files are being freed."""
MOVED = "mlflow.exim.moved"
"""Of a deleted run: the deployment and the id under which it goes on."""
MARKS = frozenset({ARCHIVED, HOLLOW, MOVED, PURGING})
"""What is no part of a run's own: it says what became of it."""
LEGAL_HOLD = "mlflow.exim.legal_hold"
"""Of a run that nothing may take away, whatever its value."""

_PRESENT = (ORIGIN, OF_GROUP, CONTENT, CONTENT_WITH_SPANS, AS_OF_MS, PLACEHOLDER)
_WITH_DOTS = {key.replace(".", "_"): key for key in _PRESENT}


def names_of(key: str) -> tuple[str, str]:
    """Return what a provenance tag is called, and was called by copies of earlier versions."""
    return key, key.replace("mlflow.exim.", "mlflow_exim.")


_NAMES = {key: names_of(key) for key in _PRESENT}
TAGS = frozenset(name for names in _NAMES.values() for name in names)


def told(tags: Mapping[str, str], key: str) -> str:
    """Return the value of a provenance tag under either of its names, empty where there is none."""
    present, earlier = _NAMES[key]
    return tags[present] if present in tags else tags.get(earlier, "")


def searches(key: str, condition: str) -> Iterator[str]:
    """Yield the searches that find the runs whose tag fulfils a condition, under all of its names.

    MLflow's searches know no "or", and those of MLflow 1.0 no backticks.

    Args:
        key: The tag.
        condition: What follows its name, such as ``= 'x'``.
    """
    for name in _NAMES.get(key, (key,)):
        yield f'tags."{name}" {condition}'


def logged_model_remembered(key: str) -> str:
    """Return which logged model an experiment's tag remembers: its id at the source, or nothing."""
    for prefix in names_of(LOGGED_MODEL):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return ""


def without_dots(key: str) -> str:
    """Return what a tag is called where names have no dots, as in Unity Catalog."""
    return key.replace(".", "_")


def with_dots(key: str) -> str:
    """Return the name of a provenance tag that a registry without dots has; others as they are."""
    return _WITH_DOTS.get(key, key)


def is_provenance(key: str) -> bool:
    """Whether a tag says where its object came from, or where it went.

    Such tags are put anew, never copied.
    """
    return key in TAGS or key in MARKS or key.startswith(names_of(LOGGED_MODEL))


def experiment_origin(document: dict[str, Any]) -> str:
    """Return what identifies an experiment across servers, from what never changes in it.

    Experiment ids are small numbers that every server counts anew, so the creation time and the
    artifact location go in.
    """
    return _fingerprint(
        "experiment",
        document.get("experiment_id"),
        document.get("creation_time"),
        document.get("artifact_location"),
    )


def model_origin(document: dict[str, Any]) -> str:
    """Return what identifies a registered model across servers."""
    return _fingerprint(
        "registered_model", document.get("name"), document.get("creation_timestamp")
    )


def chained(origin: str, tags: dict[str, str]) -> str:
    """Return the value of ``ORIGIN``: this transfer's origin, then the ones before."""
    return " ".join(origins(origin, tags))


def origins(own: str, tags: Mapping[str, str]) -> list[str]:
    """Return all that an object is and was: its own origin, then those before, newest first."""
    return [own, *told(tags, ORIGIN).split()]


def kinship(wanted: list[str], there: list[str]) -> tuple[int, int] | None:
    """Return how near what comes is to what is there, None where they are not the same.

    They are where one of the two was made of the other, over any number of hops. Two that were made
    of a third are not: whoever asked for another copy there wants both.

    Args:
        wanted: Origins of what comes, as ``origins`` gives them.
        there: Those of what is there.
    """
    if there[0] in wanted:
        return wanted.index(there[0]), 0
    return (0, there.index(wanted[0])) if wanted[0] in there else None


def newest(value: str) -> str:
    """Return the last transfer's origin of an ``ORIGIN`` value."""
    return value.split(" ", 1)[0]


def _fingerprint(*parts: Any) -> str:
    return hashlib.sha256(canonical_bytes(parts)).hexdigest()[:32]
