"""The stream between trio-websocket and a socket: bounds what is read, keeps writes whole.

Frames are written past trio-websocket (`clarad.transport.sender`); its own frames (pong, close) go
through the same lock, since `ClientStream` is its stream.
"""

import re
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from clarad.limits.memory import MemoryBudget
from clarad.protocol import CloseCode
from clarad.transport.frames import Frames
from clarad.transport.unauthenticated import Socket, UnauthenticatedPeers

_READ_SIZE: Final = 64 * 1024

_FRAMES_AT_ONCE: Final = 16
"""Frames of an admitted peer that trio-websocket handles before other tasks run."""

MAX_FIRST_FRAMES: Final = 16
"""Frames of any kind that an unauthenticated peer may send."""

_MAX_HEAD: Final = 16 * 1024
"""Bytes of an HTTP request's head; h11 refuses more."""

_HEAD_ENDS: Final = re.compile(rb"\n\r?\n")  # as in h11: both have to find the same end

MAX_RECEIVED: Final = 128 * 1024 * 1024
"""Bytes of incomplete messages of all connections; `clarad.limits.memory` says how they share."""

OWN_BYTES: Final = 64 * 1024
"""Bytes of an incomplete message that every connection may have in any case."""

Close = Callable[[CloseCode, str], None]
"""Closes the connection of a peer that sends too much."""


