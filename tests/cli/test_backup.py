"""`clarad backup`: a copy that can be trusted, and one that takes the database's place."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from clarad.store import backup
from clarad.store.migrate import HEAD
from tests.daemon_process import Process
from tests.installation import Console, Installation
from tests.postgres import SHARED, database
from tests.unprivileged import unprivileged


@pytest.fixture
def _no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def stop(process: Process) -> None:
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def messages(path: Path) -> list[str]:
    """The messages in a database, the oldest first."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT frame FROM clarad_messages ORDER BY id").fetchall()
    return [frame.partition('"content":"')[2].partition('"')[0] for (frame,) in found]


def flip(path: Path) -> None:
    """Write over the middle of each page but the first."""
    with path.open("r+b") as file:
        for offset in range(4096, path.stat().st_size, 4096):
            file.seek(offset)
            file.write(b"\xff" * 2048)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


# --- create and restore --------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_umask")
def test_what_was_copied_under_a_daemon_comes_back_and_what_came_later_is_kept_beside_it(
    here: Installation, clarad: Console, tmp_path: Path
) -> None:
    copy, path = tmp_path / "copy.db", here.state_dir / "clarad.db"
    with here.daemon() as process:
        assert here.clarad("send", "before").out == "before\n"
        assert clarad("backup", "create", f"{copy}") == (0, f"{copy}\n", "")
        assert here.clarad("send", "after").out == "after\n"
        process.kill()  # what came last is in the log
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    status, out, err = clarad("backup", "restore", f"{copy}")
    assert (status, err) == (0, "")
    first, second = out.splitlines()
    kept = Path(first.removeprefix("what was there is kept in "))
    assert second == f"{path} is {copy} from now on: revision {HEAD}, 1 messages"
    assert messages(path) == ["before"]
    assert messages(kept) == ["before", "after"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with here.daemon():
        assert here.clarad("send", "again").out == "again\n"


KILLED: Final = """\
import os, signal, sys
from pathlib import Path
from clarad.cli import main
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(main(["backup", "restore", sys.argv[1]]))
"""
"""Is killed when all is ready, and the backup has yet to take the database's name."""


def test_a_restore_that_is_killed_leaves_all_that_was_in_the_database(
    here: Installation, clarad: Console, tmp_path: Path
) -> None:
    with here.daemon() as process:
        assert here.clarad("send", "before").out == "before\n"
        clarad("backup", "create", f"{tmp_path}/copy.db")
        assert here.clarad("send", "after").out == "after\n"
        process.kill()  # what came last is in the log
    command = [sys.executable, "-c", KILLED, f"{tmp_path}/copy.db"]
    done = subprocess.run(command, env=here.environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    [kept] = here.state_dir.glob("clarad.db.before-*")
    assert messages(here.state_dir / "clarad.db") == messages(kept) == ["before", "after"]


def test_a_database_that_another_program_reads_is_not_replaced(
    here: Installation, clarad: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "BUSY_TIMEOUT", 0.1)
    path = here.state_dir / "clarad.db"
    with here.daemon() as process:
        clarad("backup", "create", f"{tmp_path}/copy.db")
        assert here.clarad("send", "after").out == "after\n"
        process.kill()
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM clarad_messages").fetchone() == (1,)
        said = clarad("backup", "restore", f"{tmp_path}/copy.db")
        reader.execute("ROLLBACK")
    assert (said.status, said.out) == (1, "")
    assert said.err == f"clarad: another program reads {path}; end it, and try again\n"
    assert messages(path) == ["after"]


@pytest.mark.usefixtures("_no_umask")
def test_without_a_name_a_copy_lies_in_the_state_directory(
    here: Installation, clarad: Console
) -> None:
    assert clarad("migrate").status == 0
    status, out, err = clarad("backup", "create")
    assert (status, err) == (0, "")
    [copy] = (here.state_dir / "backups").iterdir()
    assert out == f"{copy}\n"
    assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700


def test_a_copy_is_put_where_there_is_no_database(
    here: Installation, clarad: Console, tmp_path: Path
) -> None:
    clarad("migrate")
    clarad("backup", "create", f"{tmp_path}/copy.db")
    (here.state_dir / "clarad.db").unlink()
    here.state_dir.rename(tmp_path / "old")
    said = clarad("backup", "restore", f"{tmp_path}/copy.db")
    assert (said.status, len(said.out.splitlines())) == (0, 1)
    assert clarad("migrate", "status").out.startswith(f"revision  {HEAD}\n")


def test_a_link_to_the_database_stays_one(
    here: Installation, clarad: Console, tmp_path: Path
) -> None:
    clarad("migrate")
    clarad("backup", "create", f"{tmp_path}/copy.db")
    link = tmp_path / "link.db"
    link.symlink_to(here.state_dir / "clarad.db")
    url = f"sqlite:///{link}"
    assert clarad("backup", "restore", f"{tmp_path}/copy.db", DATABASE_URL=url).status == 0
    assert link.is_symlink()
    assert len(list(here.state_dir.glob("clarad.db.before-*"))) == 1


def test_nothing_is_restored_under_a_daemon(
    here: Installation, clarad: Console, tmp_path: Path
) -> None:
    with here.daemon() as process:
        clarad("backup", "create", f"{tmp_path}/copy.db")
        before = (here.state_dir / "clarad.db").stat().st_ino
        status, out, err = clarad("backup", "restore", f"{tmp_path}/copy.db")
        assert (status, out) == (1, "")
        assert f"another clarad (process {process.pid}" in err
        assert (here.state_dir / "clarad.db").stat().st_ino == before
        assert here.clarad("status").status == 0


def test_a_file_that_is_there_is_not_written_over(clarad: Console, tmp_path: Path) -> None:
    clarad("migrate")
    (tmp_path / "mine").write_text("mine")
    said = clarad("backup", "create", f"{tmp_path}/mine")
    assert (said.status, said.out) == (1, "")
    assert said.err == f"clarad: {tmp_path}/mine is there already; name another file\n"
    assert (tmp_path / "mine").read_text() == "mine"


def test_without_a_database_there_is_nothing_to_copy(here: Installation, clarad: Console) -> None:
    said = clarad("backup", "create")
    assert said == (1, "", f"clarad: there is no database at {here.state_dir}/clarad.db\n")
    assert not here.state_dir.exists()


def test_no_copy_is_made_of_a_damaged_database(
    here: Installation, clarad: Console, tmp_path: Path
) -> None:
    clarad("migrate")
    path = here.state_dir / "clarad.db"
    flip(path)
    said = clarad("backup", "create", f"{tmp_path}/copy.db")
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith(f"clarad: {path} is damaged: ")
    assert not list(tmp_path.glob("copy*"))


def test_a_directory_that_may_not_be_read_is_one_line(here: Installation, clarad: Console) -> None:
    clarad("migrate")
    here.state_dir.chmod(0)
    with unprivileged():
        said = clarad("backup", "create")
    here.state_dir.chmod(0o700)
    path = here.state_dir / "clarad.db"
    assert said == (1, "", f"clarad: {path}: Permission denied\n")


def test_a_directory_that_is_not_there_is_named_with_what_to_do(
    clarad: Console, tmp_path: Path
) -> None:
    clarad("migrate")
    fix = "make it, or name a file in another one"
    assert clarad("backup", "create", f"{tmp_path}/no/copy.db") == (
        1,
        "",
        f"clarad: cannot write to {tmp_path}/no: No such file or directory; {fix}\n",
    )


@pytest.mark.parametrize("name", ["clarad.db", "clarad.db.new"])
def test_what_a_restore_would_write_over_is_no_copy_to_restore(
    here: Installation, clarad: Console, name: str
) -> None:
    clarad("migrate")
    clarad("tokens", "create", "discord", "--yes")
    copy = clarad("backup", "create").out.strip()
    path = here.state_dir / name
    Path(copy).rename(path)
    before = path.read_bytes()
    said = clarad("backup", "restore", f"{path}")
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith(f"clarad: {path} is written over by this; copy it ")
    assert path.read_bytes() == before


# --- verify --------------------------------------------------------------------------------------


def test_verify_says_what_is_in_a_copy(clarad: Console, tmp_path: Path) -> None:
    clarad("migrate")
    clarad("tokens", "create", "discord", "--yes")
    clarad("backup", "create", f"{tmp_path}/copy.db")
    status, out, err = clarad("backup", "verify", f"{tmp_path}/copy.db")
    assert (status, err) == (0, "")
    assert out.startswith(
        f"{tmp_path}/copy.db is sound\nrevision  {HEAD} (this version works with {HEAD})\n"
    )
    assert "\n       1  clarad_tokens\n" in out


def make_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE clarad_alembic_version SET version_num = '9999'")


def make_foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE sessions (id TEXT)")


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bytes": (flip, "{} is damaged: "),
    "a page less": (cut, "{} is damaged: database disk image is malformed"),
    "no database": (
        lambda path: path.write_text("nothing" * 1000),
        "{} is damaged: file is not a database",
    ),
    "empty": (lambda path: path.write_text(""), "{} is empty"),
    "not there": (Path.unlink, "{}: No such file"),
    "newer": (make_newer, "the database {} is at revision 9999"),
    "another program's": (make_foreign, "{} is no database of clarad's"),
}


@pytest.mark.parametrize("how", UNUSABLE)
def test_a_copy_that_is_not_sound_is_said_and_not_put_in_place(
    here: Installation, clarad: Console, tmp_path: Path, how: str
) -> None:
    copy = tmp_path / "copy.db"
    clarad("migrate")
    clarad("backup", "create", f"{copy}")
    spoil, sentence = UNUSABLE[how]
    spoil(copy)
    before = (here.state_dir / "clarad.db").read_bytes()
    for part in ("verify", "restore"):
        status, out, err = clarad("backup", part, f"{copy}")
        assert (status, out) == (1, "")
        assert err.startswith("clarad: " + sentence.format(copy))
        assert len(err.splitlines()) == 1
    assert (here.state_dir / "clarad.db").read_bytes() == before
    assert not list(here.state_dir.glob("*.new"))


@pytest.mark.parametrize("part", ["create", "restore"])
@pytest.mark.parametrize("backend", SHARED)
def test_of_postgresql_it_names_the_tool_that_does_it(
    clarad: Console, tmp_path: Path, request: pytest.FixtureRequest, backend: str, part: str
) -> None:
    with database(backend, tmp_path, request.config) as url:
        said = clarad("backup", part, f"{tmp_path}/copy.db", DATABASE_URL=url)
    assert (said.status, said.out) == (1, "")
    assert "pg_dump" in said.err
