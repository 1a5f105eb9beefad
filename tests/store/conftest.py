"""Clarad's engine on a database for each test, and a view of that from outside."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from sqlalchemy import Engine, Inspector, NullPool, create_engine, inspect

from tests.store.desk import Desk, open_desk


class Outside:
    """Another program that uses the same database: what it sees has been committed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = create_engine(url, poolclass=NullPool)

    def do(self, *statements: str) -> None:
        """Run statements in one transaction."""
        with self._engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what a query finds."""
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]

    def tables(self) -> set[str]:
        """Return the names of all tables."""
        return set(inspect(self._engine).get_table_names())

    def describe(self, *tables: str) -> dict[str, dict[str, object]]:
        """Return everything that the database says of tables."""
        with self._engine.connect() as connection:
            found = inspect(connection)
            return {table: _describe(found, table) for table in tables}


def _describe(found: Inspector, table: str) -> dict[str, object]:
    return {
        "columns": [column | {"type": str(column["type"])} for column in found.get_columns(table)],
        "primary key": found.get_pk_constraint(table),
        "unique": found.get_unique_constraints(table),
        "foreign keys": found.get_foreign_keys(table),
        "checks": found.get_check_constraints(table),
        "indexes": [
            index | {"dialect_options": _as_text(index.get("dialect_options", {}))}
            for index in found.get_indexes(table)
        ],
    }


def _as_text(options: dict[str, Any]) -> dict[str, str]:
    # A condition comes as an object that is equal to nothing else.
    return {name: str(value) for name, value in options.items()}


@pytest.fixture
def engine(url: str, connect: Callable[[str], Engine]) -> Engine:
    """Clarad's engine on the test's database; nothing has been migrated."""
    return connect(url)


@pytest.fixture
def outside(url: str) -> Outside:
    """Another program that uses the test's database."""
    return Outside(url)


@pytest.fixture
async def desk(engine: Engine, nursery: trio.Nursery) -> Desk:
    """A store that serves; it ends with the test."""
    return await open_desk(engine, nursery)
