"""``diff``: two sides of any kind, object by object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.options import Comparing, Opening, Reading, Selection, flat

if TYPE_CHECKING:
    from mlflow_exim_plugin.comparison.result import Comparison

__all__ = ["diff"]


@flat()
def diff(
    a: str,
    b: str,
    *,
    opening: Opening = Opening(),
    a_opening: Opening = Opening(),
    b_opening: Opening = Opening(),
    selection: Selection = Selection(),
    reading: Reading = Reading(),
    comparing: Comparing = Comparing(),
) -> Comparison:
    """Compare two sides object by object and field by field, histories and files included.

    Copies are known by where they came from, so ids may differ; each id inside a value is compared
    by what it stands for. Nothing is written but a temporary index.

    Args:
        a: Tracking URI of a server or store, or path or fsspec URL of an archive or export.
        b: The other side.
        opening: How both are opened; each option is a keyword of its own too, here and below.
        a_opening: How ``a`` is opened where that is otherwise.
        b_opening: How ``b`` is opened where that is otherwise.
        selection: What to take of both sides; everything without it.
        reading: How both are read.
        comparing: What counts, and how much is told.

    Returns:
        Counts, differences and what could not be read; ``equal`` when there is none of the last
        two.

    Raises:
        UsageError: The rules or a path cannot be understood.
        NotFoundError: A side, or a name or id in the selection, is not there.
        InvalidArchiveError: An archive cannot be opened.
        UnsupportedFormatError: An archive needs a newer reader.
        ServerError: A server cannot be reached, or died.
    """
    from mlflow_exim_plugin.comparison.compare import compare
    from mlflow_exim_plugin.comparison.result import Comparison
    from mlflow_exim_plugin.comparison.rules import RuleSet

    rules, jobs = RuleSet(comparing.rules, comparing.ignore), comparing.jobs
    with (
        open_source(a, a_opening.over(opening).at(a), reading, jobs=jobs) as of_a,
        open_source(b, b_opening.over(opening).at(b), reading, jobs=jobs) as of_b,
    ):
        result = Comparison(of_a.name, of_b.name, rules)
        compare(
            of_a.stream,
            of_b.stream,
            result,
            selection,
            limit=comparing.limit,
            found=comparing.found,
            progress=comparing.progress,
        )
    return result