class ClientStream(trio.abc.Stream):
    """One client's byte stream. Several tasks may write; each write stays in one piece.

    `address` is the peer's, for the log, the lockout and the time slices. `ended` is set when
    nothing more can come: trio-websocket alone would go on with the handshake of a connection that
    is lost, without end.

    trio-websocket handles everything that one read returns in one step of the event loop. So it
    gets the head of the HTTP request first, and after `start_frames` a few frames at a time.
    """

    def __init__(
        self,
        stream: trio.SocketStream,
        address: str,
        peers: UnauthenticatedPeers,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """The peer is one of `peers` until `admit`. The first read makes the TLS handshake."""
        self._socket = Socket(stream, address, peers)
        self._stream: Socket | trio.SSLStream[Socket] = self._socket
        if tls is not None:
            self._stream = trio.SSLStream(
                self._socket, tls, server_side=True, https_compatible=True
            )
        self._lock = trio.Lock()
        self._torn = False
        self._closed = False
        self._data: bytes | bytearray = b""
        self._at = 0
        self._head_size = 0
        self._frames = Frames()
        self._budget: MemoryBudget | None = None
        self._charged = 0
        self._close: Close | None = None
        self._is_rejected = False
        self._may_pass_frames = trio.Event()
        self.ended = trio.Event()

    @property
    def address(self) -> str:
        """The peer's address; a proxy's header may replace it."""
        return self._socket.address

    @address.setter
    def address(self, address: str) -> None:
        self._socket.address = address

    @property
    def is_admitted(self) -> bool:
        """Whether the peer is authenticated."""
        return self._socket.is_admitted

    def admit(self) -> None:
        """Lift the bounds for unauthenticated peers."""
        self._socket.admit()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write everything.

        If this is cancelled half way, every later write raises `BrokenResourceError`: half a frame
        would corrupt all that follows.
        """
        try:
            self._lock.acquire_nowait()  # `acquire` costs a pass through the scheduler
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            if self._torn:
                raise trio.BrokenResourceError("an earlier write was cancelled half way")
            self._torn = True
            await self._stream.send_all(data)
            self._torn = False
        finally:
            self._lock.release()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room in the socket's buffer."""
        await self._stream.wait_send_all_might_not_block()

    def start_frames(self, close: Close, budget: MemoryBudget | None = None) -> None:
        """Pass on WebSocket frames from now on.

        Once there are too many, call `close` and drop the rest. Incomplete messages are charged to
        `budget`.
        """
        self._close, self._budget = close, budget
        self._may_pass_frames.set()

    def release_received(self) -> None:
        """Give the bytes of a message back to the budget: it is complete, or not wanted."""
        self._frames.received = 0
        if self._budget is not None:
            self._budget.change(self._charged, 0)
            self._charged = 0

    async def receive_head(self) -> bytes:
        """Read the head of an HTTP request, up to the empty line; `receive_some` returns it again.

        If the stream ends early, or the head is too long, what is returned lacks the empty line.
        """
        head = bytearray()
        while (found := _HEAD_ENDS.search(head)) is None and len(head) < _MAX_HEAD:
            if not (data := await self._read()):
                break
            head += data
        self._data, self._head_size = head, len(head) if found is None else found.end()
        return bytes(head[: self._head_size])

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return the next piece of data; set `ended` at the end of the stream.

        `max_bytes` is ignored: a piece consists of whole frames, or of what there is of one.
        """
        if self._head_size:  # `receive_head` has read the head for `clarad.transport.handshake`
            await trio.lowlevel.checkpoint()
            self._at, self._head_size = self._head_size, 0
            return self._data[: self._at]
        if self._close is None:
            await self._may_pass_frames.wait()
        while True:
            # Either the last read has more frames than were passed on, or read again. Both let
            # other tasks run first.
            if self._at < len(self._data):
                if not await self._socket.time_slice():
                    self.ended.set()
                    return b""
            else:
                self._data, self._at = await self._read(), 0
                if not self._data:
                    return b""
            begin = self._at
            most = _FRAMES_AT_ONCE if self._socket.is_admitted else 1
            self._at = self._frames.advance(self._data, begin, most)
            if self._is_within_bounds():
                whole = begin == 0 and self._at == len(self._data)
                return self._data if whole else self._data[begin : self._at]
            self._at = len(self._data)  # drop it, and read on until the peer has closed

    def _is_within_bounds(self) -> bool:
        if self._is_rejected:
            return False
        violation = self._find_violation()
        if violation is not None:
            assert self._close is not None
            self._is_rejected = True
            self._close(*violation)
            return False
        if self._budget is not None:
            self._budget.change(self._charged, self._frames.received)
            self._charged = self._frames.received
        return True

    def _find_violation(self) -> tuple[CloseCode, str] | None:
        if not self._socket.is_admitted and self._frames.count > MAX_FIRST_FRAMES:
            return CloseCode.REFUSED, "too many frames before the registration"
        if excess := self._frames.find_excess(trio.current_time()):
            return CloseCode.REFUSED, excess
        if self._budget is not None and not self._budget.fits(self._charged, self._frames.received):
            return CloseCode.TOO_MANY_CONNECTIONS, "too much is being received; try later"
        return None

    async def _read(self) -> bytes | bytearray:
        if self._closed:
            raise trio.ClosedResourceError
        try:
            data = await self._stream.receive_some(_READ_SIZE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.ended.set()
            raise
        if not data:
            self.ended.set()
        return data

    async def aclose(self) -> None:
        """Send EOF. `lingering_close` closes the socket itself.

        trio-websocket calls this right after its close frame. Closing the socket while there is
        unread data would reset the connection, and the peer might lose the close frame.
        """
        first, self._closed = not self._closed, True
        self.ended.set()
        # Over TLS there is no EOF: clients do not expect a half-closed connection.
        if first and self._stream is self._socket:
            # If a write is under way, its cancellation ends the connection anyway.
            with suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                self._lock.acquire_nowait()
                try:
                    await self._socket.send_eof()
                finally:
                    self._lock.release()
        await trio.lowlevel.checkpoint()

    async def lingering_close(self, timeout: float) -> None:
        """Read and drop until the peer has closed, for `timeout` seconds; then close the socket.

        So the peer can read why it was closed (RFC 9112, section 9.6). Cancelling closes at once.
        """
        try:
            await self.aclose()
            with trio.move_on_after(timeout):
                await self._socket.drain()
        finally:
            stream, self._stream = self._stream, self._socket
            try:
                await trio.aclose_forcefully(stream)
            finally:
                # Trio's SSLStream refers to itself. OpenSSL's buffers and keys would stay until
                # the garbage collector runs, which counts objects, not bytes.
                if isinstance(stream, trio.SSLStream):
                    vars(stream).clear()


def receive_budget() -> MemoryBudget:
    """Return the budget that all connections share for incomplete messages."""
    return MemoryBudget(MAX_RECEIVED, OWN_BYTES)
