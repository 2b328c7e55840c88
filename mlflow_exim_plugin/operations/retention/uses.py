"""Which of some runs are in use, by whatever way their deployment can tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.removal.seen import SeenUses
from mlflow_exim_plugin.host.removal.uses import in_use
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Failure, Loss, Unpacked, closed_after

if TYPE_CHECKING:
    from collections.abc import Collection

    from mlflow_exim_plugin.host.removal.runs import Removal
    from mlflow_exim_plugin.operations.ends import OpenSource

__all__ = ["runs_in_use"]


def runs_in_use(
    removal: Removal, source: OpenSource, leaving: Collection[str], gone: Collection[str] = ()
) -> dict[str, list[str]]:
    """Return which of some runs have to stay, and what uses them.

    Args:
        removal: The deployment.
        source: The same, to be read.
        leaving: The runs that are to go.
        gone: Runs that went that way before.

    Raises:
        ServerError: Not all of it can be read: what cannot may use any run.
    """
    if not leaving:
        return {}
    if removal.is_direct:
        return in_use(removal.uses(leaving), leaving, gone)
    seen = SeenUses()
    with closed_after(source.names.stream(Selection(artifacts=False))) as stream:
        for item in stream:
            if isinstance(item, Failure):
                raise ServerError(
                    f"{item.kind.words} {item.id} cannot be read, so nobody can tell which runs it "
                    f"uses: {item.reason}"
                )
            if not isinstance(item, Loss | Unpacked):
                seen.see(item)
    return in_use(seen.uses(), leaving, gone)
