"""Which installation of clarad this is: its state directory, and a name for the rest."""

import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final

from clarad.config import files

FILE_NAME: Final = "instance"

_LOCK: Final = "clarad.lock"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class AlreadyRunning(Exception):  # noqa: N818 - it is an answer, not a fault
    """Another daemon uses the state directory; the text says which."""


class Nameless(Exception):  # noqa: N818 - it is what the installation is
    """The installation has lost its name; the text says what to do."""


def identify(state_dir: Path) -> str:
    """Return the name of the installation that keeps its state here; the first call makes it.

    Its commands and its sandboxes carry it, so that its next start knows what is its own.

    Raises:
        Nameless: the file is there, and no name is in it.
        OSError: the directory cannot be read or written.
    """
    path = state_dir / FILE_NAME
    if not path.exists():
        files.replace(path, secrets.token_hex(8) + "\n")
    if not (name := path.read_text().strip()):
        raise Nameless(
            f"{path} is empty: it has the name that sandboxes and commands of this installation "
            "carry; put it back from a backup, or remove it to have a new name made, after which "
            "what an earlier daemon has left is not found"
        )
    return name


def label(state_dir: Path) -> str:
    """Return what this installation's sandboxes are labelled with; raises as `identify`."""
    return f"clarad-{identify(state_dir)}"


def claimant(state_dir: Path) -> str:
    """Return a digest that only daemons with this lock file, in this boot of the kernel, share.

    Only one process can hold the lock, so an earlier daemon with the same claimant has ended. The
    installation's name does not prove that: directories are copied, and seen by several machines.

    Raises:
        OSError: the directory cannot be read or written.
    """
    lock = state_dir / _LOCK
    files.make(lock)
    found = lock.stat()
    about = (identify(state_dir), _BOOT.read_text().strip(), found.st_dev, found.st_ino)
    return blake2b(repr(about).encode(), digest_size=16).hexdigest()


def state_dir_of(pid: int) -> Path | None:
    """Return the state directory that a process holds, `None` if there is none to see."""
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # it is closed by now
                if (found := link.readlink()).name == _LOCK:
                    return found.parent
    return None


def probe(state_dir: Path) -> None:
    """Do what `lock_state_dir` does, short of taking the lock, and leave nothing behind.

    The permissions of the directory do not say enough: root has all of them in /proc, too, and on a
    disk that is full.

    Raises:
        OSError: what `lock_state_dir` would fail with.
    """
    missing = [place for place in (state_dir, *state_dir.parents) if not place.exists()]
    try:
        files.make_directory(state_dir)
        with tempfile.TemporaryFile(dir=state_dir) as file:
            file.write(b"\n")
    finally:
        for place in missing:
            with suppress(OSError):  # it was not made, or somebody has begun to use it
                place.rmdir()


@contextmanager
def lock_state_dir(state_dir: Path) -> Iterator[files.Held]:
    """Lock the state directory for this process; the kernel releases the lock when it ends.

    Raises:
        AlreadyRunning: another process has the lock, or this one may not write the directory.
        files.Unwritable: the disk is full.
    """
    try:
        files.require_ours(state_dir)
        files.make_directory(state_dir)
        files.make(state_dir / _LOCK)
        lock = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except files.NotOurs as error:
        raise AlreadyRunning(str(error)) from None
    except OSError as error:
        raise AlreadyRunning(
            f"cannot write to {state_dir}: {error.strerror}; set CLARA_STATE_DIR to a directory "
            "that the daemon owns"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        raise AlreadyRunning(
            f"another clarad (process {pid or 'unknown'}) uses {state_dir}; stop it, or set "
            "CLARA_STATE_DIR"
        ) from None
    try:
        try:
            os.ftruncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise files.Unwritable(state_dir / _LOCK, error) from None
        way_out = "Put the directory back, or start the daemon again: it goes on with what is there"
        yield files.Held(state_dir / _LOCK, os.fstat(lock), way_out)
    finally:
        os.close(lock)
