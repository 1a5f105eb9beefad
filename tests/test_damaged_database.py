"""A database that is damaged, empty though it was in use, or too new: named, with the way out."""

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from clarad.store import open_engine
from clarad.store.known import remember
from tests.daemon_process import Process
from tests.installation import Console, Installation
from tests.migrated import migrate
from tests.peer import connect
from tests.postgres import SHARED, database
from tests.store.conftest import Outside


@pytest.fixture
def used(here: Installation) -> Path:
    """The database of a daemon that was killed with a message that waits."""
    path = here.state_dir / "clarad.db"
    here.state_dir.mkdir()
    engine = open_engine(f"sqlite:///{path}")
    migrate(engine)
    remember(engine, here.state_dir)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO clarad_messages (platform, channel_id, request_id, node_id, user_id,"
            " session_id, frame, received_at)"
            " VALUES ('a', 'b', 'c', 'd', 'e', 'f', '{}', '2026-01-02 03:04:05.000000')"
        )
    engine.dispose()
    return path


def root_page(path: Path, name: str) -> int:
    """The first page of a table or an index, counted from 1."""
    with closing(sqlite3.connect(path)) as connection:
        statement = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        number: int = connection.execute(statement, (name,)).fetchone()[0]
    return number


def write_over(path: Path, page: int, data: bytes = b"\xff" * 4096) -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(data)


def spoil_keyword(path: Path) -> None:
    """Make a byte of the schema one that begins no character of UTF-8."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b"CREATE INDEX ix_clarad_", b"CREATE \xa5NDEX ix_clarad_", 1))


def spoil_time(path: Path) -> None:
    """Flip a byte in a row's time, which leaves all pages sound."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b"2026-01-02", b"2o26-01-02"))


def make_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE clarad_alembic_version SET version_num = '9999'")


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "the first page": (lambda path: write_over(path, 1), "is damaged (file is not a database)"),
    "the schema": (
        lambda path: write_over(path, 1, path.read_bytes()[:100] + b"\xff" * 3996),
        "is damaged (database disk image is malformed)",
    ),
    "a keyword of the schema": (spoil_keyword, "is damaged ('utf-8' codec can't decode byte 0xa5"),
    "the messages": (
        lambda path: write_over(path, root_page(path, "clarad_messages")),
        "is damaged (database disk image is malformed)",
    ),
    "the index of what is unfinished": (
        lambda path: write_over(path, root_page(path, "ix_clarad_messages_unfinished_id")),
        "is damaged (database disk image is malformed)",
    ),
    "a time": (spoil_time, "is damaged (Invalid isoformat string"),
    "cut": (lambda path: os.truncate(path, 3 * 4096), "is damaged (database disk image is mal"),
    "newer": (make_newer, "is at revision 9999, which this version does not know"),
    "emptied": (lambda path: path.write_bytes(b""), "is empty, and this installation has used it"),
    "deleted": (Path.unlink, "is empty, and this installation has used it before"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_database_that_is_not_fit_is_named_once_with_the_way_out(
    here: Installation, clarad: Console, used: Path, how: str
) -> None:
    spoil, words = SPOILT[how]
    spoil(used)
    before = clarad("migrate", "--before-run")
    assert (before.status, before.err) == (0, "")
    status, out, err = here.clarad("run")
    assert (status, out) == (65, "")
    assert err.startswith(f"clarad: the database {used} ")
    assert words in err
    assert "`clarad backup restore FILE`" in err or how == "newer"
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [("migrate",), ("backup", "create"), ("backup", "verify", "{}"), ("hooks", "runs"), ("check",)],
    ids=" ".join,
)
def test_every_command_names_a_schema_that_cannot_be_decoded_in_one_line(
    clarad: Console, used: Path, words: tuple[str, ...]
) -> None:
    spoil_keyword(used)
    status, out, err = clarad(*(word.format(used) for word in words))
    assert (status, out) == (1, "")
    [line] = (line for line in err.splitlines() if "warning" not in line)
    assert f"{used} is damaged" in line


def test_a_log_that_was_deleted_is_no_new_database(here: Installation) -> None:
    with here.daemon() as process:
        process.kill()  # all it has written is in the log
    (here.state_dir / "clarad.db-wal").unlink()
    said = here.clarad("run")
    assert said.status == 65
    assert "is empty, and this installation has used it before" in said.err


def test_who_says_that_it_is_new_gets_a_new_one(clarad: Console, used: Path) -> None:
    used.unlink()
    assert clarad("migrate").status == 1
    assert clarad("migrate", "--new").status == 0
    assert "pending   nothing" in clarad("migrate", "status").out


@pytest.mark.usefixtures("used")
def test_another_database_than_the_one_that_was_used_may_be_empty(
    clarad: Console, tmp_path: Path
) -> None:
    assert clarad("migrate", DATABASE_URL=f"sqlite:///{tmp_path}/another.db").status == 0


def test_what_was_restored_is_no_new_database(clarad: Console, used: Path) -> None:
    copy = clarad("backup", "create").out.strip()
    used.unlink()
    assert clarad("backup", "restore", copy).status == 0
    assert clarad("migrate") == (0, "nothing to do\n", "")


@pytest.fixture(params=SHARED)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with database(request.param, tmp_path, request.config) as url:
        yield url


def test_a_postgresql_database_that_was_emptied_is_not_taken_for_a_new_one(
    here: Installation, clarad: Console, url: str
) -> None:
    with here.daemon(DATABASE_URL=url) as process:
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    Outside(url).do("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    said = here.clarad("run", DATABASE_URL=url)
    assert said.status == 65
    assert "pg_restore" in said.err
    assert clarad("migrate", "--new", DATABASE_URL=url).status == 0


async def test_damage_that_comes_while_it_runs_is_named_once_and_without_a_traceback(
    here: Installation, nursery: trio.Nursery
) -> None:
    path = here.state_dir / "clarad.db"
    with here.daemon() as process:
        peer = await connect(nursery, process.url)
        await peer.register()
        await trio.to_thread.run_sync(spoil_while_it_runs, path)
        for number in range(5):
            await peer.ask(f"m{number}")
            outcome = await peer.outcome_of(f"m{number}")
            assert (outcome["code"], outcome["recoverable"]) == ("processing_error", True)
        said = await trio.to_thread.run_sync(here.clarad, "status")
        assert said.status == 1
        assert f"the database {path} is damaged" in said.err
        await peer.drop()
        critical = [line for line in process.log.splitlines() if "CRITICAL" in line]
    check_log(process, critical)


def check_log(process: Process, critical: list[str]) -> None:
    assert len(critical) == 1
    assert "`clarad backup restore FILE`" in critical[0]
    assert "Traceback" not in process.log


def spoil_while_it_runs(path: Path) -> None:
    """Have all that was written in the file itself, and then write over it."""
    messages = root_page(path, "clarad_messages")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        write_over(path, messages)
        with connection:  # so that the daemon reads its pages again
            connection.execute("DELETE FROM clarad_nodes WHERE node_id = 'nobody'")
            connection.execute("INSERT INTO clarad_alembic_version VALUES ('x')")
            connection.execute("DELETE FROM clarad_alembic_version WHERE version_num = 'x'")
