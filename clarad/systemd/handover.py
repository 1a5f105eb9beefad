"""What systemd passes to a process that it starts: read once, and removed from the environment.

Children of this process must not report to systemd in its name. The rules are those of
sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3).
"""

import logging
import os
import socket
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

FIRST_DESCRIPTOR: Final = 3
"""The first descriptor that systemd passes (`SD_LISTEN_FDS_START`)."""

_NAMES: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
)


class Handed(NamedTuple):
    """A socket, with the name that its unit gave it, or that we gave it when we stored it."""

    name: str
    socket: socket.socket


@dataclass(frozen=True)
class Handover:
    """Where to report to, the watchdog's timeout in seconds, and sockets."""

    notify_socket: str | None = None
    watchdog: float | None = None
    sockets: tuple[Handed, ...] = ()


NOTHING: Final = Handover()
"""The handover of a process that systemd did not start."""


def receive(environ: MutableMapping[str, str] = os.environ) -> Handover:
    """Return what is meant for this process; remove what is meant for another one, too.

    Call it once, before descriptors are closed or programs started. The sockets do not block, and
    are closed when another program is executed.
    """
    found = {name: environ.pop(name, "") for name in _NAMES}
    ours = ("", str(os.getpid()))
    watchdog = None
    if found["WATCHDOG_PID"] in ours and (microseconds := _number("WATCHDOG_USEC", found)):
        watchdog = microseconds / 1e6
    sockets: tuple[Handed, ...] = ()
    if found["LISTEN_PID"] == str(os.getpid()):
        names = found["LISTEN_FDNAMES"].split(":")
        sockets = tuple(_sockets(_number("LISTEN_FDS", found), names))
    return Handover(found["NOTIFY_SOCKET"] or None, watchdog, sockets)


def _number(name: str, found: dict[str, str]) -> int:
    text = found[name]
    if text.isascii() and text.isdigit():
        return int(text)
    if text:
        log.warning("%s=%r is not a number, and has no effect", name, text)
    return 0


def _sockets(count: int, names: list[str]) -> Iterator[Handed]:
    for n in range(count):
        descriptor = FIRST_DESCRIPTOR + n
        name = names[n] if n < len(names) else "unknown"
        try:
            os.set_inheritable(descriptor, False)
            handed = socket.socket(fileno=descriptor)
        except OSError as error:
            log.warning("descriptor %d (%s) is no socket: %s", descriptor, name, error.strerror)
            continue
        handed.setblocking(False)
        yield Handed(name, handed)
