"""Source tags to a deployment: what it refuses is named, and costs nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.host.api.halving import send_entries
from mlflow_exim_plugin.schema.objects import Kind, Loss
from mlflow_exim_plugin.schema.provenance import without_dots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow_exim_plugin.schema.lineage import Tagged
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["SourceTagWriter"]

_BATCH = 100
_KEPT = "the archive keeps the whole value"


class SourceTagWriter:
    """Writes source tags; one for each deployment.

    A deployment that refuses dots in names, as Unity Catalog does, gets underscores instead.
    """

    def __init__(self) -> None:
        self._refuses_dots = False

    def put(
        self,
        item: Tagged,
        there: Mapping[str, str],
        send: Callable[[dict[str, str]], None],
        report: Report,
        *,
        batch: int = _BATCH,
    ) -> dict[str, str]:
        """Give a copy the source tags of an object.

        Args:
            item: The object.
            there: Tags that the copy has; a source tag among them stays as it is.
            send: Sets tags in one call.
            report: Told of what the target refuses.
            batch: How many tags one call may set.

        Returns:
            The source tags that the target took, under the names that they have there.

        Raises:
            ServerLostError: The deployment does not answer any more.
        """
        missing = {
            key: value
            for key, value in item.source_tags.items()
            if key not in there and without_dots(key) not in there
        }
        taken: dict[str, str] = {}
        if not self._refuses_dots:
            errors = send_entries(missing, batch, send)
            refused = {key: error.message for key, error in errors.items()}
            taken = {key: value for key, value in missing.items() if key not in refused}
            if not refused:
                return taken
        else:
            refused = dict.fromkeys(missing, "")
        renamed: dict[str, str] = {}
        for key in refused:
            name = without_dots(key)
            if name in renamed or name in there:
                refused[key] = f"as {name} it would be another tag's"
            else:
                renamed[name] = key
        errors = send_entries({name: missing[key] for name, key in renamed.items()}, batch, send)
        for name, key in renamed.items():
            if name in errors:
                refused[key] = refused[key] or errors[name].message
                continue
            taken[name] = missing[key]
            del refused[key]
            self._say_renamed(item.kind, report)
        for key, reason in refused.items():
            report.lost(Loss(Kind.TAG, f"{item.id}/{key}", f"{reason}; {_KEPT}"))
        return taken

    def put_each(
        self,
        item: Tagged,
        there: Mapping[str, str],
        set_tag: Callable[[str, str], None],
        report: Report,
    ) -> None:
        """Give a copy the source tags of an object where one call sets one tag; see ``put``."""

        def send(tags: dict[str, str]) -> None:
            for key, value in tags.items():
                set_tag(key, value)

        self.put(item, there, send, report, batch=1)

    def compare(
        self, item: Tagged, taken: dict[str, str], there: Mapping[str, str], report: Report
    ) -> None:
        """Name the source tags that a copy was given and has not as they were."""
        for key, value in taken.items():
            if (found := there.get(key)) != value:
                kept = "nothing" if found is None else f"{len(found)} of {len(value)} characters"
                what = f"the target keeps {kept}; {_KEPT}"
                report.lost(Loss(Kind.TAG, f"{item.id}/{key}", what))

    def _say_renamed(self, kind: Kind, report: Report) -> None:
        said = Loss(kind, "*", "the target refuses dots: its source tags have underscores instead")
        self._refuses_dots = True
        if said not in report.losses:
            report.lost(said)
