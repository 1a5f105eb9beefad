"""Locks an SQLite file for one daemon, or one command that changes it, whatever path leads to it.

The lock is one of flock(2), on the database file. It belongs to the inode, so that links and bind
mounts lead to the same lock. SQLite's own locks are those of fcntl(2); on a local file system the
two do not see each other. But a process that closes any descriptor of a file loses all its fcntl
locks on that file: enter `lock_database` before SQLite opens the file, and leave it after SQLite
has closed it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clarad.config import files, instance
from clarad.store.engine import WAY_OUT, StoreError, make_sqlite, require_writable, sqlite_file


class Taken(StoreError):  # noqa: N818 - it is an answer, not a fault
    """Another process has the database; the text says which."""


@contextmanager
def lock_database(url: str) -> Iterator[files.Held | None]:
    """Lock an SQLite database for this process; one of PostgreSQL needs no lock.

    Raises:
        Taken: another process has it.
        StoreError: it cannot be made, or locked.
    """
    if (path := sqlite_file(url)) is None:
        yield None
        return
    descriptor = _lock(path)
    try:
        way_out = f"{WAY_OUT[0].upper()}{WAY_OUT[1:]}, or begin anew with `clarad migrate --new`"
        yield files.Held(path, os.fstat(descriptor), way_out)
    finally:
        os.close(descriptor)


def hold_log(url: str) -> files.Held | None:
    """Return the log of an SQLite database that this process has open; it is there until then.

    `None` if there is none, as in PostgreSQL.
    """
    if (path := sqlite_file(url)) is None:
        return None
    log = path.resolve().with_name(f"{path.resolve().name}-wal")  # it is not beside a link
    try:
        found = log.stat()
    except FileNotFoundError:  # the file system allows none
        return None
    way_out = (
        "Start the daemon again: as it ends it moves what is in the log to the database, as far as "
        "it can"
    )
    return files.Held(log, found, way_out)


def _lock(path: Path) -> int:
    require_writable(path)
    make_sqlite(path)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"cannot open {path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            taken = _taken(path, *_who_has(os.fstat(descriptor)))
            os.close(descriptor)
            raise taken from None
        except OSError as error:
            os.close(descriptor)
            raise StoreError(f"cannot lock {path}: {error.strerror}") from None
        os.close(descriptor)  # a backup was put in its place meanwhile


def require_not_elsewhere(url: str, state_dir: Path) -> None:
    """Look whether a daemon with another state directory has the database; locks nothing.

    Raises:
        Taken: it has, as far as that can be seen.
        StoreError: the database cannot be looked at.
    """
    if (path := sqlite_file(url)) is None:
        return
    try:
        pid, where = _who_has(path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    if where is not None and where.resolve() != state_dir.resolve():
        raise _taken(path, pid, where)


def _taken(path: Path, pid: str | None, state_dir: Path | None) -> Taken:
    who = "a process that cannot be seen from here" if pid is None else f"process {pid}"
    where = "" if state_dir is None else f", state directory {state_dir}"
    return Taken(
        f"another clarad ({who}{where}) uses the database {path}; stop it, or set DATABASE_URL to "
        "another one"
    )


def _who_has(file: os.stat_result) -> tuple[str | None, Path | None]:
    """Find the process that has locked a file, and its state directory, as far as they can be seen.

    A lock of another PID namespace has no number here, and btrfs has other devices in /proc/locks.
    """
    inode = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            match line.split():
                case [_, "FLOCK", _, _, pid, found, *_] if found == inode and pid != "0":
                    return pid, instance.state_dir_of(int(pid))
    return None, None
