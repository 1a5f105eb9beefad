"""The stream between trio-websocket and a socket, and the way around for frames that are ready.

trio-websocket's `send_message` costs a lock, a pass through the scheduler and a system call each;
three frames that are ready together can do with one of each. So the connection's writer encodes
them itself and writes them here, under a lock that trio-websocket's own frames (pong, close) also
pass through: `ClientStream` is its stream.
"""

import re
import ssl
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import trio
from trio_websocket import WebSocketConnection

from clarad.limits.memory import MemoryBudget
from clarad.protocol import CloseCode
from clarad.transport.frames import Frames
from clarad.transport.unauthenticated import Socket, UnauthenticatedPeers

_READ_SIZE: Final = 64 * 1024

_FRAMES_AT_ONCE: Final = 16
"""Frames of a peer that is in which trio-websocket gets before others run."""

MAX_FIRST_FRAMES: Final = 16
"""Frames of any kind that a stranger may send."""

_MAX_HEAD: Final = 16 * 1024
"""Bytes of an HTTP request's head; h11 refuses more."""

_HEAD_ENDS: Final = re.compile(rb"\n\r?\n")  # as h11 has it: both have to find the same end

MAX_RECEIVED: Final = 128 * 1024 * 1024
"""Bytes of messages that are not whole yet, of all connections; `clarad.limits.memory` says who has
what."""

OWN_BYTES: Final = 64 * 1024
"""Bytes beside those that every connection may have sent of one."""

_FINAL_TEXT: Final = 0x81
_SHORT: Final = struct.Struct("!BB")
_MEDIUM: Final = struct.Struct("!BBH")
_LONG: Final = struct.Struct("!BBQ")

Refuse = Callable[[CloseCode, str], None]
"""Closes a connection that sends too much."""


