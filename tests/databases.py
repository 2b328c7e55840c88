"""Databases of PostgreSQL and MariaDB on this machine, each for one test."""

from __future__ import annotations

import os
import socket
import uuid
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["initialise", "new_mariadb_database", "new_postgres_database", "rows_of_tables"]

_POSTGRES = ("127.0.0.1", 5432)
_MARIADB = ("127.0.0.1", 3306)
_STORED_COLUMNS = (
    "SELECT column_name FROM information_schema.columns WHERE table_schema = %s "
    "AND table_name = %s AND generation_expression IS NULL"
)


@contextmanager
def new_postgres_database(template: str = "template1") -> Iterator[str]:
    """Make a database like another one, which nobody uses meanwhile; it goes with the block."""
    _require_service("PostgreSQL", _POSTGRES)
    import psycopg2

    def administer(statement: str) -> None:
        host, port = _POSTGRES
        with closing(
            psycopg2.connect(host=host, port=port, user="postgres", dbname="postgres")
        ) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)

    name = _database_name()
    administer(f"CREATE DATABASE {name} TEMPLATE {template}")
    administer(f"ALTER DATABASE {name} SET synchronous_commit = off")  # tests end before power does
    # The driver is named: without one SQLAlchemy 2.1 takes psycopg 3, older ones psycopg2.
    try:
        yield "postgresql+psycopg2://postgres@{}:{}/{}".format(*_POSTGRES, name)
    finally:
        administer(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def new_mariadb_database(template: str | None = None) -> Iterator[str]:
    """Make a database with the tables and rows of another one; it goes with the block."""
    _require_service("MariaDB", _MARIADB)
    import pymysql

    @contextmanager
    def administering() -> Iterator[pymysql.cursors.Cursor]:
        host, port = _MARIADB
        with (
            closing(
                pymysql.connect(host=host, port=port, user="root", autocommit=True)
            ) as connection,
            connection.cursor() as cursor,
        ):
            yield cursor

    name = _database_name()
    with administering() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        if template:
            cursor.execute(f"USE {name}")
            cursor.execute("SET FOREIGN_KEY_CHECKS = 0")
            cursor.execute("SET sql_mode = CONCAT(@@sql_mode, ',NO_AUTO_VALUE_ON_ZERO')")
            cursor.execute(f"SHOW TABLES FROM {template}")
            for (table,) in cursor.fetchall():
                cursor.execute(f"SHOW CREATE TABLE {template}.{table}")
                ((_, made),) = cursor.fetchall()
                cursor.execute(made)
                cursor.execute(_STORED_COLUMNS, (template, table))
                columns = ", ".join(f"`{column}`" for (column,) in cursor.fetchall())
                of_template = f"SELECT {columns} FROM {template}.{table}"
                cursor.execute(f"INSERT INTO {table} ({columns}) {of_template}")
    try:
        yield "mysql+pymysql://root@{}:{}/{}".format(*_MARIADB, name)
    finally:
        with administering() as cursor:
            cursor.execute(f"DROP DATABASE {name}")


def initialise(uri: str) -> None:
    """Give a database MLflow's schema; the default experiment is left to the server."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import text

    engine = SqlAlchemyStore(uri, "/").engine
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM experiments"))
    engine.dispose()


def rows_of_tables(uri: str) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every table, in an order of their own, with values as the driver's."""
    engine = sqlalchemy.create_engine(uri)
    quoted = engine.dialect.identifier_preparer.quote
    with engine.connect() as connection:
        rows = {
            name: [
                dict(row)
                for row in connection.exec_driver_sql(f"SELECT * FROM {quoted(name)}").mappings()
            ]
            for name in sorted(sqlalchemy.inspect(connection).get_table_names())
        }
    engine.dispose()
    return {name: sorted(found, key=repr) for name, found in rows.items()}


def _database_name() -> str:
    return f"exim_test_{uuid.uuid4().hex[:12]}"


def _require_service(name: str, address: tuple[str, int]) -> None:
    try:
        socket.create_connection(address, timeout=2).close()
    except OSError:
        absent = "{} does not answer on {}:{}".format(name, *address)
        if os.environ.get("CI") == "true":
            pytest.fail(absent)
        pytest.skip(absent)
