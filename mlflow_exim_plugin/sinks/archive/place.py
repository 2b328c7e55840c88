"""Where an archive's objects stand when it is one of several that make a state (spec/v1/set.md).

An object has the same path in each archive of a set, and no two archives have a table of one path.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mlflow_exim_plugin.schema.objects import RegisteredModel

__all__ = ["TABLES_A_BLOCK", "PlaceInSet"]

TABLES_A_BLOCK = 100_000
"""So many numbers of tables an archive of a set has for itself."""


class PlaceInSet:
    """What of a set is taken by other archives.

    Args:
        block: Which block of numbers of tables is free.
        members: Envelopes of registered models, prompts and entities, by what they would be where
            their names met no others.
        taken: Envelopes of all of these.

    Attributes:
        first_table: Number of the first table.
        numbered: What was given another path than its name says, by that.
    """

    def __init__(
        self, block: int = 0, members: Mapping[str, str] | None = None, taken: Iterable[str] = ()
    ) -> None:
        self.first_table = block * TABLES_A_BLOCK
        self.numbered: dict[str, str] = dict(members or {})
        self._taken = {path.casefold(): path for path in taken}

    def model_folder(self, model: RegisteredModel, folders: set[str], tree: str) -> str:
        """Return the folder of a registered model or prompt, with its final slash.

        Args:
            model: It.
            folders: Case-folded folders of this archive.
            tree: The workspace's tree.
        """
        plain = layout.model_folder(model.name, kind=model.kind, tree=tree)
        member = layout.model_member(plain)
        if (known := self.numbered.get(member)) is not None:
            return known.removesuffix("model.json")
        if self._taken.get(member.casefold(), member) == member:
            found = layout.model_folder(model.name, folders, kind=model.kind, tree=tree)
        else:
            numbers = itertools.count(2)
            free = (f"{plain[:-1]}~{n}/" for n in numbers)
            found = next(f for f in free if not self._is_taken(f, folders))
        self._note(member, layout.model_member(found))
        return found

    def entity(self, path: str, free_path: Callable[[str], str]) -> str:
        """Return the path of an entity.

        Args:
            path: As its name says, or as it is where it comes from.
            free_path: Gives one that meets no other of this archive.
        """
        if (known := self.numbered.get(path)) is not None:
            return known
        found = path
        if self._taken.get(path.casefold(), path) != path:
            plain = path.removesuffix(".json")
            numbered = (f"{plain}~{n}.json" for n in itertools.count(2))
            found = next(f for f in numbered if f.casefold() not in self._taken)
        found = free_path(found)
        self._note(path, found)
        return found

    def _is_taken(self, folder: str, folders: set[str]) -> bool:
        return folder.casefold() in folders or layout.model_member(folder).casefold() in self._taken

    def _note(self, plain: str, found: str) -> None:
        self._taken[found.casefold()] = found
        if found != plain:
            self.numbered[plain] = found
