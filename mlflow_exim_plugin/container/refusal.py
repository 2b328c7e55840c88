"""Building the errors and findings of this layer, each with its rule's code."""

from __future__ import annotations

from typing import TypeVar

from mlflow_exim_plugin.errors import InvalidArchiveError, UnsupportedFormatError
from mlflow_exim_plugin.schema.rules import Finding

__all__ = ["refuse", "unsupported"]

_Refusal = TypeVar("_Refusal", bound=InvalidArchiveError)


def refuse(kind: type[_Refusal], code: str, place: str, message: str, hint: str = "") -> _Refusal:
    """Return an error of ``kind`` that carries one finding.

    Args:
        kind: The class of the error.
        code: The broken rule, see :mod:`mlflow_exim_plugin.schema.rules`.
        place: Member path, or a structure's name such as ``<footer>``.
        message: What was found there, one line.
        hint: What the user can do about it.
    """
    return kind(f"{place}: {message}", hint, [Finding(code, place, message)])


def unsupported(code: str, message: str) -> UnsupportedFormatError:
    """Return the error for an archive from the future; it carries one finding."""
    return UnsupportedFormatError(
        f"{message} ({code})",
        "upgrade mlflow-exim-plugin to read this archive",
        [Finding(code, "<footer>", message)],
    )