class ClientStream(trio.abc.Stream):
    """One client's byte stream; several tasks may write, a write is never torn apart by another.

    `address` is the peer's, for the log, for the door and for its turns. `ended` is set when
    nothing more can come: trio-websocket alone would let a handshake wait for ever on a connection
    that is gone.

    trio-websocket is passed the head of the HTTP request first, then, once there is somebody to
    `watch`, a few frames at a time: it handles all that it is given in one step of the event loop.
    """

    def __init__(
        self,
        stream: trio.SocketStream,
        address: str,
        strangers: UnauthenticatedPeers,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """The peer is one of `strangers` until `admit`. The TLS handshake is made with a read."""
        self._socket = Socket(stream, address, strangers)
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
        self._room: MemoryBudget | None = None
        self._charged = 0
        self._refuse: Refuse | None = None
        self._refused = False
        self._watched = trio.Event()
        self.ended = trio.Event()

    @property
    def address(self) -> str:
        """Where the peer is; a proxy may say so later."""
        return self._socket.address

    @address.setter
    def address(self, address: str) -> None:
        self._socket.address = address

    @property
    def is_admitted(self) -> bool:
        """Whether the peer is no stranger any more."""
        return self._socket.is_admitted

    def admit(self) -> None:
        """Let the peer send as much as one may that is known."""
        self._socket.admit()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write everything.

        If this is cancelled half way nothing can be written any more: every later write raises
        `BrokenResourceError`, since a frame without its end would corrupt all that follows.
        """
        try:
            self._lock.acquire_nowait()  # `acquire` would go through the scheduler each time
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

    def watch(self, refuse: Refuse, room: MemoryBudget | None = None) -> None:
        """Pass on frames from here on. When there are too many, call `refuse`, and drop the rest.

        `room` is for the bytes of messages that have come in part.
        """
        self._refuse, self._room = refuse, room
        self._watched.set()

    def forget_received(self) -> None:
        """Count anew: the message has come whole, or nobody waits for it."""
        self._frames.received = 0
        if self._room is not None:
            self._room.change(self._charged, 0)
            self._charged = 0

    async def receive_head(self) -> bytes:
        """Read the head of an HTTP request, to the end of the empty line; `receive_some` is next.

        What is returned has no such end if the stream has, or if the head is too long.
        """
        head = bytearray()
        while (found := _HEAD_ENDS.search(head)) is None and len(head) < _MAX_HEAD:
            if not (data := await self._read()):
                break
            head += data
        self._data, self._head_size = head, len(head) if found is None else found.end()
        return bytes(head[: self._head_size])

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return the next piece of what has come; sets `ended` at the end of the stream.

        A piece is as long as it has to be: `max_bytes` is not looked at.
        """
        if self._head_size:
            await trio.lowlevel.checkpoint()
            self._at, self._head_size = self._head_size, 0
            return self._data[: self._at]
        if self._refuse is None:
            await self._watched.wait()
        while True:
            if self._at < len(self._data):
                if not await self._socket.turn():
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
            self._at = len(self._data)

    def _is_within_bounds(self) -> bool:
        if self._refused:
            return False
        too_much = self._find_too_much()
        if too_much is not None:
            assert self._refuse is not None
            self._refused = True
            self._refuse(*too_much)
            return False
        if self._room is not None:
            self._room.change(self._charged, self._frames.received)
            self._charged = self._frames.received
        return True

    def _find_too_much(self) -> tuple[CloseCode, str] | None:
        if not self._socket.is_admitted and self._frames.count > MAX_FIRST_FRAMES:
            return CloseCode.REFUSED, "too many frames before the registration"
        if what := self._frames.find_too_many(trio.current_time()):
            return CloseCode.REFUSED, what
        if self._room is not None and not self._room.fits(self._charged, self._frames.received):
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
        """Say that nothing more will be written. The socket itself is closed by `hang_up`.

        trio-websocket calls this as soon as it has written its last word; closing the socket while
        there is unread data would reset it, and the peer could lose that word.
        """
        first, self._closed = not self._closed, True
        self.ended.set()
        # A TLS connection that is half closed is none that clients expect.
        if first and self._stream is self._socket:
            # A write that is under way ends the connection anyway, by being cancelled.
            with suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                self._lock.acquire_nowait()
                try:
                    await self._socket.send_eof()
                finally:
                    self._lock.release()
        await trio.lowlevel.checkpoint()

    async def hang_up(self, patience: float) -> None:
        """Read what comes until the peer has closed, for `patience` seconds, then close the socket.

        So the peer can read why it was closed (RFC 9112, section 9.6). Cancelling closes at once.
        """
        try:
            await self.aclose()
            with trio.move_on_after(patience):
                await self._socket.drain()
        finally:
            stream, self._stream = self._stream, self._socket
            try:
                await trio.aclose_forcefully(stream)
            finally:
                # Trio's SSLStream refers to itself, so OpenSSL's buffers and keys would wait for
                # the garbage collector, which counts objects and not their many bytes.
                if isinstance(stream, trio.SSLStream):
                    vars(stream).clear()


def receiving() -> MemoryBudget:
    """Return the room that all connections share for what they have received in part."""
    return MemoryBudget(MAX_RECEIVED, OWN_BYTES)


class FrameWriter:
    """Writes text frames to a connection, all that are ready in one go."""

    def __init__(self, websocket: WebSocketConnection, stream: ClientStream) -> None:
        self._websocket = websocket
        self._stream = stream

    async def write(self, frames: Iterable[bytes]) -> bool:
        """Write frames; `False` if the connection is closed or closing, and they are not written.

        Cancelling this half way makes the connection unusable; see `ClientStream.send_all`.
        """
        if self._websocket.closed is not None:
            return False
        try:
            await self._stream.send_all(b"".join(map(text_frame, frames)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True


def text_frame(payload: bytes) -> bytes:
    """Return a whole text message of a server: one frame, final, not masked (RFC 6455, 5.2)."""
    length = len(payload)
    if length < 126:
        return _SHORT.pack(_FINAL_TEXT, length) + payload
    if length < 1 << 16:
        return _MEDIUM.pack(_FINAL_TEXT, 126, length) + payload
    return _LONG.pack(_FINAL_TEXT, 127, length) + payload
