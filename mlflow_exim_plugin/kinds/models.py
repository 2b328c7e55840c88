"""Registered models and prompts with their versions."""

from __future__ import annotations

from typing import Any

from mlflow_exim_plugin.kinds.description import KEY, ArtifactUri, Description, Listed
from mlflow_exim_plugin.kinds.kind import Kind

__all__ = ["MODEL_VERSION", "PROMPT", "PROMPT_VERSION", "REGISTERED_MODEL"]

_NAMED = {"tags": KEY, "aliases": ("alias",)}
_OF_PROMPT = {"tags._mlflow_experiment_ids": Listed(Kind.EXPERIMENT)}
_VERSION_LISTS: dict[str, tuple[str, ...]] = {"tags": KEY, "aliases": ()}
_VERSION_REFERS: Any = {"run_id": Kind.RUN, "model_id": Kind.LOGGED_MODEL, "source": ArtifactUri()}
_VERSION_REST = {
    "users": "user_id",
    "version status": "status status_message",
    "empty is absent": "description run_id run_link",
}
_VERSION_UNLIKE = {"model_versions": "source storage_location"}
_TEXTS = "description tags"
_OF_VERSION = "description tags source"
_NAMES = "name aliases"
_THEIRS = "creation and update times are the target's"
_VERSIONS = "creation and update times, user and status are the target's"

REGISTERED_MODEL = Description(
    Kind.REGISTERED_MODEL,
    since="1.30",
    versions=("models", Kind.MODEL_VERSION),
    lists=_NAMED,
    joins=("versions",),
    anew=_THEIRS,
    names=_NAMES,
    secrets=_TEXTS,
)
PROMPT = Description(
    Kind.PROMPT,
    since="2.22",
    versions=("prompts", Kind.PROMPT_VERSION),
    lists=_NAMED,
    refers=_OF_PROMPT,
    numbered="{}.{}",  # MLflow's client takes no spaces and brackets in the names of prompts
    joins=("versions",),
    anew=_THEIRS,
    names=_NAMES,
    secrets=_TEXTS,
)
MODEL_VERSION = Description(
    Kind.MODEL_VERSION,
    since="1.30",
    lists=_VERSION_LISTS,
    refers={**_VERSION_REFERS, "name": Kind.REGISTERED_MODEL},
    rest=_VERSION_REST,
    anew=_VERSIONS,
    unlike=_VERSION_UNLIKE,
    names=_NAMES,
    secrets=_OF_VERSION,
)
PROMPT_VERSION = Description(
    Kind.PROMPT_VERSION,
    since="2.22",
    lists=_VERSION_LISTS,
    refers={**_OF_PROMPT, **_VERSION_REFERS, "name": Kind.PROMPT},
    rest=_VERSION_REST,
    anew=_VERSIONS,
    unlike=_VERSION_UNLIKE,
    names=_NAMES,
    secrets=_OF_VERSION,
)
