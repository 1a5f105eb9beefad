"""Connections that nobody has admitted yet, and how they share the event loop with the others."""

import select
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from weakref import WeakValueDictionary

import trio

from clarad.transport.access import household

_READ_SIZE: Final = 16 * 1024
"""Bytes of a stranger that are read in one turn: as much as a TLS record holds."""

_LONGEST_PAUSE: Final = 0.005
"""Seconds between two turns that others wait for."""


class UnauthenticatedPeers:
    """Lets all of them take turns, one in each step of the event loop, and address by address.

    A turn is at most a TLS handshake, an HTTP request or a frame, some 2 ms. So however many they
    are and whatever they send, everybody else's task waits for one turn in each step, and not for
    all of them. Between two turns that others wait for, the loop has as much time without them: the
    store's thread needs the interpreter, too.

    Of those with one address one at a time waits in the common queue, so an address has every
    second turn at the most while others want some, however many connections it has.

    (Rejected: a rate of connections. One that protects a busy daemon on a slow machine has a
    thousand adapters wait for minutes after a restart of an idle one.)
    """

    def __init__(self) -> None:
        self._turn = trio.Lock()  # first come, first served: those who have their address's own
        self._of_address = WeakValueDictionary[str, trio.Lock]()  # for as long as somebody waits
        self._given_at = 0.0

    async def turn(self, connected: trio.socket.SocketType, address: str) -> bool:
        """Wait for a turn; it lasts until the task next waits for anything.

        Networks of IPv6 count as one address, as `clarad.transport.access` has them.

        Returns:
            Whether there is one: a peer that has gone gets none, and takes no time from the others.
        """
        if has_gone(connected):
            await trio.lowlevel.checkpoint()
            return False
        others = self._of_address.setdefault(household(address), trio.Lock())
        had_to_wait = others.locked() or self._turn.locked()
        # Trio hands a lock on in the step after its release, so one task gets through in each.
        async with others, self._turn:
            if has_gone(connected):
                return False
            if had_to_wait:
                await trio.sleep(min(trio.current_time() - self._given_at, _LONGEST_PAUSE))
            self._given_at = trio.current_time()
        return True


def has_gone(connected: trio.socket.SocketType) -> bool:
    """Whether the peer has closed its end, however much of what it sent has not been read."""
    events = select.poll()
    events.register(connected.fileno(), select.POLLRDHUP)
    return bool(events.poll(0))


class Present(trio.abc.Listener[trio.SocketStream]):
    """Takes connections of a listener, and drops those whose peers have gone already.

    To drop them here and not in a task of their own costs a third, and keeps the kernel's queue
    short that everybody waits in. One is taken in each step of the loop, whatever comes.
    """

    def __init__(self, listener: trio.SocketListener, taken: Callable[[], None]) -> None:
        """`taken` is called for each one, gone or not."""
        self._listener = listener
        self._taken = taken
        self.socket = listener.socket

    async def accept(self) -> trio.SocketStream:
        """Wait for a connection that has a peer. Cancelling loses none."""
        while True:
            stream = await self._listener.accept()
            self._taken()
            if not has_gone(stream.socket):
                return stream
            stream.socket.close()

    async def aclose(self) -> None:
        """Stop listening."""
        await self._listener.aclose()


class Socket(trio.abc.HalfCloseableStream):
    """A client's socket; what comes from a stranger is read in pieces, each in its turn.

    It is the lowest stream, so that each step of a TLS handshake has to wait for its turn as well.
    """

    def __init__(
        self, stream: trio.SocketStream, address: str, strangers: UnauthenticatedPeers
    ) -> None:
        """`address` is whose turns it takes; replace it freely."""
        self.address = address
        self._stream = stream
        self._strangers: UnauthenticatedPeers | None = strangers

    @property
    def is_admitted(self) -> bool:
        """Whether this is no stranger's any more."""
        return self._strangers is None

    def admit(self) -> None:
        """Read without waiting for turns from here on."""
        self._strangers = None

    async def turn(self) -> bool:
        """Let others run before the next piece of what was read already.

        Returns:
            Whether that is worth it: what a stranger sent before it went is not.
        """
        if self._strangers is None:
            await trio.lowlevel.checkpoint()
            return True
        return await self._strangers.turn(self._stream.socket, self.address)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Read what has come, at most `max_bytes`; a stranger that has gone has sent nothing."""
        if self._strangers is None:
            return await self._stream.receive_some(max_bytes)
        data = await self._stream.receive_some(_READ_SIZE)
        if data and not await self.turn():
            return b""
        return data

    async def drain(self) -> None:
        """Read until the peer has closed, and drop it all: that costs too little to take turns."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while await self._stream.receive_some(_READ_SIZE):
                pass

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write everything."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room in the socket's buffer."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Say that nothing more will be written."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the socket."""
        await self._stream.aclose()
