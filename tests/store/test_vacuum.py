"""Pages that are free are given back to the disk, also in files that an older clarad has made."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import Engine

from clarad.store import StoreError, migrate, vacuum
from clarad.store import engine as opening
from tests.postgres import SHARED

INCREMENTAL = 2
MIB = 2**20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clarad.db"


@pytest.fixture
def engine(path: Path, connect: Callable[[str], Engine]) -> Engine:
    """Clarad's engine on an SQLite file that is not there yet."""
    return connect(f"sqlite:///{path}")


def ask(path: Path, *statements: str) -> list[tuple[object, ...]]:
    """Run statements beside clarad; return what the last one finds."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            found = connection.execute(statement).fetchall()
        return found


def mode(path: Path) -> object:
    return ask(path, "PRAGMA auto_vacuum")[0][0]


def fill(path: Path) -> None:
    """Write 10 MiB that somebody else has in there, and nothing that asks for another mode."""
    rows = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 10000)"
    ask(
        path,
        "CREATE TABLE other (n INTEGER, text TEXT)",
        f"INSERT INTO other {rows} SELECT n, hex(zeroblob(512)) FROM n",
    )


def shrink(engine: Engine) -> bool:
    with engine.begin() as connection:
        return vacuum.shrink(connection)


def give_all_back(engine: Engine) -> int:
    """Return in how many transactions."""
    count = 1
    while shrink(engine):
        count += 1
    return count


def test_a_new_file_can_be_shortened(engine: Engine, path: Path) -> None:
    migrate.upgrade(engine)
    assert mode(path) == INCREMENTAL


def test_a_migration_makes_an_older_file_one_that_can_be(engine: Engine, path: Path) -> None:
    fill(path)
    assert mode(path) == 0
    migrate.upgrade(engine)
    assert mode(path) == INCREMENTAL
    assert ask(path, "SELECT count(*), sum(n) FROM other") == [(10_000, 50_005_000)]
    log = path.with_name(f"{path.name}-wal")
    assert log.stat().st_size < MIB  # it had the whole file in it


def test_without_the_room_for_it_a_migration_is_refused_and_nothing_has_changed(
    engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=15 * MIB))
    with pytest.raises(StoreError, match=r"takes 2\d MiB of room .* there are 15 MiB; make room"):
        migrate.upgrade(engine)
    assert mode(path) == 0
    assert ask(path, "SELECT name FROM sqlite_schema WHERE type = 'table'") == [("other",)]


def test_a_file_that_somebody_else_uses_is_refused_in_one_line(
    path: Path, connect: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "BUSY_TIMEOUT", 0.01)
    engine = connect(f"sqlite:///{path}")
    fill(path)
    ask(path, "PRAGMA journal_mode = WAL")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM other WHERE n = 1")
        with pytest.raises(StoreError, match=r"^[^\n]*database is locked[^\n]*$"):
            vacuum.turn_on(engine)
    assert mode(path) == 0


def test_what_is_free_is_given_back_in_small_steps(engine: Engine, path: Path) -> None:
    fill(path)
    migrate.upgrade(engine)
    before = path.stat().st_size
    ask(path, "DELETE FROM other")
    steps = give_all_back(engine)
    ask(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert steps > 10
    assert path.stat().st_size < before / 10


def test_a_tenth_of_the_file_stays_free_for_what_comes_next(engine: Engine, path: Path) -> None:
    fill(path)
    migrate.upgrade(engine)
    ask(path, "DELETE FROM other WHERE n <= 5000")
    give_all_back(engine)
    ((pages,),) = ask(path, "PRAGMA page_count")
    ((free,),) = ask(path, "PRAGMA freelist_count")
    assert isinstance(pages, int)
    assert free == pages // vacuum.STAYS_FREE


def test_what_little_is_free_stays(engine: Engine, path: Path) -> None:
    fill(path)
    migrate.upgrade(engine)
    ask(path, "DELETE FROM other WHERE n <= 500")
    before = ask(path, "PRAGMA freelist_count")
    assert not shrink(engine)
    assert ask(path, "PRAGMA freelist_count") == before != [(0,)]


def test_a_file_that_cannot_be_shortened_is_left(engine: Engine, path: Path) -> None:
    fill(path)
    ask(path, "DELETE FROM other")
    assert not shrink(engine)


@pytest.mark.parametrize("url", SHARED, indirect=True)
def test_postgresql_sees_to_it_itself(url: str, connect: Callable[[str], Engine]) -> None:
    engine = connect(url)
    vacuum.turn_on(engine)
    assert not shrink(engine)
