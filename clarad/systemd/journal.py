"""The journal's native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL).

Our own hundred lines: `logging-journald` sends from a blocking handler, which stalls the loop while
journald stands still, and makes ids of a hash of the text; `cysystemd` needs a compiler.
"""

import array
import errno
import fcntl
import os
import re
import socket
import struct
import termios
import time
from collections.abc import Iterable, Mapping
from typing import Final

SOCKET: Final = "/run/systemd/journal/socket"

NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
"""What a field can be called; journald drops others, and those with an underscore in front."""

_BUFFER: Final = 8 * 1024 * 1024
"""Bytes of records that wait in the kernel, as far as it lets us; as sd-journal asks for."""

_LOOK: Final = 0.001
"""Seconds between two looks at whether it has taken everything."""

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def is_connected(environ: Mapping[str, str], fd: int) -> bool:
    """Whether `fd` leads into the journal, by `JOURNAL_STREAM` (systemd.exec(5))."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return one record; a field may come more than once. Names are as `NAME` says.

    What UTF-8 cannot say, such as half a surrogate pair, becomes an escape sequence.
    """
    return b"".join(_field(name, value) for name, value in fields)


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return b"%b=%b\n" % (name.encode(), data)
    return b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(data)), data)


class Journal:
    """The way to journald; not connected, so that a journald that is started again is found."""

    def __init__(self, path: str) -> None:
        """Open it.

        Raises:
            OSError: nobody listens there.
        """
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                probe.connect(path)
        except OSError:
            self._socket.close()
            raise

    def send(self, record: bytes) -> None:
        """Hand over a record; blocks as long as journald does not read.

        Raises:
            OSError: it cannot be handed over; nobody listens, for one.
        """
        try:
            self._socket.sendto(record, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_in_memory(record)

    def await_taken(self, timeout: float) -> None:
        """Wait until journald has taken what was sent, for at most `timeout` seconds.

        It looks up the sender's unit when it takes a record, and a process that has ended by then
        has none: `journalctl -u` would not show why a start was refused.
        """
        waiting = array.array("i", [0])
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            fcntl.ioctl(self._socket, termios.TIOCOUTQ, waiting)  # SIOCOUTQ of unix(7)
            if not waiting[0]:
                return
            time.sleep(_LOOK)

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def _send_in_memory(self, record: bytes) -> None:
        """Send what is too large for a datagram: sealed, so that journald can trust it to stay."""
        memory = os.memfd_create("clarad-record", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(record)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]))
            self._socket.sendmsg([], [rights], 0, self._path)
        finally:
            os.close(memory)
