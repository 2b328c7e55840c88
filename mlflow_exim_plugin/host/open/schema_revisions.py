"""Revisions of MLflow's database schema, as its own migrations know them."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection, Engine

__all__ = [
    "at_revision",
    "is_known",
    "latest_revision",
    "links_prompts",
    "revision_of",
    "upgrade",
]

_SAID = re.compile(r"""^(revision|down_revision) *= *("[^"]*"|'[^']*'|None)""", re.MULTILINE)


def revision_of(connection: Connection) -> str | None:
    """Return the revision of a database, None where it has no tables of MLflow.

    A database that MLflow 0.x made has the tables and no revision yet: its name is empty then.
    """
    from sqlalchemy import inspect, text

    tables = set(inspect(connection).get_table_names())
    if "experiments" not in tables:
        return None
    if "alembic_version" not in tables:
        return ""
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return str(found or "")


def latest_revision() -> str:
    """Return the revision that this MLflow works with."""
    before = _before()
    (latest,) = set(before) - set(before.values())
    return latest


def is_known(revision: str) -> bool:
    """Whether this MLflow can migrate a database from a revision."""
    return not revision or revision in _before()


def at_revision(engine: Engine, revision: str) -> None:
    """Make MLflow's tables in an empty database, as they were at a revision."""
    from alembic import command
    from mlflow.store.tracking.dbmodels.initial_models import Base

    Base.metadata.create_all(engine)
    if revision:
        command.upgrade(_config(engine), revision)


def upgrade(engine: Engine) -> None:
    """Migrate a database to the latest revision."""
    from alembic import command

    command.upgrade(_config(engine), "head")


@cache
def links_prompts() -> bool:
    """Whether this MLflow has a table say which traces use a prompt; before, a tag alone did."""
    kinds = _mlflow() / "entities" / "entity_type.py"
    return kinds.exists() and "PROMPT_VERSION =" in kinds.read_text(encoding="utf-8")


@cache
def _before() -> dict[str, str | None]:
    """Return the revision before each one, as MLflow's migrations say it.

    Alembic would run all of them to know that, which takes a second.
    """
    found: dict[str, str | None] = {}
    for path in (_folder() / "versions").glob("*.py"):
        said = dict(_SAID.findall(path.read_text(encoding="utf-8")))
        if "revision" in said:
            found[ast.literal_eval(said["revision"])] = ast.literal_eval(said["down_revision"])
    return found


def _folder() -> Path:
    return _mlflow() / "store" / "db_migrations"


def _mlflow() -> Path:
    """Return where MLflow is, without loading it, which takes seconds."""
    found = importlib.util.find_spec("mlflow")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")
    return Path(found.submodule_search_locations[0])


def _config(engine: Engine | None = None) -> Config:
    from alembic.config import Config

    scripts = _folder()
    config = Config(scripts / "alembic.ini")
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    if engine is not None:
        config.attributes["connection"] = _Connected(engine)
    return config


class _Connected:
    """What MLflow's migrations take of a connection."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
