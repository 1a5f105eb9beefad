"""The gateway's listening sockets where systemd keeps them over a restart.

Whoever connects while no daemon is there waits in the socket's backlog, and is served by the next
one. The sockets come from systemd's store, into which an earlier daemon has put them, or from
`clarad.socket`; what neither has is bound here, and put into the store.
"""

import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import trio

from clarad.config import is_loopback
from clarad.systemd.handover import Handed
from clarad.systemd.notify import Notifier
from clarad.transport.listeners import CannotListen, TcpEndpoint

log = logging.getLogger(__name__)

STORED: Final = "clarad-gateway"
"""The name that our sockets have in systemd's store (FDNAME=)."""

UNIT: Final = "clarad.socket"
"""The name that sockets of the unit of this name have (FileDescriptorName=)."""

_RELEASE: Final = 3.0
"""Seconds that systemd has to close a socket that it is no longer to keep."""


class _Place(NamedTuple):
    """Where to listen: an address in numbers. Port 0 is any port."""

    family: int
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def covers(self, other: "_Place") -> bool:
        return self[:2] == other[:2] and self.port in (0, other.port)


class KeptEndpoint:
    """A TCP port of one host, as `TcpEndpoint`, whose sockets outlive this process.

    They stay open when this is closed, and connections wait in them. (Rejected: closing ours, and
    binding again. systemd's copy still listens there.)
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        handed: Sequence[Handed],
        notifier: Notifier,
        is_guarded: bool,
    ) -> None:
        """`is_guarded` says whether there is a secret, so that others may reach the gateway."""
        self.address = (host, port)
        self._handed = handed
        self._notifier = notifier
        self._is_guarded = is_guarded
        self._kept: list[socket.socket] = []
        self._listeners: list[trio.SocketListener] = []

    async def open(self) -> list[trio.SocketListener]:
        """Listen; the first time, find out on what.

        Raises:
            CannotListen: an address cannot be bound, or that of `clarad.socket` cannot be used.
        """
        if not self._kept:
            self._kept = await self._choose()
        await trio.lowlevel.checkpoint()
        self._listeners = [
            trio.SocketListener(trio.socket.from_stdlib_socket(kept.dup())) for kept in self._kept
        ]
        _, host, port = _bound(self._kept[0])
        self.address = (host, port)
        return self._listeners

    def close(self) -> None:
        """Take no more connections; those that come wait."""
        for listener in self._listeners:
            listener.socket.close()

    def release(self) -> None:
        """Close our copies, at the end of the daemon; those who wait are systemd's to keep."""
        for ours in (*self._kept, *(one.socket for one in self._handed)):
            ours.close()

    async def _choose(self) -> list[socket.socket]:
        from_unit = [one.socket for one in self._handed if one.name == UNIT]
        stored = [one.socket for one in self._handed if one.name == STORED]
        for name, unknown in self._handed:
            if name not in (UNIT, STORED):
                log.warning("a socket named %r was handed over, and is not used", name)
                unknown.close()
        wanted = await _resolve(*self.address)
        if from_unit:
            self._drop(stored)
            self._accept(from_unit, wanted)
            return from_unit
        return await self._complete(stored, wanted)

    async def _complete(
        self, stored: list[socket.socket], wanted: list[_Place]
    ) -> list[socket.socket]:
        """Use what is stored and wanted, and bind what is missing."""
        fitting = {place: _take_fitting(place, stored) for place in wanted}
        stale = bool(stored)
        self._drop(stored)
        chosen = [found or await self._bind(at, after=stale) for at, found in fitting.items()]
        if stale or not all(fitting.values()):
            self._notifier.keep(STORED, chosen)
        return chosen

    def _drop(self, stale: list[socket.socket]) -> None:
        """Let go of what is stored and not wanted, and have systemd do so, too."""
        for one in stale:
            log.warning(
                "the socket on %s, kept from the last daemon, is not where the gateway is to be; "
                "it is closed",
                _bound(one),
            )
            one.close()
        if stale:
            self._notifier.forget(STORED)

    def _accept(self, from_unit: list[socket.socket], wanted: list[_Place]) -> None:
        """See whether the gateway can be where the unit says: who wrote the unit wants it there.

        Raises:
            CannotListen: it cannot.
        """
        for one in from_unit:
            if one.family not in (socket.AF_INET, socket.AF_INET6) or not _listens(one):
                raise CannotListen(
                    f"{UNIT} has something else than a TCP port: write ListenStream= with an "
                    "address and a port, and no Accept="
                )
            if not self._is_guarded and not is_loopback(_bound(one).host):
                raise CannotListen(
                    f"{UNIT} listens on {_bound(one)}, which is reachable from other machines: set "
                    "CLARA_GATEWAY_SECRET to a long random word, or ListenStream= to 127.0.0.1"
                )
        places = [_bound(one) for one in from_unit]
        if not all(any(one.covers(place) for place in places) for one in wanted):
            log.warning(
                "the gateway is on %s, as %s says; CLARA_GATEWAY_HOST and CLARA_GATEWAY_PORT say "
                "%s, and have no effect",
                " and ".join(map(str, places)),
                UNIT,
                " and ".join(map(str, wanted)),
            )

    async def _bind(self, place: _Place, *, after: bool) -> socket.socket:
        """Bind; `after` a socket was let go of that may be in the way for another moment."""
        endpoint = TcpEndpoint(place.host, place.port)
        deadline = trio.current_time() + (_RELEASE if after else 0)
        while trio.current_time() < deadline:
            with suppress(CannotListen):
                return _plain(*await endpoint.open())
            await trio.sleep(0.05)
        return _plain(*await endpoint.open())


async def _resolve(host: str, port: int) -> list[_Place]:
    """Return the addresses of a host, without those of a family that this machine does not have."""
    try:
        found = await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise CannotListen(
            f"cannot listen on {host} port {port}: {error.strerror}; set CLARA_GATEWAY_HOST to an "
            "address of this machine"
        ) from None
    places = [_Place(family, str(name[0]), int(name[1])) for family, _, _, _, name in found]
    return [place for place in dict.fromkeys(places) if _has(place.family)] or places


def _has(family: int) -> bool:
    try:
        socket.socket(family).close()
    except OSError:
        return False
    return True


def _bound(one: socket.socket) -> _Place:
    name = one.getsockname()
    if not isinstance(name, tuple):  # a unix socket's
        return _Place(one.family, str(name), 0)
    return _Place(one.family, name[0], name[1])


def _listens(one: socket.socket) -> bool:
    is_stream = one.type == socket.SOCK_STREAM
    return is_stream and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def _take_fitting(place: _Place, stored: list[socket.socket]) -> socket.socket | None:
    """Take the socket that listens there out of those that are stored."""
    for one in stored:
        if place.covers(_bound(one)) and _listens(one):
            stored.remove(one)
            return one
    return None


def _plain(listener: trio.SocketListener) -> socket.socket:
    return socket.socket(fileno=listener.socket.detach())
