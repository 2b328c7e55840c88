"""Objects of an archive as Python has them: their documents, and what people ask of them.

In a notebook each shows what it is called and holds.
"""

from __future__ import annotations

from html import escape
from typing import Any

from mlflow_exim_plugin.schema.envelope import (
    ExperimentEnvelope,
    LoggedModelEnvelope,
    ModelEnvelope,
    RunEnvelope,
    VersionEnvelope,
)
from mlflow_exim_plugin.schema.objects import key_values

__all__ = [
    "ArchivedExperiment",
    "ArchivedLoggedModel",
    "ArchivedModel",
    "ArchivedRun",
    "ArchivedVersion",
    "Shown",
]

_MOST_ENTRIES = 100
_LONGEST_TEXT = 200


class Shown:
    """An object that shows itself by its class and what :meth:`_facts` tells."""

    def _facts(self) -> dict[str, Any]:
        """Return what is shown, by its name: texts, numbers, and tags and the like by key."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Tell what it is called, and how much it holds."""
        told = [
            f"{len(value)} {name}" if isinstance(value, dict) else f"{name}={value!r}"
            for name, value in self._facts().items()
            if value is not None
        ]
        return f"<{self._title()} {', '.join(told)}>"

    def __str__(self) -> str:
        """Tell the same."""
        return repr(self)

    def _repr_html_(self) -> str:
        """Return the same as a table, as notebooks show it, with tags and the like themselves."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{_cell(value)}</td></tr>"
            for name, value in self._facts().items()
            if value is not None and value != {}
        )
        return f"<table><caption>{escape(self._title())}</caption>{rows}</table>"

    @classmethod
    def _title(cls) -> str:
        return cls.__name__.removeprefix("Archived")


class _OfRest(Shown):
    """An object as REST gives it."""

    def _rest(self) -> dict[str, Any]:
        """Return REST's object."""
        raise NotImplementedError

    def _tagged(self) -> dict[str, Any]:
        """Return the part of it that has the tags."""
        return self._rest()

    @property
    def name(self) -> str:
        """Name."""
        return str(self._rest()["name"])

    @property
    def tags(self) -> dict[str, str]:
        """Tags by key."""
        return key_values(self._tagged().get("tags"))


class ArchivedExperiment(_OfRest, ExperimentEnvelope):
    """An experiment."""

    def _rest(self) -> dict[str, Any]:
        return self.mlflow.experiment

    @property
    def id(self) -> str:
        """Experiment id."""
        return str(self._rest()["experiment_id"])

    def _facts(self) -> dict[str, Any]:
        stage = self._rest().get("lifecycle_stage")
        return {"id": self.id, "name": self.name, "stage": stage, "tags": self.tags}


class _Measured(_OfRest):
    """An object with params and metrics."""

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = self._rest()["info"]
        return info

    def _data(self) -> dict[str, Any]:
        return self._rest().get("data") or {}

    @property
    def params(self) -> dict[str, str]:
        """Parameters by key."""
        return key_values(self._data().get("params"))

    @property
    def metrics(self) -> dict[str, float]:
        """Last value of each metric by key."""
        # One that is NaN or infinite is a text in documents.
        return {str(m["key"]): float(m["value"]) for m in self._data().get("metrics") or ()}

    @property
    def id(self) -> str:
        """Its id."""
        raise NotImplementedError

    def _facts(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "status": self._info().get("status"),
            "params": self.params,
            "metrics": self.metrics,
            "tags": self.tags,
        }


class ArchivedRun(_Measured, RunEnvelope):
    """A run."""

    def _rest(self) -> dict[str, Any]:
        return self.mlflow.run

    @property
    def id(self) -> str:
        """Run id."""
        return str(self._info()["run_id"])

    @property
    def name(self) -> str:
        """Name, empty without one."""
        return str(self._info().get("run_name") or "")

    def _tagged(self) -> dict[str, Any]:
        return self._data()


class ArchivedLoggedModel(_Measured, LoggedModelEnvelope):
    """A logged model."""

    def _rest(self) -> dict[str, Any]:
        return self.mlflow.logged_model

    @property
    def id(self) -> str:
        """Model id."""
        return str(self._info()["model_id"])

    @property
    def name(self) -> str:
        """Name, empty without one."""
        return str(self._info().get("name") or "")

    def _tagged(self) -> dict[str, Any]:
        return self._info()


class ArchivedModel(_OfRest, ModelEnvelope):
    """A registered model or prompt."""

    def _rest(self) -> dict[str, Any]:
        return self.mlflow.registered_model

    @property
    def aliases(self) -> dict[str, int]:
        """Version number of each alias."""
        listed = self._rest().get("aliases") or ()
        return {str(entry["alias"]): int(entry["version"]) for entry in listed}

    def _facts(self) -> dict[str, Any]:
        return {"name": self.name, "aliases": self.aliases, "tags": self.tags}


class ArchivedVersion(_OfRest, VersionEnvelope):
    """A version of a registered model or prompt, whose name is that one's."""

    def _rest(self) -> dict[str, Any]:
        return self.mlflow.model_version

    @property
    def version(self) -> int:
        """Its number."""
        return int(self._rest()["version"])

    @property
    def aliases(self) -> list[str]:
        """Its aliases."""
        return [str(alias) for alias in self._rest().get("aliases") or ()]

    def _facts(self) -> dict[str, Any]:
        told = {"name": self.name, "version": self.version}
        told["stage"] = self._rest().get("current_stage")
        return told | {"aliases": self.aliases or None, "tags": self.tags}


def _cell(value: Any) -> str:
    if not isinstance(value, dict):
        return escape(_cut(str(value)))
    shown = [
        f"{escape(_cut(str(key)))}: {escape(_cut(str(entry)))}"
        for key, entry in list(value.items())[:_MOST_ENTRIES]
    ]
    if (more := len(value) - len(shown)) > 0:
        shown.append(f"and {more} more")
    return "<br>".join(shown)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
