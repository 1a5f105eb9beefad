"""Notifies systemd by sd_notify(3): each datagram has assignments, one a line.

Nothing here blocks: if systemd has no room for a datagram, `send` returns `False`. Rejected: a
library. No maintained one supports all of the protocol (descriptors, the monotonic time of a
reload).
"""

import array
import logging
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Final

log = logging.getLogger(__name__)

MAX_STATUS: Final = 500
"""Characters of a status; systemd reads 4 KiB of a datagram."""

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
WATCHDOG: Final = "WATCHDOG=1"


def reloading() -> str:
    """Say that a reload begins at this moment; it ends with `READY`."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"


def status(text: str) -> str:
    """Return the status line; characters that cannot be printed become spaces."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return f"STATUS={line if len(line) <= MAX_STATUS else line[: MAX_STATUS - 1] + '…'}"


def extend_timeout(seconds: float) -> str:
    """Ask for so many seconds from now on, whatever the unit's timeout says."""
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"


class Notifier:
    """The client of systemd's socket; without an address, `send` does nothing and succeeds.

    `address` is a path, or a name in the abstract namespace that begins with `@`.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address and ("\0" + address[1:] if address.startswith("@") else address)
        self._is_lost = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        if self._socket is not None:
            self._socket.setblocking(False)

    @property
    def is_enabled(self) -> bool:
        """Whether systemd wants to be notified."""
        return self._socket is not None

    def send(self, *assignments: str, descriptors: Sequence[int] = ()) -> bool:
        """Send assignments in one datagram; `False` if they have to be sent again later."""
        if self._socket is None or not assignments:
            return True
        data = "\n".join(assignments).encode(errors="replace")
        rights = array.array("i", descriptors)
        attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        try:
            self._socket.sendmsg([data], attached, socket.MSG_NOSIGNAL, self._address)
        except OSError as error:
            if not self._is_lost:
                log.warning("systemd was not told %s: %s", assignments[0], error.strerror)
            self._is_lost = True
            return False
        self._is_lost = False
        return True

    def keep(self, name: str, sockets: Iterable[socket.socket]) -> bool:
        """Store sockets with systemd for the next start; a socket is stored only once.

        The unit's FileDescriptorStoreMax= limits how many.
        """
        descriptors = [one.fileno() for one in sockets]
        return self.send("FDSTORE=1", f"FDNAME={name}", descriptors=descriptors)

    def forget(self, name: str) -> bool:
        """Have systemd close the sockets that it has stored by this name."""
        return self.send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def close(self) -> None:
        """Close the socket; `send` does nothing from then on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
