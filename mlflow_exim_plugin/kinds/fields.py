"""Paths of fields as people write them: ``run.data.tags.mlflow.user``, ``*.description``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["compiled", "first_of", "written"]


def first_of(pattern: str) -> str:
    """Return what a path begins with, the kind of an object."""
    return re.split(r"[.\[]", pattern, maxsplit=1)[0]


def compiled(expressions: Iterable[str]) -> re.Pattern[str]:
    """Compile expressions of paths; a path stands for all that lies below it."""
    return re.compile(f"(?:{'|'.join(expressions)})(?:[.\\[].*)?", re.DOTALL)


def written(glob: str) -> str:
    """Translate what a user wrote: ``*`` and ``?`` stand for anything, brackets for themselves."""
    return re.escape(glob).replace(r"\*", ".*").replace(r"\?", ".")
