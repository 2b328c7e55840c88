"""What is left of a target when nothing comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.operations.targets import OpenTarget, open_target
from mlflow_exim_plugin.options import Opening, Selection, Work, Writing

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path


def opened(uri: str) -> AbstractContextManager[OpenTarget]:
    return open_target(uri, Opening(), Writing(), Selection(), Work())


@pytest.mark.parametrize("written", [False, True])
def test_a_new_database_goes_only_while_nothing_is_in_it(tmp_path: Path, *, written: bool) -> None:
    uri = f"sqlite:///{tmp_path}/new.db"

    def find_nothing() -> None:
        with opened(uri):
            if written:
                MlflowClient(uri, uri).create_experiment("came")
            raise NotFoundError("there is no such dataset")

    with pytest.raises(NotFoundError):
        find_nothing()

    assert (tmp_path / "new.db").exists() == written
    if written:
        assert MlflowClient(uri, uri).get_experiment_by_name("came")


def test_a_database_that_was_there_stays(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/old.db"
    MlflowClient(uri, uri).search_experiments()

    with pytest.raises(NotFoundError), opened(uri):
        raise NotFoundError("there is no such dataset")

    assert (tmp_path / "old.db").exists()
