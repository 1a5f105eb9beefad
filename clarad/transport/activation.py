"""Socket activation: systemd holds the gateway's listening sockets over a restart.

A client that connects while no daemon runs waits in the socket's backlog, and the next daemon
accepts it. The sockets come from `clarad.socket`, or from systemd's file descriptor store, into
which an earlier daemon has put them. Addresses that neither has are bound here and stored.
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
"""The name of our sockets in systemd's store (FDNAME=)."""

UNIT: Final = "clarad.socket"
"""The name of the sockets that this unit passes on (FileDescriptorName=)."""

_RELEASE_TIMEOUT: Final = 3.0
"""Seconds for systemd to close a socket that was removed from its store."""


class _Place(NamedTuple):
    """A numeric address to listen at. Port 0 stands for any port."""

    family: int
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def covers(self, other: "_Place") -> bool:
        return self[:2] == other[:2] and self.port in (0, other.port)


class ActivatedEndpoint:
    """A TCP port of one host, like `TcpEndpoint`, whose sockets outlive this process.

    The sockets stay open after `close`, and connections wait in their backlog. (Rejected: closing
    ours and binding again. That fails, since systemd's copy still listens.)
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
        """`is_guarded`: a secret is set, so other machines may reach the gateway."""
        self.address = (host, port)
        self._handed = handed
        self._notifier = notifier
        self._is_guarded = is_guarded
        self._sockets: list[socket.socket] = []
        self._listeners: list[trio.SocketListener] = []

    async def open(self) -> list[trio.SocketListener]:
        """Listen; the first call chooses the sockets.

        Raises:
            CannotListen: an address cannot be bound, or that of `clarad.socket` cannot be used.
        """
        if not self._sockets:
            self._sockets = await self._choose()
        await trio.lowlevel.checkpoint()
        self._listeners = [
            trio.SocketListener(trio.socket.from_stdlib_socket(one.dup())) for one in self._sockets
        ]
        _, host, port = _bound(self._sockets[0])
        self.address = (host, port)
        return self._listeners

    def close(self) -> None:
        """Accept no more connections; new ones wait in the backlog."""
        for listener in self._listeners:
            listener.socket.close()

    def release(self) -> None:
        """Close our copies at the daemon's end; systemd's copies keep the waiting connections."""
        for copy in (*self._sockets, *(one.socket for one in self._handed)):
            copy.close()

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
        """Use the stored sockets that are wanted, and bind those that are missing."""
        fitting = {place: _pop_fitting(place, stored) for place in wanted}
        stale = bool(stored)  # what is left of them after the line above
        self._drop(stored)
        chosen = [
            found or await self._bind(at, after_release=stale) for at, found in fitting.items()
        ]
        if stale or not all(fitting.values()):
            self._notifier.keep(STORED, chosen)
        return chosen

    def _drop(self, stale: list[socket.socket]) -> None:
        """Close stored sockets that are not wanted, and remove them from systemd's store."""
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
        """Check that the gateway can use the unit's sockets, which take precedence over settings.

        Raises:
            CannotListen: a socket is not a TCP listener, or is reachable though no secret is set.
        """
        for one in from_unit:
            if one.family not in (socket.AF_INET, socket.AF_INET6) or not _is_tcp_listener(one):
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

    async def _bind(self, place: _Place, *, after_release: bool) -> socket.socket:
        """Bind; if `after_release`, try again while systemd still has a socket in the way."""
        endpoint = TcpEndpoint(place.host, place.port)
        deadline = trio.current_time() + (_RELEASE_TIMEOUT if after_release else 0)
        while trio.current_time() < deadline:
            with suppress(CannotListen):
                return _detach(*await endpoint.open())
            await trio.sleep(0.05)
        return _detach(*await endpoint.open())


async def _resolve(host: str, port: int) -> list[_Place]:
    """Return the addresses of a host, without families that this machine does not support."""
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
    return [place for place in dict.fromkeys(places) if _is_supported(place.family)] or places


def _is_supported(family: int) -> bool:
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


def _is_tcp_listener(one: socket.socket) -> bool:
    is_stream = one.type == socket.SOCK_STREAM
    return is_stream and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def _pop_fitting(place: _Place, stored: list[socket.socket]) -> socket.socket | None:
    """Remove from `stored` the socket that listens at this place, and return it."""
    for one in stored:
        if place.covers(_bound(one)) and _is_tcp_listener(one):
            stored.remove(one)
            return one
    return None


def _detach(listener: trio.SocketListener) -> socket.socket:
    return socket.socket(fileno=listener.socket.detach())
