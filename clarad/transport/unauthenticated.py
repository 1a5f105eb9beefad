"""Unauthenticated peers, and how they share the event loop with everybody else."""

import select
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from weakref import WeakValueDictionary

import trio

from clarad.transport.lockout import source_network

_READ_SIZE: Final = 16 * 1024
"""Bytes of an unauthenticated peer to read in one time slice: as much as a TLS record holds."""

_LONGEST_PAUSE: Final = 0.005
"""Seconds at most between two time slices that others wait for."""


class UnauthenticatedPeers:
    """A fair scheduler: one time slice in each step of the event loop, round robin by address.

    A slice is at most one TLS handshake, HTTP request or frame, some 2 ms. However many
    unauthenticated peers there are and whatever they send, every other task waits for one slice in
    each step, not for all of them. If others wait for the next slice, the loop first runs as long
    without them: the store's thread needs the interpreter, too.

    Only one peer of each address waits in the common queue, so an address gets at most every second
    slice while other addresses want some, however many connections it has.

    (Rejected: limiting the rate of connections. A rate that protects a busy daemon on a slow
    machine makes a thousand adapters wait for minutes after an idle daemon was restarted.)
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()  # the common queue: first come, first served
        self._of_network = WeakValueDictionary[str, trio.Lock]()  # while somebody holds or waits
        self._slice_began = 0.0

    async def time_slice(self, connected: trio.socket.SocketType, address: str) -> bool:
        """Wait for a time slice, which lasts until the task next waits for anything.

        The addresses of one IPv6 network count as one; see `clarad.transport.lockout`.

        Returns:
            `False` if the peer has gone: it gets no slice.
        """
        if has_hung_up(connected):
            await trio.lowlevel.checkpoint()
            return False
        of_network = self._of_network.setdefault(source_network(address), trio.Lock())
        had_to_wait = of_network.locked()
        # A trio.Lock wakes its next waiter in the step after `release`: one slice in each step.
        async with of_network:
            # Acquiring a free lock takes a step too, in which peers of other networks come.
            had_to_wait = had_to_wait or self._lock.locked()
            async with self._lock:
                if has_hung_up(connected):
                    return False
                if had_to_wait:
                    await trio.sleep(min(trio.current_time() - self._slice_began, _LONGEST_PAUSE))
                self._slice_began = trio.current_time()
        return True


def has_hung_up(connected: trio.socket.SocketType) -> bool:
    """Return whether the peer has closed its end, even if not all that it sent has been read."""
    events = select.poll()
    events.register(connected.fileno(), select.POLLRDHUP)
    return bool(events.poll(0))


class LiveListener(trio.abc.Listener[trio.SocketStream]):
    """Accepts connections of a listener, and drops those whose peers have already hung up.

    Dropping them here costs a third of dropping them in tasks of their own, and keeps the kernel's
    queue short, in which everybody waits. One connection is accepted in each step of the loop.
    """

    def __init__(self, listener: trio.SocketListener, on_accept: Callable[[], None]) -> None:
        """`on_accept` is called for each connection, also for one that is dropped."""
        self._listener = listener
        self._on_accept = on_accept
        self.socket = listener.socket

    async def accept(self) -> trio.SocketStream:
        """Wait for a connection whose peer is there. Cancelling loses none."""
        while True:
            stream = await self._listener.accept()
            self._on_accept()
            if not has_hung_up(stream.socket):
                return stream
            stream.socket.close()

    async def aclose(self) -> None:
        """Stop listening."""
        await self._listener.aclose()


class Socket(trio.abc.HalfCloseableStream):
    """A client's socket; reads wait for time slices until the peer is admitted.

    It is the lowest stream, so each step of a TLS handshake waits for its time slice as well.
    """

    def __init__(
        self, stream: trio.SocketStream, address: str, peers: UnauthenticatedPeers
    ) -> None:
        """`address` says whose time slices the peer takes; it may be replaced at any time."""
        self.address = address
        self._stream = stream
        self._peers: UnauthenticatedPeers | None = peers

    @property
    def is_admitted(self) -> bool:
        """Whether the peer is authenticated."""
        return self._peers is None

    def admit(self) -> None:
        """Read without waiting for time slices from now on."""
        self._peers = None

    async def time_slice(self) -> bool:
        """Let other tasks run before the next piece of data that was already read.

        Returns:
            `False` if an unauthenticated peer has gone: what it has sent is not worth the work.
        """
        if self._peers is None:
            await trio.lowlevel.checkpoint()
            return True
        return await self._peers.time_slice(self._stream.socket, self.address)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Read at most `max_bytes`; nothing from an unauthenticated peer that has gone."""
        if self._peers is None:
            return await self._stream.receive_some(max_bytes)
        data = await self._stream.receive_some(_READ_SIZE)
        if data and not await self.time_slice():
            return b""
        return data

    async def drain(self) -> None:
        """Read and drop everything until the peer has closed; that is too cheap for time slices."""
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
