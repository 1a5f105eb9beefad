"""An empty database for each test, on SQLite and on PostgreSQL, and a view of it from outside."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import Engine, Inspector, NullPool, create_engine, inspect

from clarad.store import open_engine
from clarad.store.migrate import upgrade
from tests.postgres import BACKENDS, database
from tests.store.daemons import Daemon, Share
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


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of the test's own."""
    with database(request.param, tmp_path, request.config) as url:
        yield url


@pytest.fixture
def connect() -> Iterator[Callable[[str], Engine]]:
    """Make clarad's engines for URLs; they are closed when the test ends."""
    with ExitStack() as stack:

        def connect(url: str) -> Engine:
            engine = open_engine(url)
            stack.callback(engine.dispose)
            return engine

        yield connect


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


@pytest.fixture
async def share(
    url: str, connect: Callable[[str], Engine], nursery: trio.Nursery
) -> AsyncIterator[Share]:
    """Have daemons share the test's database; they end with the test."""
    upgrade(connect(url))
    with ExitStack() as stack:

        async def share(count: int) -> list[Daemon]:
            daemons = [Daemon(connect(url), f"instance-{n}") for n in range(count)]
            for daemon in daemons:
                stack.callback(daemon.close)
                await daemon.begin(nursery)
            for daemon in daemons:
                daemon.said()
            return daemons

        yield share
        nursery.cancel_scope.cancel("the test has ended")
