"""What is wrong with an archive, in bounds: it may be wrong a million times."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.rules import Finding

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from mlflow_exim_plugin.errors import InvalidArchiveError

__all__ = ["MAX_FINDINGS", "Findings"]

MAX_FINDINGS = 1000
"""Findings of one code that are kept; one more says how many there were."""
_MOST_CHARACTERS = 1000


class Findings:
    """Findings in the order in which they came, a bounded number of each code."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self._found: Counter[str] = Counter()

    def add(self, code: str, path: str, message: str) -> None:
        """Take one."""
        self._found[code] += 1
        if self._found[code] <= MAX_FINDINGS:
            self._kept.append(Finding(code, _cut(path), _cut(message)))

    def add_error(self, error: InvalidArchiveError, known: Container[str] = ()) -> None:
        """Take what an error found, but for members of which it is known that they are damaged."""
        for finding in error.findings:
            if finding.path not in known:
                self.add(finding.code, finding.path, finding.message)

    def __iter__(self) -> Iterator[str]:
        """Yield the codes there are."""
        return iter(self._found)

    def listed(self) -> list[Finding]:
        """Return those that were kept, then for each code how many were not."""
        more = (
            Finding(code, "<file>", f"and {found - MAX_FINDINGS} more findings")
            for code, found in self._found.items()
            if found > MAX_FINDINGS
        )
        return [*self._kept, *more]


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"
