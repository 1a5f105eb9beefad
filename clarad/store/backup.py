"""Copies of an SQLite database: made while a daemon writes, verified, and restored."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from sqlalchemy import func, inspect, select

from clarad.config import files
from clarad.store.engine import (
    BUSY_TIMEOUT,
    StoreError,
    errors_in_one_line,
    is_damage,
    is_full,
    open_engine,
    sqlite_file,
)
from clarad.store.lock import lock_database
from clarad.store.migrate import current_revision
from clarad.store.models import Base

_POSTGRESQL: Final = (
    "this is for SQLite; of PostgreSQL pg_dump makes backups, and pg_restore puts them back"
)


_FIXES: Final = {
    errno.ENOENT: "make it, or name a file in another one",
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room on its disk",
}


class Contents(NamedTuple):
    """What is in a backup: its revision, and the rows of each table of clarad's."""

    revision: str
    rows: dict[str, int]


def create(url: str, target: Path) -> Contents:
    """Copy the database to a new file, as it is now; a daemon that runs goes on writing.

    Raises:
        StoreError: it cannot be read, the file is there already, or the copy is not sound.
    """
    source = require_file(url)
    with _errors(target):
        if os.path.lexists(target):
            raise StoreError(f"{target} is there already; name another file")
        files.require_ours(target)
        with _beside(target) as new:
            _copy(source, new)
            found = _look_into(new, source)  # what is wrong with the copy came from there
            new.rename(target)
    return found


def verify(file: Path) -> Contents:
    """Read a backup from its first page to its last, and return what is in it.

    Raises:
        StoreError: it cannot be read, is damaged, is no database of clarad's, or of a newer one.
    """
    return _look_into(file, file)


def _look_into(file: Path, name: Path) -> Contents:
    """Read a copy; what is wrong is said of `name`."""
    with _errors(name):
        if file.stat().st_size == 0:
            raise StoreError(f"{name} is empty")
        with closing(_open(file)) as database:
            [found, *_] = database.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise StoreError(f"{name} is damaged: {found}")
    engine = open_engine(f"sqlite:///{quote(str(file.absolute()))}", read_only=True)
    try:
        if (revision := current_revision(engine)) is None:
            raise StoreError(f"{name} is no database of clarad's")
        with errors_in_one_line(), engine.connect() as connection:
            there = set(inspect(connection).get_table_names())
            tables = [table for table in Base.metadata.sorted_tables if table.name in there]
            count = select(func.count())
            rows = {
                table.name: connection.scalars(count.select_from(table)).one() for table in tables
            }
        return Contents(revision, rows)
    finally:
        engine.dispose()


def restore(url: str, file: Path) -> tuple[Contents, Path | None]:
    """Put a backup in the database's place; return what is in it, and where that is kept now.

    Raises:
        StoreError: the backup is not sound, a daemon runs (`Taken`), or it cannot be written.
    """
    target = require_file(url, is_there=False)
    found = verify(file)
    with _errors(file):
        for ours in (target, _new(target)):
            if ours.exists() and file.samefile(ours):
                raise StoreError(f"{file} is written over by this; copy it to another name first")
    with lock_database(url), _errors(target), _beside(target) as new:
        _copy(file, new)
        if _look_into(new, file) != found:
            raise StoreError(f"{file} has changed while it was copied; try again")
        _take_in_log(target)
        kept = _keep(target)
        new.replace(target)
    return found, kept


def _take_in_log(target: Path) -> None:
    """Write what is in a database's log into its file, as far as that can be read.

    A kill, from here to the end, then leaves a whole database: the old one, or the backup.
    """
    if target.stat().st_size == 0:  # SQLite would delete the log of an empty file
        return
    try:
        with closing(sqlite3.connect(target, timeout=BUSY_TIMEOUT)) as database:
            [is_busy, *_] = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except (sqlite3.Error, UnicodeDecodeError):
        return  # it cannot be read, nor could a daemon: it is kept in its two parts
    if is_busy:
        raise StoreError(f"another program reads {target}; end it, and try again")


def _keep(target: Path) -> Path | None:
    """Keep what was there beside the file, with its log if that could not be read.

    A log that stays would be played back into the backup. The file stays, and with it the lock.
    """
    log, index = (target.with_name(f"{target.name}{end}") for end in ("-wal", "-shm"))
    kept = None
    if target.stat().st_size or log.exists():
        kept = target.with_name(f"{target.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        kept.hardlink_to(target)
        if log.exists():
            log.rename(kept.with_name(f"{kept.name}-wal"))
    index.unlink(missing_ok=True)
    return kept


def require_file(url: str, *, is_there: bool = True) -> Path:
    """Return the file of an SQLite database; raises `StoreError` if there is none."""
    if (path := sqlite_file(url)) is None:
        raise StoreError(_POSTGRESQL)
    with _errors(path):
        if is_there and not path.exists():
            raise StoreError(f"there is no database at {path}")
    return path.resolve()  # the log is beside the file, and not beside a link to it


def _open(file: Path) -> sqlite3.Connection:
    # As in `open_engine`: without a log beside it nobody writes, and reading need not make one.
    how = "mode=ro" if file.with_name(f"{file.name}-wal").exists() else "mode=ro&immutable=1"
    return sqlite3.connect(f"file:{quote(str(file.absolute()))}?{how}", uri=True)


def _copy(source: Path, target: Path) -> None:
    """Copy a database, with what is in its log, to a file of one part that is on the disk."""
    with _errors(source), closing(_open(source)) as one, closing(sqlite3.connect(target)) as other:
        try:
            one.backup(other)  # all pages in one step, of one moment
            other.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            place = target.absolute().parent  # the source is only read
            raise StoreError(f"cannot write to {place}: {error}; make room on its disk") from None
    files.sync(target)


def _new(target: Path) -> Path:
    return target.with_name(f"{target.name}.new")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a new file beside the target; it is removed unless the block renames it."""
    new = _new(target)
    try:
        new.unlink(missing_ok=True)
        files.make_new(new)
    except OSError as error:  # of the directory: nobody has asked for a file of this name
        fix = _FIXES.get(error.errno or 0, "name a file in another one")
        place = target.absolute().parent
        raise StoreError(f"cannot write to {place}: {error.strerror}; {fix}") from None
    try:
        yield new
    finally:
        new.unlink(missing_ok=True)
    files.sync(target.parent)


@contextmanager
def _errors(file: Path) -> Iterator[None]:
    """Raise as `StoreError`, with the file, what goes wrong within the block."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise StoreError(f"{file}{' is damaged' * is_damage(error)}: {error}") from None
    except files.NotOurs as error:
        raise StoreError(str(error)) from None
    except OSError as error:
        raise StoreError(f"{error.filename or file}: {error.strerror}") from None
