"""Opens the database: SQLite with the settings that keep what was committed, or PostgreSQL."""

import logging
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    ExceptionContext,
    NullPool,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from clarad.config import files

BUSY_TIMEOUT = 5.0
"""Seconds to wait for another process that holds SQLite's write lock."""

STANDSTILL: Final = 5
"""Seconds until PostgreSQL ends an idle transaction of a daemon."""

_PATIENCE: Final = {
    "connect_timeout": 10,
    # libpq's settings that detect a dead network, in seconds and milliseconds.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}


# The pool logs errors with tracebacks, such as closing a cut connection, that are raised as well.
logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)


WAY_OUT: Final = "put a backup in its place with `clarad backup restore FILE`"


class StoreError(Exception):
    """The database failed, or cannot be used; the text says why, in one line."""


class Unfit(StoreError):  # noqa: N818 - it is what the database is
    """The database is damaged, empty, or of a newer clarad: trying again does not help."""


class Damaged(Unfit):
    """The file of an SQLite database is damaged."""

    def __init__(self, path: Path, words: object) -> None:
        super().__init__(f"the database {path} is damaged ({words}): {WAY_OUT}")


def open_engine(url: str, *, read_only: bool = False) -> Engine:
    """Make an engine for `url`; nothing is connected yet. To be disposed of by the caller.

    `read_only` keeps an SQLite file as it is, and takes no lock on it that others would feel.

    Raises:
        StoreError: the URL cannot be read, or its driver is not installed.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StoreError("DATABASE_URL cannot be read; write dialect://user@host/name") from None
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(parsed, read_only=read_only)
    return _open_postgresql(parsed)


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite database, `None` if it is one of PostgreSQL."""
    parsed = make_url(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def reach(engine: Engine) -> None:
    """Connect, and no more; raises `StoreError` if the database cannot be reached. Blocks."""
    with errors_in_one_line(), engine.connect():
        pass


def one_line(error: BaseException) -> str:
    """What a database says, without the statement and its parameters, which can be private."""
    original = getattr(error, "orig", None) or error
    # PostgreSQL goes on with the statement after the first line.
    return str(original).strip().partition("\n")[0] or type(original).__name__


def as_store_error(error: Exception) -> StoreError:
    """Return what a job failed with as a `StoreError`."""
    return error if isinstance(error, StoreError) else StoreError(one_line(error))


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Raise what SQLAlchemy raises within the block as `StoreError`."""
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreError(one_line(error)) from error


def connect_alone(engine: Engine) -> Any:
    """Connect to PostgreSQL with only the driver, which sends no queries of its own. Blocks."""
    arguments, options = engine.dialect.create_connect_args(engine.url)
    return engine.dialect.loaded_dbapi.connect(*arguments, **{**_PATIENCE, **options})


def cut(driver: Any) -> None:
    """Shut a connection to PostgreSQL down: a thread that waits for its answer gets an error."""
    with (
        suppress(OSError, driver.Error),  # it is closed already
        socket.socket(fileno=os.dup(driver.fileno())) as connection,
    ):
        connection.shutdown(socket.SHUT_RDWR)


def _open_postgresql(url: URL) -> Engine:
    wanted = {name: value for name, value in _PATIENCE.items() if name not in url.query}
    try:
        # Each connection is kept by who uses it. What the pool and the dialect ask of a new one
        # could not be cut off, should the network be gone by then.
        return create_engine(url, poolclass=NullPool, use_native_hstore=False, connect_args=wanted)
    except ImportError:
        raise StoreError(
            "PostgreSQL needs the driver psycopg; install clarad with its extra: clarad[postgres]"
        ) from None


def _open_sqlite(url: URL, *, read_only: bool) -> Engine:
    path = Path(url.database or "")
    if read_only:
        # Without a log beside it nobody has it open, and reading need not make one.
        has_log = os.path.exists(f"{path}-wal")
        how = "mode=ro" if has_log else "mode=ro&immutable=1"  # sqlite.org/uri.html
        uri = f"file:{quote(str(path.absolute()))}?{how}"
        engine = create_engine(url, creator=lambda: sqlite3.connect(uri, uri=True))
        event.listen(engine, "handle_error", _name_file, retval=True)
        return engine
    require_writable(path)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT})
    event.listen(engine, "do_connect", lambda *_: make_sqlite(path))

    def set_up(connection: sqlite3.Connection, _record: Any) -> None:
        try:
            _set_up_sqlite(connection)
        except UnicodeDecodeError as error:  # here only errors of the driver's go on to handlers
            raise Damaged(path, error) from None

    event.listen(engine, "connect", set_up)
    event.listen(engine, "handle_error", _name_file, retval=True)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def require_writable(path: Path) -> None:
    """Raise `StoreError`, with the path, where SQLite would only say "unable to open"."""
    try:
        files.require_ours(path)
        # The directory, too: the log is in it (sqlite.org/wal.html, "Read-Only Databases").
        for place in (path, path.parent):
            if place.exists() and not os.access(place, os.W_OK, effective_ids=True):
                raise StoreError(
                    f"cannot write to {place}; make it the daemon's own, or set DATABASE_URL to a "
                    "database that it may write"
                )
    except (files.NotOurs, OSError) as error:
        raise StoreError(str(error)) from None


def make_sqlite(path: Path) -> None:
    """Make the file with our mode before SQLite does; its log gets the same mode.

    Raises:
        StoreError: it cannot be made, or the path is a dangling link.
    """
    if path.is_symlink() and not path.exists():
        raise StoreError(f"{path} is a link to {path.readlink()}, which is not there; remove it")
    try:
        files.make(path)
    except OSError as error:
        raise StoreError(
            f"cannot make the database {path}: {error.strerror}; make its directory, for the "
            "daemon's user, or set DATABASE_URL to another place"
        ) from None


def is_damage(error: BaseException) -> bool:
    """Whether the error says that the file is damaged, or is no database."""
    # SQLite quotes a broken schema in its error, which the driver may fail to decode.
    if isinstance(error, UnicodeDecodeError):
        return True
    # The lowest byte is the kind of error (sqlite.org/rescode.html).
    kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_full(error: BaseException) -> bool:
    """Whether SQLite fails because there is no room on the disk."""
    code = getattr(error, "sqlite_errorcode", 0)
    # The index of its log, which it makes when it opens a file, is a case of its own.
    return code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE


def _name_file(context: ExceptionContext) -> Exception | None:
    """Add the name of the file, and what to do, to errors in which SQLite leaves them out."""
    error = context.original_exception
    url = context.engine.url if context.engine is not None else None
    path = Path(url.database or "" if url is not None else "")
    if is_damage(error):
        return Damaged(path, error)
    if is_full(error):
        fix = "make room on its disk"
    elif getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
        fix = "the kernel's log (`journalctl -k`) says what its disk has"
    else:
        return None
    named = sqlite3.OperationalError(f"{path}: {error}; {fix}")
    return OperationalError(context.statement, None, named)


def _set_up_sqlite(connection: sqlite3.Connection) -> None:
    # The driver's own BEGIN comes late and not before DDL; we emit ours (SQLAlchemy, "Serializable
    # isolation / Savepoints / Transactional DDL" in the pysqlite dialect's documentation).
    connection.isolation_level = None
    # So that free pages can be given back. It has to be said before the first table is made; in a
    # file that is not new it is what VACUUM will do (`clarad.store.vacuum`).
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    # WAL lets the command line read while the daemon writes. FULL makes a commit survive a power
    # cut (sqlite.org/pragma.html#pragma_synchronous): an accepted message is on the disk.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE: a transaction that will write waits for the lock at its start, where waiting is
    # safe; a deferred one fails half way, without waiting.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
