"""How databases are opened, and what is said of those that cannot be."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from clarad import config
from clarad.store import StoreError, open_engine

Connect = Callable[[str], Engine]


def pragma(engine: Engine, name: str) -> object:
    with engine.connect() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


@pytest.fixture
def sqlite(tmp_path: Path, connect: Connect) -> Engine:
    """An SQLite database that is still empty."""
    return connect(f"sqlite:///{tmp_path}/test.db")


# --- SQLite --------------------------------------------------------------------------------------


def test_sqlite_lets_others_read_while_it_writes(sqlite: Engine) -> None:
    assert pragma(sqlite, "journal_mode") == "wal"


def test_sqlite_that_has_no_room_is_named_with_the_way_out(sqlite: Engine) -> None:
    with sqlite.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        with pytest.raises(OperationalError) as raised:
            connection.exec_driver_sql("CREATE TABLE t (x TEXT)")
    path = sqlite.url.database
    assert str(raised.value.orig) == f"{path}: database or disk is full; make room on its disk"


def test_sqlite_keeps_what_was_committed_through_a_power_cut(sqlite: Engine) -> None:
    full = 2
    assert pragma(sqlite, "synchronous") == full


def test_sqlite_minds_foreign_keys(sqlite: Engine) -> None:
    assert pragma(sqlite, "foreign_keys") == 1


def test_a_table_made_in_a_transaction_that_fails_is_not_there(sqlite: Engine) -> None:
    def make_and_fail() -> None:
        with sqlite.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE things (n INTEGER)")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        make_and_fail()
    with sqlite.connect() as connection:
        tables = connection.exec_driver_sql("SELECT name FROM sqlite_master").all()
    assert tables == []


def test_opening_connects_to_nothing_yet(tmp_path: Path, connect: Connect) -> None:
    connect(f"sqlite:///{tmp_path}/test.db")
    assert not (tmp_path / "test.db").exists()


def test_what_is_made_is_for_its_owner_only_whatever_the_umask(
    tmp_path: Path, connect: Connect
) -> None:
    before = os.umask(0)
    try:
        engine = connect(f"sqlite:///{tmp_path}/test.db")
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE things (n INTEGER)")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"test.db": 0o600, "test.db-wal": 0o600, "test.db-shm": 0o600}


def test_a_directory_that_is_there_keeps_its_mode(tmp_path: Path, connect: Connect) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o750)
    connect(f"sqlite:///{shared}/test.db")
    assert stat.S_IMODE(shared.stat().st_mode) == 0o750


@pytest.mark.parametrize(
    "name", ["50% of it", "%41", "what?", "a#b", "a&b=c", "with space", "\N{SNOWMAN}", "a:b@c"]
)
def test_the_file_lies_where_the_settings_say_whatever_the_directory_is_called(
    tmp_path: Path, connect: Connect, name: str
) -> None:
    (tmp_path / name).mkdir()
    settings, _ = config.load({"CLARA_STATE_DIR": f"{tmp_path / name}"})
    pragma(connect(settings.database_url), "user_version")
    assert (tmp_path / name / "clarad.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_directory_is_made_for_a_database(tmp_path: Path, connect: Connect) -> None:
    with pytest.raises(StoreError, match=f"cannot make the database {tmp_path}/new/test.db: No "):
        pragma(connect(f"sqlite:///{tmp_path}/new/test.db"), "user_version")
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_leads_nowhere_is_not_followed(tmp_path: Path, connect: Connect) -> None:
    (tmp_path / "test.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=f"is a link to {tmp_path}/elsewhere, which is not there"):
        pragma(connect(f"sqlite:///{tmp_path}/test.db"), "user_version")
    assert not (tmp_path / "elsewhere").exists()


# --- for reading only ----------------------------------------------------------------------------


def test_an_engine_for_reading_makes_no_directory(tmp_path: Path) -> None:
    open_engine(f"sqlite:///{tmp_path}/new/test.db", read_only=True).dispose()
    assert list(tmp_path.iterdir()) == []


def test_an_engine_for_reading_makes_no_file(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/test.db", read_only=True)
    with pytest.raises(OperationalError, match="unable to open"):
        pragma(engine, "user_version")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_for_reading_cannot_write(tmp_path: Path, sqlite: Engine) -> None:
    pragma(sqlite, "user_version")
    engine = open_engine(f"sqlite:///{tmp_path}/test.db", read_only=True)
    with pytest.raises(OperationalError, match="readonly"), engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE things (n INTEGER)")
    engine.dispose()


@pytest.mark.parametrize("name", ["50% of it", "%41", "what?", "a#b", "\N{SNOWMAN}"])
def test_an_engine_for_reading_finds_what_is_there(
    tmp_path: Path, connect: Connect, name: str
) -> None:
    (tmp_path / name).mkdir()
    settings, _ = config.load({"CLARA_STATE_DIR": f"{tmp_path / name}"})
    with connect(settings.database_url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE things (n INTEGER)")
        connection.exec_driver_sql("INSERT INTO things VALUES (42)")
    engine = open_engine(settings.database_url, read_only=True)
    with engine.connect() as reading:
        assert reading.exec_driver_sql("SELECT n FROM things").scalar() == 42
    engine.dispose()


# --- URLs and drivers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "postgresql+psycopg://me:a-password@host:port/name",
        "postgresql+psycopg://me:a-password@[::1/name",
    ],
    ids=["empty", "no URL", "no port", "half an address"],
)
def test_a_url_that_cannot_be_used_is_said_without_showing_it(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_engine(url)
    assert len(str(caught.value).splitlines()) == 1
    assert "a-password" not in str(caught.value)


def test_a_url_that_cannot_be_read_says_what_to_write() -> None:
    with pytest.raises(StoreError, match="DATABASE_URL cannot be read; write "):
        open_engine("nonsense")


def say_without(environment: dict[str, str], *statements: str) -> str:
    """Open a PostgreSQL URL in a Python of its own, and return what it says of it."""
    program = [
        "import sys",
        *statements,
        "from clarad.store import StoreError, open_engine",
        "try: open_engine('postgresql+psycopg://host/name')",
        "except StoreError as error: print(error)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.stdout


def test_a_missing_driver_says_what_to_install() -> None:
    said = say_without({}, "sys.modules['psycopg'] = None")
    assert said == (
        "PostgreSQL needs the driver psycopg; install clarad with its extra: clarad[postgres]\n"
    )


def test_a_driver_without_its_library_says_what_to_install() -> None:
    """`pip install psycopg`, without its `[binary]`, where there is no libpq."""
    said = say_without({"PSYCOPG_IMPL": "c"})
    assert "clarad[postgres]" in said
    assert len(said.splitlines()) == 1
