"""One SQLite file has one daemon, whatever path leads to it."""

import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from clarad.store import Taken, lock_database
from tests.daemon_process import clarad, daemon, environment


def linked(link: Callable[[Path, Path], None], database: Path, other: Path) -> Path:
    link(database, other)
    return other


WAYS: dict[str, Callable[[Path, Path], Path]] = {
    "the same path": lambda database, _other: database,
    "a symlink": lambda database, other: linked(os.symlink, database, other),
    "a hard link": lambda database, other: linked(os.link, database, other),
    "another root": lambda database, _other: Path(f"/proc/self/root{database}"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_second_daemon_on_the_database_is_refused_and_hears_who_has_it(
    tmp_path: Path, way: str
) -> None:
    database = tmp_path / "one.db"
    with daemon(tmp_path / "first", DATABASE_URL=f"sqlite:///{database}") as process:
        path = WAYS[way](database, tmp_path / "two.db")
        said = clarad("run", env=environment(tmp_path / "second", DATABASE_URL=f"sqlite:///{path}"))
        assert said.returncode == 75
        assert said.stderr == (
            f"clarad: another clarad (process {process.pid}, state directory {tmp_path}/first) "
            f"uses the database {path}; stop it, or set DATABASE_URL to another one\n"
        )
        assert clarad("status", env=process.environment).returncode == 0


def test_a_killed_daemon_leaves_the_database_free(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/one.db"
    with daemon(tmp_path / "first", DATABASE_URL=url) as process:
        process.signal(signal.SIGKILL)
        process.wait()
    with daemon(tmp_path / "second", DATABASE_URL=url) as process:
        assert clarad("status", env=process.environment).returncode == 0


@pytest.mark.parametrize("words", [("migrate", "rollback"), ("migrate",)], ids=" ".join)
def test_no_command_changes_the_tables_of_a_daemon_that_runs(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    with daemon(tmp_path) as process:
        database = sqlite3.connect(tmp_path / "clarad.db")
        with database:  # as an older daemon has left it
            database.execute("UPDATE clarad_alembic_version SET version_num = '0001'")
        said = clarad(*words, env=process.environment)
        assert (said.returncode, said.stdout) == (1, "")
        assert f"another clarad (process {process.pid}, state directory {tmp_path})" in said.stderr
        assert database.execute("SELECT count(*) FROM clarad_messages").fetchall() == [(0,)]
        database.close()


def test_with_nothing_to_do_migrate_does_not_mind_a_daemon(tmp_path: Path) -> None:
    with daemon(tmp_path) as process:
        said = clarad("migrate", env=process.environment)
    assert (said.returncode, said.stdout) == (0, "nothing to do\n")


def test_the_locks_of_sqlite_stay_as_they_are_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    with lock_database(f"sqlite:///{path}"):
        first, second = (sqlite3.connect(path, timeout=0) for _ in range(2))
        first.execute("BEGIN IMMEDIATE")
        with pytest.raises(Taken), lock_database(f"sqlite:///{path}"):
            pass
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            second.execute("BEGIN IMMEDIATE")
        first.close()
        second.execute("BEGIN IMMEDIATE")
        second.close()


def test_a_file_that_was_replaced_is_locked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, new = tmp_path / "one.db", tmp_path / "new.db"
    path.touch()
    new.touch()
    opened = os.open

    def replace_once(*arguments: object, **options: object) -> int:
        descriptor = opened(*arguments, **options)  # type: ignore[arg-type]
        if new.exists():
            new.replace(path)
        return descriptor

    monkeypatch.setattr("clarad.store.lock.os.open", replace_once)
    with lock_database(f"sqlite:///{path}"):
        monkeypatch.undo()
        with pytest.raises(Taken), lock_database(f"sqlite:///{path}"):
            pass
