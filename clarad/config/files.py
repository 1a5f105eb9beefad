"""The daemon's own files: only its user can read them, whatever the umask, and root makes none."""

import errno
import os
import pwd
import shlex
import sys
from pathlib import Path


class NotOurs(Exception):  # noqa: N818 - it is an answer, not a fault
    """The file belongs to another user; the text has the command to run instead."""


class Gone(Exception):  # noqa: N818 - it is what has happened
    """A file that this process holds open was deleted or replaced, or is out of reach."""


class Unwritable(OSError):  # noqa: N818 - it is what the file is
    """A file of the daemon's cannot be written; the text names it, and says why."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self._path = path

    def __str__(self) -> str:
        way_out = "; make room on its disk" if self.errno == errno.ENOSPC else ""
        return f"cannot write {self._path}: {self.strerror}{way_out}"


class Held:
    """A file that must stay at its path as long as this process has it open."""

    def __init__(self, path: Path, found: os.stat_result, way_out: str) -> None:
        """`found` is the file's stat; `way_out` is a sentence on what to do once it is gone."""
        self._path = path
        self._found = found
        self._way_out = way_out

    def require(self) -> None:
        """Raise `Gone` unless the file is still at its path."""
        try:
            is_there = os.path.samestat(self._found, self._path.stat())
        except (FileNotFoundError, NotADirectoryError):
            is_there = False
        except OSError as error:
            raise Gone(
                f"{self._path} cannot be reached any more: {error.strerror}. See that the daemon's "
                "user can read the directory and that its disk works, and start the daemon again"
            ) from None
        if not is_there:
            raise Gone(
                f"{self._path} was deleted or replaced while the daemon ran: what is written now "
                f"is lost. {self._way_out}"
            )


def make_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, for this user alone.

    Raises:
        OSError: it cannot be made.
    """
    missing = [place for place in (path, *path.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)  # another process may have been faster


def make(path: Path) -> None:
    """Make an empty file for this user alone, if nothing is there.

    Raises:
        OSError: it cannot be made, or a link is there that leads nowhere.
    """
    try:
        if not path.exists():
            make_new(path)
    except FileExistsError:
        if not path.exists():  # else another process was faster
            raise


def make_new(path: Path) -> None:
    """Make an empty file for this user alone.

    Raises:
        OSError: it cannot be made, or something is there, be it a link that leads nowhere.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def replace(path: Path, text: str) -> None:
    """Replace a file, for this user alone. Readers, and a power cut, find the old text or the new.

    Raises:
        Unwritable: it cannot be written.
    """
    beside = path.with_name(f"{path.name}.new")
    try:
        beside.unlink(missing_ok=True)
        make_new(beside)  # a link there is not followed
        beside.write_text(text)
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise Unwritable(path, error) from None


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk.

    Raises:
        OSError: it cannot be flushed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_ours(path: Path) -> None:
    """Keep root from making files where another user's daemon keeps its own.

    Raises:
        NotOurs: the path, or its nearest directory, belongs to another user.
        OSError: it cannot be read.
    """
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if os.geteuid() != 0 or (owner := nearest.stat().st_uid) == 0:
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"#{owner}"  # as sudo takes it
    command = shlex.join(["sudo", "-u", name, "clarad", *sys.argv[1:]])
    raise NotOurs(f"{nearest} belongs to the user {name}, and not to root: run `{command}`")
