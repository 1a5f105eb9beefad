"""The journal's native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL).

Rejected: `logging-journald`, which sends from a blocking handler and stalls the loop while journald
is frozen, and makes IDs from a hash of the text; and `cysystemd`, which needs a compiler.
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
"""The names that a field can have; journald drops others, and those with a leading underscore."""

_BUFFER: Final = 8 * 1024 * 1024
"""Bytes of records that may wait in the kernel, as far as it allows; as sd-journal asks for."""

_LOOK: Final = 0.001
"""Seconds between two checks whether journald has read everything."""

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
    """The client of journald. Its socket is not connected, so it survives a restart of journald."""

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
        """Send a record; blocks as long as journald does not read.

        Raises:
            OSError: the record cannot be sent, for example as no journald listens.
        """
        try:
            self._socket.sendto(record, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_in_memory(record)

    def drain(self, timeout: float) -> None:
        """Wait until journald has read what was sent, for at most `timeout` seconds.

        journald looks up the sender's unit when it reads a record, and finds none for a process
        that has ended: `journalctl -u` would not show why a start was refused.
        """
        waiting = array.array("i", [0])
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            fcntl.ioctl(self._socket, termios.TIOCOUTQ, waiting)  # SIOCOUTQ of unix(7)
            if not waiting[0]:
                return
            time.sleep(_LOOK)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send_in_memory(self, record: bytes) -> None:
        """Send a record that is too large for a datagram in sealed memory, as journald wants."""
        memory = os.memfd_create("clarad-record", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(record)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]))
            self._socket.sendmsg([], [rights], 0, self._path)
        finally:
            os.close(memory)
