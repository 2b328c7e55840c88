from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.files.streams import RejoinedStream
from mlflow_exim_plugin.host.files.tree import ArtifactTree

if TYPE_CHECKING:
    from typing import BinaryIO


class Deployment:
    """A deployment whose roots are where they say."""

    tracking_uri = "sqlite:///never.db"
    roots = None

    def artifact_root(self, root: str) -> str:
        return root

    def run_root(self, run_id: str) -> str:
        raise NotImplementedError(run_id)

    def files_at(self, root: str) -> None:
        del root


@dataclass
class Entry:
    path: str
    file_size: int | None = None

    @property
    def is_dir(self) -> bool:
        return self.file_size is None


def tree_of(folders: dict[str | None, list[Entry]], patch: pytest.MonkeyPatch) -> ArtifactTree:
    """Make a tree of a store that has such folders."""

    def entries(_: ArtifactTree, folder: str | None) -> list[Any]:
        if folder in folders:
            return folders[folder]
        raise ServerError(f"{folder}: refused")

    patch.setattr(ArtifactTree, "_entries", entries)
    return ArtifactTree(Deployment(), "http://host/root")


def test_folders_are_listed_in_path_order(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: dict[str | None, list[Entry]] = {
        None: [Entry("b", 1), Entry("a.txt", 2), Entry("a"), Entry("shut")],
        "a": [Entry("a/z", 3), Entry("a/b")],
        "a/b": [Entry("a/b/c", 4)],
    }
    tree = tree_of(folders, monkeypatch)
    assert [*tree.files()] == [("a/b/c", 4), ("a/z", 3), ("a.txt", 2), ("b", 1)]
    assert tree.problems == {"shut/": "shut: refused"}
    with pytest.raises(ServerError):
        list(tree_of({}, monkeypatch).files())


def test_a_folder_that_lists_itself_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tree_of({None: [Entry("a"), Entry("b", 1)], "a": [Entry("a")]}, monkeypatch)
    assert [*tree.files()] == [("b", 1)]
    assert "deeper" in tree.problems["a/"]


@pytest.mark.parametrize("beginning", [0, 1, 1000])
def test_a_stream_goes_on_after_its_beginning(beginning: int) -> None:
    data = os.urandom(1000)
    rest = cast("BinaryIO", io.BytesIO(data[beginning:]))
    stream = RejoinedStream(data[:beginning], rest)
    assert stream.read(7) + stream.read() == data
